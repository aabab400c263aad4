"""Beam search: the W likeliest continuations of every prompt, kept side by side in one `lax.while_loop`.

A prompt's beams are W neighbouring rows of an ordinary `Carry`, so that a transform's state, an automaton's for one, goes
where its beam goes. The first child of a beam stays in that beam's row; only its other children are copied, each into the
row of a beam without children. Many steps then move no cache at all, and none holds a second one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int32, Num

from mechanex_jax.edits import Edits
from mechanex_jax.errors import expected
from mechanex_jax.loops.begin import begin, broadcast
from mechanex_jax.loops.carry import Carry, FinishReason, Program
from mechanex_jax.loops.chunks import advance
from mechanex_jax.loops.inputs import IntPerRow, Number, RowKeys, TokenIds, Tokens, decode_inputs
from mechanex_jax.loops.language_model import LanguageModel, logits_of
from mechanex_jax.loops.step import current_step, finish_reason, read_last, run_steps, select_rows
from mechanex_jax.loops.stop_strings import HIT, StopTable
from mechanex_jax.rows import Array
from mechanex_jax.transforms import LogitsTransform
from mechanex_jax.transforms.base import advance_rows, apply_rows

Penalty: TypeAlias = Number | Num[Array, ""] | Num[Array, "#B"] | Sequence[Number]
TreeT = TypeVar("TreeT")

_NEVER = "never"
_TEXT = ("cache", "tokens", "generated", "transform_state", "stop_state", "logprobs")  # in what beams of one prompt differ


class Hypotheses(NamedTuple):
    """The texts that have ended so far, the best W of every prompt, best first; a free place has score -inf.

    Attributes:
      tokens: prompt included, as in `Carry.tokens`; what lies beyond the end means nothing.
      logprobs: the model's own, at the places of their tokens.
      lengths: generated tokens.
      scores: sum of log-probabilities / length ** penalty.
      finish: a `FinishReason`; DEAD_END in a free place.
    """

    tokens: Int32[jax.Array, "B W T"]
    logprobs: Float32[jax.Array, "B W T"]
    lengths: Int32[jax.Array, "B W"]
    scores: Float32[jax.Array, "B W"]
    finish: Int32[jax.Array, "B W"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BeamCarry:
    """All that beam search needs to go on.

    Attributes:
      beams: B * W rows; row b * W + w is beam w of prompt b, in no order. One that is not RUNNING is a free row.
      scores: sum of each beam's log-probabilities after the transform.
      ended: the hypotheses that have ended.
      penalty: the exponent of the length.
      full_is_enough: whether a prompt is done once W hypotheses have ended.
      horizon: the length at which a beam's best possible score is reckoned; never below its present one.
    """

    beams: Carry
    scores: Float32[jax.Array, "B W"]
    ended: Hypotheses
    penalty: Float32[jax.Array, " B"]
    full_is_enough: Bool[jax.Array, " B"]
    horizon: Int32[jax.Array, " B"]

    @property
    def finish(self) -> Int32[jax.Array, " R"]:
        """A `FinishReason` for each of the R = B * W beams."""
        return self.beams.finish


class BeamResult(NamedTuple):
    """The result of beam search, on the host; W hypotheses a prompt, best first.

    Attributes:
      tokens: padded with `pad_id`; an end-of-sequence token is kept and counted.
      lengths: tokens of each hypothesis.
      scores: sum of log-probabilities after the transform / length ** length_penalty; -inf where no further hypothesis was
        found.
      finish_reason: a `FinishReason`; DEAD_END where no further hypothesis was found.
      logprobs: the model's own, before any transform; 0 in the padding.
    """

    tokens: Int32[np.ndarray, "B W N"]
    lengths: Int32[np.ndarray, "B W"]
    scores: Float32[np.ndarray, "B W"]
    finish_reason: Int32[np.ndarray, "B W"]
    logprobs: Float32[np.ndarray, "B W N"]


class _Candidates(NamedTuple):
    """The best C continuations of every prompt, best first."""

    scores: Float32[jax.Array, "B C"]
    parents: Int32[jax.Array, "B C"]  # row of `beams`
    tokens: Int32[jax.Array, "B C"]
    logprobs: Float32[jax.Array, "B C"]
    reasons: Int32[jax.Array, "B C"]  # RUNNING: may go on


def _take(array: jax.Array, index: Int32[jax.Array, "B C"]) -> jax.Array:
    """array[b, index[b, k]]."""
    return jax.vmap(lambda a, i: a[i])(array, index)


@partial(jax.jit, static_argnames="width")
def _widen(
    carry: Carry,
    penalty: Float32[jax.Array, " B"],
    full_is_enough: Bool[jax.Array, " B"],
    horizon: Int32[jax.Array, " B"],
    width: int,
) -> BeamCarry:
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


def _candidates(
    program: Program, carry: BeamCarry, log_p: Float32[jax.Array, "R V"], changed: Float32[jax.Array, "R V"]
) -> _Candidates:
    """The best continuations.

    Args:
      log_p: the model's log-probabilities for each of R = B * W beams.
      changed: the same after the transform.
    """
    beams, (batch, width) = carry.beams, carry.scores.shape
    vocabulary, eos_slots = log_p.shape[1], beams.eos_ids.shape[1]
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
    eos = jnp.any(tokens[:, :, None] == beams.eos_ids[parents], axis=2)
    reason = finish_reason(scores == -jnp.inf, eos, hits_stop, beams.generated[parents] + 1 >= beams.max_new[parents])
    return _Candidates(scores, parents, tokens, log_p[parents, tokens], reason)


def _collect(carry: BeamCarry, candidates: _Candidates) -> Hypotheses:
    """`ended`, with those of the best W candidates that end now."""
    beams, ended, width = carry.beams, carry.ended, carry.scores.shape[1]
    best = jax.tree.map(lambda leaf: leaf[:, :width], candidates)
    ends = (best.reasons != FinishReason.RUNNING) & (best.reasons != FinishReason.DEAD_END)

    def merge(_: None) -> Hypotheses:
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
        chosen = jax.lax.top_k(both.scores, width)[1]
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


def _copy_rows(tree: TreeT, sources: Int32[jax.Array, " R"], moved: Bool[jax.Array, " R"]) -> TreeT:
    """Row r becomes row sources[r] wherever moved[r]; no source may itself be moved. In place, row by row."""
    order = jnp.argsort(~moved, stable=True)

    def copy(index: jax.Array, tree: TreeT) -> TreeT:
        to = order[index]
        # Read before anything is written: one fused operation would read and write the same array, hence copy all of it.
        row = jax.lax.optimization_barrier(
            jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, sources[to], 1, 0), tree)
        )
        return jax.tree.map(lambda leaf, r: jax.lax.dynamic_update_slice_in_dim(leaf, r, to, 0), tree, row)

    return jax.lax.fori_loop(0, jnp.sum(moved, dtype=jnp.int32), copy, tree)


def _improvable(
    carry: BeamCarry, ended: Hypotheses, best: Float32[jax.Array, " B"], length: Int32[jax.Array, " B"]
) -> Bool[jax.Array, " B"]:
    """Whether a beam may still enter the best W: the rule of `transformers`. `best` is the best beam's score."""
    full = jnp.all(ended.scores > -jnp.inf, axis=1)
    reckoned = jnp.maximum(carry.horizon, length).astype(jnp.float32)
    hopeful = best / reckoned**carry.penalty > ended.scores[:, -1]
    return jnp.where(full, hopeful & ~carry.full_is_enough, True)


def _step(program: Program, carry: BeamCarry) -> BeamCarry:
    """One token for every beam of every prompt that is not done."""
    transform, stops = program.transform, program.stops
    beams, (batch, width) = carry.beams, carry.scores.shape
    live = beams.finish == FinishReason.RUNNING
    out = read_last(program, beams, live)
    log_p = jax.nn.log_softmax(logits_of(out))
    changed = apply_rows(transform, beams.transform_state, log_p, current_step(beams))
    candidates = _candidates(program, carry, log_p, changed)
    ended = _collect(carry, candidates)

    # Those that go on: the best W that have not ended, each in its row.
    going = jnp.where(candidates.reasons == FinishReason.RUNNING, candidates.scores, -jnp.inf)
    scores, chosen = jax.lax.top_k(going, width)
    parents = _take(candidates.parents, chosen) % width
    children = jax.vmap(_places)(parents, scores > -jnp.inf)
    chosen, scores = _take(chosen, children), _take(scores, children)
    picked = (candidates.parents, candidates.tokens, candidates.logprobs)
    sources, token, logprob = (_take(array, chosen).ravel() for array in picked)
    moves = (scores > -jnp.inf).ravel()
    row = jnp.arange(batch * width, dtype=jnp.int32)
    following = dataclasses.replace(beams, cache=out.cache)
    text = {name: getattr(following, name) for name in _TEXT}
    following = dataclasses.replace(following, **_copy_rows(text, sources, moves & (sources != row)))

    advanced = advance_rows(transform, following.transform_state, token, current_step(following))
    state = select_rows(moves, advanced, following.transform_state)
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
    """Search at most `until` further tokens for every prompt; fewer once all are done. `carry` is donated."""
    return run_steps(lambda carry: _step(program, carry), carry, until)


def _result(carry: BeamCarry, pad_id: int) -> BeamResult:
    """Fetch the best hypotheses."""
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
    model: LanguageModel,
    prompt_tokens: Tokens,
    prompt_lengths: IntPerRow,
    transform: LogitsTransform | None,
    *,
    beam_width: int = 4,
    length_penalty: Penalty = 1.0,
    early_stopping: bool | str = False,
    edits: Edits = None,
    stops: StopTable | None = None,
    key: RowKeys | None = None,
    max_new_tokens: IntPerRow,
    eos_ids: TokenIds = (),
    capacity: int | None = None,
    pad_id: int = 0,
) -> BeamResult:
    """Search for the continuations of highest score, `beam_width` at a time, as `transformers` does with `num_beams`.

    A hypothesis' score is the sum of its log-probabilities / its length ** `length_penalty`. The transform is applied to the
    model's log-probabilities, and the result is not renormalised; no token is drawn. A hypothesis ends with an
    end-of-sequence id, a stop string, or at `max_new_tokens`, provided it is then among the best W of its prompt. Dead ends
    never win over what lives. Under a constraint every hypothesis is one that the constraint accepts: end-of-sequence is legal
    in accepting states alone, and masks that look at `step.remaining` leave nothing incomplete at the length limit.

    >>> out = beam_decode(toy(), [[1, 2, 3]], 3, None, beam_width=2, max_new_tokens=4)
    >>> out.tokens[0].tolist(), [f"{score:.2f}" for score in out.scores[0]]
    ([[2, 9, 3, 2], [10, 3, 2, 3]], ['-0.17', '-0.51'])

    Args:
      model: a `LanguageModel`: weights, `init_cache` and `extend`.
      prompt_tokens: whole numbers [B, S], padded on the right.
      prompt_lengths: whole numbers [B], at least 1 each, or one for all prompts.
      transform: written for one row; its fields hold one value, or one per prompt. None is the identity.
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
    inputs = decode_inputs(
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
    _, carry = begin(inputs)
    program = Program(model, *jax.device_put(broadcast(inputs, width)))
    horizon = np.where((penalty > 0) & (early_stopping == _NEVER), inputs.max_new, 0).astype(np.int32)
    beams = _widen(carry, penalty, np.full(batch, early_stopping is True), horizon, width)
    for latest in advance(program, beams, chunk=beam_chunk):
        beams = latest
    return _result(beams, pad_id)


def _penalties(value: Penalty, batch: int) -> Float32[np.ndarray, " B"]:
    """One length penalty per prompt."""
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise expected("length_penalty", value, "a number, or one per prompt") from error
    if array.shape not in ((), (batch,)) or not np.isfinite(array).all():
        raise expected("length_penalty", value, f"a finite number, or one for each of the {batch} prompts")
    return np.broadcast_to(array, batch)
