"""Text constraints by regular expression: Python and ECMAScript syntax to automata."""

from mechanex_jax.constraints.regex.compile import char_dfa, choices, forbidding, parse, pushdown_automaton

__all__ = ["char_dfa", "choices", "forbidding", "parse", "pushdown_automaton"]
