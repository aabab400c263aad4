"""Minimization of DFA tables: the coarsest partition into states that no text tells apart."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

_ROUNDS = 12


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
    count = 0
    for _ in range(_ROUNDS):
        distinct, block = unique_rows(np.concatenate([block[:, None], block[table]], axis=1))
        if len(distinct) == count:
            break
        count = len(distinct)
    else:
        block = _hopcroft(table, block)
    _, first, number = np.unique(block, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number.reshape(-1)].astype(np.int32)


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
