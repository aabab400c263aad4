"""Text constraints by JSON Schema: a schema to one pushdown automaton over the bytes of JSON texts."""

from mechanex_jax.constraints.json_schema.compile import network, read

__all__ = ["network", "read"]
