"""Text constraints by regular expression: Python and ECMAScript syntax to automata."""

from mechanex_jax.constraints.regex.compile import chars, forbidding, parse, pushdown_automaton

__all__ = ["chars", "forbidding", "parse", "pushdown_automaton"]
