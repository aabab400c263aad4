"""Loops: states that most bytes lead back to, such as the inside of a string, and states that differ from one in a few bytes.

What a token does inside a loop is the same wherever a loop of that kind stands, so the trie that its states are walked over is
folded once for each kind (`LoopContexts`). A state that reads most bytes as a loop does, such as one inside a listed key of
an open object, is walked only where the two part.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mechanex_jax.constraints.token_index.equivalent_states import mix
from mechanex_jax.constraints.token_index.trie_walk import Moves

_LEAST_BYTES = 16  # that lead from a loop back to itself, and in which a state agrees with its loop
_MOST_ROUNDS = 16  # bytes behind which a detour is back in its loop
_PROBES = 8  # columns at which a state's loop is looked for
_DEAD, _OUTSIDE = -1, -2


@dataclasses.dataclass(frozen=True, eq=False)
class Loops:
    """The loops of an automaton.

    Attributes:
      home: int [S], the loop that every way from a state leads to first, its own for a loop; 0 for none.
      kind: uint64 [S], equal for states with a home that read the same bytes alike up to where they leave it.
      base: int [S], a loop of the same rule that reads most bytes as the state does; 0 for none, and for states with a home.
    """

    home: np.ndarray
    kind: np.ndarray
    base: np.ndarray

    @classmethod
    def of(cls, moves: Moves, leaving: np.ndarray) -> Loops:
        """The loops of an automaton; `leaving`, bool [S], are the states at which a frame may be left.

        There are none where strings must be distinct: what a token's end costs there is not decided by what the state reads.
        """
        size = len(moves.target)
        if np.any(moves.pushdown.boundary != np.arange(size)):
            none = np.zeros(size, np.int64)
            return cls(none, none.astype(np.uint64), none)
        weight = np.bincount(moves.pushdown.classes, minlength=moves.target.shape[1])
        home = _homes(moves, weight)
        return cls(home, _kinds(moves, home, leaving), _bases(moves, weight, home))


def _homes(moves: Moves, weight: np.ndarray) -> np.ndarray:
    target, size = moves.target, len(moves.target)
    states = np.arange(size)
    stays = (target == states[:, None]) & (moves.pushed == 0)
    stays[0] = False
    home = np.where(stays @ weight >= _LEAST_BYTES, states, 0)
    ordered = np.sort(target, axis=1)
    fresh = np.ones(ordered.shape, bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    source, column = np.nonzero(fresh & (ordered > 0))
    after = ordered[source, column]
    excluded = (moves.pushed > 0).any(axis=1) | (moves.pushdown.label >= 0) | (home > 0)
    kept = ~excluded[source]
    source, after = source[kept], after[kept]
    for _ in range(_MOST_ROUNDS):
        if not len(source):
            break
        first = np.flatnonzero(np.diff(source, prepend=-1))
        low, high = np.minimum.reduceat(home[after], first), np.maximum.reduceat(home[after], first)
        found = source[first[(low == high) & (low > 0)]]
        if not len(found):
            break
        home[found] = low[(low == high) & (low > 0)]
        kept = home[source] == 0
        source, after = source[kept], after[kept]
    # Only detours count: what leads to a loop, and is not reached from it, is outside.
    detour = home == states
    fresh = np.flatnonzero(detour & (home > 0))
    while len(fresh):
        after = np.where(moves.pushed[fresh] == 0, target[fresh], 0)
        fresh = np.unique(after[home[after] == home[fresh][:, None]])
        fresh = fresh[(fresh > 0) & ~detour[fresh]]
        detour[fresh] = True
    return np.where(detour, home, 0)


def _kinds(moves: Moves, home: np.ndarray, leaving: np.ndarray) -> np.ndarray:
    """Hashes refined until no further kinds turn up; ways around a loop are short."""
    states = np.flatnonzero(home)
    kind = np.zeros(len(home), np.uint64)
    if not len(states):
        return kind
    kind[states] = mix(home[states] == states)
    target = moves.target[states]
    inside = (home[target] == home[states][:, None]) & (moves.pushed[states] == 0)
    salt = mix(np.arange(100, 100 + target.shape[1]))
    outside = np.where((target == 0) & ~leaving[states][:, None], *mix(np.arange(1, 3)))
    count = 0
    while True:
        kind[states] = mix(np.where(inside, kind[target], outside) * salt).sum(axis=1, dtype=np.uint64) + mix(kind[states])
        if (distinct := len(np.unique(kind[states]))) == count:
            return kind
        count = distinct


def _bases(moves: Moves, weight: np.ndarray, home: np.ndarray) -> np.ndarray:
    rule = moves.pushdown.rule
    base, most = np.zeros(len(home), np.int64), np.zeros(len(home), np.int64)
    states = np.flatnonzero(home == 0)[1:]
    leads = np.where(moves.pushed[states] == 0, home[moves.target[states]], 0)
    used = np.flatnonzero((leads > 0).any(axis=0))
    for column in used[np.argsort(-weight[used], kind="stable")][:_PROBES]:
        loop = leads[:, column]
        loop = np.where((loop > 0) & (rule[loop] == rule[states]), loop, 0)
        asked = np.flatnonzero((loop > 0) & (loop != base[states]))
        if not len(asked):
            continue
        at = states[asked]
        both = moves.target[at] > 0
        alike = both & ~differs(moves, at, loop[asked])
        agreed = alike @ weight
        better = (agreed >= _LEAST_BYTES) & (2 * agreed >= both @ weight) & (agreed > most[at])
        base[at[better]], most[at[better]] = loop[asked[better]], agreed[better]
    return base


def differs(moves: Moves, states: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool [N, C], the columns at which each state reads a byte otherwise than the other one."""
    target, other = moves.target[states], moves.target[others]
    return (target != other) | ((target > 0) & (moves.pushed[states] != moves.pushed[others]))


class LoopContexts:
    """The `trie.ByteContexts` of one state with a home: inside the loop one state each, outside all bytes told apart."""

    def __init__(self, moves: Moves, home: np.ndarray, leaving: np.ndarray, state: int):
        order, numbers = [state], {state: 0}
        rows = []
        classes = moves.pushdown.classes
        for at in order:
            target, pushed = moves.target[at][classes], moves.pushed[at][classes]
            row = np.where((target == 0) & ~leaving[at], _DEAD, _OUTSIDE)
            within = (home[target] == home[state]) & (pushed == 0) & (target > 0)
            for following in np.unique(target[within]).tolist():
                if following not in numbers:
                    numbers[following] = len(order)
                    order.append(following)
                row[within & (target == following)] = numbers[following]
            rows.append(row)
        self.next = np.array(rows, np.int16)  # by state and byte
        self.begin = 0
        outside = len(rows)
        self.classes: list[np.ndarray] = []
        for row in self.next:
            _, first, inverse = np.unique(row, return_index=True, return_inverse=True)
            merged = first[inverse.reshape(-1)]
            self.classes.append(np.where(row == _DEAD, -1, np.where(row == _OUTSIDE, np.arange(256), merged)))
        self.classes.append(np.arange(256))
        self.closed = [np.zeros(256, bool)] * (outside + 1)
        self._outside = outside

    def key(self) -> bytes:
        """Equal for states that fold a trie in the same way."""
        return b"loop" + self.next.tobytes()

    def after(self, number: int, column: int) -> int:
        """The context behind a byte."""
        following = self._outside if number == self._outside else int(self.next[number, column])
        return self._outside if following == _OUTSIDE else following
