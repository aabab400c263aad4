"""Regular expressions to automata: Python's syntax and the meaning of `re.fullmatch`, or ECMA-262's as JSON Schema uses it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mechanex_jax.constraints.automata.dfa import DEFAULT_LIMITS, CharDfa, CompileLimits, complement, literals
from mechanex_jax.constraints.automata.encoding import to_bytes
from mechanex_jax.constraints.automata.expression import Node
from mechanex_jax.constraints.automata.nfa import determinize
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.automata.pushdown_builder import Builder
from mechanex_jax.constraints.regex import ecma, python
from mechanex_jax.errors import ConstraintError, expected

_DIALECTS = {"python": python.parse, "ecma": ecma.parse}


def parse(pattern: str, *, dialect: str = "python") -> Node:
    """Parse a pattern into an expression; the dialect is "python" or "ecma"."""
    if not isinstance(pattern, str):
        raise ConstraintError(expected("regex", pattern, "a string", "Give the text of the pattern.").message)
    return _DIALECTS[dialect](pattern)


def char_dfa(pattern: str, *, search: bool = False, dialect: str = "python", limits: CompileLimits = DEFAULT_LIMITS) -> CharDfa:
    """Build the minimal DFA of a pattern over code points, label 0.

    Args:
      pattern: its text.
      search: accept texts with a matching part, as JSON Schema's `pattern`; otherwise the whole text has to match.
      dialect: "python", or "ecma" for ECMA-262 with Unicode semantics.
      limits: states, work and time.

    Raises:
      ConstraintError: bad syntax, an unsupported construct, or an automaton beyond the limits.
    """
    return determinize(parse(pattern, dialect=dialect), search=search, limits=limits)


def forbidding(terms: Sequence[str], limits: CompileLimits = DEFAULT_LIMITS) -> PushdownAutomaton:
    """Build the automaton of the texts in which none of the terms appears, in upper or lower case.

    Raises:
      ConstraintError: an automaton beyond the limits.
    """
    containing = char_dfa(f"(?i:{'|'.join(map(re.escape, terms))})", search=True, limits=limits)
    return _pushdown("forbidden", complement(containing))


def choices(texts: Sequence[str]) -> PushdownAutomaton:
    """Build the automaton of some texts."""
    return _pushdown("choices", literals(dict.fromkeys(texts, 0)))


def pushdown_automaton(pattern: str, limits: CompileLimits = DEFAULT_LIMITS) -> PushdownAutomaton:
    """Build the automaton of the texts that match as a whole, as by `re.fullmatch`.

    Raises:
      ConstraintError: as for `char_dfa`, or no text matches.
    """
    dfa = char_dfa(pattern, limits=limits)
    if dfa.is_empty():
        raise ConstraintError(f"No text matches the regular expression {pattern!r}. Check its anchors and empty classes.")
    return _pushdown("regex", dfa)


def _pushdown(rule: str, dfa: CharDfa) -> PushdownAutomaton:
    builder = Builder()
    root = builder.rule(rule)
    start = builder.copy(root, to_bytes(dfa))
    builder.starts[root] = start
    return builder.finish(root)
