"""Token masks inside the jitted loop: the only part of the constraints that imports JAX."""
