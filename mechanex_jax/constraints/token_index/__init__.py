"""The product of a byte automaton and a vocabulary: which tokens are allowed in which state."""
