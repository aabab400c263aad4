r"""ECMA-262 regular expressions with Unicode semantics, for JSON Schema's `pattern` and `patternProperties`.

Where the strict grammar leaves no meaning and every browser has one (`\-`, `\Z`, a lone `{` or `]`), the browsers' is taken:
the character itself.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata

from mechanex_jax.constraints.automata import charset
from mechanex_jax.constraints.automata.charset import CharSet
from mechanex_jax.constraints.automata.expression import (
    Assertion,
    CharClass,
    Lookaround,
    Node,
    Repeat,
    alternatives,
    sequence,
    walk,
)
from mechanex_jax.errors import ConstraintError

_DIGITS: CharSet = charset.interval("0", "9")
_WORDS: CharSet = charset.union(charset.interval("a", "z"), charset.interval("A", "Z"), _DIGITS, charset.of("_"))
_LINE_ENDS: CharSet = charset.of("\n\r\u2028\u2029")
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_HEX = "0123456789abcdefABCDEF"
_LONGEST_REPEAT = 1_000_000

# Long names of the general categories (the short ones are unicodedata's) and the aliases ECMA-262 takes from Unicode.
_CATEGORIES = {
    "Letter": "L", "Cased_Letter": "LC", "Uppercase_Letter": "Lu", "Lowercase_Letter": "Ll", "Titlecase_Letter": "Lt",
    "Modifier_Letter": "Lm", "Other_Letter": "Lo", "Mark": "M", "Combining_Mark": "M", "Nonspacing_Mark": "Mn",
    "Spacing_Mark": "Mc", "Enclosing_Mark": "Me", "Number": "N", "Decimal_Number": "Nd", "digit": "Nd",
    "Letter_Number": "Nl", "Other_Number": "No", "Punctuation": "P", "punct": "P", "Connector_Punctuation": "Pc",
    "Dash_Punctuation": "Pd", "Open_Punctuation": "Ps", "Close_Punctuation": "Pe", "Initial_Punctuation": "Pi",
    "Final_Punctuation": "Pf", "Other_Punctuation": "Po", "Symbol": "S", "Math_Symbol": "Sm", "Currency_Symbol": "Sc",
    "Modifier_Symbol": "Sk", "Other_Symbol": "So", "Separator": "Z", "Space_Separator": "Zs", "Line_Separator": "Zl",
    "Paragraph_Separator": "Zp", "Other": "C", "Control": "Cc", "cntrl": "Cc", "Format": "Cf", "Surrogate": "Cs",
    "Private_Use": "Co", "Unassigned": "Cn",
}  # fmt: skip
_SHORT = {*_CATEGORIES.values()}


def parse(pattern: str) -> Node:
    """Parse a pattern into an expression.

    Raises:
      ConstraintError: bad syntax, with its position, or a construct that this engine does not hold, named.
    """
    return without_lookaround(pattern, parse_lookaround(pattern))


def parse_lookaround(pattern: str) -> Node:
    """Parse a pattern into an expression in which lookaround may stand."""
    try:
        return _Parser(pattern).run()
    except RecursionError:
        raise ConstraintError(f"The pattern {pattern[:77]!r} is nested too deeply.") from None


def without_lookaround(pattern: str, node: Node) -> Node:
    """Return the expression of a pattern, or of a part of it; raise `ConstraintError` if lookaround is left in it."""
    if remaining := [part for part in walk(node) if isinstance(part, Lookaround)]:
        raise _refused_lookaround(pattern, min(remaining, key=lambda part: part.position))
    return node


def _refused(pattern: str, what: str, at: int) -> ConstraintError:
    return ConstraintError(
        f"The pattern {_shown(pattern)} uses {what} at position {at}, which this engine does not hold. Write it without."
    )


def _refused_lookaround(pattern: str, node: Lookaround) -> ConstraintError:
    name = f"{'' if node.positive else 'negative '}look{'ahead' if node.ahead else 'behind'}"
    return _refused(pattern, name, node.position)


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 80 else pattern[:77] + "...")


@functools.cache
def property_chars(name: str) -> CharSet | None:
    r"""The characters of `\p{name}`; None if it is not a property known here."""
    name = re.sub(r"^(General_Category|gc)=", "", name)
    if name == "Any":
        return charset.ANY
    if name == "ASCII":
        return charset.interval(0, 127)
    if name in ("ASCII_Hex_Digit", "AHex"):
        return charset.of(_HEX)
    if name == "Assigned":
        return charset.complement(_general_category()["Cn"])
    if name in ("White_Space", "space"):
        return charset.union(charset.interval(9, 13), charset.of("\u0085\u2028\u2029"), _general_category()["Zs"])
    if name in ("Lowercase", "Lower", "Uppercase", "Upper"):
        test = str.islower if name.startswith("Lower") else str.isupper
        return _where(lambda char: test(char))
    short = _CATEGORIES.get(name, name)
    if short not in _SHORT:
        return None
    prefixes = ("Lu", "Ll", "Lt") if short == "LC" else (short,)
    return charset.union(*(c for key, c in _general_category().items() if key.startswith(prefixes)))


def _where(test) -> CharSet:
    return charset.union((p, p) for p in range(0x20000) if not 0xD800 <= p < 0xE000 and test(chr(p)))


@functools.cache
def _general_category() -> dict[str, CharSet]:
    spans_of: dict[str, list[tuple[int, int]]] = {}
    start, current = 0, unicodedata.category("\0")
    for point in range(1, sys.maxunicode + 2):
        category = unicodedata.category(chr(point)) if point <= sys.maxunicode else ""
        if category != current:
            spans_of.setdefault(current, []).append((start, point - 1))
            start, current = point, category
    return {name: charset.intersection(tuple(spans), charset.ANY) for name, spans in spans_of.items()}


@functools.cache
def _class_escape(letter: str) -> CharSet:
    if letter.isupper():
        return charset.complement(_class_escape(letter.lower()))
    if letter == "s":
        return charset.union(charset.of("\t\v\f\ufeff"), _LINE_ENDS, _general_category()["Zs"])
    return _DIGITS if letter == "d" else _WORDS


class _Parser:
    def __init__(self, pattern: str):
        self.pattern, self.at = pattern, 0

    def run(self) -> Node:
        node = self.disjunction()
        if self.at < len(self.pattern):
            raise self.error("an unmatched )")
        return node

    def error(self, what: str, at: int | None = None) -> ConstraintError:
        shown, at = _shown(self.pattern), self.at if at is None else at
        return ConstraintError(f"The pattern {shown} has {what} at position {at}. Expected ECMA-262 syntax; correct it.")

    def refuse(self, what: str, at: int) -> ConstraintError:
        return _refused(self.pattern, what, at)

    def peek(self, text: str) -> bool:
        return self.pattern.startswith(text, self.at)

    def eat(self, text: str) -> bool:
        if self.peek(text):
            self.at += len(text)
            return True
        return False

    def disjunction(self) -> Node:
        parts = [self.alternative()]
        while self.eat("|"):
            parts.append(self.alternative())
        return alternatives(parts)

    def alternative(self) -> Node:
        parts = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            parts.append(self.term())
        return sequence(parts)

    def term(self) -> Node:
        start = self.at
        if self.eat("^"):
            node: Node = Assertion("begin")
        elif self.eat("$"):
            node = Assertion("end")
        elif self.eat("\\b"):
            node = Assertion("boundary", _WORDS)
        elif self.eat("\\B"):
            node = Assertion("not_boundary", _WORDS)
        else:
            node = self.atom()
        bounds = self.quantifier()
        if bounds is None:
            return node
        if isinstance(node, Assertion):
            raise self.error("nothing to repeat", start)
        if isinstance(node, Lookaround):
            raise _refused_lookaround(self.pattern, node)
        return Repeat(node, *bounds)

    def quantifier(self) -> tuple[int, int | None] | None:
        start = self.at
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        char = self.pattern[self.at : self.at + 1]
        if char in simple and char:
            self.at += 1
            bounds = simple[char]
        elif match := re.compile(r"\{([0-9]+)(?:(,)([0-9]*))?\}").match(self.pattern, self.at):
            self.at = match.end()
            low = int(match[1])
            bounds = (low, low if not match[2] else int(match[3]) if match[3] else None)
            if max(low, bounds[1] or 0) > _LONGEST_REPEAT:
                raise self.error(f"a repetition of more than {_LONGEST_REPEAT:,}", start)
            if bounds[1] is not None and bounds[1] < low:
                raise self.error("bounds out of order", start)
        else:
            return None
        self.eat("?")  # lazy or greedy, the language is the same
        if self.pattern[self.at : self.at + 1] in ("*", "+", "?"):
            raise self.error("nothing to repeat")
        return bounds

    def atom(self) -> Node:
        start, char = self.at, self.pattern[self.at]
        if char == "(":
            return self.group()
        if char == "[":
            self.at += 1
            return CharClass(self.char_class(start))
        if char == "\\":
            return self.escape_atom()
        if char in "*+?" or (char == "{" and re.compile(r"\{[0-9]+(,[0-9]*)?\}").match(self.pattern, start)):
            raise self.error("nothing to repeat")
        self.at += 1
        if char == ".":
            return CharClass(charset.complement(_LINE_ENDS))
        return CharClass(charset.intersection(((ord(char), ord(char)),), charset.ANY))

    def group(self) -> Node:
        start = self.at
        self.at += 1
        look = re.compile(r"\?(<?)([=!])").match(self.pattern, self.at)
        if look:
            self.at = look.end()
        elif self.eat("?"):
            named = re.compile(r"<[^\W\d][\w$]*>").match(self.pattern, self.at)
            if named:
                self.at = named.end()
            elif not self.eat(":"):
                raise self.refuse(f"the group (?{self.pattern[self.at : self.at + 1]}", start)
        node = self.disjunction()
        if not self.eat(")"):
            raise self.error("a group without )", start)
        return Lookaround(node, ahead=not look[1], positive=look[2] == "=", position=start) if look else node

    def escape_atom(self) -> Node:
        following = self.pattern[self.at + 1 : self.at + 2]
        if following and following in "123456789":
            raise self.refuse("a back-reference", self.at)
        if following == "k" and self.pattern.startswith("<", self.at + 2):
            raise self.refuse("a back-reference", self.at)
        escaped = self.escape()
        return CharClass(escaped if isinstance(escaped, tuple) else charset.intersection(((escaped, escaped),), charset.ANY))

    def escape(self) -> int | CharSet:
        """Parse an escape: a code point, or a set of them."""
        start = self.at
        self.at += 1
        if self.at >= len(self.pattern):
            raise self.error("a lone backslash", start)
        char = self.pattern[self.at]
        self.at += 1
        if char in "dDsSwW":
            return _class_escape(char)
        if char in "pP":
            return self.property(start, char == "P")
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char == "0":
            if self.pattern[self.at : self.at + 1].isdigit():
                raise self.refuse("an octal escape", start)
            return 0
        if char == "c" and re.compile("[A-Za-z]").match(self.pattern, self.at):
            self.at += 1
            return ord(self.pattern[self.at - 1]) % 32
        if char == "x" and (digits := self.hex(2)) is not None:
            return digits
        if char == "u":
            return self.unicode(start)
        return ord(char)

    def hex(self, count: int) -> int | None:
        digits = self.pattern[self.at : self.at + count]
        if len(digits) < count or any(d not in _HEX for d in digits):
            return None
        self.at += count
        return int(digits, 16)

    def unicode(self, start: int) -> int:
        if match := re.compile(r"\{([0-9a-fA-F]+)\}").match(self.pattern, self.at):
            if int(match[1], 16) > charset.LAST:
                raise self.error("a code point beyond U+10FFFF", start)
            self.at = match.end()
            return int(match[1], 16)
        point = self.hex(4)
        if point is None:
            return ord("u")
        if 0xD800 <= point < 0xDC00 and self.peek("\\u"):
            back = self.at
            self.at += 2
            low = self.hex(4)
            if low is not None and 0xDC00 <= low < 0xE000:
                return 0x10000 + ((point - 0xD800) << 10) + low - 0xDC00
            self.at = back
        return point

    def property(self, start: int, negated: bool) -> CharSet:
        match = re.compile(r"\{([\w=]+)\}").match(self.pattern, self.at)
        if not match:
            raise self.error("an incomplete property escape", start)
        chars = property_chars(match[1])
        if chars is None:
            raise self.refuse(f"the Unicode property {match[1]!r}", start)
        self.at = match.end()
        return charset.complement(chars) if negated else chars

    def char_class(self, start: int) -> CharSet:
        negated = self.eat("^")
        members: list[CharSet] = []
        while not self.eat("]"):
            low = self.class_atom(start)
            if self.peek("-") and not self.peek("-]"):
                dash = self.at
                self.at += 1
                high = self.class_atom(start)
                if isinstance(low, int) and isinstance(high, int):
                    if high < low:
                        raise self.error("a range out of order", dash)
                    members.append(((low, high),))
                    continue
                members += [charset.of("-"), _as_set(high)]
            members.append(_as_set(low))
        chars = charset.intersection(charset.union(*members), charset.ANY)
        return charset.complement(chars) if negated else chars

    def class_atom(self, start: int) -> int | CharSet:
        if self.at >= len(self.pattern):
            raise self.error("a class without ]", start)
        if self.eat("\\b"):
            return 8
        if self.peek("\\"):
            return self.escape()
        self.at += 1
        return ord(self.pattern[self.at - 1])


def _as_set(item: int | CharSet) -> CharSet:
    return item if isinstance(item, tuple) else ((item, item),)
