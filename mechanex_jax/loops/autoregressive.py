"""Decoding one token after the other: prefill, then one `lax.while_loop`.

The prompt's last token is not prefilled. The loop's first step reads it like every later token, so prefill needs no logits, and
the loop's body, the expensive part to compile, is the same for every prompt length.
"""

from __future__ import annotations

import dataclasses
import enum
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from mechanex_jax import rows
from mechanex_jax.edits import check, compose
from mechanex_jax.errors import expected
from mechanex_jax.loops.prefill import bucket, prefill, prefill_positions, wait
from mechanex_jax.loops.stop_strings import HIT, IDLE, StopTable
from mechanex_jax.transforms.base import Step, advance_rows, apply_rows, init_rows
from mechanex_jax.transforms.draw import draw_rows

SMALLEST_CAPACITY = 256  # what is allocated but not used costs memory only, so short texts may share one program
_SECONDS_PER_CHUNK = 0.25  # how long Ctrl-C may have to wait
_EOS_SLOTS = 8


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
      tokens: int32 [B, T], prompt, then what was generated; position p of the cache belongs to tokens[:, p].
      prompt_lengths: int32 [B].
      generated: int32 [B], tokens generated so far.
      max_new: int32 [B].
      key: typed keys [B]; a step uses fold_in(key, generated).
      eos_ids: int32 [B, E], -1 is padding.
      transform_state: of each row's transform.
      stop_state: int32 [B].
      finish: int32 [B], a `FinishReason`.
      logprobs: float32 [B, T], the model's own log-probability of each generated token, at the token's place.
    """

    cache: Any
    tokens: jax.Array
    prompt_lengths: jax.Array
    generated: jax.Array
    max_new: jax.Array
    key: jax.Array
    eos_ids: jax.Array
    transform_state: Any
    stop_state: jax.Array
    finish: jax.Array
    logprobs: jax.Array


class DecodeResult(NamedTuple):
    """What a loop returns, on the host.

    Attributes:
      tokens: int32 [B, N], padded with `pad_id`; an end-of-sequence token is kept and counted.
      lengths: int32 [B].
      finish_reason: int32 [B], a `FinishReason`.
      logprobs: float32 [B, N], the model's own, before any transform; 0 in the padding.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    finish_reason: np.ndarray
    logprobs: np.ndarray


class Program(NamedTuple):
    """What does not change while a batch decodes: everything has been broadcast to B rows."""

    model: Any
    transform: Any
    edits: tuple[Any, ...]
    stops: StopTable | None


# Unused weights are kept as inputs, so that the carry is committed to their device from the start: else a prompt of one token,
# which needs no prefill, would compile the loop a second time for its second chunk.
@partial(jax.jit, keep_unused=True, donate_argnames="cache")
def _begin(
    program: Program,
    cache: Any,
    history: jax.Array,
    lengths: jax.Array,
    max_new: jax.Array,
    key: jax.Array,
    eos_ids: jax.Array,
) -> Carry:
    """The carry after prefill. One program, so that a cold start does not compile dozens of small ones."""
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
        stop_state=jnp.full(batch, IDLE, jnp.int32) if program.stops is None else program.stops.root,
        finish=jnp.where(max_new > 0, jnp.int32(FinishReason.RUNNING), jnp.int32(FinishReason.LENGTH)),
        logprobs=jnp.zeros((batch, capacity), jnp.float32),
    )


def _put(array: jax.Array, values: jax.Array, at: jax.Array) -> jax.Array:
    """array[b, at[b]] = values[b]."""
    return jax.vmap(lambda a, v, i: jax.lax.dynamic_update_slice(a, v[None], (i,)))(array, values, at)


def logprobs_of(logits: Float32[jax.Array, "B V"], tokens: Int32[jax.Array, " B"]) -> Float32[jax.Array, " B"]:
    """Log-probability of one token per row under softmax(logits)."""
    return jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)


def _over(flags: jax.Array, leaf: jax.Array) -> jax.Array:
    return flags.reshape(flags.shape + (1,) * (leaf.ndim - 1))


def standing(carry: Carry) -> Step:
    """Where every row stands before its next token; B in front of every leaf."""
    keys = jax.vmap(jax.random.fold_in)(carry.key, carry.generated)
    return Step(carry.generated, carry.max_new - carry.generated, keys)


def append(
    program: Program, carry: Carry, live: jax.Array, raw: jax.Array, logits: jax.Array, token: jax.Array, step: Step
) -> Carry:
    """Write token[b] behind row b wherever live[b], and see whether that ends the row. The cache stays as it is.

    Args:
      raw: float32 [B, V], the model's own logits.
      logits: float32 [B, V], after the transform; a live row without a finite one is a dead end and gets no token.
      step: where the rows stood when the token was chosen.
    """
    transform, stops = program.transform, program.stops
    dead = jnp.max(logits, axis=-1) == -jnp.inf
    logprob = logprobs_of(raw, token)
    moves = live & ~dead
    moved = advance_rows(transform, carry.transform_state, token, step)
    state = jax.tree.map(lambda new, old: jnp.where(_over(moves, new), new, old), moved, carry.transform_state)
    stop_state = carry.stop_state
    if stops is not None:
        stop_state = jnp.where(moves, stops.advance_rows(stop_state, token), stop_state)

    at = carry.prompt_lengths + carry.generated
    generated = carry.generated + moves.astype(jnp.int32)
    reasons = [
        (dead, FinishReason.DEAD_END),
        (jnp.any(token[:, None] == carry.eos_ids, axis=1), FinishReason.EOS),
        (stop_state == HIT, FinishReason.STOP),
        (generated >= carry.max_new, FinishReason.LENGTH),
    ]
    reason = jnp.select([hit for hit, _ in reasons], [jnp.int32(name) for _, name in reasons], jnp.int32(FinishReason.RUNNING))
    # A row that does not move writes back what is there.
    spot = at[:, None]
    kept = jnp.take_along_axis(carry.tokens, spot, axis=1, mode="clip")[:, 0]
    kept_logprob = jnp.take_along_axis(carry.logprobs, spot, axis=1, mode="clip")[:, 0]
    return dataclasses.replace(
        carry,
        tokens=_put(carry.tokens, jnp.where(moves, token, kept), at),
        generated=generated,
        transform_state=state,
        stop_state=stop_state,
        finish=jnp.where(live, reason, carry.finish),
        logprobs=_put(carry.logprobs, jnp.where(moves, logprob, kept_logprob), at),
    )


def decode_step(program: Program, carry: Carry) -> Carry:
    """One token for every row that still runs."""
    live = carry.finish == FinishReason.RUNNING
    last = jnp.take_along_axis(carry.tokens, carry.cache.lengths[:, None], axis=1)
    out = program.model.extend(carry.cache, last, live.astype(jnp.int32), program.edits, prompt_lengths=carry.prompt_lengths)
    step = standing(carry)
    logits = apply_rows(program.transform, carry.transform_state, out.logits, step)
    token = draw_rows(step.key, logits)
    return append(program, dataclasses.replace(carry, cache=out.cache), live, out.logits, logits, token, step)


@partial(jax.jit, donate_argnames="carry")
def decode_chunk(program: Program, carry: Carry, until: Int32[jax.Array, ""]) -> Carry:
    """At most `until` further tokens for every row; fewer once all rows have finished. `carry` is donated."""

    def unfinished(loop: tuple[jax.Array, Carry]) -> jax.Array:
        return (loop[0] < until) & jnp.any(loop[1].finish == FinishReason.RUNNING)

    return jax.lax.while_loop(unfinished, lambda loop: (loop[0] + 1, decode_step(program, loop[1])), (jnp.int32(0), carry))[1]


def start(
    model: Any,
    prompt_tokens: Any,
    prompt_lengths: Any,
    transform: Any,
    *,
    edits: Any = None,
    stops: StopTable | None = None,
    key: jax.Array,
    max_new_tokens: Any,
    eos_ids: Any = (),
    capacity: int | None = None,
    pad_id: int = 0,
    spare: int = 0,
) -> tuple[Program, Carry]:
    """Prefill all but the last token of each prompt. Arguments as for `decode`; `spare` positions more are held for drafts."""
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
    eos = np.full(_EOS_SLOTS, -1, np.int32) if len(eos_ids) <= _EOS_SLOTS else np.full(len(eos_ids), -1, np.int32)
    eos[: len(eos_ids)] = eos_ids
    # Prefill writes whole chunks, padding included, and the loop writes one position beyond the last token.
    longest = int(lengths.max(initial=1))
    needed = max(longest + int(max_new.max(initial=0)) + 1 + spare, prefill_positions(longest - 1))
    if capacity is None:
        capacity = bucket(needed, SMALLEST_CAPACITY)
    elif capacity < needed:
        raise expected("capacity", capacity, f"at least {needed} positions for these prompts and max_new_tokens")

    check(edits, getattr(model.spec, "layers", None), getattr(model.spec, "width", None))
    if key.shape not in ((), (batch,)):
        raise expected("key", key.shape, f"one key, or one for each of the {batch} rows")

    rest = (
        rows.broadcast_rows(transform, batch),
        rows.broadcast_rows(compose(edits), batch),
        rows.broadcast_rows(stops, batch),
    )
    history = np.full((batch, capacity), pad_id, np.int32)
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    history[:, : tokens.shape[1]] = np.where(real, tokens, pad_id)[:, :capacity]
    program = Program(model, *jax.device_put(rest))
    cache = prefill(model, (rest[1], program.edits), history, lengths)
    return program, _begin(program, cache, history, lengths, max_new, key, eos)


def running(carry: Any) -> bool:
    """Whether any row of a carry still runs; waits for the device."""
    wait(carry.finish)
    return bool(np.any(np.asarray(carry.finish) == FinishReason.RUNNING))


def advance(program: Any, carry: Any, seconds: float = _SECONDS_PER_CHUNK, chunk: Callable[..., Any] = decode_chunk):
    """Run to the end in chunks of about `seconds`, yielding the carry after each.

    Where the chunks end changes no token. Between them the host can look, stream, stop, or be interrupted. Another loop passes
    its own `chunk(program, carry, until)`; its carry needs a `finish`.
    """
    until = 4
    while running(carry):
        begun = time.perf_counter()
        carry = chunk(program, carry, np.int32(until))
        wait(carry.finish)
        yield carry
        quick = time.perf_counter() - begun < seconds
        until = min(2 * until, 4096) if quick else max(1, until // 2)


def finish(program: Program, carry: Carry) -> Carry:
    """`advance` to the end."""
    for latest in advance(program, carry):
        carry = latest
    return carry


def result(carry: Carry, pad_id: int = 0) -> DecodeResult:
    """What has been generated so far."""
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


def decode(
    model: Any,
    prompt_tokens: Int32[np.ndarray, "B S"] | Any,
    prompt_lengths: Int32[np.ndarray, " B"] | Any,
    transform: Any,
    *,
    edits: Any = None,
    stops: StopTable | None = None,
    key: jax.Array,
    max_new_tokens: Any,
    eos_ids: Any = (),
    capacity: int | None = None,
    pad_id: int = 0,
) -> DecodeResult:
    """Generate for a batch of ragged prompts.

    Args:
      model: anything with `init_cache` and `extend` as `architectures.Model` has them; a pytree.
      prompt_tokens: int32 [B, S], padded on the right.
      prompt_lengths: int32 [B], at least 1 each.
      transform: a LogitsTransform written for one row; its fields hold one value, or one per row.
      edits: an Edit or several, applied to the model's activations.
      stops: from `stop_table`, or None.
      key: a typed key, of which row i uses fold_in(key, i), or B keys. Random numbers of a row depend on its key and its step
        only, not on the batch around it.
      max_new_tokens: one number or one per row [B]; traced.
      eos_ids: ids that end a row.
      capacity: cache positions to allocate; by default the next power of two that is enough.
      pad_id: fills `tokens` behind each row's end.

    Returns:
      A DecodeResult with N = the largest max_new_tokens.

    Raises:
      ArgumentError: shapes that don't fit each other.
    """
    program, carry = start(
        model,
        prompt_tokens,
        prompt_lengths,
        transform,
        edits=edits,
        stops=stops,
        key=key,
        max_new_tokens=max_new_tokens,
        eos_ids=eos_ids,
        capacity=capacity,
        pad_id=pad_id,
    )
    return result(finish(program, carry), pad_id)
