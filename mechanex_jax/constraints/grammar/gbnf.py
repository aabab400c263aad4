"""llama.cpp's grammar notation, GBNF, as rules.

Parsed by hand: `lark` with a LALR grammar of GBNF took 1.2 ms of CPU for a small JSON grammar up to the bare tree, this parser
0.4 ms up to the rules, besides 56 ms once to import and build. Its messages would have to be written by hand all the same: an
undefined rule, an escape, a range and a repetition are no matter of syntax, and a bracket left open is noticed at the end only.
"""

from __future__ import annotations

import re

from mechanex_jax.constraints.automata import charset
from mechanex_jax.constraints.automata.charset import CharSet
from mechanex_jax.constraints.automata.expression import EMPTY, CharClass, Node, Repeat, RuleRef, alternatives, sequence
from mechanex_jax.errors import ConstraintError

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|\#[^\n]*)|(?P<define>::=)|(?P<name>[A-Za-z_][\w-]*)|(?P<text>"(?:[^"\\\n]|\\[^\n])*")
      |(?P<class>\[(?:[^\]\\\n]|\\[^\n])*\])|(?P<bounds>\{[ ]*\d*[ ]*(?:,[ ]*\d*[ ]*)?\})|(?P<sign>[|()*+?.])""",
    re.VERBOSE,
)
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"}
_HEX_LENGTH = {"x": 2, "u": 4, "U": 8}
_LONGEST_REPEAT = 100_000


def is_gbnf(text: str) -> bool:
    """Whether a grammar is written in GBNF: some line begins a rule with `::=`."""
    return re.search(r"^[ \t]*[A-Za-z_][\w-]*[ \t]*::=", text, re.MULTILINE) is not None


def parse(text: str) -> dict[str, Node]:
    """Parse a grammar into rules by name.

    Raises:
      ConstraintError: bad syntax, an undefined or twice defined rule, with line and column; no rule `root`.
    """
    return _Parser(text).run()


class _Parser:
    def __init__(self, text: str):
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if not match:
                raise self.error(f"{text[at]!r} is not expected here", at)
            if match.lastgroup != "space":
                self.tokens.append((str(match.lastgroup), match[0], at))
            at = match.end()
        self.tokens.append(("end", "the end of the grammar", len(text)))
        self.index = 0
        self.used: dict[str, int] = {}

    def error(self, what: str, at: int) -> ConstraintError:
        line = self.text.count("\n", 0, at) + 1
        column = at - self.text.rfind("\n", 0, at)
        return ConstraintError(f"The GBNF grammar is not valid: {what} (line {line}, column {column}).")

    def run(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        while self.kind() != "end":
            kind, name, at = self.tokens[self.index]
            if kind != "name" or self.kind(1) != "define":
                raise self.error(f"expected a rule, `name ::= ...`, got {name}", at)
            if name in rules:
                raise self.error(f"rule {name!r} is defined twice", at)
            self.index += 2
            rules[name] = self.alternatives()
        for name, at in self.used.items():
            if name not in rules:
                raise self.error(f"rule {name!r} is not defined", at)
        if "root" not in rules:
            raise self.error("there is no rule 'root'; add `root ::= ...`", 0)
        return rules

    def kind(self, ahead: int = 0) -> str:
        index = self.index + ahead
        return self.tokens[index][0] if index < len(self.tokens) else "end"

    def sign(self, value: str) -> bool:
        if self.tokens[self.index][1] == value and self.kind() == "sign":
            self.index += 1
            return True
        return False

    def alternatives(self) -> Node:
        parts = [self.sequence()]
        while self.sign("|"):
            parts.append(self.sequence())
        return alternatives(parts)

    def sequence(self) -> Node:
        parts: list[Node] = []
        while True:
            kind, value, at = self.tokens[self.index]
            if kind == "end" or (kind == "name" and self.kind(1) == "define") or (kind == "sign" and value in "|)"):
                if value == ")" and not self.depth:
                    raise self.error("a ) without its (", at)
                return sequence(parts) if parts else EMPTY
            self.index += 1
            parts.append(self.repeated(self.item(kind, value, at)))

    depth = 0

    def item(self, kind: str, value: str, at: int) -> Node:
        if kind == "name":
            self.used.setdefault(value, at)
            return RuleRef(value)
        if kind == "text":
            return sequence(CharClass(((point, point),)) for point in self.points(value[1:-1], at + 1))
        if kind == "class":
            return CharClass(self.char_class(value[1:-1], at + 1))
        if kind == "sign" and value == ".":
            return CharClass(charset.ANY)
        if kind == "sign" and value == "(":
            self.depth += 1
            node = self.alternatives()
            if not self.sign(")"):
                raise self.error("a ( without its )", at)
            self.depth -= 1
            return node
        raise self.error(f"{value} is not expected here", at)

    def repeated(self, node: Node) -> Node:
        while True:
            kind, value, at = self.tokens[self.index]
            if kind == "sign" and value in "*+?":
                low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[value]
            elif kind == "bounds":
                first, comma, second = value[1:-1].replace(" ", "").partition(",")
                if not first and not second:
                    raise self.error("a repetition without a number", at)
                low = int(first or 0)
                high = (int(second) if second else None) if comma else low
                if max(low, high or 0) > _LONGEST_REPEAT or (high is not None and high < low):
                    raise self.error(f"{value} is no usable repetition; expected {{m,n}}, m <= n <= {_LONGEST_REPEAT:,}", at)
            else:
                return node
            self.index += 1
            node = Repeat(node, low, high)

    def points(self, value: str, at: int) -> list[int]:
        """The code points of a text with escapes."""
        points, i = [], 0
        while i < len(value):
            if value[i] != "\\":
                points.append(ord(value[i]))
                i += 1
                continue
            letter = value[i + 1]
            if letter in _HEX_LENGTH:
                digits = value[i + 2 : i + 2 + _HEX_LENGTH[letter]]
                if not re.fullmatch(f"[0-9a-fA-F]{{{_HEX_LENGTH[letter]}}}", digits) or int(digits, 16) > charset.LAST:
                    raise self.error(f"\\{letter} needs {_HEX_LENGTH[letter]} hexadecimal digits of a character", at + i)
                points.append(int(digits, 16))
                i += 2 + len(digits)
            elif letter in _ESCAPES or letter in '\\"[]-^':
                points.append(ord(_ESCAPES.get(letter, letter)))
                i += 2
            else:
                raise self.error(f"unknown escape \\{letter}", at + i)
        return points

    def char_class(self, value: str, at: int) -> CharSet:
        negated = value.startswith("^")
        # Escaped characters are never the sign of a range: a dash is told from its escape by how it is spelt.
        items: list[tuple[int, bool]] = []
        for match in re.finditer(r"\\(?:x..|u.{4}|U.{8}|.)|.", value[negated:], re.DOTALL):
            (point,) = self.points(match[0], at + negated + match.start())
            items.append((point, match[0] == "-"))
        intervals: list[tuple[int, int]] = []
        while items:
            low = high = items.pop(0)[0]
            if len(items) > 1 and items[0][1]:
                high = items[1][0]
                del items[:2]
                if high < low:
                    raise self.error(f"a range out of order in [{value}]", at)
            intervals.append((low, high))
        chars = charset.intersection(charset.union(intervals), charset.ANY)
        return charset.complement(chars) if negated else chars
