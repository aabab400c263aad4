"""Minimization of DFA tables: the coarsest partition into states that no text tells apart."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

_ROUNDS = 200


def ranges(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The numbers `low[0] .. high[0] - 1, low[1] .. high[1] - 1, ...` in one array."""
    counts = high - low
    total = int(counts.sum())
    return np.arange(total) + np.repeat(low - np.cumsum(counts) + counts, counts)


def unique_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of an integer matrix [N, K], and for each row which of them it is, [N]."""
    if not len(rows):
        return rows, np.zeros(0, np.int64)
    base = int(rows.max()) - int(rows.min()) + 1
    if base ** rows.shape[1] < 2**62:  # one number a row: sorts far faster
        powers = base ** np.arange(rows.shape[1], dtype=np.int64)
        keys = (rows.astype(np.int64) - int(rows.min())) @ powers
    else:
        packed = np.ascontiguousarray(rows, np.int32)
        keys = packed.view(np.dtype((np.void, packed.itemsize * packed.shape[1])))[:, 0]
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    return rows[first], number.reshape(-1)


def coarsest(table: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The block of each state, [S]: two states share one if every text from them ends with the same label.

    Blocks are numbered by their smallest state, so state 0 is in block 0. A few rounds over whole arrays settle most tables;
    what is left, such as long counters, is split further by Hopcroft's algorithm.
    """
    table = np.unique(table, axis=1)
    _, block = np.unique(label, return_inverse=True)
    before = Predecessors(len(table), np.repeat(np.arange(len(table)), table.shape[1]), table.reshape(-1))
    settled, block = refine(block, before, lambda block, states: block[table[states]], _ROUNDS)
    if not settled:
        block = _hopcroft(table, block)
    _, first, number = np.unique(block, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number.reshape(-1)].astype(np.int32)


class Predecessors:
    """The states from which one step leads to given ones.

    Args:
      size: the number of states.
      source, target: int [N], steps.
    """

    def __init__(self, size: int, source: np.ndarray, target: np.ndarray):
        keys = np.unique(target.astype(np.int64) * size + source)
        self._source = keys % size
        self._first = np.searchsorted(keys // size, np.arange(size + 1))

    def of(self, states: np.ndarray) -> np.ndarray:
        """Ascending, each once."""
        return np.unique(self._source[ranges(self._first[states], self._first[states + 1])])


def refine(
    block: np.ndarray,
    before: Predecessors,
    signature: Callable[[np.ndarray, np.ndarray], np.ndarray],
    rounds: int,
) -> tuple[bool, np.ndarray]:
    """Split blocks by what their states do, so many rounds or until none is split.

    Args:
      block: int [S], numbers from 0 without gaps.
      before: the states whose signatures depend on others.
      signature: of `(block, states)`, integers [N, K], the signatures of those states.
      rounds: how many.

    Returns:
      Whether no block would be split any more, and the blocks.
    """
    block = block.reshape(-1).astype(np.int64)
    size = np.bincount(block)
    dirty = np.arange(len(block))
    for _ in range(rounds):
        if not len(dirty):
            break
        rows = np.concatenate([block[dirty, None], signature(block, dirty)], axis=1)
        distinct, group = unique_rows(rows)
        count = np.bincount(group, minlength=len(distinct))
        old = distinct[:, 0]
        # A block of which all members are dirty keeps its number for its largest part.
        members = np.bincount(block[dirty], minlength=len(size))
        keeps = np.zeros(len(old), bool)
        order = np.lexsort((-count, old))
        heads = order[np.flatnonzero(np.diff(old[order], prepend=-1))]
        keeps[heads] = members[old[heads]] == size[old[heads]]
        number = np.where(keeps, old, 0)
        number[~keeps] = len(size) + np.arange(int((~keeps).sum()))
        changed = dirty[~keeps[group]]
        size = np.concatenate([size, count[~keeps]])
        np.subtract.at(size, old[~keeps], count[~keeps])
        block[dirty] = number[group]
        dirty = before.of(changed)
    return not len(dirty), block


def _hopcroft(table: np.ndarray, block: np.ndarray) -> np.ndarray:
    count, width = table.shape
    before: list[list[list[int]]] = []  # by column and target, the states that lead there
    for column in range(width):
        order = np.argsort(table[:, column], kind="stable")
        first = np.searchsorted(table[order, column], np.arange(count + 1)).tolist()
        states = order.tolist()
        before.append([states[a:b] for a, b in pairwise(first)])
    of = block.tolist()
    members: list[set[int]] = [set() for _ in range(max(of) + 1)]
    for state, b in enumerate(of):
        members[b].add(state)
    work = set(range(len(members)))
    while work:
        splitter = tuple(members[work.pop()])
        for into in before:
            hit: dict[int, set[int]] = {}
            for target in splitter:
                for state in into[target]:
                    hit.setdefault(of[state], set()).add(state)
            for b, part in hit.items():
                if len(part) == len(members[b]):
                    continue
                rest = members[b] - part
                small, large = (part, rest) if len(part) <= len(rest) else (rest, part)
                # A block that still waits is replaced by both halves, another one by the smaller half only.
                members[b] = large
                fresh = len(members)
                members.append(small)
                work.add(fresh)
                for state in small:
                    of[state] = fresh
    return np.array(of)
