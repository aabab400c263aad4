"""Many states of an automaton read many strings at once: the frontier walk behind the mask tables."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from mechanex_jax.constraints.automata.minimize import ranges
from mechanex_jax.constraints.automata.pushdown import DEAD, PushdownAutomaton
from mechanex_jax.constraints.token_index.trie import Trie
from mechanex_jax.errors import ConstraintError

_FRONTIER = 3_000_000  # pairs handled at once; bounds the memory


class KeyNumbering:
    """Numbers integer keys in the order in which they come up, whole arrays at a time."""

    def __init__(self) -> None:
        self._sorted = np.zeros(0, np.int64)
        self._number = np.zeros(0, np.int64)
        self.count = 0

    def number(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of each key, and the keys that are new, in the order of their numbers."""
        distinct, inverse = np.unique(keys, return_inverse=True)
        at = np.searchsorted(self._sorted, distinct)
        known = np.zeros(len(distinct), bool)
        inside = at < len(self._sorted)
        known[inside] = self._sorted[at[inside]] == distinct[inside]
        fresh = distinct[~known]
        if len(fresh):
            numbers = self.count + np.arange(len(fresh))
            self.count += len(fresh)
            self._sorted = np.concatenate([self._sorted, fresh])
            self._number = np.concatenate([self._number, numbers])
            order = np.argsort(self._sorted, kind="stable")
            self._sorted, self._number = self._sorted[order], self._number[order]
            at = np.searchsorted(self._sorted, distinct)
        return self._number[at][inverse.reshape(-1)], fresh


class Stacks:
    """Stacks of return sites as numbers: 0 is empty, `parent[i]` is stack i without its top `site[i]`."""

    def __init__(self, sites: int):
        self.parent, self.site, self.height = np.zeros(1, np.int64), np.full(1, -1, np.int64), np.zeros(1, np.int64)
        self._sites, self._numbering = max(sites, 1), KeyNumbering()

    def push(self, stacks: np.ndarray, sites: np.ndarray) -> np.ndarray:
        """Each of `stacks` with one site on top."""
        numbers, fresh = self._numbering.number(stacks * self._sites + sites)
        if len(fresh):
            self.parent = np.concatenate([self.parent, fresh // self._sites])
            self.site = np.concatenate([self.site, fresh % self._sites])
            self.height = np.concatenate([self.height, self.height[fresh // self._sites] + 1])
        return numbers + 1

    def of(self, sites: tuple[int, ...]) -> int:
        """One stack, its bottom first."""
        stack = np.zeros(1, np.int64)
        for site in sites:
            stack = self.push(stack, np.array([site]))
        return int(stack[0])


class Reached(NamedTuple):
    """Where strings led to. Row by row: walk `origin` is at (`state`, `stack`) behind the string of trie node `node`."""

    origin: np.ndarray
    node: np.ndarray
    state: np.ndarray
    stack: np.ndarray


class Exited(NamedTuple):
    """Where walks left the frame that they began in, and with which label: having read `depth` bytes, but not `node`'s last."""

    origin: np.ndarray
    node: np.ndarray
    depth: np.ndarray
    label: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Moves:
    """An automaton in which every byte is read in one step: calls that consume nothing are resolved beforehand.

    Attributes:
      target: int32 [S, C], the state behind the byte; 0 if there is no way but to return.
      pushed: int32 [S, C], the index of a list of sites that are pushed; list 0 is empty.
      lists: int32 [L, H], padded with -1.
    """

    pushdown: PushdownAutomaton
    target: np.ndarray
    pushed: np.ndarray
    lists: np.ndarray

    @classmethod
    def of(cls, pushdown: PushdownAutomaton) -> Moves:
        target, stay = pushdown.target.copy(), pushdown.stay.copy()
        columns = np.broadcast_to(np.arange(target.shape[1]), target.shape)
        # One list is one stack here; its sites are read off at the end.
        stacks = Stacks(len(pushdown.returns))
        pushed = np.zeros(target.shape, np.int64)
        first = pushdown.push >= 0
        pushed[first] = stacks.push(pushed[first], pushdown.push[first])
        rounds = 0
        while (waiting := stay & (target > 0)).any():
            rounds += 1
            if rounds > len(target):
                raise ConstraintError("A rule calls itself before it reads anything.")
            at, column = target[waiting], columns[waiting]
            site, stack = pushdown.push[at, column], pushed[waiting]
            stack[site >= 0] = stacks.push(stack[site >= 0], site[site >= 0])
            pushed[waiting], target[waiting], stay[waiting] = stack, pushdown.target[at, column], pushdown.stay[at, column]
        lists = np.full((len(stacks.parent), max(1, int(stacks.height.max()))), -1, np.int32)
        for index in range(1, len(lists)):  # parents come first
            parent, height = stacks.parent[index], stacks.height[index]
            lists[index, : height - 1] = lists[parent, : height - 1]
            lists[index, height - 1] = stacks.site[index]
        return cls(pushdown, target, pushed.astype(np.int32), lists)


class Walker:
    """Walks one automaton; all its walks number their stacks alike (`stacks`).

    Args:
      moves: the automaton's.
      limit: how many bytes may be read in all, one for each state and place in a trie; None for any number.
    """

    def __init__(self, moves: Moves, limit: int | None = None):
        self.moves, self.limit, self.steps = moves, limit, 0
        self.stacks = Stacks(len(moves.pushdown.returns))
        self.highest = 0

    def step(self, state: np.ndarray, stack: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read one byte each.

        Returns:
          state (0: dead or left), stack, and the label with which the frame at the walk's bottom was left, else -1.
        """
        moves, pushdown = self.moves, self.moves.pushdown
        self.steps += len(state)
        if self.limit is not None and self.steps > self.limit:
            raise ConstraintError(
                f"The constraint is too large: its states read more than {self.limit:,} bytes of tokens. Use smaller bounds, "
                "or fewer different ways to go on."
            )
        exit_label = np.full(len(state), -1, np.int64)
        target = moves.target[state, column]
        source, stack = state, stack.copy()
        waiting = np.flatnonzero((target == DEAD) & (pushdown.label[state] >= 0))
        if len(waiting):
            source = state.copy()
        while len(waiting):
            label, top = pushdown.label[source[waiting]], stack[waiting]
            bottom = top == 0
            exit_label[waiting[bottom]] = label[bottom]
            waiting, label, top = waiting[~bottom], label[~bottom], top[~bottom]
            back = pushdown.returns[self.stacks.site[top], label]
            source[waiting], stack[waiting] = back, self.stacks.parent[top]
            target[waiting] = moves.target[back, column[waiting]]
            waiting = waiting[(target[waiting] == DEAD) & (pushdown.label[back] >= 0) & (back != DEAD)]
        pushed = moves.pushed[source, column]
        calls = np.flatnonzero((pushed > 0) & (target != DEAD))
        for position in range(moves.lists.shape[1]):
            if not len(calls):
                break
            sites = moves.lists[pushed[calls], position]
            calls, sites = calls[sites >= 0], sites[sites >= 0]
            stack[calls] = self.stacks.push(stack[calls], sites)
        return target, stack, exit_label

    def walk(
        self, trie: Trie, states: np.ndarray, stacks: np.ndarray | None = None, *, leave_at_once: bool
    ) -> tuple[Reached, Exited]:
        """Read all strings of `trie` from each of `states` (walk i is `origin` i in the result).

        Args:
          trie: in columns of the automaton.
          states: where the walks begin.
          stacks: what is on the stack then, by default nothing.
          leave_at_once: whether to report frames that are left before anything is read.
        """
        states = np.asarray(states, np.int64)
        begin = np.zeros(len(states), np.int64) if stacks is None else np.asarray(stacks, np.int64)
        pending = [(0, np.arange(len(states)), np.zeros(len(states), np.int64), states, begin)]
        reached: list[tuple[np.ndarray, ...]] = []
        exited: list[tuple[np.ndarray, ...]] = []
        while pending:
            depth, origin, node, state, stack = pending.pop()
            counts = np.diff(trie.first_child)[node]
            total = int(counts.sum())
            if total > _FRONTIER and len(origin) > 1:
                half = len(origin) // 2
                for part in (slice(half), slice(half, None)):
                    pending.append((depth, origin[part], node[part], state[part], stack[part]))
                continue
            if not total:
                continue
            child = ranges(trie.first_child[node], trie.first_child[node + 1])
            column = trie.column[child]
            item = np.repeat(np.arange(len(origin)), counts)
            state, stack, exit_label = self.step(state[item], stack[item], column)
            gone = np.flatnonzero(exit_label >= 0)
            if len(gone) and (depth or leave_at_once):
                exited.append((origin[item[gone]], child[gone], np.full(len(gone), depth), exit_label[gone]))
            live = np.flatnonzero(state != DEAD)
            origin, node, state, stack = origin[item[live]], child[live], state[live].astype(np.int64), stack[live]
            self.highest = max(self.highest, int(self.stacks.height[stack].max(initial=0)))
            ends = trie.end_own[node] > trie.first_item[node]
            reached.append((origin[ends], node[ends], state[ends], stack[ends]))
            if len(origin):
                pending.append((depth + 1, origin, node, state, stack))
        return Reached(*joined(reached)), Exited(*joined(exited))


def joined(parts: list[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    return [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.zeros(0, np.int64)] * 4
