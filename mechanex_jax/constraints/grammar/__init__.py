"""Text constraints by grammar: GBNF and Lark notations to one pushdown automaton over bytes."""

from mechanex_jax.constraints.grammar.compile import pushdown_automaton

__all__ = ["pushdown_automaton"]
