"""Strings in bytes: graphs that read from behind the opening quote up to and with the closing one.

Strings of which nothing is asked but their length may use every escape that JSON has. All others, and keys, are spelt as JSON
writers do: a character that needs no escape stands for itself, one above U+007F stands for itself or is written `\\uXXXX` (a
pair of them above U+FFFF). So a key has one spelling, and an alias of it is no text at all.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from mechanex_jax.constraints.automata.byte_dfa import ALL_BYTES, ByteDfa
from mechanex_jax.constraints.automata.dfa import CharDfa, everything
from mechanex_jax.constraints.automata.encoding import to_bytes
from mechanex_jax.constraints.automata.minimize import unique_rows
from mechanex_jax.constraints.automata.pushdown_builder import Builder

_QUOTE = 1 << 0x22
_SHORT = {'"': b'\\"', "\\": b"\\\\", "\b": b"\\b", "\f": b"\\f", "\n": b"\\n", "\r": b"\\r", "\t": b"\\t"}
_DIGITS = [1 << ord(f"{i:x}") | 1 << ord(f"{i:X}") for i in range(16)]
# States that longer automata of characters share for what follows a first byte, by a call.
_INLINE = 64


# -- The spelling of JSON writers ----------------------------------------------------------------------------------------------


def _writers() -> list[list[tuple[int, int]]]:
    r"""States inside an escape: 0 outside, 1 behind `\`, 2 behind `\u`, 3 `\u0`, 4 `\u00`, 5 to 7 before the last digits."""

    def digits(*values: int) -> int:
        return functools.reduce(int.__or__, (_DIGITS[value] for value in values))

    short = functools.reduce(int.__or__, (1 << byte for byte in b'"\\bfnrt'))
    return [
        [(1 << 0x5C, 1), (ALL_BYTES & ~(1 << 0x5C), 0)],
        [(short, 0), (1 << ord("u"), 2)],
        [(digits(0), 3), (digits(*range(1, 16)), 5)],
        [(digits(0), 4), (digits(*range(1, 16)), 6)],
        [(digits(0, 1), 7), (digits(*range(8, 16)), 7)],  # below U+0020, from U+0080 on
        [(digits(*range(16)), 6)],
        [(digits(*range(16)), 7)],
        [(digits(*range(16)), 0)],
    ]


_WRITERS = _writers()


def as_written(graph: ByteDfa) -> ByteDfa:
    """The part of a string graph that is spelt as JSON writers do; minimal."""
    out = ByteDfa([], [], 0)
    numbers = {(graph.start, 0): out.state()}
    order = [(graph.start, 0)]
    for node, inside in order:
        for mask, target in graph.edges[node]:
            for allowed, following in _WRITERS[inside]:
                if mask & allowed:
                    key = (target, following)
                    if key not in numbers:
                        numbers[key] = out.state(graph.labels[target])
                        order.append(key)
                    out.edges[numbers[node, inside]].append((mask & allowed, numbers[key]))
    return out.minimize()


def of_chars(dfa: CharDfa) -> ByteDfa:
    """The graph of an automaton over characters, spelt as JSON writers do."""
    return as_written(to_bytes(dfa, "json", b'"'))


@functools.cache
def _free() -> ByteDfa:
    return of_chars(everything())


def of_texts(texts: Mapping[str, int], others: int = -1) -> ByteDfa:
    """A trie of texts with their labels; `others`, if >= 0, is the label of all other strings.

    With `others`, the texts have to be plain: ASCII without anything that needs an escape.
    """
    free = _free() if others >= 0 else ByteDfa([], [], 0)
    out = ByteDfa([list(edges) for edges in free.edges], [others if end >= 0 else -1 for end in free.labels], 0)
    ends: dict[int, int] = {}
    children: dict[tuple[int, str], int] = {}
    fans: dict[int, _Fan] = {}
    out.start = out.state()
    for text, label in texts.items():
        if any("\ud800" <= char <= "\udfff" for char in text):
            continue
        node = out.start
        for char in text:
            known = children.get((node, char))
            if known is None:
                known = children[node, char] = out.state()
                fans.setdefault(node, _Fan(out, node)).add(char, known)
            node = known
        if label not in ends:
            ends[label] = out.state(label)
        out.edges[node].append((_QUOTE, ends[label]))
    if others >= 0:
        for node in range(len(free.edges), len(out.edges)):
            if node not in ends.values():
                taken = functools.reduce(int.__or__, (mask for mask, _ in out.edges[node]), 0)
                out.edges[node] += [(mask & ~taken, to) for mask, to in free.edges[free.start] if mask & ~taken]
    return out


def is_plain(text: str) -> bool:
    """Whether a text has one spelling only: itself."""
    return all(0x20 <= ord(char) < 0x80 and char not in _SHORT for char in text)


class _Fan:
    """The spellings of the characters that may follow one node."""

    def __init__(self, graph: ByteDfa, node: int):
        self.graph, self.node = graph, node
        self.known: dict[tuple[int, ...], int] = {(): node}

    def add(self, char: str, target: int) -> None:
        if char in _SHORT:
            self._path([1 << byte for byte in _SHORT[char]], target)
        elif ord(char) < 0x20:
            self._path(_escaped(ord(char)), target)
        else:
            self._path([1 << byte for byte in char.encode()], target)
            if ord(char) >= 0x80:
                units = char.encode("utf-16-be")
                pairs = [int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2)]
                self._path([mask for unit in pairs for mask in _escaped(unit)], target)

    def _path(self, masks: Sequence[int], target: int) -> None:
        node = self.node
        for at in range(1, len(masks)):
            key = tuple(masks[:at])
            if key not in self.known:
                self.known[key] = self.graph.state()
                self.graph.edges[node].append((masks[at - 1], self.known[key]))
            node = self.known[key]
        self.graph.edges[node].append((masks[-1], target))


def _escaped(unit: int) -> list[int]:
    return [1 << 0x5C, 1 << ord("u"), *(_DIGITS[unit >> shift & 15] for shift in (12, 8, 4, 0))]


# -- Into a builder ------------------------------------------------------------------------------------------------------------


class Chains:
    """Long automata over characters, with one state for each of theirs.

    Where a character takes several bytes, its first byte calls a rule that reads the rest of it, shared by all states whose
    next states are laid out alike; the label says which of them comes next.
    """

    def __init__(self, builder: Builder):
        self.builder = builder
        self.rests: dict[Hashable, int] = {}

    def copy(self, rule: int, dfa: CharDfa, into: Mapping[int, int], written: bool) -> int:
        """Copy an automaton into a rule, each label followed by a closing quote and a state; returns the copy of its start.

        Args:
          rule: where to.
          dfa: minimal, without states that don't matter.
          into: label -> state behind the closing quote.
          written: only as JSON writers spell it.
        """
        builder = self.builder
        names = [-1] + [builder.state(rule) for _ in range(len(dfa.next) - 1)]
        rows, kind_of = unique_rows(_slots(dfa.next))
        kinds = [self._kind(dfa, row.tolist(), written) for row in rows]
        table = dfa.next.tolist()
        for state, kind in enumerate(kind_of.tolist()):
            if not state:
                continue
            direct, rest, slots = kinds[kind]
            row = table[state]
            for mask, column in direct:
                builder.edge(names[state], mask, names[row[column]])
            if rest >= 0:
                builder.call(names[state], rest, {label: names[row[column]] for label, column in slots})
            if dfa.label[state] >= 0 and int(dfa.label[state]) in into:
                builder.edge(names[state], _QUOTE, into[int(dfa.label[state])])
        return names[dfa.start]

    def _kind(self, dfa: CharDfa, row: list[int], written: bool) -> tuple[list, int, list]:
        """Of states with this row of slots: direct edges (mask, column), the rule for the rest, its labels' columns."""
        columns = sorted({slot for slot in row if slot >= 0})
        label = {slot: i for i, slot in enumerate(columns)}
        table = np.zeros((2 + len(columns), len(row)), np.int32)
        table[1] = [2 + label[slot] if slot >= 0 else 0 for slot in row]
        one = CharDfa(dfa.bounds, dfa.classes, table, np.array([-1, -1, *range(len(columns))], np.int16), 1)
        graph = to_bytes(one, "json")
        if written:
            graph = as_written(graph)
        direct, indirect = [], []
        for mask, target in graph.edges[graph.start]:
            end = graph.labels[target]
            (direct if end >= 0 else indirect).append((mask, columns[end] if end >= 0 else target))
        if not indirect:
            return direct, -1, []
        key = (*map(tuple, (dfa.bounds.tolist(), dfa.classes.tolist(), row)), written)
        if key not in self.rests:
            rule = self.rests[key] = self.builder.rule("rest of a character")
            ends = {i: self.builder.state(rule, i) for i in range(len(columns))}
            graph.edges[graph.start] = indirect
            self.builder.starts[rule] = self.builder.copy(rule, graph, ends)
        reached = functools.reduce(int.__or__, (graph.reach[target] for _, target in indirect), 0)
        return direct, self.rests[key], [(i, column) for i, column in enumerate(columns) if reached >> i & 1]


def _slots(table: np.ndarray) -> np.ndarray:
    """Each entry replaced by the first column with the same target, -1 for the dead state."""
    slots = np.stack([np.argmax(table == table[:, [c]], axis=1) for c in range(table.shape[1])], axis=1)
    slots[table == 0] = -1
    return slots.astype(np.int32)


def is_long(dfa: CharDfa) -> bool:
    """Whether an automaton should be copied as a chain: it has many states, few of which are laid out differently."""
    count = len(dfa.next)
    return count > _INLINE and len(unique_rows(_slots(dfa.next))[0]) <= count // 16
