"""Deterministic byte automata that call each other: what every constraint becomes before it meets a vocabulary.

A `PushdownAutomaton` is a set of rules, each a DFA over bytes, with calls and returns. A regular expression is one rule
without calls; a JSON schema has a rule for each kind of value that nests; a recursive grammar has rules that call themselves.
A rule may end in several ways, told apart by labels, and the place it was called from decides by label where to go on: so a
value can be *classified* once, against several subschemas at the same time, and intersection, union and complement stay exact.

One byte is read like this. At state s with the byte's class c:

1. `target[s, c] > 0`: push site `push[s, c]` (if >= 0) on the stack and go to `target[s, c]`; the byte is consumed unless
   `stay[s, c]`.
2. otherwise, if s ends its rule (`label[s] >= 0`) and the stack is not empty: pop a site and go to `returns[site, label[s]]`;
   nothing is consumed. A target of 0 is dead.
3. otherwise the text is rejected.

1 goes before 2, and `Builder.finish` checks that this loses no text. The text may end where a chain of returns (2) leads to an
empty stack at a state that ends the root rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

DEAD = 0
ALL_BYTES = (1 << 256) - 1


def byte_mask(values: Iterable[int]) -> int:
    """A set of bytes as an integer, bit b standing for byte b."""
    mask = 0
    for value in values:
        mask |= 1 << value
    return mask


def mask_flags(masks: Iterable[int]) -> np.ndarray:
    """bool [N, 256] of N byte sets."""
    packed = b"".join(mask.to_bytes(32, "little") for mask in masks)
    return np.unpackbits(np.frombuffer(packed, np.uint8).reshape(-1, 32), axis=1, bitorder="little").astype(bool)


@dataclasses.dataclass(frozen=True, eq=False)
class Dfa:
    """A complete DFA over bytes. State 0 is dead.

    Attributes:
      classes: uint8 [256], bytes that no state tells apart share a class.
      next: int32 [S, C].
      label: int16 [S], -1 where the text may not end; other values say which of several languages it belongs to.
      start: a state; 0 if the language is empty.
    """

    classes: np.ndarray
    next: np.ndarray
    label: np.ndarray
    start: int


@dataclasses.dataclass(frozen=True, eq=False)
class PushdownAutomaton:
    """See the module. State 0 is dead, every other one is reachable and can still reach the end of the text.

    Attributes:
      classes: uint8 [256].
      target: int32 [S, C].
      push: int32 [S, C], -1 for none.
      stay: bool [S, C].
      label: int16 [S].
      returns: int32 [N, K], N sites and K labels; 0 where that ending is not allowed.
      rule: int32 [S], whose state it is (index into `names`); copies of a rule for different callers count apart.
      names: the rules' names, for messages.
      start: the first state; 0 if no text is accepted.
    """

    classes: np.ndarray
    target: np.ndarray
    push: np.ndarray
    stay: np.ndarray
    label: np.ndarray
    returns: np.ndarray
    rule: np.ndarray
    names: tuple[str, ...]
    start: int


class Matcher:
    """One text's way through an automaton, byte by byte, on the host. The definition that everything else is tested against."""

    def __init__(self, pushdown: PushdownAutomaton):
        self.pushdown, self.state, self.stack = pushdown, pushdown.start, ()

    def copy(self) -> Matcher:
        other = Matcher(self.pushdown)
        other.state, other.stack = self.state, self.stack
        return other

    def feed(self, data: bytes) -> bool:
        """Read `data`; False, for good, once no continuation can be accepted."""
        net = self.pushdown
        for byte in data:
            column, consumed = net.classes[byte], False
            while self.state != DEAD and not consumed:
                target = int(net.target[self.state, column])
                if target != DEAD:
                    if net.push[self.state, column] >= 0:
                        self.stack = (*self.stack, int(net.push[self.state, column]))
                    consumed = not net.stay[self.state, column]
                    self.state = target
                else:
                    self._pop()
            if self.state == DEAD:
                return False
        return self.state != DEAD

    def _pop(self) -> None:
        label = int(self.pushdown.label[self.state])
        if label < 0 or not self.stack:
            self.state = DEAD
        else:
            self.state = int(self.pushdown.returns[self.stack[-1], label])
            self.stack = self.stack[:-1]

    def accepts(self) -> bool:
        """Whether the text may end here."""
        end = self.copy()
        while end.stack and end.state != DEAD:
            end._pop()
        return end.state != DEAD and self.pushdown.label[end.state] >= 0
