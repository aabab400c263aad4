"""Strings in bytes: automata that read from behind the opening quote up to and with the closing one.

Strings of which nothing is asked but their length may use every escape that JSON has. All others, and keys, are spelt as JSON
writers do: a character that needs no escape stands for itself, one above U+007F stands for itself or is written `\\uXXXX` (a
pair of them above U+FFFF). So a key has one spelling, and an alias of it is no text at all.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence

import numpy as np

from mechanex_jax.constraints.automata.byte_dfa import ALL_BYTES, ByteDfa, byte_mask
from mechanex_jax.constraints.automata.dfa import CharDfa, everything
from mechanex_jax.constraints.automata.encoding import to_bytes
from mechanex_jax.constraints.automata.minimize import unique_rows
from mechanex_jax.constraints.automata.pushdown_builder import Builder

_QUOTE = 1 << 0x22
_SHORT = {'"': b'\\"', "\\": b"\\\\", "\b": b"\\b", "\f": b"\\f", "\n": b"\\n", "\r": b"\\r", "\t": b"\\t"}
_DIGITS = [1 << ord(f"{i:x}") | 1 << ord(f"{i:X}") for i in range(16)]
_MIN_LONG = 65  # states of an automaton over characters from which on it may be copied by `LongStrings`
_WAYS_ON = 16
_MIN_SHARING = 16  # how many of its states on average are laid out alike


# -- The spelling of JSON writers ----------------------------------------------------------------------------------------------


def _union(masks: Iterable[int]) -> int:
    return functools.reduce(int.__or__, masks, 0)


def _writers() -> list[list[tuple[int, int]]]:
    r"""States inside an escape: 0 outside, 1 behind `\`, 2 behind `\u`, 3 `\u0`, 4 `\u00`, 5 to 7 before the last digits."""

    def digits(*values: int) -> int:
        return _union(_DIGITS[value] for value in values)

    return [
        [(1 << 0x5C, 1), (ALL_BYTES & ~(1 << 0x5C), 0)],
        [(byte_mask(b'"\\bfnrt'), 0), (1 << ord("u"), 2)],
        [(digits(0), 3), (digits(*range(1, 16)), 5)],
        [(digits(0), 4), (digits(*range(1, 16)), 6)],
        [(digits(0, 1), 7), (digits(*range(8, 16)), 7)],  # below U+0020, from U+0080 on
        [(digits(*range(16)), 6)],
        [(digits(*range(16)), 7)],
        [(digits(*range(16)), 0)],
    ]


_WRITERS = _writers()


def as_written(dfa: ByteDfa) -> ByteDfa:
    """The part of a string automaton that is spelt as JSON writers do; minimal."""
    out = ByteDfa([], [], 0)
    numbers = {(dfa.start, 0): out.state()}
    order = [(dfa.start, 0)]
    for state, inside in order:
        for mask, target in dfa.edges[state]:
            for allowed, following in _WRITERS[inside]:
                if mask & allowed:
                    key = (target, following)
                    if key not in numbers:
                        numbers[key] = out.state(dfa.labels[target])
                        order.append(key)
                    out.edges[numbers[state, inside]].append((mask & allowed, numbers[key]))
    return out.minimize()


def with_one_spelling(dfa: ByteDfa, labels: Collection[int]) -> ByteDfa:
    r"""The part of an automaton of `as_written` in which strings of some labels are spelt in one way only: without `\u`."""
    out = ByteDfa([], [], 0)
    numbers = {(dfa.start, False, False): out.state()}  # state, behind a backslash, whether there was a \u
    order = [(dfa.start, False, False)]
    hexadecimal, short = 1 << ord("u"), byte_mask(b'"\\bfnrt')
    for state, escaped, other in order:
        for mask, target in dfa.edges[state]:
            behind = [(hexadecimal, False, True), (short, False, other)]
            outside = [(1 << 0x5C, True, other), (ALL_BYTES & ~(1 << 0x5C), False, other)]
            for allowed, following, marked in behind if escaped else outside:
                key = (target, following, marked)
                if not mask & allowed or (marked and dfa.labels[target] in labels):
                    continue
                if key not in numbers:
                    numbers[key] = out.state(dfa.labels[target])
                    order.append(key)
                out.edges[numbers[state, escaped, other]].append((mask & allowed, numbers[key]))
    return out.minimize()


def distinct_ends(dfa: ByteDfa, labels: Collection[int]) -> frozenset[int]:
    """The states at which a string of some labels may be closed, and could be longer in many ways.

    Of each of them, at least 16 single bytes lead to others, so that a string that is equal to one before it has a way on.
    """
    ends = {
        state
        for state, edges in enumerate(dfa.edges)
        if any(mask & _QUOTE and dfa.labels[target] in labels for mask, target in edges)
    }
    while True:
        more = {state for state in ends if sum(m.bit_count() for m, target in dfa.edges[state] if target in ends) >= _WAYS_ON}
        if more == ends:
            return frozenset(ends)
        ends = more


def of_chars(dfa: CharDfa) -> ByteDfa:
    """The automaton over bytes of one over characters, spelt as JSON writers do."""
    return as_written(to_bytes(dfa, "json", b'"'))


@functools.cache
def _any_text() -> ByteDfa:
    return of_chars(everything())


def of_texts(texts: Mapping[str, int], others: int = -1) -> ByteDfa:
    """A trie of texts with their labels; `others`, if >= 0, is the label of all other strings.

    With `others`, the texts have to be plain: ASCII without anything that needs an escape.
    """
    free = _any_text() if others >= 0 else ByteDfa([], [], 0)
    out = ByteDfa([list(edges) for edges in free.edges], [others if end >= 0 else -1 for end in free.labels], 0)
    ends: dict[int, int] = {}
    children: dict[tuple[int, str], int] = {}
    fans: dict[int, _Fan] = {}
    out.start = out.state()
    for text, label in texts.items():
        if any("\ud800" <= char <= "\udfff" for char in text):
            continue
        state = out.start
        for char in text:
            known = children.get((state, char))
            if known is None:
                known = children[state, char] = out.state()
                fans.setdefault(state, _Fan(out, state)).add(char, known)
            state = known
        if label not in ends:
            ends[label] = out.state(label)
        out.edges[state].append((_QUOTE, ends[label]))
    if others >= 0:
        for state in range(len(free.edges), len(out.edges)):
            if state not in ends.values():
                taken = _union(mask for mask, _ in out.edges[state])
                out.edges[state] += [(mask & ~taken, to) for mask, to in free.edges[free.start] if mask & ~taken]
    return out


def is_plain(text: str) -> bool:
    """Whether a text has one spelling only: itself."""
    return all(0x20 <= ord(char) < 0x80 and char not in _SHORT for char in text)


class _Fan:
    """The spellings of the characters that may follow one state."""

    def __init__(self, dfa: ByteDfa, state: int):
        self.dfa, self.state = dfa, state
        self.inner: dict[tuple[int, ...], int] = {}  # by the masks read so far

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
        state = self.state
        for at in range(1, len(masks)):
            key = tuple(masks[:at])
            if key not in self.inner:
                self.inner[key] = self.dfa.state()
                self.dfa.edges[state].append((masks[at - 1], self.inner[key]))
            state = self.inner[key]
        self.dfa.edges[state].append((masks[-1], target))


def _escaped(unit: int) -> list[int]:
    return [1 << 0x5C, 1 << ord("u"), *(_DIGITS[unit >> shift & 15] for shift in (12, 8, 4, 0))]


# -- Into a builder ------------------------------------------------------------------------------------------------------------


class LongStrings:
    """Copies long automata over characters, with one state for each of theirs.

    Where a character takes several bytes, its first byte calls a rule that reads the rest of it, shared by all states whose
    next states are laid out alike; the label says which of them comes next.
    """

    def __init__(self, builder: Builder):
        self.builder = builder
        self._rest_rules: dict[Hashable, int] = {}

    def copy(self, rule: int, dfa: CharDfa, into: Mapping[int, int], spelt_as_written: bool) -> int:
        """Copy an automaton into a rule, each label followed by a closing quote and a state; returns the copy of its start.

        Args:
          rule: where to.
          dfa: minimal, without states that don't matter.
          into: label -> state behind the closing quote.
          spelt_as_written: only as JSON writers spell it.
        """
        builder = self.builder
        copies = [-1] + [builder.state(rule) for _ in range(len(dfa.next) - 1)]
        layouts, layout_of = unique_rows(_layouts(dfa.next))
        edges = [self._edges(dfa, layout.tolist(), spelt_as_written) for layout in layouts]
        for state, row, label, layout in zip(copies, dfa.next.tolist(), dfa.label.tolist(), layout_of.tolist(), strict=True):
            if state < 0:
                continue
            direct, rest, columns = edges[layout]
            for mask, column in direct:
                builder.edge(state, mask, copies[row[column]])
            if rest >= 0:
                builder.call(state, rest, {end: copies[row[column]] for end, column in columns.items()})
            if label in into:
                builder.edge(state, _QUOTE, into[label])
        return copies[dfa.start]

    def _edges(
        self, dfa: CharDfa, layout: list[int], spelt_as_written: bool
    ) -> tuple[list[tuple[int, int]], int, dict[int, int]]:
        """For states of this layout: edges (mask, column), the rule for the rest of longer characters, its labels' columns."""
        columns = sorted({column for column in layout if column >= 0})
        label = {column: i for i, column in enumerate(columns)}
        table = np.zeros((2 + len(columns), len(layout)), np.int32)
        table[1] = [2 + label[column] if column >= 0 else 0 for column in layout]
        one = CharDfa(dfa.bounds, dfa.classes, table, np.array([-1, -1, *range(len(columns))], np.int16), 1)
        spelt = to_bytes(one, "json")
        if spelt_as_written:
            spelt = as_written(spelt)
        direct, indirect = [], []
        for mask, target in spelt.edges[spelt.start]:
            end = spelt.labels[target]
            (direct if end >= 0 else indirect).append((mask, columns[end] if end >= 0 else target))
        if not indirect:
            return direct, -1, {}
        key = (*map(tuple, (dfa.bounds.tolist(), dfa.classes.tolist(), layout)), spelt_as_written)
        if key not in self._rest_rules:
            rule = self._rest_rules[key] = self.builder.rule("rest of a character")
            ends = {i: self.builder.state(rule, i) for i in range(len(columns))}
            spelt.edges[spelt.start] = indirect
            self.builder.starts[rule] = self.builder.copy(rule, spelt, ends)
        reached = _union(spelt.reach[target] for _, target in indirect)
        return direct, self._rest_rules[key], {i: column for i, column in enumerate(columns) if reached >> i & 1}


def _layouts(table: np.ndarray) -> np.ndarray:
    """Each entry replaced by the first column with the same target, -1 for the dead state."""
    first = np.stack([np.argmax(table == table[:, [c]], axis=1) for c in range(table.shape[1])], axis=1)
    first[table == 0] = -1
    return first.astype(np.int32)


def is_long(dfa: CharDfa) -> bool:
    """Whether `LongStrings` should copy an automaton: it has many states, few of which are laid out differently."""
    count = len(dfa.next)
    return count >= _MIN_LONG and len(unique_rows(_layouts(dfa.next))[0]) <= count // _MIN_SHARING
