"""Byte strings as a trie in flat arrays, for walking many automaton states over all of them at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mechanex_jax.tokenization.vocabulary import Vocabulary

_WIDTH = 256
_REMEMBERED = 24


@dataclasses.dataclass(frozen=True, eq=False)
class Trie:
    """Nodes level by level, siblings side by side, the root first. A node may hold several items (tokens).

    Attributes:
      first: int32 [N + 1]; the children of node n are `first[n] .. first[n + 1] - 1`.
      column: int32 [N], what leads to the node: a byte, or a column of an automaton in a folded trie; -1 at the root.
      levels: the first node of each level, and N behind the last.
      enter, own, leave: int32 [N]; `items[enter[n] : own[n]]` end at node n, `items[enter[n] : leave[n]]` at or below it.
      items: int32, depth first.
    """

    first: np.ndarray
    column: np.ndarray
    levels: np.ndarray
    enter: np.ndarray
    own: np.ndarray
    leave: np.ndarray
    items: np.ndarray

    @property
    def size(self) -> int:
        return len(self.column)

    @property
    def depth(self) -> int:
        """The length of the longest string."""
        return len(self.levels) - 2

    def fold(self, contexts: Any) -> Trie:
        """The same strings, as far as they can be told apart.

        Args:
          contexts: numbered sets of readers, `begin` at the root. Set n reads byte b as column `classes[n][b]`, and is set
            `after(n, column)` then. Strings with a byte of -1 are left out. What comes behind a column of `closed[n]` is
            not told apart: such strings are items of the node that the column leads to.
        """
        number = np.full(self.size, -1, np.int64)  # each node's image
        number[0] = 0
        parents, labels, sizes = [np.array([-1])], [np.array([-1])], [0, 1]
        closed, context = [np.zeros(1, bool)], np.array([contexts.begin])  # of the last level of images
        is_closed = closed[0]
        source = np.repeat(np.arange(self.size), np.diff(self.first))
        for low, high in pairwise(self.levels[1:]):
            parent = number[source[low - 1 : high - 1]]
            inside = parent >= 0
            inside[inside] = is_closed[parent[inside]]
            number[low:high][inside] = parent[inside]
            live = np.flatnonzero((parent >= 0) & ~inside)
            up = parent[live] - sizes[-2]  # open nodes have their children on the next level
            column = np.stack(contexts.classes)[context[up], self.column[low + live]]
            live, up, column = live[column >= 0], up[column >= 0], column[column >= 0]
            if not len(live):
                if inside.any():
                    continue
                break
            keys, image = np.unique(up * _WIDTH + column, return_inverse=True)
            number[low + live] = sizes[-1] + image
            up, column = keys // _WIDTH, keys % _WIDTH
            parents.append(sizes[-2] + up)
            labels.append(column)
            pairs, which = np.unique(context[up] * _WIDTH + column, return_inverse=True)
            ends = np.array([contexts.closed[pair // _WIDTH][pair % _WIDTH] for pair in pairs.tolist()])
            sets = [
                0 if end else contexts.after(pair // _WIDTH, pair % _WIDTH)
                for pair, end in zip(pairs.tolist(), ends, strict=True)
            ]
            context, closed = np.array(sets)[which.reshape(-1)], [*closed, ends[which.reshape(-1)]]
            is_closed = np.concatenate(closed)
            sizes.append(sizes[-1] + len(keys))
        owner = np.repeat(number, self.own - self.enter)
        held = self.items[ranges(self.enter, self.own)]
        return _assemble(parents, labels, sizes, owner[owner >= 0], held[owner >= 0])


def ranges(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Concatenate integer ranges: `low[0] .. high[0] - 1, low[1] .. high[1] - 1, ...`."""
    counts = high - low
    return np.arange(int(counts.sum())) + np.repeat(low - np.cumsum(counts) + counts, counts)


def _assemble(parents: list, labels: list, sizes: list[int], owner: np.ndarray, held: np.ndarray) -> Trie:
    """A trie from its levels; item `held[i]` ends at node `owner[i]`."""
    size = sizes[-1]
    parent, column = np.concatenate(parents), np.concatenate(labels).astype(np.int32)
    first = np.searchsorted(parent, np.arange(size + 1)).astype(np.int32)
    own = np.bincount(owner, minlength=size)
    below = own.copy()
    for low, high in zip(reversed(sizes[:-1]), reversed(sizes[1:]), strict=True):
        total = np.concatenate([[0], np.cumsum(below)])
        below[low:high] += total[first[low + 1 : high + 1]] - total[first[low:high]]
    before = np.concatenate([[0], np.cumsum(below)])
    enter = np.zeros(size, np.int64)
    for low, high in pairwise(sizes[1:]):
        up = parent[low:high]
        enter[low:high] = enter[up] + own[up] + before[low:high] - before[first[up]]
    order = np.argsort(enter[owner], kind="stable")
    as_int = lambda array: array.astype(np.int32)
    return Trie(first, column, np.array(sizes), as_int(enter), as_int(enter + own), as_int(enter + below), as_int(held[order]))


def build(offsets: np.ndarray, data: np.ndarray, items: np.ndarray) -> Trie:
    """The trie of the strings `data[offsets[i] : offsets[i + 1]]`, for each i of `items`; none of them empty."""
    items = np.asarray(items, np.int64)
    start, length = offsets[:-1][items].astype(np.int64), np.diff(offsets)[items]
    node = np.zeros(len(items), np.int64)
    live = np.arange(len(items))
    parents, labels, sizes = [np.array([-1])], [np.array([-1])], [0, 1]
    for level in range(int(length.max(initial=0))):
        live = live[length[live] > level]
        keys, image = np.unique(node[live] * 256 + data[start[live] + level], return_inverse=True)
        node[live] = sizes[-1] + image
        parents.append(keys // 256)
        labels.append(keys % 256)
        sizes.append(sizes[-1] + len(keys))
    return _assemble(parents, labels, sizes, node, items)


def of_strings(strings: Sequence[bytes]) -> Trie:
    """The trie of a few strings; item i is `strings[i]`."""
    offsets = np.zeros(len(strings) + 1, np.int64)
    np.cumsum([len(string) for string in strings], out=offsets[1:])
    return build(offsets, np.frombuffer(b"".join(strings), np.uint8), np.arange(len(strings)))


class TokenTries:
    """The trie of a vocabulary's text tokens, and what it is folded to for readers that see less."""

    def __init__(self, vocabulary: Vocabulary, without: tuple[int, ...]):
        lengths = np.diff(vocabulary.offsets)
        usable = (lengths > 0) & ~vocabulary.special
        usable[[token for token in without if 0 <= token < vocabulary.size]] = False
        self.trie = build(vocabulary.offsets, vocabulary.bytes, np.flatnonzero(usable))
        self._folded: dict[bytes, Trie] = {}

    def folded(self, key: bytes, contexts: Any) -> Trie:
        """`Trie.fold`, remembered for the last few keys."""
        found = self._folded.pop(key, None) or self.trie.fold(contexts)
        while len(self._folded) >= _REMEMBERED:
            self._folded.pop(next(iter(self._folded)), None)
        self._folded[key] = found
        return found


_tries: dict[tuple[str, tuple[int, ...]], TokenTries] = {}


def tries_of(vocabulary: Vocabulary, without: tuple[int, ...]) -> TokenTries:
    """The tries of a vocabulary's tokens other than `without`. The last few vocabularies are remembered."""
    key = (vocabulary.fingerprint, without)
    if key not in _tries:
        while len(_tries) >= 4:
            _tries.pop(next(iter(_tries)), None)
        _tries[key] = TokenTries(vocabulary, without)
    return _tries[key]
