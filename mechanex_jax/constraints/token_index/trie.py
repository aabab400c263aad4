"""Byte strings as a trie in flat arrays, for walking many automaton states over all of them at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np

from mechanex_jax.constraints.automata.minimize import ranges
from mechanex_jax.tokenization.vocabulary import Vocabulary

_WIDTH = 256
_MOST_FOLDED, _MOST_VOCABULARIES = 128, 4  # how many are remembered


class ByteContexts(Protocol):
    """Numbered sets of states that may be reading at a node of a trie, and what bytes each of them tells apart.

    Attributes:
      begin: the set at the root.
      classes: int [256] of each set, the column of an automaton that stands for a byte; -1 if no text has the byte.
      closed: bool [C] of each set, the columns that no state in it reads.
    """

    begin: int
    classes: list[np.ndarray]
    closed: list[np.ndarray]

    def after(self, number: int, column: int) -> int:
        """The set that may be reading once set `number` has read `column`."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Trie:
    """Nodes level by level, siblings side by side, the root first. A node may hold several items (tokens).

    Attributes:
      first_child: int32 [N + 1]; the children of node n are `first_child[n] .. first_child[n + 1] - 1`.
      column: int32 [N], what leads to the node: a byte, or a column of an automaton in a folded trie; -1 at the root.
      levels: the first node of each level, and N behind the last.
      first_item, end_own, end_below: int32 [N]; `items[first_item[n] : end_own[n]]` end at node n,
        `items[first_item[n] : end_below[n]]` at or below it.
      items: int32, depth first.
    """

    first_child: np.ndarray
    column: np.ndarray
    levels: np.ndarray
    first_item: np.ndarray
    end_own: np.ndarray
    end_below: np.ndarray
    items: np.ndarray

    @property
    def size(self) -> int:
        """The number of nodes, N."""
        return len(self.column)

    @property
    def depth(self) -> int:
        """The length of the longest string."""
        return len(self.levels) - 2

    def items_at(self, nodes: np.ndarray) -> np.ndarray:
        """The items that end at each of `nodes`, one node's after another's."""
        return self.items[ranges(self.first_item[nodes], self.end_own[nodes])]

    def items_below(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The items that end at or below each of `nodes`, one node's after another's, and how many each node has."""
        low, high = self.first_item[nodes], self.end_below[nodes]
        return self.items[ranges(low, high)], high - low

    def fold(self, contexts: ByteContexts) -> Trie:
        """The same strings, as far as `contexts` tell them apart: in columns instead of bytes.

        Strings with a byte that no text has are left out. What comes behind a column of `closed` is not told apart: such
        strings are items of the node that the column leads to.
        """
        image = np.full(self.size, -1, np.int64)  # each node's node in the folded trie
        image[0] = 0
        parents, labels, sizes = [np.array([-1])], [np.array([-1])], [0, 1]
        closed, context = [np.zeros(1, bool)], np.array([contexts.begin])  # of the last level of images
        is_closed = closed[0]
        source = np.repeat(np.arange(self.size), np.diff(self.first_child))
        for low, high in pairwise(self.levels[1:]):
            parent = image[source[low - 1 : high - 1]]
            inside = parent >= 0
            inside[inside] = is_closed[parent[inside]]
            image[low:high][inside] = parent[inside]
            live = np.flatnonzero((parent >= 0) & ~inside)
            up = parent[live] - sizes[-2]  # open nodes have their children on the next level
            column = np.stack(contexts.classes)[context[up], self.column[low + live]]
            live, up, column = live[column >= 0], up[column >= 0], column[column >= 0]
            if not len(live):
                if inside.any():
                    continue
                break
            keys, number = np.unique(up * _WIDTH + column, return_inverse=True)
            image[low + live] = sizes[-1] + number
            up, column = keys // _WIDTH, keys % _WIDTH
            parents.append(sizes[-2] + up)
            labels.append(column)
            pairs, which = np.unique(context[up] * _WIDTH + column, return_inverse=True)
            ends = np.array([contexts.closed[pair // _WIDTH][pair % _WIDTH] for pair in pairs.tolist()])
            after = [
                0 if end else contexts.after(pair // _WIDTH, pair % _WIDTH)
                for pair, end in zip(pairs.tolist(), ends, strict=True)
            ]
            context, closed = np.array(after)[which.reshape(-1)], [*closed, ends[which.reshape(-1)]]
            is_closed = np.concatenate(closed)
            sizes.append(sizes[-1] + len(keys))
        owner = np.repeat(image, self.end_own - self.first_item)
        items = self.items[ranges(self.first_item, self.end_own)]
        return _assemble(parents, labels, sizes, owner[owner >= 0], items[owner >= 0])


def _assemble(
    parents: list[np.ndarray], labels: list[np.ndarray], sizes: list[int], owner: np.ndarray, items: np.ndarray
) -> Trie:
    """A trie from its levels; `items[i]` ends at node `owner[i]`."""
    size = sizes[-1]
    parent, column = np.concatenate(parents), np.concatenate(labels).astype(np.int32)
    first_child = np.searchsorted(parent, np.arange(size + 1)).astype(np.int32)
    own = np.bincount(owner, minlength=size)
    below = own.copy()
    for low, high in zip(reversed(sizes[:-1]), reversed(sizes[1:]), strict=True):
        total = np.concatenate([[0], np.cumsum(below)])
        below[low:high] += total[first_child[low + 1 : high + 1]] - total[first_child[low:high]]
    before = np.concatenate([[0], np.cumsum(below)])
    first_item = np.zeros(size, np.int64)
    for low, high in pairwise(sizes[1:]):
        up = parent[low:high]
        first_item[low:high] = first_item[up] + own[up] + before[low:high] - before[first_child[up]]
    order = np.argsort(first_item[owner], kind="stable")
    return Trie(
        first_child,
        column,
        np.array(sizes),
        first_item.astype(np.int32),
        (first_item + own).astype(np.int32),
        (first_item + below).astype(np.int32),
        items[order].astype(np.int32),
    )


def build(offsets: np.ndarray, data: np.ndarray, items: np.ndarray) -> Trie:
    """The trie of the strings `data[offsets[i] : offsets[i + 1]]`, for each i of `items`; none of them empty."""
    items = np.asarray(items, np.int64)
    start, length = offsets[:-1][items].astype(np.int64), np.diff(offsets)[items]
    node = np.zeros(len(items), np.int64)
    live = np.arange(len(items))
    parents, labels, sizes = [np.array([-1])], [np.array([-1])], [0, 1]
    for level in range(int(length.max(initial=0))):
        live = live[length[live] > level]
        keys, number = np.unique(node[live] * _WIDTH + data[start[live] + level], return_inverse=True)
        node[live] = sizes[-1] + number
        parents.append(keys // _WIDTH)
        labels.append(keys % _WIDTH)
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

    def folded(self, key: bytes, contexts: ByteContexts) -> Trie:
        """`Trie.fold`, remembered for the last few keys."""
        trie = self._folded.pop(key, None) or self.trie.fold(contexts)
        while len(self._folded) >= _MOST_FOLDED:
            self._folded.pop(next(iter(self._folded)), None)
        self._folded[key] = trie
        return trie


_tries: dict[tuple[str, tuple[int, ...]], TokenTries] = {}


def tries_of(vocabulary: Vocabulary, without: tuple[int, ...]) -> TokenTries:
    """The tries of a vocabulary's tokens other than `without`. The last few vocabularies are remembered."""
    key = (vocabulary.fingerprint, without)
    if key not in _tries:
        while len(_tries) >= _MOST_VOCABULARIES:
            _tries.pop(next(iter(_tries)), None)
        _tries[key] = TokenTries(vocabulary, without)
    return _tries[key]
