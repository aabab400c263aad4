"""Which bytes need telling apart where: the vocabulary's trie, folded to what the states that read it can see.

A counter of characters, say, treats all letters alike, except behind a backslash. So bytes are classed by the set of states
that may be reading at a node of the trie, not once for all: a set of *kinds*, states that tell apart the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from mechanex_jax.constraints.token_index.equivalent_states import mix, mix_rows
from mechanex_jax.constraints.token_index.loops import LoopContexts, Loops
from mechanex_jax.constraints.token_index.trie import TokenTries, Trie
from mechanex_jax.constraints.token_index.trie_walk import Moves

_MOST_KINDS = 256  # beyond that all of them are in one set
_FEW_TOKENS = 1000  # begin with bytes that lead from a detour straight back to its loop
_FEW_BYTES = 24  # states that read no more are walked over the whole trie: most of it is dead at once


class ReaderSets:
    """Sets of kinds, numbered as they come up: the `trie.ByteContexts` of some states of an automaton.

    Args:
      moves: the automaton's.
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
        self.next = np.zeros((count, width, count), bool) if count <= _MOST_KINDS else None
        self.returned_to = np.zeros(count, bool)
        sites = np.unique(moves.lists[np.unique(pushed)])
        back = pushdown.returns[sites[sites >= 0]] if len(pushdown.returns) else np.zeros(0, np.int64)
        self.returned_to[of_state[back[back > 0]]] = True
        begin = np.zeros(count, bool)
        begin[of_state[start]] = True
        if self.next is not None:
            rows, columns = np.nonzero(target)
            self.next[kind[rows], columns, of_state[target[rows, columns]]] = True
        else:
            begin[:] = True
        self.members: list[np.ndarray] = []
        self.classes: list[np.ndarray] = []
        self.closed: list[np.ndarray] = []
        self._numbers: dict[bytes, int] = {}
        self._after: dict[tuple[int, int], int] = {}
        self.begin = self._number(begin)

    def key(self) -> bytes:
        """Equal for sets of readers that fold a trie in the same way."""
        digest = hashlib.sha256()
        arrays = (self.pattern, self.ends, self.next, self.returned_to, self.members[0], self.column_of_byte, self.read)
        for array in arrays:
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
            members = members | self.returned_to
        key = members.tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers)
            self.members.append(members)
            pattern = self.pattern[members]
            signature = mix(mix(pattern) * mix(np.arange(len(pattern)))[:, None]).sum(axis=0, dtype=np.uint64)
            _, first, number = np.unique(signature, return_index=True, return_inverse=True)
            column = np.where(self.read, first[number.reshape(-1)], -1)
            self.classes.append(column[self.column_of_byte])
            self.closed.append(np.all(pattern < 0, axis=0))
        return self._numbers[key]


def _patterns(codes: np.ndarray) -> np.ndarray:
    """Which entries of a row are equal: each one's first column with its value; -1 for zeros."""
    order = np.argsort(codes, axis=1, kind="stable")
    ordered = np.take_along_axis(codes, order, axis=1)
    fresh = np.ones(codes.shape, bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    at = np.maximum.accumulate(np.where(fresh, np.arange(codes.shape[1]), 0), axis=1)
    first_column = np.empty_like(order)
    np.put_along_axis(first_column, order, np.take_along_axis(order, at, axis=1), axis=1)
    return np.where(codes > 0, first_column, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class WalkPlan:
    """States, and the trie to walk them over, in columns of the automaton."""

    states: np.ndarray
    trie: Trie


class WalkPlanner:
    """Finds for states the trie to walk them over.

    Attributes:
      trie: of all tokens, in columns of the automaton.
      loops: of the automaton.
      rule: int [S], the rule of each state.
      called: bool [R], rules that have a caller, and those that such a rule hands its frame on to. The frames of other rules
        are never left.
    """

    def __init__(self, moves: Moves, tries: TokenTries):
        pushdown, rules = moves.pushdown, len(moves.pushdown.names)
        self.rule = pushdown.rule
        self._moves, self._tries = moves, tries
        live = moves.target > 0
        signature = (mix(moves.target) + mix(moves.pushed)) * mix(np.arange(len(live)))[:, None]
        signature = np.where(live, signature, np.uint64(0))
        self._signature = np.zeros((rules, signature.shape[1]), np.uint64)  # of what a rule's states make of each column
        np.add.at(self._signature, pushdown.rule[1:], signature[1:])
        sources, columns = np.nonzero(live)
        caller, callee = pushdown.rule[sources], pushdown.rule[moves.target[sources, columns]]
        calls = moves.pushed[sources, columns] > 0
        tail_calls = np.stack([caller, callee], axis=1)[~calls & (caller != callee)]
        # Rules whose states a walk within the frame can get to.
        self._edges = np.unique(np.stack([caller, callee], axis=1)[caller != callee], axis=0)
        called = np.zeros(rules, bool)
        called[callee[calls]] = True
        sources, columns = np.nonzero(live & (pushdown.push >= 0))
        called[pushdown.rule[pushdown.target[sources, columns]]] = True
        sources, columns = np.nonzero((pushdown.target > 0) & (pushdown.push < 0))
        steps = np.stack([pushdown.rule[sources], pushdown.rule[pushdown.target[sources, columns]]], axis=1)
        tail_calls = np.unique(np.concatenate([tail_calls, steps[steps[:, 0] != steps[:, 1]]]), axis=0)
        self.called = _closure(called, tail_calls)
        self._leaving = (pushdown.label >= 0) & self.called[pushdown.rule]
        self.loops = Loops.of(moves, self._leaving)
        self._bytes_read = live @ np.bincount(pushdown.classes, minlength=live.shape[1])
        self.trie = self._in_columns(tries.trie)
        first = np.arange(1, tries.trie.first_child[1])
        below = (tries.trie.end_below - tries.trie.first_item)[first]
        self._tokens_behind = np.bincount(tries.trie.column[first], below, 256)
        self._tokens_behind = np.bincount(pushdown.classes, self._tokens_behind, live.shape[1])

    def _in_columns(self, trie: Trie) -> Trie:
        """A trie of bytes, in columns of the automaton."""
        return dataclasses.replace(trie, column=self._moves.pushdown.classes[trie.column].astype(np.int32))

    def plan(self, states: np.ndarray) -> list[WalkPlan]:
        """`states`, by the tries to walk them over."""
        home = self.loops.home[states]
        back = (self._moves.target[states] == home[:, None]) & (home > 0)[:, None]
        looping = (home == states) | (back @ self._tokens_behind > _FEW_TOKENS)
        few = ~looping & ((home > 0) | (self._bytes_read[states] <= _FEW_BYTES))
        plans = self._plan_loops(states[looping]) + self._plan_rules(states[~looping & ~few])
        return [*plans, WalkPlan(states[few], self.trie)] if few.any() else plans

    def _plan_loops(self, states: np.ndarray) -> list[WalkPlan]:
        plans = []
        kinds = self.loops.kind[states]
        for kind in np.unique(kinds):
            alike = states[kinds == kind]
            contexts = LoopContexts(self._moves, self.loops.home, self._leaving, int(alike[0]))
            plans.append(WalkPlan(alike, self._in_columns(self._tries.folded(contexts.key(), contexts))))
        return plans

    def _plan_rules(self, states: np.ndarray) -> list[WalkPlan]:
        """States that see the same bytes within their rules go together."""
        joined: dict[bytes, tuple[np.ndarray, list[np.ndarray]]] = {}
        rules = self.rule[states]
        for rule in np.unique(rules):
            inside = np.zeros(len(self._signature), bool)
            inside[rule] = True
            inside = _closure(inside, self._edges)
            signature = self._signature[inside].sum(axis=0, dtype=np.uint64)
            # Rules that see the same bytes go together.
            key = np.unique(signature, return_inverse=True)[1].reshape(-1).tobytes()
            reach, members = joined.setdefault(key, (np.zeros(len(inside), bool), []))
            reach |= inside
            members.append(states[rules == rule])
        plans = []
        for reach, members in joined.values():
            states = np.concatenate(members)
            inside = reach[self.rule]
            inside[0] = False
            readers = ReaderSets(self._moves, inside, states)
            plans.append(WalkPlan(states, self._tries.folded(readers.key(), readers)))
        return plans


def _closure(members: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """`members`, bool [R], and all that `edges`, int [E, 2], lead to from them."""
    members = members.copy()
    while not members[edges[members[edges[:, 0]], 1]].all():
        members[edges[members[edges[:, 0]], 1]] = True
    return members
