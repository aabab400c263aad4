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

Distinct strings: keys of one object, or items of one array, no two of which may be equal. What has been read of such a string
can be compared with those before it only where a token has ended, so only there it may be closed: a state inside it reads no
closing quote, and has a twin, its `boundary`, that does, and takes its place behind each token. Whoever reads the text keeps
the strings that were closed in a frame, and does not close an equal one (`matcher` on the host, `distinct` on the device).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from mechanex_jax.representation import short_repr

DEAD = 0
LONGEST = (1 << 62) - 1  # bytes: no limit


@dataclasses.dataclass(frozen=True, eq=False)
class PushdownAutomaton:
    """A deterministic pushdown automaton over bytes, read as the module says.

    State 0 is dead, every other one is reachable and can still reach the end of the text.

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
      longest: texts of up to so many bytes are judged exactly; of longer ones a bound beyond that is not held, such as a
        maxLength of two billion.
      boundary: int32 [S], the state that one is in once a token has ended there: its own number, but for states inside the
        strings of which no two in one object or array may be equal (see below).
    """

    __repr__ = short_repr

    classes: np.ndarray
    target: np.ndarray
    push: np.ndarray
    stay: np.ndarray
    label: np.ndarray
    returns: np.ndarray
    rule: np.ndarray
    names: tuple[str, ...]
    start: int
    boundary: np.ndarray
    longest: int = LONGEST

    @functools.cached_property
    def distinct_ends(self) -> np.ndarray:
        """bool [S], the states at which a distinct string may be closed."""
        ends = np.zeros(len(self.boundary), bool)
        ends[self.boundary[self.boundary != np.arange(len(self.boundary))]] = True
        return ends
