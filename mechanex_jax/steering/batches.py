"""Examples put into batches of few shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32

from mechanex_jax.steering.examples import Example


@dataclasses.dataclass(frozen=True)
class ExampleBatch:
    """Examples that run together, padded on the right. Rows behind them are padding, of length 1.

    Attributes:
      indices: which examples these are, E of the B rows.
      tokens: ids, 0 behind the end of a text.
      lengths: of the texts.
      starts: where the answers begin; 1 in rows of padding, which have no answer.
    """

    indices: Int[np.ndarray, " E"]
    tokens: Int32[np.ndarray, "B S"]
    lengths: Int32[np.ndarray, " B"]
    starts: Int32[np.ndarray, " B"]

    def answers(self) -> Bool[np.ndarray, "B S"]:
        """True at the tokens of the answers."""
        positions = np.arange(self.tokens.shape[1])
        return (positions >= self.starts[:, None]) & (positions < self.lengths[:, None])


def padded_length(length: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: few shapes to compile, and at most a third of a row is padding."""
    power = max(16, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > 16 and length <= power * 3 // 4 else power


def batches(rows: Sequence[Example], *, positions: int = 2048) -> Iterator[ExampleBatch]:
    """Batches of all examples, longest first, of at most `positions` (rows times length) each unless one row has more."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens))
    first = 0
    while first < len(order):
        size = padded_length(len(rows[order[first]].tokens))
        most = max(1, positions // size)
        chosen = order[first : first + most]
        # A first batch that is not full is the only one; a last one keeps the shape that is compiled, if it is like it.
        yield pad([rows[i] for i in chosen], np.array(chosen), min(most, 1 << (len(rows) - 1).bit_length()), size)
        first += most


def pad(rows: Sequence[Example], indices: Int[np.ndarray, " E"], count: int, size: int) -> ExampleBatch:
    """The batch of these examples with `count` rows and `size` positions."""
    tokens, lengths, starts = np.zeros((count, size), np.int32), np.ones(count, np.int32), np.ones(count, np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row.tokens)] = row.tokens
        lengths[index], starts[index] = len(row.tokens), row.start
    return ExampleBatch(indices, tokens, lengths, starts)
