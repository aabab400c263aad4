"""Decoding as one pure function of arrays: for `jax.jit`, `jax.vmap` and other transformations of JAX."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, Integer

from mechanex_jax import rows
from mechanex_jax.edits import Edits, compose
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.loops.begin import carry_of
from mechanex_jax.loops.carry import Program
from mechanex_jax.loops.inputs import EOS_SLOTS, SMALLEST_CAPACITY, AnyKeys, TokenIds, typed_keys, unwrap
from mechanex_jax.loops.language_model import LanguageModel, ModelHandle
from mechanex_jax.loops.prefill import bucket, chunk_sizes, prefill_positions
from mechanex_jax.loops.step import decode_step, run_steps
from mechanex_jax.loops.stop_strings import StopTable
from mechanex_jax.rows import Array
from mechanex_jax.transforms import LogitsTransform, chain
from mechanex_jax.transforms.base import as_transform


class DecodedArrays(NamedTuple):
    """The result of `traceable_decode`, as JAX arrays; the fields are those of `DecodeResult`.

    Attributes:
      tokens: padded with `pad_id`.
      lengths: tokens of each row.
      finish_reason: a `FinishReason` per row.
      logprobs: the model's own, before any transform; 0 in the padding.
    """

    tokens: Int32[jax.Array, "B N"]
    lengths: Int32[jax.Array, " B"]
    finish_reason: Int32[jax.Array, " B"]
    logprobs: Float32[jax.Array, "B N"]


def traceable_decode(
    model: LanguageModel | ModelHandle,
    prompt_tokens: Integer[Array, "B S"],
    prompt_lengths: Integer[Array, " B"] | None,
    transform: LogitsTransform | None,
    *,
    edits: Edits = None,
    stops: StopTable | None = None,
    key: AnyKeys,
    max_new_tokens: int,
    eos_ids: TokenIds = (),
    pad_id: int = 0,
) -> DecodedArrays:
    """Generate as `decode` does, the same tokens for the same key, in one pure function with static shapes.

    Everything but `max_new_tokens`, `eos_ids`, `pad_id` and the shapes may be traced: weights, prompts, the numbers in
    transforms and edits, and keys. What is traced is not checked.

    >>> prompt, keys = jnp.array([[1, 2, 3]]), jax.random.split(jax.random.key(0), 2)
    >>> sample = lambda key: traceable_decode(toy(), prompt, None, None, key=key, max_new_tokens=4).tokens
    >>> jax.jit(jax.vmap(sample))(keys).shape
    (2, 1, 4)

    Args:
      model: a `LanguageModel`, or what `mx.load` returns.
      prompt_tokens: whole numbers [B, S], padded on the right.
      prompt_lengths: whole numbers [B], at least 1 each; None: S in every row.
      transform, edits, stops: as for `decode`.
      key: a key, of which row i uses fold_in(key, i), or B keys.
      max_new_tokens: N, for all rows.
      eos_ids: ids that end a row.
      pad_id: fills `tokens` behind each row's end.

    Returns:
      DecodedArrays.

    Raises:
      ArgumentError: shapes that don't fit each other, or a `max_new_tokens` that is traced.
    """
    model = unwrap(model)
    tokens = jnp.asarray(prompt_tokens)
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer) or not tokens.shape[1]:
        raise expected("prompt_tokens", Verbatim(f"{tokens.dtype} {tokens.shape}"), "whole numbers [B, S]")
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 0:
        raise expected("max_new_tokens", max_new_tokens, "a whole number, 0 or more, which is not traced")
    batch, longest = tokens.shape
    lengths = jnp.broadcast_to(jnp.asarray(longest if prompt_lengths is None else prompt_lengths, jnp.int32), batch)
    keys = typed_keys(key)
    if keys.shape not in ((), (batch,)):
        raise expected("key", keys.shape, f"one key, or one for each of the {batch} rows", "Take others by jax.vmap.")
    capacity = bucket(max(longest + max_new_tokens + 1, prefill_positions(longest - 1)), SMALLEST_CAPACITY)
    real = jnp.arange(longest) < lengths[:, None]
    history = jnp.full((batch, capacity), pad_id, jnp.int32)
    history = history.at[:, :longest].set(jnp.where(real, tokens.astype(jnp.int32), pad_id))
    eos = np.full(max(len(eos_ids), EOS_SLOTS), -1, np.int32)
    eos[: len(eos_ids)] = eos_ids

    trees = (chain() if transform is None else as_transform(transform), compose(edits), stops)
    program = Program(model, *rows.broadcast_rows(trees, batch))
    cache, at = model.init_cache(batch, capacity), 0
    for size in chunk_sizes(longest - 1):
        valid = jnp.clip(lengths - 1 - at, 0, size)
        read = history[:, at : at + size]
        cache = model.extend(cache, read, valid, program.edits, prompt_lengths=lengths, logits="none").cache
        at += size
    limits = jnp.full(batch, max_new_tokens, jnp.int32)
    carry = carry_of(program, cache, history, lengths, limits, keys, jnp.asarray(eos))
    carry = run_steps(lambda carry: decode_step(program, carry), carry, jnp.int32(max_new_tokens))

    places = lengths[:, None] + jnp.arange(max_new_tokens)
    made = jnp.arange(max_new_tokens) < carry.generated[:, None]
    take = lambda array: jnp.take_along_axis(array, places, axis=1, mode="clip")
    return DecodedArrays(
        jnp.where(made, take(carry.tokens), pad_id).astype(jnp.int32),
        carry.generated,
        carry.finish,
        jnp.where(made, take(carry.logprobs), 0.0),
    )
