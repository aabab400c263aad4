"""Characters encoded in bytes: UTF-8, or the inside of a JSON string with every legal escape.

The tree is built over the classes of an alphabet, not over single characters: where a whole block of code points is of one
class it is one node, shared by everything that looks the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable

import numpy as np

from mechanex_jax.constraints.automata.byte_dfa import ByteDfa
from mechanex_jax.constraints.automata.dfa import CharDfa
from mechanex_jax.constraints.automata.minimize import unique_rows
from mechanex_jax.errors import ConstraintError

# Node: its edges (byte mask, child). Child >= 0 is a node, child < 0 the end of a character of class `~child`.
Edge = tuple[int, int]

_HIGH_ESCAPE = 0x10000
_SHORT_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class EncodingTree:
    """The encoding of all characters as a tree.

    `nodes[i]` are the edges of node i, children before parents; `root` the edges for the first byte of a character.
    """

    def __init__(self, bounds: np.ndarray, classes: np.ndarray, spelling: str):
        self._bounds = bounds.tolist()
        self._classes = classes.tolist()
        self._ids: dict[tuple[Edge, ...], int] = {}
        self._uniform: dict[tuple[str, int, int], int] = {}
        roots = {"utf8": self._utf8, "json": self._json}
        self.root: tuple[Edge, ...] = self._merge(roots[spelling]())
        self.nodes: list[tuple[Edge, ...]] = list(self._ids)

    def _merge(self, edges: Iterable[Edge]) -> tuple[Edge, ...]:
        masks: dict[int, int] = {}
        for mask, child in edges:
            masks[child] = masks.get(child, 0) | mask
        return tuple((mask, child) for child, mask in masks.items())

    def _node(self, edges: Iterable[Edge]) -> int:
        return self._ids.setdefault(self._merge(edges), len(self._ids))

    def _class(self, point: int) -> int:
        return self._classes[bisect_right(self._bounds, point) - 1]

    def _block(self, kind: str, first: int, size: int, build: Callable[[], Iterable[Edge]]) -> int:
        """The node of code points first .. first + size - 1; built once per class where they all have the same one."""
        at = bisect_right(self._bounds, first) - 1
        if at + 1 < len(self._bounds) and self._bounds[at + 1] < first + size:
            return self._node(build())
        key = (kind, size, self._classes[at])
        if key not in self._uniform:
            self._uniform[key] = self._node(build())
        return self._uniform[key]

    # -- UTF-8 -------------------------------------------------------------------------------------------------------------

    def _utf8(self) -> list[Edge]:
        edges = [(1 << point, ~self._class(point)) for point in range(0x80)]
        edges += [(1 << 0xC0 + i, self._tail(i << 6, 1)) for i in range(2, 32)]
        low = {0xE0: 0x20, 0xF0: 0x10}  # shorter spellings of the same character are not UTF-8
        high = {0xED: 0x20, 0xF4: 0x10}  # nor are surrogates and what lies beyond U+10FFFF
        for i in range(16):
            lead = 0xE0 + i
            edges.append((1 << lead, self._tail(i << 12, 2, low.get(lead, 0), high.get(lead, 64))))
        for i in range(5):
            lead = 0xF0 + i
            edges.append((1 << lead, self._tail(i << 18, 3, low.get(lead, 0), high.get(lead, 64))))
        return edges

    def _tail(self, first: int, more: int, low: int = 0, high: int = 64) -> int:
        """The node before `more` continuation bytes, the next of which is 0x80 + low .. 0x80 + high - 1."""
        size = 64 ** (more - 1)

        def build() -> Iterable[Edge]:
            for i in range(low, high):
                point = first + i * size
                yield 1 << 0x80 + i, self._tail(point, more - 1) if more > 1 else ~self._class(point)

        return self._block(f"utf8 {more} {low} {high}", first + low * size, (high - low) * size, build)

    # -- JSON strings ------------------------------------------------------------------------------------------------------

    def _json(self) -> list[Edge]:
        raw = ~((1 << 0x20) - 1 | 1 << ord('"') | 1 << ord("\\"))
        edges = [(mask & raw, child) for mask, child in self._utf8() if mask & raw]
        escape = [(1 << ord(letter), ~self._class(ord(char))) for letter, char in _SHORT_ESCAPES.items()]
        escape.append((1 << ord("u"), self._units()))
        return [*edges, (1 << ord("\\"), self._node(escape))]

    def _units(self) -> int:
        """After a backslash and u: four digits of a character below U+10000, or the first of a pair."""
        edges = [(_digit(i), self._hex(i << 12, 3)) for i in range(16) if i != 0xD]
        second = [(_digit(i), self._hex(0xD000 + (i << 8), 2)) for i in range(8)]
        second += [(_digit(8 + i), self._pair(_HIGH_ESCAPE + (i << 18), 18)) for i in range(4)]
        return self._node([*edges, (_digit(0xD), self._node(second))])

    def _hex(self, first: int, more: int) -> int:
        """The node before the last `more` hexadecimal digits of a character."""
        size = 16 ** (more - 1)

        def build() -> Iterable[Edge]:
            for i in range(16):
                point = first + i * size
                yield _digit(i), self._hex(point, more - 1) if more > 1 else ~self._class(point)

        return self._block("hex", first, 16 * size, build)

    def _pair(self, first: int, bits: int) -> int:
        """The node at which the low `bits` bits of a character above U+FFFF are still to be spelt."""

        def build() -> Iterable[Edge]:
            if bits == 10:  # the second unit: DC00 to DFFF
                ends = [(_digit(0xC + i), self._hex(first + (i << 8), 2)) for i in range(4)]
                node = self._node([(_digit(0xD), self._node(ends))])
                yield 1 << ord("\\"), self._node([(1 << ord("u"), node)])
            else:
                for i in range(16):
                    yield _digit(i), self._pair(first + (i << bits - 4), bits - 4)

        return self._block("pair", first, 1 << bits, build)


def _digit(value: int) -> int:
    char = f"{value:x}"
    return 1 << ord(char) | 1 << ord(char.upper())


class Symbols:
    """The encoding tree, once for each way in which a state's row groups the classes.

    A symbol is a node in which slots stand for the states that its characters lead to, numbered by first appearance; so a
    thousand states that count characters share a handful of symbols, and each becomes states in one array operation.
    """

    def __init__(self, bounds: np.ndarray, classes: np.ndarray, table: np.ndarray, spelling: str):
        self.tree = EncodingTree(bounds, classes, spelling)
        self.ids: dict[tuple, int] = {}
        self.next = table
        # The slot of a class is the first class with the same target, -1 if that is the dead state.
        slots = np.stack([np.argmax(table == table[:, [c]], axis=1) for c in range(table.shape[1])], axis=1)
        slots[table == 0] = -1
        self.kinds, self.kind_of = unique_rows(slots.astype(np.int32))
        self.roots = [self._specialize(kind.tolist()) for kind in self.kinds]

    def _specialize(self, slots: list[int]) -> dict[tuple[int, tuple[int, ...]], int]:
        """The edges of the root, (symbol or -1, slots) -> byte mask, for a state with this row."""
        known: list[tuple[int, tuple[int, ...]] | None] = []

        def merge(edges: tuple[tuple[int, int], ...]) -> dict[tuple[int, tuple[int, ...]], int]:
            merged: dict[tuple[int, tuple[int, ...]], int] = {}
            for mask, child in edges:
                end = (-1, (slots[~child],)) if child < 0 and slots[~child] >= 0 else None
                key = known[child] if child >= 0 else end
                if key is not None:
                    merged[key] = merged.get(key, 0) | mask
            return merged

        for edges in self.tree.nodes:
            edges_by_child = merge(edges)
            names: dict[int, int] = {}
            content = tuple(
                (mask, child, tuple([names.setdefault(slot, len(names)) for slot in used]))
                for (child, used), mask in sorted(edges_by_child.items(), key=lambda item: item[1] & -item[1])
            )
            known.append((self.ids.setdefault(content, len(self.ids)), tuple(names)) if edges_by_child else None)
        return merge(self.tree.root)

    def expand(self, count: int) -> tuple[list[tuple[np.ndarray, int, np.ndarray]], int]:
        """Edges as (states, byte mask, targets), and how many states there are: `count` and those inside characters."""
        contents = list(self.ids)
        waiting: list[list[tuple[np.ndarray, int, np.ndarray]]] = [[] for _ in contents]
        out: list[tuple[np.ndarray, int, np.ndarray]] = []

        def emit(states: np.ndarray, mask: int, child: int, targets: np.ndarray) -> None:
            if child < 0:
                out.append((states, mask, targets[:, 0]))
            else:
                waiting[child].append((states, mask, targets))

        for kind, root in enumerate(self.roots):
            states = np.flatnonzero(self.kind_of == kind)
            for (child, used), mask in root.items():
                emit(states, mask, child, self.next[states[:, None], list(used)])
        # Children have smaller numbers than parents: when a symbol's turn comes, all its uses are known.
        for symbol in range(len(contents) - 1, -1, -1):
            uses = waiting[symbol]
            if not uses:
                continue
            rows, number = unique_rows(np.concatenate([targets for _, _, targets in uses]))
            at = 0
            for states, mask, targets in uses:
                out.append((states, mask, count + number[at : at + len(targets)]))
                at += len(targets)
            states = np.arange(count, count + len(rows))
            for mask, child, used in contents[symbol]:
                emit(states, mask, child, rows[:, list(used)])
            count += len(rows)
        return out, count


def to_bytes(dfa: CharDfa, encoding: str = "utf8", close: bytes | None = None) -> ByteDfa:
    """Encode an automaton over characters as one over bytes.

    State 0 is dead, states 1 .. S - 1 keep their numbers; states inside a character follow, and after them, with `close`, the
    ends.

    Args:
      dfa: any.
      encoding: "utf8"; or "json", the inside of a JSON string, each character in every legal way (as it is, two-character
        escapes, `\\uXXXX` with digits of either case, pairs of them for characters above U+FFFF).
      close: one byte that is part of the language and ends it, for "json" the quote; the labels then stand behind it.
    """
    symbols = Symbols(dfa.bounds, dfa.classes, dfa.next, encoding)
    expanded, size = symbols.expand(len(dfa.next))
    edges: list[list[tuple[int, int]]] = [[] for _ in range(size)]
    for states, mask, targets in expanded:
        for state, target in zip(states.tolist(), targets.tolist(), strict=True):
            edges[state].append((mask, target))
    labels = [*dfa.label.tolist(), *[-1] * (size - len(dfa.next))]
    encoded = ByteDfa(edges, labels, dfa.start)
    if close is not None:
        _close(encoded, 1 << close[0])
    return encoded


def _close(dfa: ByteDfa, closing: int) -> None:
    """Let every text be followed by a closing byte, and the labels stand behind it."""
    accepting = [state for state, label in enumerate(dfa.labels) if label >= 0]
    ends = {label: dfa.state(label) for label in sorted({dfa.labels[state] for state in accepting})}
    for state in accepting:
        if any(mask & closing for mask, _ in dfa.edges[state]):
            raise ConstraintError("The closing byte is a character of the text too; it can only close JSON strings.")
        dfa.edges[state].append((closing, ends[dfa.labels[state]]))
        dfa.labels[state] = -1
