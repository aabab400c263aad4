"""Two states read the same strings side by side: the strings behind which they differ, for states that are almost alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mechanex_jax.constraints.automata.minimize import ranges
from mechanex_jax.constraints.token_index.loops import differs
from mechanex_jax.constraints.token_index.trie import Trie
from mechanex_jax.constraints.token_index.trie_walk import Exited, Reached, Walker, joined

_CHUNK = 4096  # states compared at once; bounds the memory


class Difference(NamedTuple):
    """What the walks of some states add to those of their bases, and lack of them; `origin` is an index into the states."""

    added: Reached
    added_exits: Exited
    removed: Reached
    removed_exits: Exited


def differences(walker: Walker, trie: Trie, states: np.ndarray, bases: np.ndarray) -> Difference:
    """Compare the walks of `states` with those of `bases`, one each, as `Walker.walk` makes them from within a frame.

    From where both are at the same state and stack they go on together, and nothing is reported.
    """
    parts: list[list[tuple[np.ndarray, ...]]] = [[], [], [], []]
    for low in range(0, len(states), _CHUNK):
        chunk = slice(low, low + _CHUNK)
        for part, found in zip(parts, _compared(walker, trie, states[chunk], bases[chunk]), strict=True):
            part += [(origin + low, *others) for origin, *others in found]
    added, added_exits, removed, removed_exits = map(joined, parts)
    return Difference(Reached(*added), Exited(*added_exits), Reached(*removed), Exited(*removed_exits))


def _compared(walker: Walker, trie: Trie, states: np.ndarray, bases: np.ndarray) -> tuple[list[tuple[np.ndarray, ...]], ...]:
    added, added_exits, removed, removed_exits = [], [], [], []
    item, child = _first_children(walker, trie, states, bases)
    origin, none = item, np.zeros(len(item), np.int64)
    sides = [(states[item], none), (bases[item], none)]
    depth = 0
    while len(child):
        column = trie.column[child]
        (state, stack, left), (base, base_stack, base_left) = [walker.step(*side, column) for side in sides]
        if not depth:
            left[:], base_left[:] = -1, -1
        apart = np.flatnonzero((state != base) | (left != base_left) | ((state > 0) & (stack != base_stack)))
        origin, node = origin[apart], child[apart]
        ends = trie.end_own[node] > trie.first_item[node]
        sides = []
        for at, on, label, reached, exited in (
            (state[apart], stack[apart], left[apart], added, added_exits),
            (base[apart], base_stack[apart], base_left[apart], removed, removed_exits),
        ):
            gone = np.flatnonzero(label >= 0)
            exited.append((origin[gone], node[gone], np.full(len(gone), depth), label[gone]))
            here = np.flatnonzero(ends & (at > 0))
            reached.append((origin[here], node[here], at[here].astype(np.int64), on[here]))
            walker.highest = max(walker.highest, int(walker.stacks.height[on[at > 0]].max(initial=0)))
            sides.append((at.astype(np.int64), on))
        alive = np.flatnonzero((sides[0][0] > 0) | (sides[1][0] > 0))
        counts = np.diff(trie.first_child)[node[alive]]
        item = np.repeat(alive, counts)
        child = ranges(trie.first_child[node[alive]], trie.first_child[node[alive] + 1])
        origin = origin[item]
        sides = [(at[item], on[item]) for at, on in sides]
        depth += 1
    return added, added_exits, removed, removed_exits


def _first_children(walker: Walker, trie: Trie, states: np.ndarray, bases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of a state, and child of the root behind which it may differ from its base."""
    item, column = np.nonzero(differs(walker.moves, states, bases))
    children = np.arange(trie.first_child[0], trie.first_child[1])
    children = children[np.argsort(trie.column[children], kind="stable")]
    low, high = (np.searchsorted(trie.column[children], column, side=side) for side in ("left", "right"))
    return np.repeat(item, high - low), children[ranges(low, high)]
