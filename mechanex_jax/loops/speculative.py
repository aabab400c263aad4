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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from mechanex_jax import rows
from mechanex_jax.errors import expected
from mechanex_jax.loops import autoregressive
from mechanex_jax.loops.autoregressive import Carry, DecodeResult, FinishReason, Program, append, decode_chunk, standing
from mechanex_jax.loops.draft_length import MAX_DRAFTED, DraftLengthController
from mechanex_jax.loops.drafters import Drafter, Proposal
from mechanex_jax.loops.stop_strings import StopTable
from mechanex_jax.transforms.base import apply_rows
from mechanex_jax.transforms.draw import draw_rows

_ACCEPT = 0x0ACCE7  # sets the random numbers of acceptance apart from those of the draw


class SpeculativeProgram(NamedTuple):
    """What does not change while a batch decodes."""

    target: Program
    drafter: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SpeculativeCarry:
    """All that a batch needs to go on; B in front of every leaf.

    Attributes:
      base: as plain decoding has it, so that plain chunks may come in between.
      draft: the drafter's state.
      rounds: int32 [B], calls of the target in which the row was running, plain steps included.
      verified: int32 [B], of these, those that were no plain steps.
      proposed: int32 [B], rounds in which it had a proposal.
      drafted: int32 [B], tokens proposed.
      tested: int32 [B], of these, those that the target came to: all before the first one refused, and that one.
      accepted: int32 [B], of these, those kept.
    """

    base: Carry
    draft: Any
    rounds: jax.Array
    verified: jax.Array
    proposed: jax.Array
    drafted: jax.Array
    tested: jax.Array
    accepted: jax.Array

    @property
    def finish(self) -> jax.Array:
        return self.base.finish


class SpeculationStats(NamedTuple):
    """What speculation did, per row, on the host; int64 [B] each, see `SpeculativeCarry`."""

    tokens: np.ndarray
    rounds: np.ndarray
    verified: np.ndarray
    drafted: np.ndarray
    tested: np.ndarray
    accepted: np.ndarray

    @property
    def acceptance_rate(self) -> np.ndarray:
        """float64 [B], the share of tested proposals that were kept: an estimate of sum min(p, q). NaN if none was tested."""
        return _quotient(self.accepted, self.tested)

    @property
    def tokens_per_round(self) -> np.ndarray:
        """float64 [B], tokens for each call of the target: 1 is plain decoding. NaN if there was none."""
        return _quotient(self.tokens, self.rounds)


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(b > 0, a / np.maximum(b, 1), np.nan)


def _residual(p: jax.Array, q: jax.Array) -> jax.Array:
    """Logits of norm(max(0, p - q)), from the logits of p and q. Where rounding leaves nothing of it: those of p."""
    rest = jnp.maximum(jax.nn.softmax(p) - jax.nn.softmax(q), 0.0)
    return jnp.where(jnp.any(rest > 0, axis=-1, keepdims=True), jnp.log(rest), p)


def _choose(keys: jax.Array, p: jax.Array, proposed: jax.Array, q: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """A token from p for every row, and whether it is the one proposed.

    Args:
      p: float32 [B, V], the target's logits after the transform.
      proposed: int32 [B], -1 for none.
      q: float32 [B, V], the logits `proposed` was drawn from. None if it was not drawn: then to take it with probability p(x),
        and else draw from p without x, is to draw from p and see whether that is x.
    """
    if q is None:
        token = draw_rows(keys, p)
        return token, token == proposed
    some = proposed >= 0
    at = jnp.maximum(proposed, 0)[:, None]
    own, others = (jnp.take_along_axis(logits, at, axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=-1) for logits in (p, q))
    uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, _ACCEPT)))(keys)
    accept = some & (jnp.log(uniform) < own - others)
    other = draw_rows(keys, jnp.where(some[:, None], _residual(p, q), p))
    return jnp.where(accept, proposed, other), accept


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

    def position(loop: Any) -> Any:
        index, on, base, tested, accepted = loop
        pick = partial(jax.lax.dynamic_index_in_dim, index=index, axis=1, keepdims=False)
        raw, proposed = pick(out.logits), pick(proposals)
        # Behind the last proposal there is no q; what is read instead is not used.
        q = None if proposal.logits is None else pick(proposal.logits)
        step = standing(base)
        logits = apply_rows(transform, base.transform_state, raw, step)
        token, accept = _choose(step.key, logits, proposed, q)
        before = base.generated
        base = append(program.target, base, on, raw, logits, token, step)
        accept &= base.generated > before
        tested += (on & (proposed >= 0)).astype(jnp.int32)
        accepted += accept.astype(jnp.int32)
        return index + 1, accept & (base.finish == FinishReason.RUNNING), base, tested, accepted

    # The cache stays outside of the loop, which neither reads nor writes it.
    loop = (jnp.int32(0), live, dataclasses.replace(base, cache=()), carry.tested, carry.accepted)
    loop = jax.lax.while_loop(lambda loop: (loop[0] <= steps) & jnp.any(loop[1]), position, loop)
    _, _, following, tested, accepted = loop
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
        return dataclasses.replace(
            carry, base=autoregressive.decode_step(target, carry.base), rounds=carry.rounds + live.astype(jnp.int32)
        )

    some = jnp.any(proposal.tokens[:, 0] >= 0)
    return _when(some, lambda carry: _verify(program, carry, proposal), _when(~some, plain, carry))


def _when(wanted: jax.Array, act: Callable[[SpeculativeCarry], SpeculativeCarry], carry: SpeculativeCarry) -> SpeculativeCarry:
    """act(carry) or carry: a loop of one turn at most, since XLA's CPU backend would copy the cache through a `lax.cond`."""
    return jax.lax.while_loop(lambda loop: loop[0], lambda loop: (jnp.zeros_like(wanted), act(loop[1])), (wanted, carry))[1]


@partial(jax.jit, static_argnames="steps", donate_argnames="carry")
def speculative_chunk(
    program: SpeculativeProgram, carry: SpeculativeCarry, until: Int32[jax.Array, ""], steps: int
) -> SpeculativeCarry:
    """At most `until` rounds of `steps` drafted tokens; fewer once all rows have finished. `carry` is donated."""

    def unfinished(loop: tuple[jax.Array, SpeculativeCarry]) -> jax.Array:
        return (loop[0] < until) & jnp.any(loop[1].finish == FinishReason.RUNNING)

    def body(loop: tuple[jax.Array, SpeculativeCarry]) -> tuple[jax.Array, SpeculativeCarry]:
        return loop[0] + 1, _round(program, loop[1], steps)

    return jax.lax.while_loop(unfinished, body, (jnp.int32(0), carry))[1]


@partial(jax.jit, donate_argnames="state")
def _follow(drafter: Any, state: Any, base: Carry) -> Any:
    return drafter.follow(state, base)


# As in plain decoding, unused inputs are kept so that all outputs are committed to their device, or chunks compile twice.
@partial(jax.jit, keep_unused=True)
def _begin(drafter: Any, base: Carry) -> Any:
    zeros = tuple(jnp.zeros_like(base.generated) for _ in range(6))
    return drafter.follow(drafter.init(base), base), zeros


def _chunk(program: SpeculativeProgram, carry: SpeculativeCarry, until: int, steps: int) -> SpeculativeCarry:
    """At most `until` rounds; with no drafted tokens, by `decode_chunk`, the loop of plain decoding itself."""
    if steps:
        return speculative_chunk(program, carry, np.int32(until), steps)
    before = np.asarray(carry.base.generated)
    base = decode_chunk(program.target, carry.base, np.int32(until))
    autoregressive.running(base)
    rounds = jax.device_put(np.asarray(carry.rounds) + np.asarray(base.generated) - before, carry.rounds.sharding)
    draft = _follow(program.drafter, carry.draft, base) if jax.tree.leaves(carry.draft) else carry.draft
    return dataclasses.replace(carry, base=base, rounds=rounds, draft=draft)


def speculative_start(
    model: Any, prompt_tokens: Any, prompt_lengths: Any, transform: Any, *, drafter: Drafter | Any, **arguments: Any
) -> tuple[SpeculativeProgram, SpeculativeCarry]:
    """Prefill target and draft. Arguments as for `speculative_decode`."""
    if not (rows.is_row_tree(drafter) and isinstance(drafter, Drafter)):
        raise expected("drafter", drafter, "a Drafter", "Make one with model_drafter(model) or prompt_lookup().")
    draft_size = getattr(getattr(getattr(drafter, "model", None), "spec", None), "vocabulary", None)
    size = getattr(getattr(model, "spec", None), "vocabulary", draft_size)
    if draft_size is not None and draft_size != size:
        raise expected(
            "drafter", f"a vocabulary of {draft_size}", f"the target's, of {size}", "Draft with a model of its family."
        )
    arguments.setdefault("spare", MAX_DRAFTED)
    target, base = autoregressive.start(model, prompt_tokens, prompt_lengths, transform, **arguments)
    drafter = jax.device_put(rows.broadcast_rows(drafter, len(base.finish)))
    draft, zeros = _begin(drafter, base)
    return SpeculativeProgram(target, drafter), SpeculativeCarry(base, draft, *zeros)


def speculative_advance(
    program: SpeculativeProgram, carry: SpeculativeCarry, controller: DraftLengthController
) -> Iterator[SpeculativeCarry]:
    """Run to the end in chunks of about a quarter of a second, yielding the carry after each.

    Args:
      controller: chooses how many tokens each chunk drafts, and is told what it cost and brought.
    """
    controller.begin()
    before = _counts(carry)
    while autoregressive.running(carry):
        live = int(np.sum(np.asarray(carry.finish) == FinishReason.RUNNING))
        steps, until = controller.choose(live)
        begun = time.perf_counter()
        carry = _chunk(_priced(program, controller.price(steps)), carry, until, steps)
        autoregressive.running(carry)
        seconds = time.perf_counter() - begun
        after = _counts(carry)
        new = after - before
        before = after
        turns, verified = (int(count.max(initial=0)) for count in new[:2])
        controller.record(steps, seconds, turns, verified, *(int(count) for count in new[[0, 2, 3, 4]].sum(axis=1)))
        yield carry


def _priced(program: SpeculativeProgram, price: float) -> SpeculativeProgram:
    """Tell a drafter that asks, by a row field `price`, how many tokens a proposal must bring for verifying it to pay."""
    asked = getattr(program.drafter, "price", None)
    if asked is None:
        return program
    prices = jax.device_put(np.full(asked.shape, price, np.float32), asked.sharding)
    return program._replace(drafter=dataclasses.replace(program.drafter, price=prices))


def _counts(carry: SpeculativeCarry) -> np.ndarray:
    return np.stack(jax.device_get((carry.rounds, carry.verified, carry.proposed, carry.tested, carry.accepted)))


def speculative_stats(carry: SpeculativeCarry) -> SpeculationStats:
    """What has been done so far."""
    counts = (carry.base.generated, carry.rounds, carry.verified, carry.drafted, carry.tested, carry.accepted)
    return SpeculationStats(*(np.asarray(count, np.int64) for count in jax.device_get(counts)))


def speculative_decode(
    model: Any,
    prompt_tokens: Int32[np.ndarray, "B S"] | Any,
    prompt_lengths: Int32[np.ndarray, " B"] | Any,
    transform: Any,
    *,
    drafter: Drafter | Any,
    steps: int = 4,
    adaptive: bool = True,
    draft_length: DraftLengthController | None = None,
    edits: Any = None,
    stops: StopTable | None = None,
    key: jax.Array,
    max_new_tokens: Any,
    eos_ids: Any = (),
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
    return autoregressive.result(carry.base, pad_id), speculative_stats(carry)
