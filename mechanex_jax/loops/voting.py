"""How several models' opinions become one: combined distributions, counted votes, and the weights of both."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, Num

from mechanex_jax.errors import expected
from mechanex_jax.loops.inputs import Number
from mechanex_jax.rows import Array

Weights: TypeAlias = Num[Array, " M"] | Num[Array, "B M"] | Sequence[Number] | Sequence[Sequence[Number]]

_TIE = 1e-6  # sums of weights in float32 are equal up to this

# Combinations keep the members' scale: with equal members their logits come out, and not log-probabilities, because a
# repetition penalty sees the difference.


def mean(members: Sequence[Float32[jax.Array, "B *S V"]], weights: Float32[jax.Array, "B M"]) -> Float32[jax.Array, "B *S V"]:
    """Logits of the arithmetic mean, sum w_m p_m; a token is impossible if it is for every member that has weight."""
    shares = [_column(weights, m, z) for m, z in enumerate(members)]
    normalisers = [jax.nn.logsumexp(z, axis=-1, keepdims=True) for z in members]
    normalisers = [jnp.where(jnp.isfinite(n), n, 0.0) for n in normalisers]  # a member without a possible token says nothing
    parts = [z - n + jnp.log(w) for z, n, w in zip(members, normalisers, shares, strict=True)]
    return functools.reduce(jnp.logaddexp, parts) + sum(w * n for w, n in zip(shares, normalisers, strict=True))


def product(
    members: Sequence[Float32[jax.Array, "B *S V"]], weights: Float32[jax.Array, "B M"]
) -> Float32[jax.Array, "B *S V"]:
    """Logits of the geometric mean, prod p_m^w_m, renormalised; a token impossible for one member with weight stays so."""
    shares = [_column(weights, m, z) for m, z in enumerate(members)]
    # 0 times -inf is NaN: a member without weight is left out instead.
    return sum((jnp.where(w > 0, w * z, 0.0) for w, z in zip(shares, members, strict=True)), jnp.float32(0))


def _column(weights: Float32[jax.Array, "B M"], member: int, logits: jax.Array) -> jax.Array:
    return weights[:, member].reshape(-1, *(1,) * (logits.ndim - 1))


# For a majority, the combined law is the mean: it breaks ties, and it is what `logprobs` report.
VOTING = {"majority": mean, "mean": mean, "product": product}


def vote(
    tokens: Int32[jax.Array, "M B"], votes: Float32[jax.Array, "M B"], liking: Float32[jax.Array, "M B"]
) -> Int32[jax.Array, " B"]:
    """The token with most votes; of those with equally many the best liked, and of those the lowest id.

    Args:
      tokens: the token that each member votes for.
      votes: how many votes each member has.
      liking: of each of these tokens.
    """
    same = tokens[:, None] == tokens[None]
    count = jnp.sum(jnp.where(same, votes[None], 0.0), axis=1)
    first = count >= jnp.max(count, axis=0) - _TIE
    liking = jnp.where(first, liking, -jnp.inf)
    first &= liking >= jnp.max(liking, axis=0)
    return jnp.min(jnp.where(first, tokens, jnp.iinfo(jnp.int32).max), axis=0)


def check_voting(voting: str) -> None:
    """Refuse a vote that does not exist.

    Raises:
      ArgumentError: not a key of `VOTING`.
    """
    if not isinstance(voting, str) or voting not in VOTING:
        raise expected("voting", voting, f"one of {', '.join(VOTING)}")


def normalized(
    weights: Weights | None, members: int, batch: int | None = None
) -> Float32[np.ndarray, " M"] | Float32[np.ndarray, "B M"]:
    """Weights that sum to 1 over the members; None is equal ones.

    Args:
      weights: one per member, or with `batch` also one row of them per row of the batch.
      members: M.
      batch: B; None allows no weights per row.

    Raises:
      ArgumentError: another shape, a weight that is negative or not finite, or a row without a positive one.
    """
    shapes = [(members,)] + ([] if batch is None else [(batch, members)])
    words = f"{members} numbers >= 0, not all 0" + ("" if batch is None else f", or those for each of {batch} rows")
    try:
        array = np.ones(members) if weights is None else np.asarray(weights, np.float64)
    except (TypeError, ValueError) as error:
        raise expected("weights", weights, words) from error
    if array.shape not in shapes or not np.isfinite(array).all() or (array < 0).any() or (array.max(-1) <= 0).any():
        raise expected("weights", weights, words)
    scaled = array / array.max(-1, keepdims=True)  # first, so that the sum of huge ones is finite
    return (scaled / scaled.sum(-1, keepdims=True)).astype(np.float32)
