"""Expression trees, shared by patterns and grammars: regular expressions over code points, with references to rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from mechanex_jax.constraints.automata import charset
from mechanex_jax.constraints.automata.charset import CharSet


@dataclasses.dataclass(frozen=True)
class CharClass:
    """One character out of a set; the empty set is the empty language."""

    chars: CharSet


@dataclasses.dataclass(frozen=True)
class Concat:
    """One part after the other; no parts: the empty text."""

    parts: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Alternation:
    """Any one of the parts."""

    parts: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Repeat:
    """`body`, `minimum` to `maximum` times (None: no upper bound)."""

    body: Node
    minimum: int
    maximum: int | None


@dataclasses.dataclass(frozen=True)
class Assertion:
    """A condition on the characters before and after a place.

    Attributes:
      kind: begin | end | final (end, or before a newline that ends the text) | line_begin | line_end | boundary |
        not_boundary | not_boundary_nonempty (False in the empty text, as in Python before 3.14).
      words: the word characters of the two kinds that need them.
    """

    kind: str
    words: CharSet = ()


@dataclasses.dataclass(frozen=True)
class RuleRef:
    """A reference to a rule of a grammar."""

    name: str


@dataclasses.dataclass(frozen=True)
class Lookaround:
    """A condition on the text from a place on, or up to it. Front ends rewrite it or refuse it: no automaton is built of it.

    Attributes:
      body: what has to match there, or must not.
      ahead: whether the text from the place on is meant; False: the text up to it.
      positive: whether it has to match.
      position: where it stands in the pattern, for messages.
    """

    body: Node
    ahead: bool
    positive: bool
    position: int


Node = CharClass | Concat | Alternation | Repeat | Assertion | RuleRef | Lookaround
EMPTY = Concat(())


def sequence(parts: Iterable[Node]) -> Node:
    """`parts` one after the other, nested sequences opened up."""
    flat: list[Node] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Concat) else (part,))
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def alternatives(parts: Iterable[Node]) -> Node:
    """Any of `parts`, nested alternatives opened up, single characters united, duplicates dropped."""
    flat: list[Node] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Alternation) else (part,))
    sets = [part.chars for part in flat if isinstance(part, CharClass)]
    rest: list[Node] = [part for part in dict.fromkeys(flat) if not isinstance(part, CharClass)]
    if sets and (chars := charset.union(*sets) or None):
        rest.insert(0, CharClass(chars))
    if not rest:
        return CharClass(())
    return rest[0] if len(rest) == 1 else Alternation(tuple(rest))


def walk(node: Node) -> Iterator[Node]:
    """An expression and all its parts, in no particular order."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        match node:
            case Concat(parts) | Alternation(parts):
                stack.extend(parts)
            case Repeat(body=body) | Lookaround(body=body):
                stack.append(body)


def text(value: str) -> Node:
    """Exactly this text."""
    return sequence(CharClass(((ord(c), ord(c)),)) for c in value)
