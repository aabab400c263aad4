"""What a schema asks of strings, values and keys alike, as automata over characters.

Leaves: ("text", t) the string is t; ("length", n) it has at least n characters; ("pattern", p) it has a part that p matches;
("format", name).
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from mechanex_jax.constraints import regex
from mechanex_jax.constraints.automata.dfa import CharDfa, CompileLimits, length, literals, minimise, product, trim
from mechanex_jax.constraints.json_schema import formats, string_bytes
from mechanex_jax.constraints.json_schema.formula import Formula, holds
from mechanex_jax.constraints.json_schema.string_bytes import Graph

Truth = Callable[[Formula], bool]
_LONG = 150


@functools.lru_cache(1024)
def _pattern(pattern: str, limits: CompileLimits) -> CharDfa:
    return regex.chars(pattern, search=True, dialect="ecma", limits=limits)


def is_everything(dfa: CharDfa) -> bool:
    """Whether a minimal automaton accepts every string."""
    refused = dfa.bounds[dfa.next[-1, dfa.classes] == 0]
    return len(dfa.next) == 2 and dfa.label[1] >= 0 and refused.tolist() == [0xD800]


class Strings:
    """Classes of strings: those that formulas about strings can't tell apart."""

    def __init__(self, limits: CompileLimits):
        self.limits = limits

    def automaton(self, leaf: Formula) -> CharDfa:
        """The strings of which a "pattern" or "format" leaf is true."""
        return formats.automaton(leaf.args[1]) if leaf.args[0] == "format" else _pattern(leaf.args[1], self.limits)

    def is_true(self, leaf: Formula, text: str) -> bool:
        """Whether a leaf is true of one string."""
        name, value = leaf.args
        if name == "text":
            return text == value
        if name == "length":
            return len(text) >= value
        return self.automaton(leaf).accepts(text)

    def classes(self, leaves: Iterable[Formula], decide: Callable[[Truth], Hashable | None]) -> tuple[CharDfa, list[Hashable]]:
        """All strings, told apart by what `decide` makes of the truth of the leaves.

        Returns:
          A minimal automaton and the outcomes that its labels stand for; strings of outcome None are not accepted.
        """
        texts, lengths, others, parts = self._parts(leaves)
        outcomes: dict[Hashable, int] = {}

        def combine(labels: tuple[int, ...]) -> int:
            true = set(self._true(labels, texts, lengths, others))
            outcome = decide(true.__contains__)
            return -1 if outcome is None else outcomes.setdefault(outcome, len(outcomes))

        if len(parts) == 1 and (lengths or combine((-1,)) < 0):
            # Nothing to combine: only what the labels stand for.
            (dfa,) = parts
            known = {label: combine((label,)) for label in np.unique(dfa.label[1:]).tolist()}
            label = np.array([-1, *(known[value] for value in dfa.label[1:].tolist())], np.int16)
            dfa = trim(CharDfa(dfa.bounds, dfa.classes, dfa.next, label, dfa.start))
        else:
            dfa = product(parts, combine, self.limits)
        # What counts characters is long, and as good as minimal if its parts are.
        return dfa if lengths and len(dfa.next) > _LONG else minimise(dfa), list(outcomes)

    def _parts(self, leaves: Iterable[Formula]) -> tuple[list[Formula], list[Formula], list[Formula], list[CharDfa]]:
        leaves = sorted(leaves, key=lambda leaf: leaf.number)
        texts = [leaf for leaf in leaves if leaf.args[0] == "text"]
        lengths = sorted((leaf for leaf in leaves if leaf.args[0] == "length"), key=lambda leaf: leaf.args[1])
        others = [leaf for leaf in leaves if leaf.args[0] in ("pattern", "format")]
        parts = [literals({leaf.args[1]: i for i, leaf in enumerate(texts)})] if texts else []
        if lengths or not leaves:
            parts.append(_thresholds([leaf.args[1] for leaf in lengths]))
        return texts, lengths, others, parts + [self.automaton(leaf) for leaf in others]

    @staticmethod
    def _true(labels: Sequence[int], texts: list[Formula], lengths: list[Formula], others: list[Formula]) -> Iterable[Formula]:
        at = 0
        if texts:
            if labels[0] >= 0:
                yield texts[labels[0]]
            at = 1
        if lengths:
            yield from lengths[: max(labels[at], 0)]
            at += 1
        for leaf, label in zip(others, labels[at:], strict=False):
            if label >= 0:
                yield leaf

    def graph(
        self, leaves: Iterable[Formula], decide: Callable[[Truth], Hashable | None]
    ) -> tuple[Graph | CharDfa, list[Hashable], bool]:
        """As `classes`, in bytes, or as an automaton over characters where that is long.

        Returns:
          The graph or the automaton, the outcomes, and whether it is spelt only as JSON writers do.
        """
        leaves = list(leaves)
        if leaves and all(leaf.args[0] == "text" for leaf in leaves):
            found = self._texts(leaves, decide)
            if found is not None:
                return *found, True
        dfa, outcomes = self.classes(leaves, decide)
        written = any(leaf.args[0] != "length" for leaf in leaves)
        if string_bytes.is_long(dfa):
            return dfa, outcomes, written
        graph = string_bytes.of_chars(dfa) if written else _any_spelling(dfa)
        return graph, outcomes, written

    def _texts(self, leaves: list[Formula], decide: Callable[[Truth], Hashable | None]) -> tuple[Graph, list] | None:
        """The quick way for sets of texts, None where it does not apply."""
        outcomes: dict[Hashable, int] = {}

        def label(true: Formula | None) -> int:
            outcome = decide(lambda leaf: leaf is true)
            return -1 if outcome is None else outcomes.setdefault(outcome, len(outcomes))

        others = label(None)
        if others >= 0 and not all(string_bytes.is_plain(leaf.args[1]) for leaf in leaves):
            return None
        labels = {leaf.args[1]: label(leaf) for leaf in leaves}
        if others < 0:
            labels = {text: value for text, value in labels.items() if value >= 0}
        labels = {text: value for text, value in labels.items() if value != others}
        graph = string_bytes.of_texts(labels, others)
        # Where every text has its own label there is nothing to share.
        return graph if len(set(labels.values())) == len(labels) else string_bytes.minimal(graph), list(outcomes)


def _any_spelling(dfa: CharDfa) -> Graph:
    return string_bytes.minimal(string_bytes.from_dfa(string_bytes.to_bytes(dfa, "json", b'"')))


def _thresholds(bounds: list[int]) -> CharDfa:
    """Every string; the label is how many of the ascending bounds its length reaches."""
    dfa = length(0, None)
    last = bounds[-1] if bounds else 0
    table = np.zeros((last + 2, dfa.next.shape[1]), np.int32)
    table[1:, 1] = np.minimum(np.arange(2, last + 3), last + 1)
    label = np.array([-1, *(bisect.bisect_right(bounds, n) for n in range(last + 1))], np.int16)
    return CharDfa(dfa.bounds, dfa.classes, table, label, 1)


def decide_goals(must: Formula, goals: Sequence[Formula]) -> Callable[[Truth], tuple[bool, ...] | None]:
    """The truth of the goals, None where `must` does not hold."""

    def decide(truth: Truth) -> tuple[bool, ...] | None:
        return tuple([holds(goal, truth) for goal in goals]) if holds(must, truth) else None

    return decide
