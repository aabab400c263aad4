"""What all loops are given: checked, converted and held in one place, before anything is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias, TypedDict

import jax
import numpy as np
from jaxtyping import Int32, Integer, Key

from mechanex_jax.edits import Edit, Edits, check
from mechanex_jax.errors import expected
from mechanex_jax.loops.language_model import LanguageModel
from mechanex_jax.loops.prefill import bucket, prefill_positions
from mechanex_jax.loops.stop_strings import StopTable
from mechanex_jax.rows import Array
from mechanex_jax.transforms import LogitsTransform, chain

SMALLEST_CAPACITY = 256  # what is allocated but not used costs memory only, so short texts may share one program
_EOS_SLOTS = 8

# What a caller may pass; behind `decode_inputs` it is NumPy's, of one dtype.
Whole: TypeAlias = int | np.integer
Number: TypeAlias = float | np.number
Tokens: TypeAlias = Integer[Array, "B S"] | Sequence[Sequence[Whole]]
IntPerRow: TypeAlias = Whole | Integer[Array, ""] | Integer[Array, "#B"] | Sequence[Whole]
TokenIds: TypeAlias = Integer[Array, " E"] | Sequence[Whole]
RowKeys: TypeAlias = Key[jax.Array, ""] | Key[jax.Array, " B"]


class SharedArguments(TypedDict, total=False):
    """The keyword arguments that all loops share, for those that pass them on; see `decode`."""

    edits: Edits
    stops: StopTable | None
    key: RowKeys
    max_new_tokens: IntPerRow
    eos_ids: TokenIds
    capacity: int | None
    pad_id: int
    spare: int


@dataclasses.dataclass(frozen=True)
class DecodeInputs:
    """The arguments that all loops share, in their final form, on the host.

    Attributes:
      model: weights and pure functions.
      history: the prompts, padded on the right up to T, the positions of the cache.
      prompt_lengths: tokens of each prompt, at least 1.
      transform, edits, stops: one value for all rows or one per row, as they came; `begin.broadcast` gives each row its own.
      key: one for all rows, or one per row.
      max_new: the most tokens that each row may get.
      eos_ids: ids that end a row, padded with -1.
    """

    model: LanguageModel
    history: Int32[np.ndarray, "B T"]
    prompt_lengths: Int32[np.ndarray, " B"]
    transform: LogitsTransform
    edits: tuple[Edit, ...]
    stops: StopTable | None
    key: RowKeys
    max_new: Int32[np.ndarray, " B"]
    eos_ids: Int32[np.ndarray, " E"]


def decode_inputs(
    model: LanguageModel,
    prompt_tokens: Tokens,
    prompt_lengths: IntPerRow,
    transform: LogitsTransform | None,
    *,
    edits: Edits = None,
    stops: StopTable | None = None,
    key: RowKeys,
    max_new_tokens: IntPerRow,
    eos_ids: TokenIds = (),
    capacity: int | None = None,
    pad_id: int = 0,
    spare: int = 0,
) -> DecodeInputs:
    """Check and convert what a loop is given. Arguments as for `decode`; `spare` positions more are held for drafts.

    Raises:
      ArgumentError: shapes that don't fit each other.
    """
    tokens = np.asarray(prompt_tokens, np.int32)
    if tokens.ndim != 2:
        raise expected("prompt_tokens", tokens.shape, "two axes [B, S]")
    batch = len(tokens)
    lengths = np.broadcast_to(np.asarray(prompt_lengths, np.int32), batch)
    if lengths.min(initial=1) < 1 or lengths.max(initial=1) > tokens.shape[1]:
        raise expected("prompt_lengths", lengths.tolist(), f"1 to {tokens.shape[1]} tokens in every row")
    max_new = np.broadcast_to(np.asarray(max_new_tokens, np.int32), batch)
    if max_new.min(initial=0) < 0:
        raise expected("max_new_tokens", max_new.tolist(), "0 or more in every row")
    eos = np.full(max(len(eos_ids), _EOS_SLOTS), -1, np.int32)
    eos[: len(eos_ids)] = eos_ids
    # Prefill writes whole chunks, padding included, and the loop writes one position beyond the last token.
    longest = int(lengths.max(initial=1))
    needed = max(longest + int(max_new.max(initial=0)) + 1 + spare, prefill_positions(longest - 1))
    if capacity is None:
        capacity = bucket(needed, SMALLEST_CAPACITY)
    elif capacity < needed:
        raise expected("capacity", capacity, f"at least {needed} positions for these prompts and max_new_tokens")

    # A researcher's own model may leave its layers and width unsaid.
    checked_edits = check(edits, getattr(model.spec, "layers", None), getattr(model.spec, "width", None))
    if key.shape not in ((), (batch,)):
        raise expected("key", key.shape, f"one key, or one for each of the {batch} rows")

    history = np.full((batch, capacity), pad_id, np.int32)
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    history[:, : tokens.shape[1]] = np.where(real, tokens, pad_id)[:, :capacity]
    transform = chain() if transform is None else transform
    return DecodeInputs(model, history, lengths, transform, checked_edits, stops, key, max_new, eos)
