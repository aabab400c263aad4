"""What all loops are given: checked, converted and held in one place, before anything is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Int32, Integer, Key, UInt32

from mechanex_jax.edits import Edit, Edits, check
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.loops.language_model import LanguageModel, ModelHandle
from mechanex_jax.loops.prefill import bucket, prefill_positions
from mechanex_jax.loops.stop_strings import StopTable
from mechanex_jax.rows import Array
from mechanex_jax.transforms import LogitsTransform, chain
from mechanex_jax.transforms.base import as_transform
from mechanex_jax.xla import relieve_mappings

SMALLEST_CAPACITY = 256  # what is allocated but not used costs memory only, so short texts may share one program
EOS_SLOTS = 8

# What a caller may pass; behind `decode_inputs` it is NumPy's, of one dtype.
Whole: TypeAlias = int | np.integer
Number: TypeAlias = float | np.number
Tokens: TypeAlias = Integer[Array, "B S"] | Sequence[Sequence[Whole]] | Sequence[Integer[Array, " S"]]
IntPerRow: TypeAlias = Whole | Integer[Array, ""] | Integer[Array, "#B"] | Sequence[Whole]
TokenIds: TypeAlias = Integer[Array, " E"] | Sequence[Whole]
RowKeys: TypeAlias = Key[jax.Array, ""] | Key[jax.Array, " B"]
AnyKeys: TypeAlias = RowKeys | UInt32[Array, " N"] | UInt32[Array, "B N"]  # typed keys, or those of `jax.random.PRNGKey`


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


def unwrap(model: LanguageModel | ModelHandle) -> LanguageModel:
    """The model itself, of a handle too."""
    return model.model if isinstance(model, ModelHandle) else model


def refuse_traced(*trees: object) -> None:
    """Raise where an argument is traced: the loops look at their arguments on the host.

    Raises:
      ArgumentError: the caller is inside `jax.jit`, `jax.vmap` or another transformation.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees)):
        raise expected(
            "decode",
            Verbatim("traced arguments"),
            "arrays with values, outside of jax.jit and jax.vmap",
            "Inside of them, use mx.loops.traceable_decode.",
        )


def typed_keys(key: AnyKeys) -> RowKeys:
    """Typed keys, from those of `jax.random.PRNGKey` (uint32) too.

    Raises:
      ArgumentError: no keys.
    """
    array = key if isinstance(key, jax.Array) else np.asarray(key)
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return array
    words = jax.eval_shape(jax.random.key_data, jax.eval_shape(lambda: jax.random.key(0))).shape
    if array.dtype != np.uint32 or array.ndim > 2 or array.shape[-1:] != words:
        raise expected("key", Verbatim(f"{array.dtype} {array.shape}"), "random keys", "Make one with jax.random.key(seed).")
    return jax.random.wrap_key_data(jnp.asarray(array))


def padded_prompts(
    tokens: Tokens, lengths: IntPerRow | None, vocabulary: int
) -> tuple[Int32[np.ndarray, "B S"], Int32[np.ndarray, " B"]]:
    """Prompts in one array, padded on the right, and their lengths; rows of a list may differ in length.

    Raises:
      ArgumentError: no batch of whole numbers, lengths that don't fit, or an id outside the vocabulary.
    """
    row_lengths = None
    if (
        isinstance(tokens, Sequence)
        and all(np.asarray(row).ndim == 1 for row in tokens)
        and len({len(row) for row in tokens}) > 1
    ):
        row_lengths = np.array([len(row) for row in tokens], np.int32)
        kinds = {np.asarray(row).dtype.kind for row in tokens if len(row)}
        ids = np.zeros((len(tokens), int(row_lengths.max())), np.int32 if kinds <= {"i", "u"} else np.float32)
        for row, values in enumerate(tokens):
            ids[row, : len(values)] = np.asarray(values)
    else:
        ids = np.asarray(tokens)
    if ids.ndim != 2:
        raise expected("prompt_tokens", ids.shape, "two axes [B, S]", "Put a single prompt into a list.")
    if ids.size and ids.dtype.kind not in "iu":
        raise expected("prompt_tokens", ids.dtype.name, "whole numbers: token ids")
    batch, longest = ids.shape
    most = np.full(batch, longest, np.int32) if row_lengths is None else row_lengths
    counts = np.broadcast_to(np.asarray(most if lengths is None else lengths, np.int32), batch)
    if np.any(counts < 1) or np.any(counts > most):
        allowed = (
            f"1 to {longest} tokens in every row" if row_lengths is None else f"at least 1 and at most {row_lengths.tolist()}"
        )
        raise expected("prompt_lengths", counts.tolist(), allowed)
    real = ids[np.arange(longest) < counts[:, None]]
    if real.size and (real.min() < 0 or real.max() >= vocabulary):
        ends = [int(real.min()), int(real.max())]
        raise expected("prompt_tokens", ends, f"ids from 0 to {vocabulary - 1}", "Encode the text with this model's tokenizer.")
    return ids.astype(np.int32), counts


def decode_inputs(
    model: LanguageModel | ModelHandle,
    prompt_tokens: Tokens,
    prompt_lengths: IntPerRow | None,
    transform: LogitsTransform | None,
    *,
    edits: Edits = None,
    stops: StopTable | None = None,
    key: AnyKeys,
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
    relieve_mappings()
    model = unwrap(model)
    refuse_traced(prompt_tokens, prompt_lengths, max_new_tokens, transform, edits, key, model)
    tokens, lengths = padded_prompts(prompt_tokens, prompt_lengths, model.spec.vocabulary)
    batch, key = len(tokens), typed_keys(key)
    max_new = np.broadcast_to(np.asarray(max_new_tokens, np.int32), batch)
    if max_new.min(initial=0) < 0:
        raise expected("max_new_tokens", max_new.tolist(), "0 or more in every row")
    eos = np.full(max(len(eos_ids), EOS_SLOTS), -1, np.int32)
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
    transform = chain() if transform is None else as_transform(transform)
    return DecodeInputs(model, history, lengths, transform, checked_edits, stops, key, max_new, eos)
