"""Several models that choose each token together.

The members' caches make up one cache, and their distributions one distribution, so that the ensemble is itself a model: what
`decode` does with any model it does with this one. Only majority voting needs a step of its own, since there every member
draws before the vote.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32

from mechanex_jax import rows
from mechanex_jax.edits import Edit, Edits, compose
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.loops.begin import begin
from mechanex_jax.loops.carry import Carry, DecodeResult, FinishReason, Program, result
from mechanex_jax.loops.chunks import advance
from mechanex_jax.loops.inputs import IntPerRow, RowKeys, TokenIds, Tokens, decode_inputs, unwrap
from mechanex_jax.loops.language_model import LanguageModel, LogitsOf, ModelCache, ModelHandle, ModelSpec, logits_of
from mechanex_jax.loops.step import append, current_step, decode_chunk, read_last, run_steps
from mechanex_jax.loops.stop_strings import StopTable
from mechanex_jax.loops.voting import VOTING, Weights, check_voting, normalized, vote
from mechanex_jax.transforms import LogitsTransform
from mechanex_jax.transforms.base import apply_rows
from mechanex_jax.transforms.draw import draw_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EnsembleCache:
    """The caches of all members.

    Attributes:
      members: one cache for each.
      lengths: positions that hold real tokens, in all of them; what the members say of theirs is ignored.
    """

    members: tuple[ModelCache, ...]
    lengths: Int32[jax.Array, " B"]


class EnsembleOutput(NamedTuple):
    """The result of `Ensemble.extend`.

    Attributes:
      logits: of the combined distribution; None if none were asked for.
      cache: with the call's valid tokens added.
      members: the members' own logits, shaped alike.
      captured: nothing: members may have activations of different shapes.
    """

    logits: Float32[jax.Array, "B *S V"] | None
    cache: EnsembleCache
    members: tuple[Float32[jax.Array, "B *S V"], ...]
    captured: dict[str, Float[jax.Array, "B L S D"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ensemble:
    """A model made of models with one vocabulary, by `ensemble_model`.

    Attributes:
      models: the members.
      edits: for each member the edits of its own, broadcast to B rows; they follow those that `extend` is given.
      weights: of each row's members; they sum to 1.
      combine: (members' logits, weights) -> logits; static.
    """

    models: tuple[LanguageModel, ...]
    edits: tuple[tuple[Edit, ...], ...]
    weights: Float32[jax.Array, "B M"]
    combine: Callable[[Sequence[jax.Array], jax.Array], jax.Array] = dataclasses.field(metadata={"static": True})

    @property
    def spec(self) -> ModelSpec:
        """The first member's; the vocabulary is everyone's."""
        return self.models[0].spec

    def init_cache(self, batch: int, positions: int) -> EnsembleCache:
        """As `LanguageModel.init_cache`, for every member."""
        caches = tuple(model.init_cache(batch, positions) for model in self.models)
        return EnsembleCache(caches, jnp.zeros(batch, jnp.int32))

    def unembedding(self) -> Float[jax.Array, "D V"]:
        """The first member's; every member has one of its own."""
        return self.models[0].unembedding()

    def extend(
        self,
        cache: EnsembleCache,
        tokens: Int32[jax.Array, "B S"],
        valid: Int32[jax.Array, " B"],
        edits: tuple[Edit, ...] = (),
        *,
        prompt_lengths: Int32[jax.Array, " B"] | None = None,
        logits: LogitsOf = "last",
        capture: tuple[str, ...] = (),
    ) -> EnsembleOutput:
        """As `LanguageModel.extend`, for every member at once.

        Raises:
          ArgumentError: activations are asked for.
        """
        if capture:
            raise expected("capture", capture, "nothing, of an ensemble", "Capture activations of its members one by one.")
        outputs = []
        for model, edits_of_member, member in zip(self.models, self.edits, cache.members, strict=True):
            known = dataclasses.replace(member, lengths=cache.lengths)  # pyright: ignore[reportArgumentType]
            several = (*edits, *edits_of_member)
            outputs.append(model.extend(known, tokens, valid, several, prompt_lengths=prompt_lengths, logits=logits))
        after = EnsembleCache(tuple(out.cache for out in outputs), cache.lengths + valid)
        if logits == "none":
            return EnsembleOutput(None, after, (), {})
        members = tuple(logits_of(out) for out in outputs)
        return EnsembleOutput(self.combine(members, self.weights), after, members, {})


def majority_step(program: Program, carry: Carry) -> Carry:
    """One token for every row that still runs: each member draws by the row's transform, then they vote."""
    ensemble, transform = program.model, program.transform
    assert isinstance(ensemble, Ensemble)
    live = carry.finish == FinishReason.RUNNING
    out = read_last(program, carry, live)
    assert isinstance(out, EnsembleOutput)
    step = current_step(carry)
    processed = jax.vmap(lambda z: apply_rows(transform, carry.transform_state, z, step))(jnp.stack(out.members))
    # All members draw with the row's one key: independent draws from a large vocabulary would hardly ever agree, common noise
    # makes members who think alike say the same. Each member's law stays its own.
    tokens = jax.vmap(draw_rows, (None, 0))(step.key, processed)
    weights = ensemble.weights.T
    votes = jnp.where(jnp.max(processed, axis=-1) > -jnp.inf, weights, 0.0)
    liking = jnp.take_along_axis(logits_of(out), tokens.T, axis=1).T
    token = vote(tokens, votes, jnp.where(votes > 0, liking, -jnp.inf))
    possible = jnp.max(jnp.where(weights[:, :, None] > 0, processed, -jnp.inf), axis=0)
    return append(program, dataclasses.replace(carry, cache=out.cache), live, logits_of(out), possible, token, step)


@partial(jax.jit, donate_argnames="carry")
def majority_chunk(program: Program, carry: Carry, until: Int32[jax.Array, ""]) -> Carry:
    """Generate as `decode_chunk` does, by `majority_step`. `carry` is donated."""
    return run_steps(lambda carry: majority_step(program, carry), carry, until)


def ensemble_model(
    models: Sequence[LanguageModel | ModelHandle],
    batch: int,
    *,
    voting: str = "mean",
    weights: Weights | None = None,
    member_edits: Sequence[Edits] | None = None,
) -> Ensemble:
    """Make one model out of several, for `batch` rows; `decode` and every other loop take it.

    With "majority" it is the mean, which `ensemble_decode` votes on. Arguments as for `ensemble_decode`.

    >>> both = ensemble_model([toy(seed=0), toy(seed=1)], batch=1, voting="product")
    >>> mx.loops.decode(both, [[1, 2, 3]], 3, None, key=jax.random.key(0), max_new_tokens=4).lengths.tolist()
    [4]
    """
    members = tuple(unwrap(model) for model in models)
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
    check_voting(voting)
    edits = [None] * len(members) if member_edits is None else member_edits
    if not isinstance(edits, Sequence) or len(edits) != len(members):
        raise expected("member_edits", member_edits, f"edits for each of the {len(members)} models, or None")
    edits_by_member = tuple(rows.broadcast_rows(compose(edit), batch) for edit in edits)
    shares = np.broadcast_to(normalized(weights, len(members), batch), (batch, len(members)))
    edits_by_member, shares = jax.device_put((edits_by_member, np.ascontiguousarray(shares)))
    return Ensemble(members, edits_by_member, shares, VOTING[voting])


def ensemble_decode(
    models: Sequence[LanguageModel | ModelHandle],
    prompt_tokens: Tokens,
    prompt_lengths: IntPerRow,
    transform: LogitsTransform | None,
    *,
    voting: str = "majority",
    weights: Weights | None = None,
    edits: Edits = None,
    member_edits: Sequence[Edits] | None = None,
    stops: StopTable | None = None,
    key: RowKeys,
    max_new_tokens: IntPerRow,
    eos_ids: TokenIds = (),
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

    >>> models, greedy = [toy(seed=seed) for seed in range(3)], mx.transforms.temperature(0.0)
    >>> shared = {"key": jax.random.key(0), "max_new_tokens": 4}
    >>> ensemble_decode(models, [[1, 2, 3]], 3, greedy, weights=[2, 1, 1], **shared).tokens.tolist()
    [[2, 9, 3, 2]]

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
    ensemble = ensemble_model(models, len(prompt_tokens), voting=voting, weights=weights, member_edits=member_edits)
    inputs = decode_inputs(
        ensemble,
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
    program, carry = begin(inputs)
    for latest in advance(program, carry, chunk=chunk_of(voting)):
        carry = latest
    return result(carry, pad_id)


def chunk_of(voting: str) -> Callable[[Program, Carry, np.int32], Carry]:
    """The chunk that `advance` runs an ensemble with, for those who stream it."""
    return majority_chunk if voting == "majority" else decode_chunk
