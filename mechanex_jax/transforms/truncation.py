"""Temperature and the five truncations, fused: top-k, top-p, min-p, typical, epsilon.

A new truncation is a field of `Truncation` with its neutral value, an argument of `truncation` with its range, a factory, and
its cut in `_truncate_rows`. What is long about a cut is in `thresholds`.

Every stage keeps an interval of logits: most of them all that is at least some threshold, typical sampling what lies around the
mean surprisal. So a row needs two scalars, `lowest` and `highest`, and one pass over V writes the result. What no row of the
batch needs is skipped by a `lax.cond` on the batch; `jax.vmap` would turn it into a select that runs both branches, hence the
`custom_vmap`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import DTypeLike
from jaxtyping import Float32, Int32

from mechanex_jax.rows import Array, PerRow, columns, neutral_values, row, row_tree
from mechanex_jax.transforms.arguments import LARGEST_INT, Valid, number_per_row
from mechanex_jax.transforms.base import Logits, Stateless, Step
from mechanex_jax.transforms.draw import argmax_rows
from mechanex_jax.transforms.thresholds import (
    CANDIDATES,
    LARGEST,
    Bits,
    LogitRows,
    Rows,
    Uses,
    largest_logits,
    merge_axis,
    row_sums,
    settled,
    top_k_cut,
    top_p_cut,
    typical_interval,
)

__all__ = ["Truncation", "epsilon_cutoff", "min_p", "temperature", "top_k", "top_p", "truncation", "typical_p"]


@row_tree
class Truncation(Stateless):
    """Temperature, then top-k, top-p, min-p, typical and epsilon truncation, each on what the ones before left, renormalised.

    A stage whose field is None is absent from the program; a neutral value is the identity, so that rows of different methods
    share one program. Tokens cut get -inf, the others `logits / temperature`. Ties at a cut are kept, a token at -inf stays
    there, and a row with a finite logit keeps at least one token.

    Attributes:
      temperature: 0 is greedy: everything but the argmax (lowest id on a tie) is cut. 1 is the identity.
      top_k: V or more is the identity.
      top_p: in (0, 1]; 1 is the identity.
      min_p: in [0, 1]; 0 is the identity.
      typical_p: in (0, 1]; 1 is the identity.
      epsilon_cutoff: in [0, 1]; 0 is the identity.
    """

    temperature: Float32[Array, ""] | None = row(default=None, neutral=1.0)
    top_k: Int32[Array, ""] | None = row(dtype=jnp.int32, default=None, neutral=LARGEST_INT)
    top_p: Float32[Array, ""] | None = row(default=None, neutral=1.0)
    min_p: Float32[Array, ""] | None = row(default=None, neutral=0.0)
    typical_p: Float32[Array, ""] | None = row(default=None, neutral=1.0)
    epsilon_cutoff: Float32[Array, ""] | None = row(default=None, neutral=0.0)

    def apply(self, state: tuple[()], logits: Logits, step: Step) -> Logits:
        values = [getattr(self, name) for name in NEUTRAL]
        stages = tuple(None if value is None else jnp.asarray(value)[None] for value in values)
        return _truncate_rows(logits.astype(jnp.float32)[None], stages)[0]

    def fuse(self, other: object) -> Truncation | None:
        """One transform for `self` and then `other`; None if a stage of `other` does not come after all of `self`."""
        if not isinstance(other, Truncation):
            return None
        mine, others = ([i for i, n in enumerate(NEUTRAL) if getattr(t, n) is not None] for t in (self, other))
        if mine and others and mine[-1] >= others[0]:
            return None
        return Truncation(**{n: getattr(self, n) if getattr(self, n) is not None else getattr(other, n) for n in NEUTRAL})


# The stages in their order, with their neutral values.
NEUTRAL = neutral_values(Truncation)
# In the program of every batch, so that rows of these methods share one compilation. Others are in it if a row uses them.
_ALWAYS = ("temperature", "top_k", "top_p", "min_p", "typical_p")


def truncation(
    temperature: PerRow | None = None,
    top_k: PerRow | None = None,
    top_p: PerRow | None = None,
    min_p: PerRow | None = None,
    typical_p: PerRow | None = None,
    epsilon_cutoff: PerRow | None = None,
) -> Truncation:
    """Apply several truncations at once, in the order of the arguments; see the factory of each.

    >>> nucleus = truncation(temperature=[0.0, 0.7], top_p=0.9)  # two rows, the first of them greedy

    Args:
      temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff: a number, or one per row [B]. None leaves the stage out.

    Raises:
      ArgumentError: a value is out of its range.
    """
    return Truncation(
        _stage("temperature", temperature, lambda t: t >= 0, "a number >= 0"),
        _stage("top_k", top_k, lambda k: k >= 1, "a whole number >= 1", jnp.int32),
        _stage("top_p", top_p, lambda p: (p > 0) & (p <= 1), "a number in (0, 1]"),
        _stage("min_p", min_p, lambda m: (m >= 0) & (m <= 1), "a number in [0, 1]"),
        _stage("typical_p", typical_p, lambda t: (t > 0) & (t <= 1), "a number in (0, 1]"),
        _stage("epsilon_cutoff", epsilon_cutoff, lambda e: (e >= 0) & (e <= 1), "a number in [0, 1]"),
    )


def _stage(name: str, value: PerRow | None, valid: Valid, allowed: str, dtype: DTypeLike = jnp.float32) -> Array | None:
    return None if value is None else number_per_row(name, value, valid, allowed, dtype)


def truncation_rows(chosen: Sequence[Mapping[str, float]]) -> Truncation:
    """Put the stages of rows that use different ones into one transform.

    Args:
      chosen: per row, the values of the stages that it uses, by their names; the others are neutral. Their ranges have been
        checked.
    """
    used = [n for n, neutral in NEUTRAL.items() if n in _ALWAYS or any(row.get(n, neutral) != neutral for row in chosen)]
    return columns(Truncation, {name: [row.get(name, NEUTRAL[name]) for row in chosen] for name in used})


def temperature(t: PerRow) -> Truncation:
    """Divide logits by `t`. `t=1` is the identity, `t=0` greedy: only the argmax (lowest id on a tie) is left.

    >>> cold = temperature(0.7)
    >>> per_row = temperature([0.0, 1.2])

    Args:
      t: float >= 0, or one per row [B].

    Raises:
      ArgumentError: `t` is negative or NaN.
    """
    return truncation(temperature=t)


def top_k(k: PerRow) -> Truncation:
    """Keep the `k` largest logits, and all that tie with the smallest of them. `k >= V` is the identity.

    Fan et al. 2018, arXiv:1805.04833.

    >>> step = Step(jnp.int32(0), jnp.int32(9), jax.random.key(0))
    >>> top_k(2).apply((), jnp.log(jnp.array([0.5, 0.3, 0.2])), step) == -jnp.inf
    Array([False, False,  True], dtype=bool)

    Args:
      k: whole number >= 1, or one per row [B].

    Raises:
      ArgumentError: `k` is below 1 or not whole.
    """
    return truncation(top_k=k)


def top_p(p: PerRow) -> Truncation:
    """Keep the smallest set of likeliest tokens whose probabilities sum to `p` or more. `p=1` is the identity.

    Tokens as likely as the last one kept are kept too. Holtzman et al. 2019, arXiv:1904.09751.

    >>> step = Step(jnp.int32(0), jnp.int32(9), jax.random.key(0))
    >>> top_p(0.6).apply((), jnp.log(jnp.array([0.5, 0.3, 0.2])), step) == -jnp.inf
    Array([False, False,  True], dtype=bool)

    Args:
      p: float in (0, 1], or one per row [B].

    Raises:
      ArgumentError: `p` is out of (0, 1].
    """
    return truncation(top_p=p)


def min_p(m: PerRow) -> Truncation:
    """Keep tokens at least `m` times as likely as the likeliest. `m=0` is the identity, `m=1` keeps the maxima.

    Nguyen et al. 2024, arXiv:2407.01082.

    >>> step = Step(jnp.int32(0), jnp.int32(9), jax.random.key(0))
    >>> min_p(0.5).apply((), jnp.log(jnp.array([0.5, 0.3, 0.2])), step) == -jnp.inf
    Array([False, False,  True], dtype=bool)

    Args:
      m: float in [0, 1], or one per row [B].

    Raises:
      ArgumentError: `m` is out of [0, 1].
    """
    return truncation(min_p=m)


def typical_p(tau: PerRow) -> Truncation:
    """Keep the tokens whose surprisal is nearest to the entropy, until they sum to `tau`. `tau=1` is the identity.

    Tokens as near as the last one kept are kept too; the likeliest token may be cut. Meister et al. 2022,
    arXiv:2202.00666.

    >>> step = Step(jnp.int32(0), jnp.int32(9), jax.random.key(0))
    >>> typical_p(0.3).apply((), jnp.log(jnp.array([0.5, 0.3, 0.2])), step) == -jnp.inf
    Array([ True, False,  True], dtype=bool)

    Args:
      tau: float in (0, 1], or one per row [B].

    Raises:
      ArgumentError: `tau` is out of (0, 1].
    """
    return truncation(typical_p=tau)


def epsilon_cutoff(epsilon: PerRow) -> Truncation:
    """Keep tokens whose probability is `epsilon` or more, and always the likeliest. `epsilon=0` is the identity.

    All tokens as likely as the likeliest are kept. Hewitt et al. 2022, arXiv:2210.15191, who use 3e-4 to 2e-3.

    >>> step = Step(jnp.int32(0), jnp.int32(9), jax.random.key(0))
    >>> epsilon_cutoff(0.25).apply((), jnp.log(jnp.array([0.5, 0.3, 0.2])), step) == -jnp.inf
    Array([False, False,  True], dtype=bool)

    Args:
      epsilon: float in [0, 1], or one per row [B].

    Raises:
      ArgumentError: `epsilon` is out of [0, 1].
    """
    return truncation(epsilon_cutoff=epsilon)


# The fields of `Truncation` in their order, each with B in front; None is a stage that no row has.
_Stages: TypeAlias = tuple[Rows | Bits | None, ...]


# jit so that a call outside of any jit compiles once, not each time.
@custom_vmap
@jax.jit
def _truncate_rows(z: LogitRows, stages: _Stages) -> LogitRows:
    """Logits float32 [B, V] after all stages: -inf for what is cut, `z / temperature` up to a shift for what is kept."""
    temperature, k, p, m, tau, epsilon = stages
    size = z.shape[-1]
    z = jnp.minimum(z, LARGEST)
    top = settled(jnp.max(z, axis=-1))
    # Of a row without a finite logit, every token is infinitely far from this.
    top = jnp.where(top == -jnp.inf, 0.0, top)
    hot = jnp.full(top.shape, True) if temperature is None else temperature > 0
    # XLA may divide by multiplying with 1 / heat, which must not underflow.
    heat = jnp.where(hot, 1.0 if temperature is None else jnp.minimum(temperature, 1e37), 1.0)
    lowest = jnp.full(top.shape, -jnp.inf)

    use_k = hot & (k < size) if k is not None else jnp.full(top.shape, False)
    use_p = hot & (p < 1) if p is not None else jnp.full(top.shape, False)
    count = min(CANDIDATES, size)
    if k is not None or p is not None:
        best = lax.cond(
            jnp.any(use_k | use_p), lambda: largest_logits(z, count), lambda: jnp.full((z.shape[0], count), -jnp.inf)
        )
        if k is not None:
            lowest = settled(top_k_cut(z, best, k, use_k))
        if p is not None:
            lowest = settled(lax.cond(jnp.any(use_p), lambda: top_p_cut(z, top, heat, best, p, use_p, lowest), lambda: lowest))
    if m is not None:
        lowest = jnp.maximum(lowest, jnp.where(hot & (m > 0), _min_p_cut(top, heat, m), -jnp.inf))
    highest = jnp.full(top.shape, jnp.inf)
    if tau is not None:
        use_tau = hot & (tau < 1)
        lowest, highest = lax.cond(
            jnp.any(use_tau),
            lambda: typical_interval(z, top, heat, lowest, tau, use_tau),
            lambda: (lowest, highest),
        )
    if epsilon is not None:
        use_epsilon = hot & (epsilon > 0)
        lowest = lax.cond(
            jnp.any(use_epsilon),
            lambda: _epsilon_cut(z, top, heat, lowest, highest, epsilon, use_epsilon),
            lambda: lowest,
        )
    lowest, highest = settled((lowest, highest))
    keep = z >= lowest[:, None]
    if tau is not None:
        keep &= z <= highest[:, None]
    if temperature is not None:
        only = lax.cond(jnp.all(hot), lambda: jnp.full(top.shape, -1), lambda: jnp.where(hot, -1, argmax_rows(z)))
        only, heat = settled((only, heat))
        keep &= (only[:, None] < 0) | (lax.broadcasted_iota(jnp.int32, z.shape, 1) == only[:, None])
        # Where the quotient would overflow, the distance to the maximum is what counts.
        shift = settled(jnp.where(jnp.isfinite(top / heat), 0.0, top))
        z = (z - shift[:, None]) / heat[:, None]
    return jnp.where(keep, z, -jnp.inf)


@_truncate_rows.def_vmap
def _(
    axis_size: int, batched: Sequence[object], z: Float32[jax.Array, "*AB V"], stages: tuple[jax.Array | None, ...]
) -> tuple[Float32[jax.Array, "A B V"], bool]:
    (z, stages), shape = merge_axis(axis_size, batched, (z, stages))
    return _truncate_rows(z, stages).reshape(shape), True


def _min_p_cut(top: Rows, heat: Rows, m: Rows) -> Rows:
    """The smallest float32 z with (top - z) / heat <= -ln m: rounding `top + heat * ln m` may miss it by a step.

    Near 0, floats are so dense that a step of z does not change top - z. There it is a step of the distance that does.
    """
    limit = jnp.maximum(-jnp.log(m), 0.0)
    distance = heat * limit
    near = top - distance
    nearer = top - jnp.nextafter(distance, 0.0)
    steps = jnp.stack([jnp.nextafter(near, -jnp.inf), near, jnp.nextafter(near, jnp.inf), nearer])
    return jnp.min(jnp.where((top - steps) / heat <= limit, steps, top), axis=0)


def _epsilon_cut(z: LogitRows, top: Rows, heat: Rows, lowest: Rows, highest: Rows, epsilon: Rows, use: Uses) -> Rows:
    """`lowest`, raised where in use to the smallest logit whose probability among what is left is `epsilon` or more.

    That is min-p with m = epsilon * sum of exp((z - top) / heat), at most the likeliest token that is left.
    """
    alive = (z >= lowest[:, None]) & (z <= highest[:, None])
    total = settled(row_sums(jnp.where(alive, jnp.exp((z - top[:, None]) / heat[:, None]), 0.0)))
    cut = jnp.minimum(_min_p_cut(top, heat, epsilon * total), highest)
    return jnp.where(use, jnp.maximum(cut, lowest), lowest)
