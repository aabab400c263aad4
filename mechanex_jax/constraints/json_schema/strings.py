"""Strings, values and keys alike, told apart by what a schema asks of them."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from mechanex_jax.constraints.automata.dfa import CharDfa, CompileLimits, length, literals, minimize, product, trim
from mechanex_jax.constraints.automata.encoding import to_bytes
from mechanex_jax.constraints.automata.expression import Node
from mechanex_jax.constraints.automata.nfa import determinize
from mechanex_jax.constraints.json_schema import formats, string_bytes
from mechanex_jax.constraints.json_schema.classifiers import Classifier, Decision, Labels
from mechanex_jax.constraints.json_schema.formula import Formula

Outcome = TypeVar("Outcome", bound=Hashable)
_LONG = 150


@functools.lru_cache(1024)
def _pattern(expression: Node, limits: CompileLimits) -> CharDfa:
    return determinize(expression, search=True, limits=limits)


def is_everything(dfa: CharDfa) -> bool:
    """Whether a minimal automaton accepts every string."""
    refused = dfa.bounds[dfa.next[-1, dfa.classes] == 0]
    return len(dfa.next) == 2 and dfa.label[1] >= 0 and refused.tolist() == [0xD800]


class Strings:
    """The automata of leaves about strings, within limits."""

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

    def classify(self, leaves: Sequence[Formula], decide: Decision[Outcome]) -> Classifier[Outcome]:
        """Tell strings apart by what `decide` makes of the truth of leaves.

        Leaves: ("text", t), ("length", n), ("pattern", expression), ("format", f): see `to_formula`.

        Returns:
          A minimal automaton that reads from behind the opening quote, up to and with the closing one if it is over bytes.
        """
        if leaves and all(leaf.args[0] == "text" for leaf in leaves):
            classifier = _classify_texts(leaves, decide)
            if classifier is not None:
                return classifier
        dfa, outcomes = self._classify_chars(leaves, decide)
        as_written = any(leaf.args[0] != "length" for leaf in leaves)
        if string_bytes.is_long(dfa):
            return Classifier(dfa, outcomes, as_written)
        encoded = to_bytes(dfa, "json", b'"')
        minimal = string_bytes.as_written(encoded) if as_written else encoded.minimize()
        return Classifier(minimal, outcomes, as_written)

    def _classify_chars(self, leaves: Sequence[Formula], decide: Decision[Outcome]) -> tuple[CharDfa, list[Outcome]]:
        """The automaton over characters, and the outcomes by label."""
        lengths = sorted((leaf for leaf in leaves if leaf.args[0] == "length"), key=lambda leaf: leaf.args[1])
        automata, true_leaves = zip(*self._parts(leaves, lengths), strict=True)
        labels = Labels(decide)

        def combine(ends: tuple[int, ...]) -> int:
            true = {leaf for leaves_of, end in zip(true_leaves, ends, strict=True) for leaf in leaves_of(end)}
            return labels.label(true)

        if len(automata) == 1 and (lengths or combine((-1,)) < 0):
            # Nothing to combine: only what the labels stand for.
            (dfa,) = automata
            fresh = {label: combine((label,)) for label in np.unique(dfa.label[1:]).tolist()}
            label = np.array([-1, *(fresh[value] for value in dfa.label[1:].tolist())], np.int16)
            dfa = trim(CharDfa(dfa.bounds, dfa.classes, dfa.next, label, dfa.start))
        else:
            dfa = product(automata, combine, self.limits)
        # What counts characters is long, and as good as minimal if its parts are.
        return dfa if lengths and len(dfa.next) > _LONG else minimize(dfa), labels.outcomes

    def _parts(
        self, leaves: Sequence[Formula], lengths: Sequence[Formula]
    ) -> Iterable[tuple[CharDfa, Callable[[int], Sequence[Formula]]]]:
        """Automata, each with the leaves that are true where it ends with a label."""
        texts = [leaf for leaf in leaves if leaf.args[0] == "text"]
        if texts:
            yield literals({leaf.args[1]: i for i, leaf in enumerate(texts)}), lambda i: texts[i : i + 1] if i >= 0 else ()
        if lengths or not leaves:
            yield _thresholds([leaf.args[1] for leaf in lengths], self.limits), lambda count: lengths[: max(count, 0)]
        for leaf in leaves:
            if leaf.args[0] in ("pattern", "format"):
                yield self.automaton(leaf), lambda label, leaf=leaf: (leaf,) if label >= 0 else ()


def _classify_texts(leaves: Sequence[Formula], decide: Decision[Outcome]) -> Classifier[Outcome] | None:
    """The quick way for sets of texts, None where it does not apply."""
    labels = Labels(decide)
    others = labels.label(frozenset())
    if others >= 0 and not all(string_bytes.is_plain(leaf.args[1]) for leaf in leaves):
        return None
    by_text = {leaf.args[1]: labels.label({leaf}) for leaf in leaves}
    by_text = {text: label for text, label in by_text.items() if label != others}
    dfa = string_bytes.of_texts(by_text, others)
    # Where every text has its own label there is nothing to share.
    if len(set(by_text.values())) < len(by_text):
        dfa = dfa.minimize()
    return Classifier(dfa, labels.outcomes)


def _thresholds(bounds: Sequence[int], limits: CompileLimits) -> CharDfa:
    """Every string; the label is how many of the ascending bounds its length reaches."""
    dfa = length(0, None)
    last = bounds[-1] if bounds else 0
    limits.meter("A bound on the length of a string")(last)
    table = np.zeros((last + 2, dfa.next.shape[1]), np.int32)
    table[1:, 1] = np.minimum(np.arange(2, last + 3), last + 1)
    label = np.array([-1, *(bisect.bisect_right(bounds, n) for n in range(last + 1))], np.int16)
    return CharDfa(dfa.bounds, dfa.classes, table, label, 1)
