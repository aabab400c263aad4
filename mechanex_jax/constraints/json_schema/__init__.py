"""Text constraints by JSON Schema: a schema to one pushdown automaton over the bytes of JSON texts."""

from mechanex_jax.constraints.json_schema.compile import pushdown_automaton, read

__all__ = ["pushdown_automaton", "read"]
