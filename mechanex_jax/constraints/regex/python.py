"""Python's regular expressions, read by Python's own parser, as expression trees."""

from __future__ import annotations

import functools
import re
import sys
import warnings
from re import _casefix, _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from mechanex_jax.constraints.automata import charset
from mechanex_jax.constraints.automata.charset import CharSet
from mechanex_jax.constraints.automata.expression import EMPTY, Assertion, CharClass, Node, Repeat, alternatives, sequence
from mechanex_jax.errors import ConstraintError

# The parser is private to Python, but is what `re` itself uses, unchanged from 3.11 to 3.14; the tests would show a change.
_TYPE_FLAGS = re.ASCII | re.LOCALE | re.UNICODE
_UNBOUNDED = int(_constants.MAXREPEAT)
# Before 3.14 `\B` does not hold in the empty text.
_NOT_BOUNDARY = "not_boundary" if sys.version_info >= (3, 14) else "not_boundary_nonempty"

_REFUSED = {
    "ASSERT": ("lookaround", r"\(\?<?="),
    "ASSERT_NOT": ("negative lookaround", r"\(\?<?!"),
    "GROUPREF": ("a back-reference", r"\\[1-9]|\(\?P="),
    "GROUPREF_EXISTS": ("a conditional group", r"\(\?\((?!\?)"),
    "GROUPREF_IGNORE": ("a back-reference", r"\\[1-9]|\(\?P="),
    "ATOMIC_GROUP": ("an atomic group", r"\(\?>"),
    "POSSESSIVE_REPEAT": ("a possessive quantifier", r"(?:[*+?]|\{\d*,?\d*\})\+"),
}


def parse(pattern: str, flags: int = 0) -> Node:
    """Parse a pattern into an expression, as `re.compile(pattern, flags)` reads it.

    Raises:
      ConstraintError: bad syntax, with its position, or a construct that is not regular or depends on backtracking, named.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = _parser.parse(pattern, flags)
    except re.error as error:
        where = "" if error.pos is None else f" at position {error.pos}"
        raise ConstraintError(f"The regular expression {_shown(pattern)} is not valid: {error.msg}{where}.") from None
    except (OverflowError, RecursionError, ValueError) as error:
        raise ConstraintError(f"The regular expression {_shown(pattern)} is not valid: {error}.") from None
    try:
        return _Translator(pattern).sequence(tree, tree.state.flags)
    except RecursionError:
        raise ConstraintError(f"The regular expression {_shown(pattern)} is nested too deeply.") from None


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 80 else pattern[:77] + "...")


class _Translator:
    def __init__(self, pattern: str):
        self.pattern = pattern

    def sequence(self, tree: Any, flags: int) -> Node:
        return sequence(self.one(str(code), argument, flags) for code, argument in tree)

    def one(self, code: str, argument: Any, flags: int) -> Node:
        if code in _REFUSED:
            name, construct = _REFUSED[code]
            position = _find(self.pattern, construct, bool(flags & re.VERBOSE))
            raise ConstraintError(
                f"The regular expression {_shown(self.pattern)} uses {name} at position {position}, which this engine does not "
                "hold. Write the pattern without it."
            )
        return getattr(self, f"_{code.lower()}")(argument, flags)

    def _literal(self, point: int, flags: int) -> Node:
        return CharClass(_char_class((("LITERAL", point),), flags))

    def _not_literal(self, point: int, flags: int) -> Node:
        return CharClass(charset.complement(_char_class((("LITERAL", point),), flags)))

    def _any(self, _: None, flags: int) -> Node:
        return CharClass(charset.ANY if flags & re.DOTALL else charset.complement(charset.of("\n")))

    def _in(self, items: list, flags: int) -> Node:
        return CharClass(_char_class(tuple((str(op), str(av) if str(op) == "CATEGORY" else av) for op, av in items), flags))

    def _branch(self, argument: Any, flags: int) -> Node:
        return alternatives([self.sequence(branch, flags) for branch in argument[1]])

    def _subpattern(self, argument: Any, flags: int) -> Node:
        _, add, remove, tree = argument
        if add & _TYPE_FLAGS:
            flags &= ~_TYPE_FLAGS
        return self.sequence(tree, (flags | add) & ~remove)

    def _max_repeat(self, argument: Any, flags: int) -> Node:
        low, high, tree = argument
        return Repeat(self.sequence(tree, flags), low, None if int(high) == _UNBOUNDED else high)

    _min_repeat = _max_repeat  # lazy or greedy, the language is the same

    def _failure(self, _: None, flags: int) -> Node:
        return CharClass(())

    def _at(self, code: Any, flags: int) -> Node:
        multiline = bool(flags & re.MULTILINE)
        words = charset.category("w", bool(flags & re.ASCII))
        places = {
            "AT_BEGINNING": Assertion("line_begin" if multiline else "begin"),
            "AT_BEGINNING_STRING": Assertion("begin"),
            "AT_END": Assertion("line_end" if multiline else "final"),
            "AT_END_STRING": Assertion("end"),
            "AT_BOUNDARY": Assertion("boundary", words),
            "AT_NON_BOUNDARY": Assertion(_NOT_BOUNDARY, words),
        }
        return places[str(code)]

    def _empty(self, _: None, flags: int) -> Node:
        return EMPTY


def _char_class(items: tuple, flags: int) -> CharSet:
    """The characters of a class as Python's compiler understands its items under `flags`."""
    ascii_only, negated = bool(flags & re.ASCII), False
    listed: list[CharSet] = []
    categories: list[CharSet] = []
    for op, value in items:
        if op == "NEGATE":
            negated = True
        elif op == "LITERAL":
            listed.append(((value, value),))
        elif op == "RANGE":
            listed.append((value,))
        else:  # CATEGORY_DIGIT, CATEGORY_NOT_DIGIT, ...
            name = value.removeprefix("CATEGORY_")
            letter = name.removeprefix("NOT_")[0].lower()
            categories.append(charset.category(letter.upper() if name.startswith("NOT_") else letter, ascii_only))
    chars = charset.union(*listed)
    if flags & re.IGNORECASE:
        chars = _ignore_case(chars, ascii_only)
    chars = charset.union(chars, *categories)
    return charset.complement(chars) if negated else charset.intersection(chars, charset.ANY)


@functools.lru_cache(maxsize=256)
def _ignore_case(chars: CharSet, ascii_only: bool) -> CharSet:
    """Every character that lowers to what a character of the set lowers to, or to one that Python holds to be its equal."""
    lower, uppers = _lowered(ascii_only)
    cased = [point for point in lower if charset.contains(chars, point)]
    kept = charset.difference(chars, charset.union((p, p) for p in lower))
    targets = {lower[p] for p in cased}
    if not ascii_only:
        extra = _casefix._EXTRA_CASES
        targets |= {p for low in tuple(targets) for p in extra.get(low, ())}
        targets |= {p for low, equals in extra.items() if low not in lower and charset.contains(chars, low) for p in equals}
    reached = {p for low in targets for p in uppers.get(low, (low,))}
    return charset.union(kept, ((p, p) for p in reached))


@functools.cache
def _lowered(ascii_only: bool) -> tuple[dict[int, int], dict[int, list[int]]]:
    """For every character with a case its simple lower case, and the reverse."""
    lower: dict[int, int] = {}
    for point in range(128) if ascii_only else range(0x1F000):
        low = _simple_lower(point)
        if low != point:
            lower[point] = low
            lower[low] = low
    reverse: dict[int, list[int]] = {}
    for point, low in lower.items():
        reverse.setdefault(low, []).append(point)
    return lower, reverse


def _simple_lower(point: int) -> int:
    low = chr(point).lower()
    return ord(low[0]) if len(low) == 1 or point == 0x130 else point


def _find(pattern: str, construct: str, verbose: bool) -> int:
    """Where `construct` first occurs outside of escapes, classes and comments."""
    token = re.compile(construct)
    at, in_class = 0, False
    while at < len(pattern):
        if not in_class and token.match(pattern, at):
            return at
        char = pattern[at]
        if in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
            at += 1 if pattern[at + 1 : at + 2] == "^" else 0
            at += 1 if pattern[at + 1 : at + 2] == "]" else 0
        elif pattern.startswith("(?#", at):
            at = max(pattern.find(")", at), at)
        elif verbose and char == "#":
            at = max(pattern.find("\n", at), at)
        at += 2 if char == "\\" else 1
    return 0
