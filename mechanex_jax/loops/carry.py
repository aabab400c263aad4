"""The state of a batch that decodes: how it begins, and what is read off it in the end."""

from __future__ import annotations

import dataclasses
import enum
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, Key, PyTree

from mechanex_jax.edits import Edit
from mechanex_jax.loops.inputs import DecodeInputs, RowKeys
from mechanex_jax.loops.language_model import LanguageModel, ModelCache
from mechanex_jax.loops.prefill import prefill
from mechanex_jax.loops.stop_strings import IDLE, StopTable
from mechanex_jax.transforms.base import LogitsTransform, init_rows


class FinishReason(enum.IntEnum):
    """Why a row ended; the order is the precedence."""

    RUNNING = 0
    EOS = 1
    STOP = 2
    LENGTH = 3
    DEAD_END = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Carry:
    """All that a batch needs to go on. Every leaf has B in front and none is shared between rows, so that a scheduler can take
    one row out and put another in.

    Attributes:
      cache: keys, values and how many positions of each row they cover.
      tokens: the prompt, then what was generated; position p of the cache belongs to tokens[:, p].
      prompt_lengths: tokens of each prompt.
      generated: tokens generated so far.
      max_new: the most that may be generated.
      key: one typed key per row; a step uses fold_in(key, generated).
      eos_ids: ids that end the row, -1 is padding.
      transform_state: the state of each row's transform.
      stop_state: the state of each row's `StopTable`.
      finish: a `FinishReason`.
      logprobs: the model's own log-probability of each generated token, at the token's place.
    """

    cache: ModelCache
    tokens: Int32[jax.Array, "B T"]
    prompt_lengths: Int32[jax.Array, " B"]
    generated: Int32[jax.Array, " B"]
    max_new: Int32[jax.Array, " B"]
    key: Key[jax.Array, " B"]
    eos_ids: Int32[jax.Array, "B E"]
    transform_state: PyTree
    stop_state: Int32[jax.Array, " B"]
    finish: Int32[jax.Array, " B"]
    logprobs: Float32[jax.Array, "B T"]


class DecodeResult(NamedTuple):
    """The result of a loop, on the host.

    Attributes:
      tokens: padded with `pad_id`; an end-of-sequence token is kept and counted.
      lengths: tokens of each row.
      finish_reason: a `FinishReason` per row.
      logprobs: the model's own, before any transform; 0 in the padding.
    """

    tokens: Int32[np.ndarray, "B N"]
    lengths: Int32[np.ndarray, " B"]
    finish_reason: Int32[np.ndarray, " B"]
    logprobs: Float32[np.ndarray, "B N"]


class Program(NamedTuple):
    """The part of a loop that stays the same while a batch decodes: everything has been broadcast to B rows."""

    model: LanguageModel
    transform: LogitsTransform
    edits: tuple[Edit, ...]
    stops: StopTable | None


def carry_of(
    program: Program,
    cache: ModelCache,
    history: Int32[jax.Array, "B T"],
    lengths: Int32[jax.Array, " B"],
    max_new: Int32[jax.Array, " B"],
    key: RowKeys,
    eos_ids: Int32[jax.Array, " E"],
) -> Carry:
    """The carry after prefill."""
    batch, capacity = history.shape
    keys = key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    return Carry(
        cache=cache,
        tokens=history,
        prompt_lengths=lengths,
        generated=jnp.zeros(batch, jnp.int32),
        max_new=max_new,
        key=keys,
        eos_ids=jnp.broadcast_to(eos_ids, (batch, len(eos_ids))),
        transform_state=init_rows(program.transform, history, lengths),
        stop_state=jnp.full(batch, IDLE, jnp.int32) if program.stops is None else jnp.asarray(program.stops.root),
        finish=jnp.where(max_new > 0, jnp.int32(FinishReason.RUNNING), jnp.int32(FinishReason.LENGTH)),
        logprobs=jnp.zeros((batch, capacity), jnp.float32),
    )


# One program, so that a cold start does not compile dozens of small ones. Unused weights are kept as inputs, so that the
# carry is committed to their device from the start: else a prompt of one token, which needs no prefill, would compile the loop
# a second time for its second chunk.
_carry_of = partial(jax.jit, keep_unused=True, donate_argnames="cache")(carry_of)


def begin(inputs: DecodeInputs) -> tuple[Program, Carry]:
    """Prefill all but the last token of each prompt."""
    on_host = inputs.broadcast()
    program = Program(inputs.model, *jax.device_put(on_host))
    cache = prefill(inputs.model, (on_host[1], program.edits), inputs.history, inputs.prompt_lengths)
    carry = _carry_of(program, cache, inputs.history, inputs.prompt_lengths, inputs.max_new, inputs.key, inputs.eos_ids)
    return program, carry


def result(carry: Carry, pad_id: int = 0) -> DecodeResult:
    """Fetch what has been generated so far, N = the largest `max_new`.

    >>> program, carry = mx.loops.start(toy(), [[1, 2, 3]], 3, None, key=jax.random.key(0), max_new_tokens=6)
    >>> result(mx.loops.finish(program, carry)).tokens.shape
    (1, 6)
    """
    tokens, logprobs, lengths, generated = jax.device_get((carry.tokens, carry.logprobs, carry.prompt_lengths, carry.generated))
    width = int(np.max(np.asarray(carry.max_new), initial=0))
    spots = np.minimum(lengths[:, None] + np.arange(width), tokens.shape[1] - 1)
    real = np.arange(width) < generated[:, None]
    return DecodeResult(
        np.where(real, np.take_along_axis(tokens, spots, axis=1), pad_id).astype(np.int32),
        generated,
        np.asarray(carry.finish),
        np.where(real, np.take_along_axis(logprobs, spots, axis=1), 0.0).astype(np.float32),
    )
