"""Speculative decoding: a drafter proposes a few tokens, the target reads them all in one call and keeps those that its own law
keeps. Leviathan et al. 2022, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318.

Verification walks over the positions that the target has read and treats each as a plain step would, except for how the token
is chosen. A row that has refused a proposal takes no further part in the round. So nothing hypothetical has to be rolled
back: transforms, stop strings, and what ends a row see the tokens accepted, one by one, and no others. In the cache, what lies
behind a row's length is never attended to, and the next round writes over it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeVar, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Int64, Key, PyTree

from mechanex_jax import rows
from mechanex_jax.edits import Edits
from mechanex_jax.errors import expected
from mechanex_jax.loops.begin import begin
from mechanex_jax.loops.carry import Carry, DecodeResult, FinishReason, Program, result
from mechanex_jax.loops.chunks import running
from mechanex_jax.loops.draft_length import MAX_DRAFTED, DraftLengthController
from mechanex_jax.loops.drafters import Drafter, Proposal
from mechanex_jax.loops.inputs import IntPerRow, RowKeys, SharedArguments, TokenIds, Tokens, decode_inputs
from mechanex_jax.loops.language_model import LanguageModel, logits_of
from mechanex_jax.loops.step import append, current_step, decode_chunk, decode_step, run_steps
from mechanex_jax.loops.stop_strings import StopTable
from mechanex_jax.transforms import LogitsTransform
from mechanex_jax.transforms.base import apply_rows
from mechanex_jax.transforms.draw import draw_rows

_ACCEPT = 0x0ACCE7  # sets the random numbers of acceptance apart from those of the draw


DraftT = TypeVar("DraftT")


class SpeculativeProgram(NamedTuple):
    """The part of the loop that stays the same while a batch decodes."""

    target: Program
    drafter: Drafter


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SpeculativeCarry:
    """All that a batch needs to go on; B in front of every leaf.

    Attributes:
      base: the carry of plain decoding, so that plain chunks may come in between.
      draft: the drafter's state.
      rounds: calls of the target in which the row was running, plain steps included.
      verified: of these, those that were no plain steps.
      proposed: rounds in which it had a proposal.
      drafted: tokens proposed.
      tested: of these, those that the target came to: all before the first one refused, and that one.
      accepted: of these, those kept.
    """

    base: Carry
    draft: PyTree
    rounds: Int32[jax.Array, " B"]
    verified: Int32[jax.Array, " B"]
    proposed: Int32[jax.Array, " B"]
    drafted: Int32[jax.Array, " B"]
    tested: Int32[jax.Array, " B"]
    accepted: Int32[jax.Array, " B"]

    @property
    def finish(self) -> Int32[jax.Array, " B"]:
        """A `FinishReason` per row."""
        return self.base.finish


class SpeculationStats(NamedTuple):
    """Counts of what speculation did, per row, on the host; see `SpeculativeCarry`."""

    tokens: Int64[np.ndarray, " B"]
    rounds: Int64[np.ndarray, " B"]
    verified: Int64[np.ndarray, " B"]
    drafted: Int64[np.ndarray, " B"]
    tested: Int64[np.ndarray, " B"]
    accepted: Int64[np.ndarray, " B"]

    @property
    def acceptance_rate(self) -> Float[np.ndarray, " B"]:
        """The share of tested proposals that were kept: an estimate of sum min(p, q). NaN if none was tested."""
        return _quotient(self.accepted, self.tested)

    @property
    def tokens_per_round(self) -> Float[np.ndarray, " B"]:
        """Tokens for each call of the target: 1 is plain decoding. NaN if there was none."""
        return _quotient(self.tokens, self.rounds)


def _quotient(a: Int64[np.ndarray, " B"], b: Int64[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    return np.where(b > 0, a / np.maximum(b, 1), np.nan)


def _residual(p: Float32[jax.Array, "B V"], q: Float32[jax.Array, "B V"]) -> Float32[jax.Array, "B V"]:
    """Logits of norm(max(0, p - q)), from the logits of p and q. Where rounding leaves nothing of it: those of p."""
    rest = jnp.maximum(jax.nn.softmax(p) - jax.nn.softmax(q), 0.0)
    return jnp.where(jnp.any(rest > 0, axis=-1, keepdims=True), jnp.log(rest), p)


def _choose(
    keys: Key[jax.Array, " B"],
    p: Float32[jax.Array, "B V"],
    proposed: Int32[jax.Array, " B"],
    q: Float32[jax.Array, "B V"] | None,
) -> tuple[Int32[jax.Array, " B"], Bool[jax.Array, " B"]]:
    """A token from p for every row, and whether it is the one proposed.

    Args:
      p: the target's logits after the transform.
      proposed: -1 for none.
      q: the logits `proposed` was drawn from. None if it was not drawn: then to take it with probability p(x), and else draw
        from p without x, is to draw from p and see whether that is x.
    """
    if q is None:
        token = draw_rows(keys, p)
        return token, token == proposed
    exists = proposed >= 0
    at = jnp.maximum(proposed, 0)[:, None]
    log_p, log_q = (jnp.take_along_axis(logits, at, axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=-1) for logits in (p, q))
    uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, _ACCEPT)))(keys)
    accept = exists & (jnp.log(uniform) < log_p - log_q)
    other = draw_rows(keys, jnp.where(exists[:, None], _residual(p, q), p))
    return jnp.where(accept, proposed, other), accept


class _NoCache(NamedTuple):
    """Stands for the cache in a carry that travels without one; it has no leaves."""

    lengths: None = None


class _Verification(NamedTuple):
    """A walk over the positions that the target has read: `on` are the rows that have refused nothing so far."""

    index: Int32[jax.Array, ""]
    on: Bool[jax.Array, " B"]
    base: Carry
    tested: Int32[jax.Array, " B"]
    accepted: Int32[jax.Array, " B"]


def _verify(program: SpeculativeProgram, carry: SpeculativeCarry, proposal: Proposal) -> SpeculativeCarry:
    """One call of the target for the last token and all proposals, then the tokens that follow from it."""
    (model, transform, edits, _), drafter = program
    base, steps = carry.base, proposal.tokens.shape[1]
    live = base.finish == FinishReason.RUNNING
    drafted = jnp.sum(jnp.cumprod(proposal.tokens >= 0, axis=1, dtype=jnp.int32), axis=1)
    last = jnp.take_along_axis(base.tokens, base.cache.lengths[:, None], axis=1)
    tokens = jnp.concatenate([last, jnp.maximum(proposal.tokens, 0)], axis=1)
    valid = jnp.where(live, 1 + drafted, 0)
    out = model.extend(
        base.cache,
        tokens,
        valid,
        edits,
        prompt_lengths=base.prompt_lengths,
        logits="all",
        **({"capture": drafter.capture} if drafter.capture else {}),
    )
    # A column of "none" behind the last proposal: the token after it is the target's own.
    proposals = jnp.pad(proposal.tokens, ((0, 0), (0, 1)), constant_values=-1)

    def position(loop: _Verification) -> _Verification:
        index, on, base, tested, accepted = loop
        pick = partial(jax.lax.dynamic_index_in_dim, index=index, axis=1, keepdims=False)
        raw, proposed = pick(logits_of(out)), pick(proposals)
        # Behind the last proposal there is no q; what is read instead is not used.
        q = None if proposal.logits is None else pick(proposal.logits)
        step = current_step(base)
        logits = apply_rows(transform, base.transform_state, raw, step)
        token, accept = _choose(step.key, logits, proposed, q)
        before = base.generated
        base = append(program.target, base, on, raw, logits, token, step)
        accept &= base.generated > before
        tested += (on & (proposed >= 0)).astype(jnp.int32)
        accepted += accept.astype(jnp.int32)
        return _Verification(index + 1, accept & (base.finish == FinishReason.RUNNING), base, tested, accepted)

    # The cache stays outside of the loop, which neither reads nor writes it.
    loop = _Verification(jnp.int32(0), live, dataclasses.replace(base, cache=_NoCache()), carry.tested, carry.accepted)
    loop = jax.lax.while_loop(lambda loop: (loop.index <= steps) & jnp.any(loop.on), position, loop)
    following, tested, accepted = loop.base, loop.tested, loop.accepted
    kept = following.generated - base.generated
    cache = dataclasses.replace(out.cache, lengths=base.cache.lengths + kept)
    following = dataclasses.replace(following, cache=cache)
    return SpeculativeCarry(
        base=following,
        draft=drafter.commit(carry.draft, following, kept, out.captured if drafter.capture else {}),
        rounds=carry.rounds + live.astype(jnp.int32),
        verified=carry.verified + live.astype(jnp.int32),
        proposed=carry.proposed + (live & (drafted > 0)).astype(jnp.int32),
        drafted=carry.drafted + jnp.where(live, drafted, 0),
        tested=tested,
        accepted=accepted,
    )


def _round(program: SpeculativeProgram, carry: SpeculativeCarry, steps: int) -> SpeculativeCarry:
    """Draft and verify; a plain step if nobody has a proposal."""
    target, drafter = program
    state, proposal = drafter.propose(carry.draft, target, carry.base, steps)
    carry = dataclasses.replace(carry, draft=state)
    if drafter.always or drafter.capture:
        return _verify(program, carry, proposal)

    def plain(carry: SpeculativeCarry) -> SpeculativeCarry:
        live = carry.base.finish == FinishReason.RUNNING
        return dataclasses.replace(carry, base=decode_step(target, carry.base), rounds=carry.rounds + live.astype(jnp.int32))

    proposed = jnp.any(proposal.tokens[:, 0] >= 0)
    return _when(proposed, lambda carry: _verify(program, carry, proposal), _when(~proposed, plain, carry))


def _when(
    flag: Bool[jax.Array, ""], act: Callable[[SpeculativeCarry], SpeculativeCarry], carry: SpeculativeCarry
) -> SpeculativeCarry:
    """act(carry) or carry: a loop of one turn at most, since XLA's CPU backend would copy the cache through a `lax.cond`."""
    return jax.lax.while_loop(lambda loop: loop[0], lambda loop: (jnp.zeros_like(flag), act(loop[1])), (flag, carry))[1]


@partial(jax.jit, static_argnames="steps", donate_argnames="carry")
def speculative_chunk(
    program: SpeculativeProgram, carry: SpeculativeCarry, until: Int32[jax.Array, ""], steps: int
) -> SpeculativeCarry:
    """Run at most `until` rounds of `steps` drafted tokens; fewer once all rows have finished. `carry` is donated.

    >>> shared = {"key": jax.random.key(0), "max_new_tokens": 12}
    >>> program, carry = speculative_start(toy(), [[1, 2, 3]], 3, None, drafter=mx.loops.prompt_lookup(), **shared)
    >>> speculative_chunk(program, carry, np.int32(2), 4).rounds.tolist()
    [2]
    """
    return run_steps(lambda carry: _round(program, carry, steps), carry, until)


@partial(jax.jit, donate_argnames="state")
def _follow(drafter: Drafter[DraftT], state: DraftT, base: Carry) -> DraftT:
    return drafter.follow(state, base)


# As in plain decoding, unused inputs are kept so that all outputs are committed to their device, or chunks compile twice.
@partial(jax.jit, keep_unused=True)
def _draft_state(drafter: Drafter[DraftT], base: Carry) -> tuple[DraftT, tuple[Int32[jax.Array, " B"], ...]]:
    """The drafter's state after the prompts, and zeros to count from."""
    zeros = tuple(jnp.zeros_like(base.generated) for _ in range(6))
    return drafter.follow(drafter.init(base), base), zeros


def _chunk(program: SpeculativeProgram, carry: SpeculativeCarry, until: int, steps: int) -> SpeculativeCarry:
    """At most `until` rounds; with no drafted tokens, by `decode_chunk`, the loop of plain decoding itself."""
    if steps:
        return speculative_chunk(program, carry, np.int32(until), steps)
    before = np.asarray(carry.base.generated)
    base = decode_chunk(program.target, carry.base, np.int32(until))
    running(base)
    rounds = jax.device_put(np.asarray(carry.rounds) + np.asarray(base.generated) - before, carry.rounds.sharding)
    draft = _follow(program.drafter, carry.draft, base) if jax.tree.leaves(carry.draft) else carry.draft
    return dataclasses.replace(carry, base=base, rounds=rounds, draft=draft)


def speculative_start(
    model: LanguageModel,
    prompt_tokens: Tokens,
    prompt_lengths: IntPerRow,
    transform: LogitsTransform | None,
    *,
    drafter: Drafter,
    **arguments: Unpack[SharedArguments],
) -> tuple[SpeculativeProgram, SpeculativeCarry]:
    """Prefill target and draft. Arguments as for `speculative_decode`.

    >>> shared = {"key": jax.random.key(0), "max_new_tokens": 12}
    >>> program, carry = speculative_start(toy(), [[1, 2, 3]], 3, None, drafter=mx.loops.prompt_lookup(), **shared)
    >>> carry.rounds.tolist()
    [0]
    """
    if not (rows.is_row_tree(drafter) and isinstance(drafter, Drafter)):
        raise expected("drafter", drafter, "a Drafter", "Make one with model_drafter(model) or prompt_lookup().")
    draft_size = getattr(getattr(getattr(drafter, "model", None), "spec", None), "vocabulary", None)
    size = getattr(getattr(model, "spec", None), "vocabulary", draft_size)
    if draft_size is not None and draft_size != size:
        raise expected(
            "drafter", f"a vocabulary of {draft_size}", f"the target's, of {size}", "Draft with a model of its family."
        )
    arguments.setdefault("spare", MAX_DRAFTED)
    target, base = begin(decode_inputs(model, prompt_tokens, prompt_lengths, transform, **arguments))
    drafter = jax.device_put(rows.broadcast_rows(drafter, len(base.finish)))
    draft, zeros = _draft_state(drafter, base)
    return SpeculativeProgram(target, drafter), SpeculativeCarry(base, draft, *zeros)


def speculative_advance(
    program: SpeculativeProgram, carry: SpeculativeCarry, controller: DraftLengthController
) -> Iterator[SpeculativeCarry]:
    """Run to the end in chunks of about a quarter of a second, yielding the carry after each.

    >>> shared = {"key": jax.random.key(0), "max_new_tokens": 12}
    >>> program, carry = speculative_start(toy(), [[1, 2, 3]], 3, None, drafter=mx.loops.prompt_lookup(), **shared)
    >>> [carry.base.generated.tolist() for carry in speculative_advance(program, carry, DraftLengthController(4))][-1]
    [12]

    Args:
      controller: chooses how many tokens each chunk drafts, and is told what it cost and brought.
    """
    controller.begin()
    before = _counts(carry)
    while running(carry):
        live = int(np.sum(np.asarray(carry.finish) == FinishReason.RUNNING))
        steps, until = controller.choose(live)
        started = time.perf_counter()
        carry = _chunk(_priced(program, controller.price(steps)), carry, until, steps)
        running(carry)
        seconds = time.perf_counter() - started
        after = _counts(carry)
        new = after - before
        before = after
        turns, verified = (int(count.max(initial=0)) for count in new[:2])
        controller.record(steps, seconds, turns, verified, *(int(count) for count in new[[0, 2, 3, 4]].sum(axis=1)))
        yield carry


def _priced(program: SpeculativeProgram, price: float) -> SpeculativeProgram:
    """Tell a drafter that asks, by a row field `price`, how many tokens a proposal must bring for verifying it to pay."""
    field = getattr(program.drafter, "price", None)
    if field is None:
        return program
    prices = jax.device_put(np.full(field.shape, price, np.float32), field.sharding)
    return program._replace(drafter=dataclasses.replace(program.drafter, price=prices))  # pyright: ignore[reportArgumentType]


def _counts(carry: SpeculativeCarry) -> Int32[np.ndarray, "5 B"]:
    return np.stack(jax.device_get((carry.rounds, carry.verified, carry.proposed, carry.tested, carry.accepted)))


def speculative_stats(carry: SpeculativeCarry) -> SpeculationStats:
    """Count what has been done so far.

    >>> shared = {"key": jax.random.key(0), "max_new_tokens": 12}
    >>> program, carry = speculative_start(toy(), [[1, 2, 3]], 3, None, drafter=mx.loops.prompt_lookup(), **shared)
    >>> speculative_stats(speculative_chunk(program, carry, np.int32(99), 4)).tokens.tolist()
    [12]
    """
    counts = (carry.base.generated, carry.rounds, carry.verified, carry.drafted, carry.tested, carry.accepted)
    return SpeculationStats(*(np.asarray(count, np.int64) for count in jax.device_get(counts)))


def speculative_decode(
    model: LanguageModel,
    prompt_tokens: Tokens,
    prompt_lengths: IntPerRow,
    transform: LogitsTransform | None,
    *,
    drafter: Drafter,
    steps: int = 4,
    adaptive: bool = True,
    draft_length: DraftLengthController | None = None,
    edits: Edits = None,
    stops: StopTable | None = None,
    key: RowKeys,
    max_new_tokens: IntPerRow,
    eos_ids: TokenIds = (),
    capacity: int | None = None,
    pad_id: int = 0,
) -> tuple[DecodeResult, SpeculationStats]:
    """Generate for a batch of ragged prompts, by the law of `decode` and in fewer calls of the model.

    A proposal x is kept with probability min(1, p(x) / q(x)), p and q being the distributions of target and draft after the
    transform; the first one refused is replaced by a draw from norm(max(0, p - q)), and after all that were kept comes one more
    token from p. With a drafter that draws nothing of its own (`prompt_lookup`, or `model_drafter` with `shared_noise`) and at
    temperature 0, the tokens are those that `decode` generates with the same key, except where float noise decides; with
    another drafter, they have the same law, but depend on where rounds begin, hence with `adaptive` on measured times.

    A row's random numbers depend on its key and on the token's index only. Every number of drafted tokens in use compiles one
    loop more, at most four; 0 uses that of `decode`.

    >>> greedy, shared = mx.transforms.temperature(0.0), {"key": jax.random.key(0), "max_new_tokens": 12}
    >>> drafter = mx.loops.prompt_lookup()
    >>> out, stats = speculative_decode(toy(), [[1, 2, 3]], 3, greedy, drafter=drafter, **shared)
    >>> bool((out.tokens == mx.loops.decode(toy(), [[1, 2, 3]], 3, greedy, **shared).tokens).all())
    True

    Args:
      drafter: from `model_drafter` or `prompt_lookup`, or one's own `Drafter`.
      steps: tokens drafted a round, at most 8; 0 is plain decoding.
      adaptive: draft less, or nothing, by measured acceptance and cost.
      draft_length: a controller with the measurements of earlier calls of this batch size, model and drafter; it brings its
        own `steps` and `adaptive`. None: measure anew.
      capacity: cache positions; 9 more are needed than prompt and max_new_tokens take.
      model, prompt_tokens, prompt_lengths, transform, edits, stops, key, max_new_tokens, eos_ids, pad_id: as for `decode`. The
        edits act on the target; a draft model has its own.

    Returns:
      The DecodeResult, with the target's own log-probabilities, and what speculation did.

    Raises:
      ArgumentError: shapes that don't fit each other, or a draft model of another vocabulary.
    """
    controller = DraftLengthController(steps, adaptive) if draft_length is None else draft_length
    program, carry = speculative_start(
        model,
        prompt_tokens,
        prompt_lengths,
        transform,
        drafter=drafter,
        edits=edits,
        stops=stops,
        key=key,
        max_new_tokens=max_new_tokens,
        eos_ids=eos_ids,
        capacity=capacity,
        pad_id=pad_id,
    )
    for latest in speculative_advance(program, carry, controller):
        carry = latest
    return result(carry.base, pad_id), speculative_stats(carry)
