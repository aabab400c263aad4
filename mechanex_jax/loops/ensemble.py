"""Several models that choose each token together.

The members' caches make up one cache, and their distributions one distribution, so that the ensemble is itself a model: what
`decode` does with any model it does with this one. Only majority voting needs a step of its own, since there every member
draws before the vote.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from mechanex_jax import rows
from mechanex_jax.edits import compose
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.loops.autoregressive import (
    Carry,
    DecodeResult,
    FinishReason,
    Program,
    advance,
    append,
    decode_chunk,
    result,
    standing,
    start,
)
from mechanex_jax.loops.stop_strings import StopTable
from mechanex_jax.transforms.base import apply_rows
from mechanex_jax.transforms.draw import draw_rows

_TIE = 1e-6  # sums of weights in float32 are equal up to this


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EnsembleCache:
    """Attributes:
    members: the members' caches.
    lengths: int32 [B], positions that hold real tokens, of all of them; what the members say of theirs is ignored.
    """

    members: tuple[Any, ...]
    lengths: jax.Array


class EnsembleOutput(NamedTuple):
    """Attributes:
    logits: float32 [B, V] or [B, S, V], of the combined distribution; None if none were asked for.
    cache: with the call's valid tokens added.
    members: the members' own logits, shaped alike.
    """

    logits: Any
    cache: EnsembleCache
    members: tuple[Any, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ensemble:
    """A model made of models with one vocabulary. Made by `ensemble_model`.

    Attributes:
      models: the members; anything with `init_cache` and `extend`.
      edits: for each member the edits of its own, broadcast to B rows; they follow those that `extend` is given.
      weights: float32 [B, M], rows that sum to 1.
      combine: (members' logits, weights) -> logits; static.
    """

    models: tuple[Any, ...]
    edits: tuple[tuple[Any, ...], ...]
    weights: jax.Array
    combine: Callable[..., jax.Array] = dataclasses.field(metadata={"static": True})

    @property
    def spec(self) -> Any:
        """Of the first member; the vocabulary is everyone's."""
        return self.models[0].spec

    def init_cache(self, batch: int, positions: int) -> EnsembleCache:
        caches = tuple(model.init_cache(batch, positions) for model in self.models)
        return EnsembleCache(caches, jnp.zeros(batch, jnp.int32))

    def extend(
        self, cache: EnsembleCache, tokens: Any, valid: Any, edits: tuple[Any, ...] = (), *, logits: str = "last", **rest: Any
    ) -> EnsembleOutput:
        """As `Model.extend`, for every member at once."""
        outputs = []
        for model, own, member in zip(self.models, self.edits, cache.members, strict=True):
            begun = dataclasses.replace(member, lengths=cache.lengths)
            outputs.append(model.extend(begun, tokens, valid, (*edits, *own), logits=logits, **rest))
        after = EnsembleCache(tuple(out.cache for out in outputs), cache.lengths + valid)
        if logits == "none":
            return EnsembleOutput(None, after, ())
        members = tuple(out.logits for out in outputs)
        return EnsembleOutput(self.combine(members, self.weights), after, members)


# Combinations keep the members' scale: with equal members their logits come out, and not log-probabilities, because a
# repetition penalty sees the difference.


def mean(members: Sequence[jax.Array], weights: Float32[jax.Array, "B M"]) -> jax.Array:
    """Logits of the arithmetic mean, sum w_m p_m; a token is impossible if it is for every member that has weight."""
    shares = [_column(weights, m, z) for m, z in enumerate(members)]
    normalisers = [jax.nn.logsumexp(z, axis=-1, keepdims=True) for z in members]
    normalisers = [jnp.where(jnp.isfinite(n), n, 0.0) for n in normalisers]  # a member without a possible token says nothing
    parts = [z - n + jnp.log(w) for z, n, w in zip(members, normalisers, shares, strict=True)]
    return functools.reduce(jnp.logaddexp, parts) + sum(w * n for w, n in zip(shares, normalisers, strict=True))


def product(members: Sequence[jax.Array], weights: Float32[jax.Array, "B M"]) -> jax.Array:
    """Logits of the geometric mean, prod p_m^w_m, renormalised; a token impossible for one member with weight stays so."""
    shares = [_column(weights, m, z) for m, z in enumerate(members)]
    # 0 times -inf is NaN: a member without weight is left out instead.
    return sum((jnp.where(w > 0, w * z, 0.0) for w, z in zip(shares, members, strict=True)), jnp.float32(0))


def _column(weights: jax.Array, member: int, logits: jax.Array) -> jax.Array:
    return weights[:, member].reshape(-1, *(1,) * (logits.ndim - 1))


# For a majority, the combined law is the mean: it breaks ties, and it is what `logprobs` report.
VOTING = {"majority": mean, "mean": mean, "product": product}


def vote(
    tokens: Int32[jax.Array, "M B"], votes: Float32[jax.Array, "M B"], liking: Float32[jax.Array, "M B"]
) -> Int32[jax.Array, " B"]:
    """The token with most votes; of those with equally many the best liked, and of those the lowest id.

    Args:
      tokens: whom each member votes for.
      votes: how many votes each member has.
      liking: of each of these tokens.
    """
    same = tokens[:, None] == tokens[None]
    count = jnp.sum(jnp.where(same, votes[None], 0.0), axis=1)
    first = count >= jnp.max(count, axis=0) - _TIE
    liking = jnp.where(first, liking, -jnp.inf)
    first &= liking >= jnp.max(liking, axis=0)
    return jnp.min(jnp.where(first, tokens, jnp.iinfo(jnp.int32).max), axis=0)


def majority_step(program: Program, carry: Carry) -> Carry:
    """One token for every row that still runs: each member draws by the row's transform, then they vote."""
    ensemble, transform = program.model, program.transform
    live = carry.finish == FinishReason.RUNNING
    last = jnp.take_along_axis(carry.tokens, carry.cache.lengths[:, None], axis=1)
    out = ensemble.extend(carry.cache, last, live.astype(jnp.int32), program.edits, prompt_lengths=carry.prompt_lengths)
    step = standing(carry)
    processed = jax.vmap(lambda z: apply_rows(transform, carry.transform_state, z, step))(jnp.stack(out.members))
    # All members draw with the row's one key: independent draws from a large vocabulary would hardly ever agree, common noise
    # makes members who think alike say the same. Each member's law stays its own.
    tokens = jax.vmap(draw_rows, (None, 0))(step.key, processed)
    weights = ensemble.weights.T
    votes = jnp.where(jnp.max(processed, axis=-1) > -jnp.inf, weights, 0.0)
    liking = jnp.take_along_axis(out.logits, tokens.T, axis=1).T
    token = vote(tokens, votes, jnp.where(votes > 0, liking, -jnp.inf))
    possible = jnp.max(jnp.where(weights[:, :, None] > 0, processed, -jnp.inf), axis=0)
    return append(program, dataclasses.replace(carry, cache=out.cache), live, out.logits, possible, token, step)


@functools.partial(jax.jit, donate_argnames="carry")
def majority_chunk(program: Program, carry: Carry, until: Int32[jax.Array, ""]) -> Carry:
    """As `decode_chunk`, by `majority_step`. `carry` is donated."""

    def unfinished(loop: tuple[jax.Array, Carry]) -> jax.Array:
        return (loop[0] < until) & jnp.any(loop[1].finish == FinishReason.RUNNING)

    return jax.lax.while_loop(unfinished, lambda loop: (loop[0] + 1, majority_step(program, loop[1])), (jnp.int32(0), carry))[1]


def ensemble_model(
    models: Sequence[Any], batch: int, *, voting: Any = "mean", weights: Any = None, member_edits: Any = None
) -> Ensemble:
    """One model out of several, for `batch` rows; `decode` and every other loop take it. Arguments as `ensemble_decode`.

    With "majority" it is the mean, which `ensemble_decode` votes on.
    """
    members = tuple(getattr(model, "model", model) for model in models)
    if not members:
        raise expected("models", Verbatim("none"), "at least one model")
    sizes = [model.spec.vocabulary for model in members]
    if len(set(sizes)) > 1:
        raise expected(
            "models",
            Verbatim(f"vocabularies of {', '.join(map(str, sizes))} tokens"),
            "models that share one tokeniser",
            "Let each model generate, score every candidate by every model (mx.loops.score), and mx.loops.select one.",
        )
    if not isinstance(voting, str) or voting not in VOTING:
        raise expected("voting", voting, f"one of {', '.join(VOTING)}")
    edits = [None] * len(members) if member_edits is None else member_edits
    if not isinstance(edits, Sequence) or len(edits) != len(members):
        raise expected("member_edits", member_edits, f"edits for each of the {len(members)} models, or None")
    own = tuple(rows.broadcast_rows(compose(edit), batch) for edit in edits)
    shares = np.broadcast_to(shares_of(weights, len(members), batch), (batch, len(members)))
    own, shares = jax.device_put((own, np.ascontiguousarray(shares)))
    return Ensemble(members, own, shares, VOTING[voting])


def shares_of(weights: Any, members: int, batch: int | None = None) -> np.ndarray:
    """float32 [M] or [B, M]: weights that sum to 1; None is equal ones.

    Raises:
      ArgumentError: another shape, a weight that is negative or not finite, or a row without a positive one.
    """
    shapes = [(members,)] + ([] if batch is None else [(batch, members)])
    wanted = f"{members} numbers >= 0, not all 0" + ("" if batch is None else f", or those for each of {batch} rows")
    try:
        array = np.ones(members) if weights is None else np.asarray(weights, np.float64)
    except (TypeError, ValueError) as error:
        raise expected("weights", weights, wanted) from error
    if array.shape not in shapes or not np.isfinite(array).all() or (array < 0).any() or (array.max(-1) <= 0).any():
        raise expected("weights", weights, wanted)
    scaled = array / array.max(-1, keepdims=True)  # first, so that the sum of huge ones is finite
    return (scaled / scaled.sum(-1, keepdims=True)).astype(np.float32)


def ensemble_decode(
    models: Sequence[Any],
    prompt_tokens: Int32[np.ndarray, "B S"] | Any,
    prompt_lengths: Int32[np.ndarray, " B"] | Any,
    transform: Any,
    *,
    voting: str = "majority",
    weights: Any = None,
    edits: Any = None,
    member_edits: Any = None,
    stops: StopTable | None = None,
    key: jax.Array,
    max_new_tokens: Any,
    eos_ids: Any = (),
    capacity: int | None = None,
    pad_id: int = 0,
) -> DecodeResult:
    """Generate with several models that share one tokeniser; all of them step in one loop.

    - "majority": each member's logits go through the transform, whose state they share, and each member draws (at temperature
      0, says its argmax). The token with most weight of votes wins; of equals the one of highest weighted mean probability
      under the members themselves, then the lowest id. A member for which the transform leaves no token has no vote. All
      members of a row draw with the same random numbers: each token drawn has its member's law, members that agree in their
      distributions agree in their draws, and one member alone decodes as it does without the others.
    - "mean": sum w_m p_m of the members' own distributions, then one transform and one draw.
    - "product": prod p_m^w_m, renormalised, then the same. What one member with weight holds impossible stays impossible.

    `logprobs` are those of the ensemble before any transform: of the product for "product", else of the weighted mean.

    Args:
      models: at least one; the same number of logits in all of them. The first's `spec` is the ensemble's.
      prompt_tokens, prompt_lengths, transform, stops, key, max_new_tokens, eos_ids, capacity, pad_id: as for `decode`.
      voting: "majority", "mean" or "product"; static.
      weights: one number >= 0 per model [M], or those per row [B, M]; normalised; traced. None: equal. A model of weight 0
        counts as absent.
      edits: an Edit or several, for every model: they must be of one width.
      member_edits: for each model an Edit, several, or None; they follow `edits`.

    Returns:
      A DecodeResult with N = the largest max_new_tokens.

    Raises:
      ArgumentError: no models, vocabularies that differ, an unknown vote, weights that don't fit, shapes that don't.
    """
    joined = ensemble_model(models, len(prompt_tokens), voting=voting, weights=weights, member_edits=member_edits)
    program, carry = start(
        joined,
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
    for latest in advance(program, carry, chunk=chunk_of(voting)):
        carry = latest
    return result(carry, pad_id)


def chunk_of(voting: str) -> Callable[..., Carry]:
    """Which chunk `advance` runs an ensemble with; for whoever streams it."""
    return majority_chunk if voting == "majority" else decode_chunk
