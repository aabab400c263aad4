"""Grammars to automata: GBNF (`root ::= ...`), Lark (`start: ...`), or one regular expression (`regex:...`)."""

from __future__ import annotations

from mechanex_jax.constraints import regex
from mechanex_jax.constraints.automata.dfa import DEFAULT_LIMITS, CompileLimits
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.grammar import gbnf, lark_ebnf
from mechanex_jax.constraints.grammar.determinize import compile_rules
from mechanex_jax.errors import ConstraintError

_REGEX = "regex:"


def pushdown_automaton(text: str, limits: CompileLimits = DEFAULT_LIMITS) -> PushdownAutomaton:
    """Build the automaton of the texts that a grammar's first rule (`root` in GBNF, `start` in Lark) matches.

    Args:
      text: the grammar. `::=` marks GBNF; `regex:` at the beginning a regular expression, matched as a whole.
      limits: states, work and time.

    Raises:
      ConstraintError: bad syntax with line and column; an undefined rule; recursion or ambiguity that can't be held, naming the
        rule; no text matches; beyond the limits.
    """
    if not isinstance(text, str) or not text.strip():
        raise ConstraintError("grammar: got no text; expected a GBNF or Lark grammar, or regex:PATTERN.")
    if text.startswith(_REGEX):
        return regex.pushdown_automaton(text.removeprefix(_REGEX), limits)
    try:
        if gbnf.is_gbnf(text):
            return compile_rules(gbnf.parse(text), "root", limits)
        rules, start = lark_ebnf.parse(text)
        return compile_rules(rules, start, limits)
    except RecursionError:
        raise ConstraintError("The grammar is nested too deeply. Use fewer groups inside each other.") from None
