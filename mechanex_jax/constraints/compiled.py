"""A compiled constraint on the host, which tells what a text still allows: the reference for the device, and for research."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mechanex_jax.constraints.automata.matcher import QUOTE, Matcher
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.token_index.build import Tables
from mechanex_jax.constraints.token_index.trie import tries_of
from mechanex_jax.constraints.token_index.trie_walk import Moves, Walker
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.tokenization.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledConstraint:
    """One constraint for one vocabulary.

    Attributes:
      pushdown: what the text has to match.
      vocabulary: the tokenizer's.
      tables: both together, as the device reads them.
    """

    pushdown: PushdownAutomaton
    vocabulary: Vocabulary
    tables: Tables

    def __repr__(self) -> str:
        return f"CompiledConstraint({len(self.pushdown.target):,} states, {self.vocabulary!r}, minimum={self.minimum})"

    @property
    def stats(self) -> Mapping[str, float]:
        """Numbers of states, rows, classes, bytes, seconds and more."""
        return self.tables.stats

    @property
    def minimum(self) -> int:
        """The least max_tokens with which a text is certain to be completed."""
        return self.tables.minimum

    @property
    def longest(self) -> int:
        """Texts of up to so many bytes are judged exactly; longer ones are refused here, and by max_tokens in `generate`."""
        return self.tables.longest

    def _matcher(self, text: str | bytes) -> Matcher:
        if len(text) > self.longest or len(_encoded(text)) > self.longest:
            raise expected(
                "text",
                Verbatim(f"one of {len(text):,} characters"),
                f"at most {self.longest:,} bytes, up to which the constraint's bounds are held",
                "Give a shorter text.",
            )
        return Matcher(self.pushdown)

    def matches(self, text: str | bytes) -> bool:
        """Whether the constraint accepts the whole text."""
        matcher = self._matcher(text)
        return bool(matcher.feed(_encoded(text)) and matcher.accepts())

    def allowed(self, prefix: str | bytes = "") -> np.ndarray:
        """The ids that may come behind `prefix`, ascending: int32 [N]. No limit on tokens or nesting counts."""
        matcher = self._matcher(prefix)
        if not matcher.feed(_encoded(prefix)):
            return np.zeros(0, np.int32)
        ends = tuple(self.tables.eos_ids.tolist())
        trie = tries_of(self.vocabulary, ends).trie
        walker = Walker(Moves.of(self.pushdown))
        stack = walker.stacks.of(matcher.stack)
        trie = dataclasses.replace(trie, column=self.pushdown.classes[trie.column].astype(np.int64))
        reached, _ = walker.walk(trie, np.array([matcher.state]), np.array([stack]), leave_at_once=False)
        tokens = trie.items_at(reached.node)
        if matcher.repeats():  # what begins with a quote would close it
            first = self.vocabulary.bytes[self.vocabulary.offsets[tokens]]
            tokens = tokens[first != QUOTE]
        return np.sort(np.concatenate([tokens, np.array(ends if matcher.accepts() else (), np.int32)])).astype(np.int32)


def _encoded(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()
