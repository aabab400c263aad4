"""Which bytes need telling apart where: the vocabulary's trie, folded to what the states that read it can see.

A counter of characters, say, treats all letters alike, except behind a backslash. So bytes are classed by the set of states
that may be reading at a node of the trie, not once for all: a set of *kinds*, states that tell apart the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from mechanex_jax.constraints.token_index.equivalent_states import mix, mix_rows
from mechanex_jax.constraints.token_index.trie import TokenTries, Trie
from mechanex_jax.constraints.token_index.trie_walk import Moves

_MOST = 256  # kinds; beyond that all of them are in one set


class Contexts:
    """Sets of kinds, numbered as they come up; `Trie.fold` reads `classes`, `closed` and `after`.

    Args:
      moves: the automaton.
      inside: bool [S], all states that a walk can get to.
      start: the states that walks begin in.
    """

    def __init__(self, moves: Moves, inside: np.ndarray, start: np.ndarray):
        pushdown = moves.pushdown
        states = np.flatnonzero(inside)
        target, pushed = moves.target[states], moves.pushed[states]
        self.column_of_byte = pushdown.classes.astype(np.int64)
        self.read = (moves.target > 0).any(axis=0)  # by any state, also beyond `inside`
        pattern = _patterns(np.where(target > 0, target.astype(np.int64) * len(moves.lists) + pushed, 0))
        ends = pushdown.label[states] >= 0
        _, first, kind = np.unique(
            mix_rows(np.concatenate([pattern, ends[:, None]], axis=1)), return_index=True, return_inverse=True
        )
        kind = kind.reshape(-1)
        self.pattern, self.ends = pattern[first], ends[first]
        count, width = self.pattern.shape
        of_state = np.full(len(inside), -1, np.int64)
        of_state[states] = kind
        self.next = np.zeros((count, width, count), bool) if count <= _MOST else None
        self.back = np.zeros(count, bool)
        sites = np.unique(moves.lists[np.unique(pushed)])
        back = pushdown.returns[sites[sites >= 0]] if len(pushdown.returns) else np.zeros(0, np.int64)
        self.back[of_state[back[back > 0]]] = True
        begin = np.zeros(count, bool)
        begin[of_state[start]] = True
        if self.next is not None:
            rows, columns = np.nonzero(target)
            self.next[kind[rows], columns, of_state[target[rows, columns]]] = True
        else:
            begin[:] = True
        self.sets: dict[bytes, int] = {}
        self.members: list[np.ndarray] = []
        self.classes: list[np.ndarray] = []  # of each set: int [256], the column that stands for a byte; -1: no text has it
        self.closed: list[np.ndarray] = []  # of each set: bool [C], no state in it reads the column
        self._after: dict[tuple[int, int], int] = {}
        self.begin = self._number(begin)

    def key(self) -> bytes:
        """Equal for contexts that fold a trie in the same way."""
        digest = hashlib.sha256()
        for array in (self.pattern, self.ends, self.next, self.back, self.members[0], self.column_of_byte, self.read):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.digest()

    def after(self, number: int, column: int) -> int:
        """The set that may be reading once set `number` has read `column`."""
        key = number, column
        if key not in self._after:
            members = self.members[number]
            self._after[key] = number if self.next is None else self._number(np.any(self.next[members, column], axis=0))
        return self._after[key]

    def _number(self, members: np.ndarray) -> int:
        if self.ends[members].any():  # what reads the next byte is then a state that is returned to
            members = members | self.back
        key = members.tobytes()
        if key not in self.sets:
            self.sets[key] = len(self.sets)
            self.members.append(members)
            pattern = self.pattern[members]
            look = mix(mix(pattern) * mix(np.arange(len(pattern)))[:, None]).sum(axis=0, dtype=np.uint64)
            _, first, number = np.unique(look, return_index=True, return_inverse=True)
            stands = np.where(self.read, first[number.reshape(-1)], -1)
            self.classes.append(stands[self.column_of_byte])
            self.closed.append(np.all(pattern < 0, axis=0))
        return self.sets[key]


def _patterns(codes: np.ndarray) -> np.ndarray:
    """Which entries of a row are equal: each one's first column with its value; -1 for zeros."""
    order = np.argsort(codes, axis=1, kind="stable")
    ordered = np.take_along_axis(codes, order, axis=1)
    fresh = np.ones(codes.shape, bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    at = np.maximum.accumulate(np.where(fresh, np.arange(codes.shape[1]), 0), axis=1)
    found = np.empty_like(order)
    np.put_along_axis(found, order, np.take_along_axis(order, at, axis=1), axis=1)
    return np.where(codes > 0, found, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """States to walk over one trie, in columns of the automaton."""

    states: np.ndarray
    trie: Trie


class Readers:
    """Finds for states of each rule the trie to walk them over."""

    def __init__(self, moves: Moves, tries: TokenTries):
        pushdown, rules = moves.pushdown, len(moves.pushdown.names)
        self.moves, self.tries, self.rule = moves, tries, pushdown.rule
        live = moves.target > 0
        look = np.where(live, (mix(moves.target) + mix(moves.pushed)) * mix(np.arange(len(live)))[:, None], np.uint64(0))
        self.look = np.zeros((rules, look.shape[1]), np.uint64)
        np.add.at(self.look, pushdown.rule[1:], look[1:])
        sources, columns = np.nonzero(live)
        # Rules whose states a walk within the frame can get to.
        caller, called = pushdown.rule[sources], pushdown.rule[moves.target[sources, columns]]
        calls = moves.pushed[sources, columns] > 0
        tails = np.stack([caller, called], axis=1)[~calls & (caller != called)]
        self.edges = np.unique(np.stack([caller, called], axis=1)[caller != called], axis=0)
        # Rules that have a caller, and those that such a rule hands its frame on to: frames of others are never left.
        self.called = np.zeros(rules, bool)
        self.called[called[calls]] = True
        sources, columns = np.nonzero(live & (pushdown.push >= 0))
        self.called[pushdown.rule[pushdown.target[sources, columns]]] = True
        sources, columns = np.nonzero((pushdown.target > 0) & (pushdown.push < 0))
        steps = np.stack([pushdown.rule[sources], pushdown.rule[pushdown.target[sources, columns]]], axis=1)
        tails = np.unique(np.concatenate([tails, steps[steps[:, 0] != steps[:, 1]]]), axis=0)
        while not self.called[tails[self.called[tails[:, 0]], 1]].all():
            self.called[tails[self.called[tails[:, 0]], 1]] = True

    def parts(self, states: np.ndarray) -> list[Part]:
        """`states`, by the tries to walk them over."""
        joined: dict[bytes, tuple[np.ndarray, list[np.ndarray]]] = {}
        rules = self.rule[states]
        for rule in np.unique(rules):
            inside = self._reach(int(rule))
            look = self.look[inside].sum(axis=0, dtype=np.uint64)
            key = np.unique(look, return_inverse=True)[1].reshape(-1).tobytes()  # rules that see the same bytes go together
            reach, members = joined.setdefault(key, (np.zeros(len(inside), bool), []))
            reach |= inside
            members.append(states[rules == rule])
        parts = []
        for reach, members in joined.values():
            states = np.concatenate(members)
            inside = reach[self.rule]
            inside[0] = False
            contexts = Contexts(self.moves, inside, states)
            parts.append(Part(states, self.tries.folded(contexts.key(), contexts)))
        return parts

    def _reach(self, rule: int) -> np.ndarray:
        inside = np.zeros(len(self.look), bool)
        inside[rule] = True
        while not inside[self.edges[inside[self.edges[:, 0]], 1]].all():
            inside[self.edges[inside[self.edges[:, 0]], 1]] = True
        return inside
