"""Lark grammars as rules, read by the `lark` package itself.

The meaning is the one of the characters: a terminal stands for every text that its pattern matches, wherever it is used, as
with Lark's `dynamic_complete` lexer. Priorities, which only choose between parses, make no difference.
"""

from __future__ import annotations

import re
from typing import Any

from mechanex_jax.constraints.automata.expression import Assertion, Node, Repeat, RuleRef, alternatives, sequence, walk
from mechanex_jax.constraints.regex import python
from mechanex_jax.errors import ConstraintError

# `common.ESCAPED_STRING` looks back for a backslash; what it is for is said here without that.
_REGULAR = {r'".*?(?<!\\)(\\\\)*?"': r'"(?:[^"\\\n]|\\[^\n])*"'}
_BUNDLED = ("common", "python", "unicode", "lark")
_START = "start"


def parse(text: str) -> tuple[dict[str, Node], str]:
    """Parse a grammar into rules and terminals by name, and the name of the first.

    Raises:
      ConstraintError: what Lark says about the grammar, with line and column; a terminal that can't be held.
    """
    try:
        import lark
    except ImportError:
        raise ConstraintError("A Lark grammar needs the package `lark`: pip install lark. GBNF needs nothing.") from None
    for statement in re.finditer(r"^\s*%import[ \t]+([.\w]+)", text, re.MULTILINE):
        if statement[1].split(".")[0] not in _BUNDLED:
            raise _error(text, f"%import {statement[1]} is not one of Lark's own libraries {_BUNDLED}", statement.start(1))
    try:
        # Earley takes every context-free grammar: nothing is refused that the engine could hold.
        grammar = lark.Lark(text, parser="earley", lexer="dynamic_complete", start=_START, ambiguity="explicit")
    except lark.exceptions.UnexpectedInput as error:
        where = f"line {error.line}, column {error.column}"
        raise ConstraintError(f"The Lark grammar is not valid at {where}: {_first_line(error)}.") from None
    except Exception as error:  # also what the regular expression engine that Lark found on this machine raises
        name = re.search(r"(?:[Rr]ule|[Tt]erminal|symbol|template)s?[^'\w]*(?:used but not defined: *)?'?(\w+)'?", str(error))
        at = _position(text, name[1]) if name else None
        raise _error(text, _first_line(error), at) from None
    return _Rules(text, grammar).rules(), _START


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def _position(text: str, name: str) -> int | None:
    mention = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)
    return mention.start() if mention else None


def _error(text: str, what: str, at: int | None) -> ConstraintError:
    where = ""
    if at is not None:
        where = f" (line {text.count(chr(10), 0, at) + 1}, column {at - text.rfind(chr(10), 0, at)})"
    return ConstraintError(f"The Lark grammar is not valid: {what}{where}.")


class _Rules:
    def __init__(self, text: str, grammar: Any):
        self.text, self.grammar = text, grammar

    def rules(self) -> dict[str, Node]:
        ignored = [RuleRef(name) for name in self.grammar.ignore_tokens]
        between: list[Node] = [Repeat(alternatives(ignored), 0, None)] if ignored else []
        bodies: dict[str, list[Node]] = {}
        for rule in self.grammar.rules:
            parts: list[Node] = []
            for symbol in rule.expansion:
                parts.append(RuleRef(str(symbol.name)))
                if symbol.is_term:
                    parts += between
            bodies.setdefault(str(rule.origin.name), []).append(sequence(parts))
        rules = {name: alternatives(parts) for name, parts in bodies.items()}
        rules[_START] = sequence([*between, rules[_START]])
        for terminal in self.grammar.terminals:
            rules[str(terminal.name)] = self.terminal(str(terminal.name), terminal.pattern)
        return rules

    def terminal(self, name: str, pattern: Any) -> Node:
        regexp: str = pattern.to_regexp()
        regexp = _REGULAR.get(regexp.replace(r"\"", '"'), regexp)
        try:
            node = python.parse(regexp)
        except ConstraintError as error:
            raise _error(self.text, f"terminal {name}: {error.message}", _position(self.text, name)) from None
        if any(isinstance(part, Assertion) for part in walk(node)):
            message = f"terminal {name} uses an anchor or a word boundary; leave it out, or write the pattern with regex:..."
            raise _error(self.text, message, _position(self.text, name))
        return node
