"""Beam search: the W likeliest continuations of every prompt, kept side by side in one `lax.while_loop`.

A prompt's beams are W neighbouring rows of an ordinary `Carry`, so that a transform's state, an automaton's for one, goes
where its beam goes. The first child of a beam stays in that beam's row; only its other children are copied, each into the
row of a beam without children. Many steps then move no cache at all, and none holds a second one.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int32

from mechanex_jax import rows
from mechanex_jax.edits import compose
from mechanex_jax.errors import expected
from mechanex_jax.loops.autoregressive import Carry, FinishReason, Program, advance, standing, start
from mechanex_jax.loops.stop_strings import HIT, StopTable
from mechanex_jax.transforms.base import advance_rows, apply_rows

_NEVER = "never"
_TEXT = ("cache", "tokens", "generated", "transform_state", "stop_state", "logprobs")  # in what beams of one prompt differ


class Hypotheses(NamedTuple):
    """What has ended so far, the best W of every prompt, best first; a free place has score -inf.

    Attributes:
      tokens: int32 [B, W, T], prompt included, as in `Carry.tokens`; what lies beyond the end means nothing.
      logprobs: float32 [B, W, T].
      lengths: int32 [B, W], generated tokens.
      scores: float32 [B, W], sum of log-probabilities / length ** penalty.
      finish: int32 [B, W], a `FinishReason`; DEAD_END in a free place.
    """

    tokens: jax.Array
    logprobs: jax.Array
    lengths: jax.Array
    scores: jax.Array
    finish: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BeamCarry:
    """All that beam search needs to go on.

    Attributes:
      beams: B * W rows; row b * W + w is beam w of prompt b, in no order. One that is not RUNNING is a free row.
      scores: float32 [B, W], sum of each beam's log-probabilities after the transform.
      ended: the hypotheses that have ended.
      penalty: float32 [B], the exponent of the length.
      full_is_enough: bool [B], whether a prompt is done once W hypotheses have ended.
      horizon: int32 [B], the length at which a beam's best possible score is reckoned; never below its present one.
    """

    beams: Carry
    scores: jax.Array
    ended: Hypotheses
    penalty: jax.Array
    full_is_enough: jax.Array
    horizon: jax.Array

    @property
    def finish(self) -> jax.Array:
        return self.beams.finish


class BeamResult(NamedTuple):
    """What beam search returns, on the host; W hypotheses a prompt, best first.

    Attributes:
      tokens: int32 [B, W, N], padded with `pad_id`; an end-of-sequence token is kept and counted.
      lengths: int32 [B, W].
      scores: float32 [B, W], sum of log-probabilities after the transform / length ** length_penalty; -inf where no further
        hypothesis was found.
      finish_reason: int32 [B, W], a `FinishReason`; DEAD_END where no further hypothesis was found.
      logprobs: float32 [B, W, N], the model's own, before any transform; 0 in the padding.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray
    finish_reason: np.ndarray
    logprobs: np.ndarray


class _Candidates(NamedTuple):
    """The best K continuations of every prompt, best first: [B, K] each."""

    scores: jax.Array
    parents: jax.Array  # row of `beams`
    tokens: jax.Array
    logprobs: jax.Array
    reasons: jax.Array  # RUNNING: may go on


def _take(array: jax.Array, index: jax.Array) -> jax.Array:
    """array[b, index[b, k]]."""
    return jax.vmap(lambda a, i: a[i])(array, index)


@partial(jax.jit, static_argnames="width")
def _begin(carry: Carry, penalty: jax.Array, full_is_enough: jax.Array, horizon: jax.Array, width: int) -> BeamCarry:
    """One beam for every prompt, and room for W."""
    beams = jax.tree.map(lambda leaf: jnp.repeat(leaf, width, axis=0), carry)
    batch, first = len(carry.finish), jnp.arange(width) == 0
    shape = (batch, width, carry.tokens.shape[1])
    # A prompt that may not go on has one hypothesis: to say nothing.
    silent = (carry.max_new == 0)[:, None] & first
    ended = Hypotheses(
        tokens=jnp.zeros(shape, jnp.int32),
        logprobs=jnp.zeros(shape, jnp.float32),
        lengths=jnp.zeros((batch, width), jnp.int32),
        scores=jnp.where(silent, 0.0, -jnp.inf),
        finish=jnp.where(silent, jnp.int32(FinishReason.LENGTH), jnp.int32(FinishReason.DEAD_END)),
    )
    finish = jnp.where(jnp.tile(first, batch), beams.finish, jnp.int32(FinishReason.DEAD_END))
    scores = jnp.zeros((batch, width), jnp.float32)
    return BeamCarry(dataclasses.replace(beams, finish=finish), scores, ended, penalty, full_is_enough, horizon)


def _candidates(program: Program, carry: BeamCarry, own: jax.Array, changed: jax.Array) -> _Candidates:
    """The best continuations, by own float32 [B * W, V], the model's log-probabilities, `changed` by the transform."""
    beams, (batch, width) = carry.beams, carry.scores.shape
    vocabulary, eos_slots = own.shape[1], beams.eos_ids.shape[1]
    live = (beams.finish == FinishReason.RUNNING).reshape(batch, width, 1)
    totals = jnp.where(live, carry.scores[:, :, None] + changed.reshape(batch, width, vocabulary), -jnp.inf)
    # Even if every end-of-sequence id of every beam is among them, W are left that go on.
    count = width * min(1 + eos_slots, vocabulary)
    # The barrier: XLA would merge later slices into top_k's own, no longer know it as one, and sort all of W * V.
    scores, index = jax.lax.optimization_barrier(jax.lax.top_k(totals.reshape(batch, -1), count))
    parents = index // vocabulary + width * jnp.arange(batch, dtype=jnp.int32)[:, None]
    tokens = index % vocabulary

    hits_stop = jnp.zeros(tokens.shape, jnp.bool_)
    if program.stops is not None:
        # `advance` reads what all rows share, so that a row may have any number of candidates.
        states = jax.vmap(program.stops.advance)(beams.stop_state[parents].ravel(), tokens.ravel())
        hits_stop = states.reshape(tokens.shape) == HIT
    reasons = [
        (scores == -jnp.inf, FinishReason.DEAD_END),
        (jnp.any(tokens[:, :, None] == beams.eos_ids[parents], axis=2), FinishReason.EOS),
        (hits_stop, FinishReason.STOP),
        (beams.generated[parents] + 1 >= beams.max_new[parents], FinishReason.LENGTH),
    ]
    reason = jnp.select([hit for hit, _ in reasons], [jnp.int32(name) for _, name in reasons], jnp.int32(FinishReason.RUNNING))
    return _Candidates(scores, parents, tokens, own[parents, tokens], reason)


def _collect(carry: BeamCarry, found: _Candidates) -> Hypotheses:
    """`ended`, with those of the best W candidates that end now."""
    beams, ended, width = carry.beams, carry.ended, carry.scores.shape[1]
    best = jax.tree.map(lambda leaf: leaf[:, :width], found)
    ends = (best.reasons != FinishReason.RUNNING) & (best.reasons != FinishReason.DEAD_END)

    def merge(_: Any) -> Hypotheses:
        before = beams.generated[best.parents]
        here = jnp.arange(beams.tokens.shape[1]) == (beams.prompt_lengths[best.parents] + before)[:, :, None]
        lengths = before + 1
        new = Hypotheses(
            tokens=jnp.where(here, best.tokens[:, :, None], beams.tokens[best.parents]),
            logprobs=jnp.where(here, best.logprobs[:, :, None], beams.logprobs[best.parents]),
            lengths=lengths,
            scores=jnp.where(ends, best.scores / lengths.astype(jnp.float32) ** carry.penalty[:, None], -jnp.inf),
            finish=jnp.where(ends, best.reasons, jnp.int32(FinishReason.DEAD_END)),
        )
        both = jax.tree.map(lambda old, add: jnp.concatenate([old, add], axis=1), ended, new)
        _, chosen = jax.lax.top_k(both.scores, width)
        return jax.tree.map(lambda leaf: _take(leaf, chosen), both)

    return jax.lax.cond(jnp.any(ends), merge, lambda _: ended, None)


def _places(parents: Int32[jax.Array, " W"], alive: Bool[jax.Array, " W"]) -> Int32[jax.Array, " W"]:
    """Which child goes into each of a prompt's rows, so that every parent with children keeps its row for one of them."""
    same = (parents[:, None] == parents) & alive
    stays = alive & ~jnp.any(jnp.tril(same, -1), axis=1)
    taken = jnp.zeros(parents.shape, jnp.bool_).at[jnp.where(stays, parents, len(parents))].set(True, mode="drop")
    free = jnp.argsort(taken, stable=True).astype(jnp.int32)
    place = jnp.where(stays, parents, free[jnp.cumsum(~stays) - 1])
    return jnp.argsort(place).astype(jnp.int32)


def _copy_rows(tree: Any, sources: Int32[jax.Array, " R"], moved: Bool[jax.Array, " R"]) -> Any:
    """Row r becomes row sources[r] wherever moved[r]; no source may itself be moved. In place, row by row."""
    order = jnp.argsort(~moved, stable=True)

    def copy(index: jax.Array, tree: Any) -> Any:
        to = order[index]
        # Read before anything is written: one fused operation would read and write the same array, hence copy all of it.
        row = jax.lax.optimization_barrier(
            jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, sources[to], 1, 0), tree)
        )
        return jax.tree.map(lambda leaf, r: jax.lax.dynamic_update_slice_in_dim(leaf, r, to, 0), tree, row)

    return jax.lax.fori_loop(0, jnp.sum(moved, dtype=jnp.int32), copy, tree)


def _improvable(carry: BeamCarry, ended: Hypotheses, best: Float32[jax.Array, " B"], length: jax.Array) -> jax.Array:
    """bool [B], whether a beam may still enter the best W: the rule of `transformers`. `best` is the best beam's score."""
    full = jnp.all(ended.scores > -jnp.inf, axis=1)
    reckoned = jnp.maximum(carry.horizon, length).astype(jnp.float32)
    hopeful = best / reckoned**carry.penalty > ended.scores[:, -1]
    return jnp.where(full, hopeful & ~carry.full_is_enough, True)


def _step(program: Program, carry: BeamCarry) -> BeamCarry:
    """One token for every beam of every prompt that is not done."""
    model, transform, edits, stops = program
    beams, (batch, width) = carry.beams, carry.scores.shape
    live = beams.finish == FinishReason.RUNNING
    last = jnp.take_along_axis(beams.tokens, beams.cache.lengths[:, None], axis=1)
    out = model.extend(beams.cache, last, live.astype(jnp.int32), edits, prompt_lengths=beams.prompt_lengths)
    own = jax.nn.log_softmax(out.logits)
    changed = apply_rows(transform, beams.transform_state, own, standing(beams))
    found = _candidates(program, carry, own, changed)
    ended = _collect(carry, found)

    # Those that go on: the best W that have not ended, each in its row.
    going = jnp.where(found.reasons == FinishReason.RUNNING, found.scores, -jnp.inf)
    scores, chosen = jax.lax.top_k(going, width)
    parents = _take(found.parents, chosen) % width
    children = jax.vmap(_places)(parents, scores > -jnp.inf)
    chosen, scores = _take(chosen, children), _take(scores, children)
    sources, token, logprob = (_take(a, chosen).ravel() for a in (found.parents, found.tokens, found.logprobs))
    moves = (scores > -jnp.inf).ravel()
    row = jnp.arange(batch * width, dtype=jnp.int32)
    following = dataclasses.replace(beams, cache=out.cache)
    text = {name: getattr(following, name) for name in _TEXT}
    following = dataclasses.replace(following, **_copy_rows(text, sources, moves & (sources != row)))

    advanced = advance_rows(transform, following.transform_state, token, standing(following))
    over = lambda leaf: moves.reshape(moves.shape + (1,) * (leaf.ndim - 1))
    state = jax.tree.map(lambda new, old: jnp.where(over(new), new, old), advanced, following.transform_state)
    stop_state = following.stop_state
    if stops is not None:
        stop_state = jnp.where(moves, stops.advance_rows(stop_state, token), stop_state)
    at = jnp.where(moves, following.prompt_lengths + following.generated, following.tokens.shape[1])
    generated = following.generated + moves.astype(jnp.int32)
    length = jnp.max(jnp.where(moves, generated, 0).reshape(batch, width), axis=1)
    on = _improvable(carry, ended, jnp.max(scores, axis=1), length)
    running = moves & jnp.repeat(on, width)
    following = dataclasses.replace(
        following,
        tokens=following.tokens.at[row, at].set(token, mode="drop"),
        logprobs=following.logprobs.at[row, at].set(logprob, mode="drop"),
        generated=generated,
        transform_state=state,
        stop_state=stop_state,
        finish=jnp.where(running, jnp.int32(FinishReason.RUNNING), jnp.int32(FinishReason.DEAD_END)),
    )
    return dataclasses.replace(carry, beams=following, scores=scores, ended=ended)


@partial(jax.jit, donate_argnames="carry")
def beam_chunk(program: Program, carry: BeamCarry, until: Int32[jax.Array, ""]) -> BeamCarry:
    """At most `until` further tokens for every prompt; fewer once all are done. `carry` is donated."""

    def unfinished(loop: tuple[jax.Array, BeamCarry]) -> jax.Array:
        return (loop[0] < until) & jnp.any(loop[1].finish == FinishReason.RUNNING)

    return jax.lax.while_loop(unfinished, lambda loop: (loop[0] + 1, _step(program, loop[1])), (jnp.int32(0), carry))[1]


def _result(carry: BeamCarry, pad_id: int) -> BeamResult:
    ended, beams = carry.ended, carry.beams
    tokens, logprobs, lengths, scores, reasons, prompts, max_new = jax.device_get((*ended, beams.prompt_lengths, beams.max_new))
    steps = np.arange(int(np.max(max_new, initial=0)))
    spots = np.minimum(prompts[:: scores.shape[1], None, None] + steps, tokens.shape[2] - 1)
    real = steps < np.where(scores > -np.inf, lengths, 0)[:, :, None]
    return BeamResult(
        np.where(real, np.take_along_axis(tokens, spots, axis=2), pad_id).astype(np.int32),
        np.where(scores > -np.inf, lengths, 0).astype(np.int32),
        scores,
        reasons,
        np.where(real, np.take_along_axis(logprobs, spots, axis=2), 0.0).astype(np.float32),
    )


def beam_decode(
    model: Any,
    prompt_tokens: Int32[np.ndarray, "B S"] | Any,
    prompt_lengths: Int32[np.ndarray, " B"] | Any,
    transform: Any,
    *,
    beam_width: int = 4,
    length_penalty: Any = 1.0,
    early_stopping: Any = False,
    edits: Any = None,
    stops: StopTable | None = None,
    key: jax.Array | None = None,
    max_new_tokens: Any,
    eos_ids: Any = (),
    capacity: int | None = None,
    pad_id: int = 0,
) -> BeamResult:
    """Search for the continuations of highest score, `beam_width` at a time, as `transformers` does with `num_beams`.

    A hypothesis' score is the sum of its log-probabilities / its length ** `length_penalty`. The transform is applied to the
    model's log-probabilities, and the result is not renormalised; no token is drawn. A hypothesis ends with an
    end-of-sequence id, a stop string, or at `max_new_tokens`, provided it is then among the best W of its prompt. Dead ends
    never win over what lives. Under a constraint every hypothesis is one that the constraint accepts: end-of-sequence is legal
    in accepting states alone, and masks that look at `step.remaining` leave nothing incomplete at the length limit.

    Args:
      model: anything with `init_cache` and `extend` as `architectures.Model` has them; a pytree.
      prompt_tokens: int32 [B, S], padded on the right.
      prompt_lengths: int32 [B], at least 1 each.
      transform: a LogitsTransform written for one row; its fields hold one value, or one per prompt. `chain()` is the identity.
      beam_width: W, at least 1 (greedy decoding, which ends where its rows end); static.
      length_penalty: a number or one per prompt [B]; traced. 0 compares sums, 1 means per token; more favours long hypotheses.
      early_stopping: when a prompt is done. True: once W hypotheses have ended. False: once no beam would enter them at its
        present length. "never": once none can by the length limit, which with a penalty above 0 is the canonical search.
      edits: an Edit or several, applied to the model's activations; one value, or one per prompt.
      stops: from `stop_table`, B rows, or None.
      key: for transforms that draw: a typed key, of which prompt i uses fold_in(key, i), or B keys; the beams of a prompt share
        theirs. None: key 0.
      max_new_tokens: one number or one per prompt [B]; traced.
      eos_ids: ids that end a hypothesis.
      capacity: cache positions to allocate; by default the next power of two that is enough.
      pad_id: fills `tokens` behind each hypothesis' end.

    Returns:
      A BeamResult with N = the largest max_new_tokens. A prompt with fewer than W hypotheses has DEAD_END in the places left.

    Raises:
      ArgumentError: a width below 1, a penalty that is no finite number, another `early_stopping`, shapes that don't fit each
        other.

    Source: Lowerre 1976; the length penalty without its constant from Wu et al. 2016 (arXiv 1609.08144).
    """
    if isinstance(beam_width, bool) or not isinstance(beam_width, int | np.integer) or beam_width < 1:
        raise expected("beam_width", beam_width, "a whole number >= 1")
    if not (isinstance(early_stopping, bool) or (isinstance(early_stopping, str) and early_stopping == _NEVER)):
        raise expected("early_stopping", early_stopping, 'True, False or "never"')
    batch, width = len(prompt_tokens), int(beam_width)
    penalty = _penalties(length_penalty, batch)
    key = jax.random.key(0, impl="threefry2x32") if key is None else key
    # The prompt is read once, by B rows; only then does each become W.
    narrow, carry = start(
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
    origin = np.repeat(np.arange(batch), width).tolist()
    wide = [rows.broadcast_rows(rows.take_rows(t, origin, batch), batch * width) for t in (transform, compose(edits), stops)]
    program = Program(narrow.model, *jax.device_put(tuple(wide)))
    max_new = np.broadcast_to(np.asarray(max_new_tokens, np.int32), batch)
    horizon = np.where((penalty > 0) & (early_stopping == _NEVER), max_new, 0).astype(np.int32)
    beams = _begin(carry, penalty, np.full(batch, early_stopping is True), horizon, width)
    for latest in advance(program, beams, chunk=beam_chunk):
        beams = latest
    return _result(beams, pad_id)


def _penalties(value: Any, batch: int) -> np.ndarray:
    """float32 [B]."""
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise expected("length_penalty", value, "a number, or one per prompt") from error
    if array.shape not in ((), (batch,)) or not np.isfinite(array).all():
        raise expected("length_penalty", value, f"a finite number, or one for each of the {batch} prompts")
    return np.broadcast_to(array, batch)
