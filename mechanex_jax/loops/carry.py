"""The state of a batch that decodes, and what is read off it in the end."""

from __future__ import annotations

import dataclasses
import enum
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int32, Key, PyTree

from mechanex_jax.edits import Edit
from mechanex_jax.loops.language_model import LanguageModel, ModelCache
from mechanex_jax.loops.stop_strings import StopTable
from mechanex_jax.transforms.base import LogitsTransform


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
