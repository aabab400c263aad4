"""One token for every row: the pieces that the bodies of all loops are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32, Int32

from mechanex_jax.loops.carry import Carry, FinishReason, Program
from mechanex_jax.loops.language_model import ExtendOutput, logits_of
from mechanex_jax.loops.stop_strings import HIT
from mechanex_jax.transforms.base import Step, advance_rows, apply_rows
from mechanex_jax.transforms.draw import draw_rows

TreeT = TypeVar("TreeT")


@runtime_checkable
class Finishing(Protocol):
    """A carry of whatever loop: a pytree that says of each row whether it still runs."""

    @property
    def finish(self) -> Int32[jax.Array, " R"]: ...


CarryT = TypeVar("CarryT", bound=Finishing)


def run_steps(step: Callable[[CarryT], CarryT], carry: CarryT, until: Int32[jax.Array, ""]) -> CarryT:
    """Apply `step` at most `until` times in one `lax.while_loop`; fewer once all rows have finished."""

    def unfinished(loop: tuple[jax.Array, CarryT]) -> jax.Array:
        return (loop[0] < until) & jnp.any(loop[1].finish == FinishReason.RUNNING)

    return jax.lax.while_loop(unfinished, lambda loop: (loop[0] + 1, step(loop[1])), (jnp.int32(0), carry))[1]


def read_last(program: Program, carry: Carry, live: Bool[jax.Array, " B"]) -> ExtendOutput:
    """Let the model read the last token of every live row, for the logits of the next."""
    last = jnp.take_along_axis(carry.tokens, carry.cache.lengths[:, None], axis=1)
    return program.model.extend(carry.cache, last, live.astype(jnp.int32), program.edits, prompt_lengths=carry.prompt_lengths)


def current_step(carry: Carry) -> Step:
    """The `Step` that every row is at, before its next token; B in front of every leaf."""
    keys = jax.vmap(jax.random.fold_in)(carry.key, carry.generated)
    return Step(carry.generated, carry.max_new - carry.generated, keys)


def logprobs_of(logits: Float32[jax.Array, "B V"], tokens: Int32[jax.Array, " B"]) -> Float32[jax.Array, " B"]:
    """Log-probability of one token per row under softmax(logits)."""
    return jnp.take_along_axis(logits, tokens[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)


def select_rows(flags: Bool[jax.Array, " R"], new: TreeT, old: TreeT) -> TreeT:
    """The rows of `new` where flags[r], those of `old` elsewhere; R in front of every leaf."""
    over = lambda leaf: flags.reshape(flags.shape + (1,) * (leaf.ndim - 1))
    return jax.tree.map(lambda n, o: jnp.where(over(n), n, o), new, old)


def is_dead_end(logits: Float32[jax.Array, "*R V"]) -> Bool[jax.Array, "*R"]:
    """Whether no token can be drawn: all logits are -inf, or one is NaN."""
    return ~(jnp.max(logits, axis=-1) > -jnp.inf)  # a maximum over NaN is NaN


def finish_reason(
    dead: Bool[jax.Array, "*R"], eos: Bool[jax.Array, "*R"], stopped: Bool[jax.Array, "*R"], full: Bool[jax.Array, "*R"]
) -> Int32[jax.Array, "*R"]:
    """The first of several reasons to end that holds, or RUNNING.

    Args:
      dead: no token is possible.
      eos: the token is an end-of-sequence id.
      stopped: the token completes a stop string.
      full: the token is the last that may be generated.
    """
    holds = [dead, eos, stopped, full]
    reasons = [FinishReason.DEAD_END, FinishReason.EOS, FinishReason.STOP, FinishReason.LENGTH]
    return jnp.select(holds, [jnp.int32(reason) for reason in reasons], jnp.int32(FinishReason.RUNNING))


def _put(array: jax.Array, values: jax.Array, at: Int32[jax.Array, " B"]) -> jax.Array:
    """array[b, at[b]] = values[b]."""
    return jax.vmap(lambda a, v, i: jax.lax.dynamic_update_slice(a, v[None], (i,)))(array, values, at)


def append(
    program: Program,
    carry: Carry,
    live: Bool[jax.Array, " B"],
    raw: Float32[jax.Array, "B V"],
    logits: Float32[jax.Array, "B V"],
    token: Int32[jax.Array, " B"],
    step: Step,
) -> Carry:
    """Write token[b] behind row b wherever live[b], and see whether that ends the row. The cache stays as it is.

    Args:
      raw: the model's own logits.
      logits: after the transform; a live row that `is_dead_end` gets no token.
      step: where the rows stood when the token was chosen.
    """
    transform, stops = program.transform, program.stops
    dead = is_dead_end(logits)
    logprob = logprobs_of(raw, token)
    moves = live & ~dead
    advanced = advance_rows(transform, carry.transform_state, token, step)
    state = select_rows(moves, advanced, carry.transform_state)
    stop_state = carry.stop_state
    if stops is not None:
        stop_state = jnp.where(moves, stops.advance_rows(stop_state, token), stop_state)

    at = carry.prompt_lengths + carry.generated
    generated = carry.generated + moves.astype(jnp.int32)
    eos = jnp.any(token[:, None] == carry.eos_ids, axis=1)
    reason = finish_reason(dead, eos, stop_state == HIT, generated >= carry.max_new)
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
    """One token for every row that still runs: read the last one, transform, draw, append."""
    live = carry.finish == FinishReason.RUNNING
    out = read_last(program, carry, live)
    raw, step = logits_of(out), current_step(carry)
    logits = apply_rows(program.transform, carry.transform_state, raw, step)
    token = draw_rows(step.key, logits)
    return append(program, dataclasses.replace(carry, cache=out.cache), live, raw, logits, token, step)


@partial(jax.jit, donate_argnames="carry")
def decode_chunk(program: Program, carry: Carry, until: Int32[jax.Array, ""]) -> Carry:
    """Generate at most `until` further tokens for every row; fewer once all rows have finished. `carry` is donated.

    >>> program, carry = mx.loops.start(toy(), [[1, 2, 3]], 3, None, key=jax.random.key(0), max_new_tokens=6)
    >>> decode_chunk(program, carry, np.int32(4)).generated.tolist()
    [4]
    """
    return run_steps(lambda carry: decode_step(program, carry), carry, until)
