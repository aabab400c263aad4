"""The arithmetic of truncations, for all rows of a batch: where top-k, top-p and typical sampling cut.

Thresholds come from one primitive: the largest t such that the tokens with key < t weigh no more than a budget
(`_largest_cut`). Two shortcuts keep it cheap. The 64 largest logits, found in two stages, answer top-k up to 64 and
every nucleus that fits; and what no row of the batch needs is skipped.

What float32 decides: sums are good to 1e-6, so a cut that near to equality may fall to either side; and probabilities
(for typical sampling, distances to the entropy) that float32 cannot tell apart are ties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float32, Int32

T = TypeVar("T")

# One number per row, and one logit per row and token. `z` are logits, `top` their maximum, `heat` a temperature above 0.
Rows: TypeAlias = Float32[jax.Array, " B"]
Bits: TypeAlias = Int32[jax.Array, " B"]
Uses: TypeAlias = Bool[jax.Array, " B"]
LogitRows: TypeAlias = Float32[jax.Array, "B V"]

LARGEST = float(np.finfo(np.float32).max)
CANDIDATES = 64
_LOWEST_BITS = -(2**31) + 0x007FFFFF  # what `_to_bits` makes of -inf


def merge_axis(axis_size: int, batched: Sequence[object], arguments: T) -> tuple[T, tuple[int, ...]]:
    """Merge the axis that vmap adds into the rows, so that vmap of vmap keeps one cond and one loop for all of them.

    Args:
      axis_size: length of the axis.
      batched: the structure of `arguments`, with whether a leaf has the axis.
      arguments: arrays with rows in front.

    Returns:
      The arguments with more rows, and the shape of their first leaf with both axes.
    """
    with_axis = jax.tree.map(
        lambda leaf, has: leaf if has else jnp.broadcast_to(leaf, (axis_size, *leaf.shape)), arguments, tuple(batched)
    )
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), with_axis), jax.tree.leaves(with_axis)[0].shape


def settled(scalars: T) -> T:
    """Compute per-row scalars once: XLA's CPU backend repeats row reductions inside V-wide fusions that read them."""
    return lax.optimization_barrier(scalars)


def largest_logits(z: LogitRows, count: int) -> Float32[jax.Array, "B C"]:
    """The `count` largest logits of each row, sorted: best blocks by their maxima, then the best tokens inside them."""
    rows, size = z.shape
    block = next((b for b in (32, 64, 16, 8) if size % b == 0), None)
    if block is None or size // block <= count:
        return lax.top_k(z, count)[0]
    blocks = z.reshape(rows, -1, block)
    chosen = lax.top_k(jnp.max(blocks, axis=-1), count)[1]
    inside = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1)
    return lax.top_k(inside.reshape(rows, -1), count)[0]


def top_k_cut(z: LogitRows, best: Float32[jax.Array, "B C"], k: Bits, use: Uses) -> Rows:
    """The k-th largest logit of each row, -inf where not in use."""
    size, count = z.shape[-1], best.shape[-1]
    k = jnp.maximum(k, 1)
    near = jnp.take_along_axis(best, jnp.minimum(k, count)[:, None] - 1, axis=-1)[:, 0]
    cut = jnp.where(use & (k <= count), near, -jnp.inf)
    far = use & (k > count)
    low = jnp.full(k.shape, _LOWEST_BITS, jnp.int32)

    def search() -> Rows:
        high = _to_bits(best[:, -1]) + 1
        cut_far = _largest_cut(z, None, (size - k).astype(jnp.float32), low, jnp.where(far, high, low + 1), jnp.ones_like)
        return jnp.where(far, cut_far, cut)

    return lax.cond(jnp.any(far), search, lambda: cut)


def top_p_cut(z: LogitRows, top: Rows, heat: Rows, best: Float32[jax.Array, "B C"], p: Rows, use: Uses, lowest: Rows) -> Rows:
    """`lowest`, raised to the smallest logit of the nucleus where in use."""

    def weigh(logits: Float32[jax.Array, "B _"]) -> Float32[jax.Array, "B _"]:
        return jnp.where(logits >= lowest[:, None], jnp.exp((logits - top[:, None]) / heat[:, None]), 0.0)

    e = weigh(z)
    total = settled(row_sums(e))
    budget = jnp.maximum(1.0 - p, 0.0) * total
    near = weigh(best)
    reached = jnp.cumsum(near, axis=-1) >= (total - budget)[:, None]
    cut = jnp.take_along_axis(best, jnp.argmax(reached, axis=-1)[:, None], axis=-1)[:, 0]
    far = use & ~reached[:, -1]

    def search() -> Rows:
        # Tokens below `low` weigh half the budget at most, all together; the cut is no higher than the last candidate.
        low = _to_bits(budget / (2 * z.shape[-1]))
        high = _to_bits(near[:, -1]) + 1
        threshold = _largest_cut(e, e, budget, low, jnp.where(far, high, low + 1), lambda t: t)
        smallest = jnp.min(jnp.where((e >= threshold[:, None]) & (z >= lowest[:, None]), z, jnp.inf), axis=-1)
        return jnp.where(far, smallest, cut)

    cut = lax.cond(jnp.any(far), search, lambda: cut)
    return jnp.where(use, jnp.maximum(cut, lowest), lowest)


def typical_interval(z: LogitRows, top: Rows, heat: Rows, lowest: Rows, tau: Rows, use: Uses) -> tuple[Rows, Rows]:
    """The smallest and the largest logit of the typical set; (lowest, inf) where not in use."""
    size = z.shape[-1]
    alive = z >= lowest[:, None]
    distance = (top[:, None] - z) / heat[:, None]
    e = jnp.where(alive, jnp.exp(-distance), 0.0)
    total, moment = settled((row_sums(e), row_sums(jnp.where(e > 0, e * distance, 0.0))))
    # -ln p - H = distance - mean distance: the normaliser cancels, and p = 0 adds nothing.
    mean = moment / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    # One more than the distance to the mean: the bits near 0, of which there are many, are not worth telling apart.
    keys = jnp.where(e > 0, -1.0 - jnp.abs(distance - mean[:, None]), -jnp.inf)
    budget = jnp.maximum(1.0 - tau, 0.0) * total
    # As for top-p: tokens with e < budget / 2V weigh half the budget at most, all together.
    reach = jnp.maximum(mean, -jnp.log(budget / (2 * size)) - mean)
    low = _to_bits(-1.001 - 1.001 * reach)
    high = _to_bits(jnp.max(keys, axis=-1)) + 1
    threshold = _largest_cut(keys, e, budget, low, jnp.where(use, high, low + 1), lambda t: jnp.exp(1.0 + t - mean))
    kept = alive & (keys >= threshold[:, None])
    smallest = jnp.min(jnp.where(kept, z, jnp.inf), axis=-1)
    largest = jnp.max(jnp.where(kept, z, -jnp.inf), axis=-1)
    return jnp.where(use, smallest, lowest), jnp.where(use, largest, jnp.inf)


def _to_bits(values: Rows) -> Bits:
    """float32 -> int32 with the same order."""
    bits = lax.bitcast_convert_type(values, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _from_bits(bits: Bits) -> Rows:
    return lax.bitcast_convert_type(jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits), jnp.float32)


def row_sums(values: LogitRows) -> Rows:
    """Sum each row. By columns of 128 first: XLA's CPU backend vectorises that, and rounding errors grow less."""
    rows, size = values.shape
    return jnp.sum(values.reshape(rows, -1, 128).sum(axis=1) if size % 128 == 0 else values, axis=-1)


# low, high, and what the tokens below each of them weigh
_Bracket: TypeAlias = tuple[Bits, Bits, Rows, Rows]


def _largest_cut(
    keys: LogitRows, weights: LogitRows | None, budget: Rows, low: Bits, high: Bits, least: Callable[[Rows], Rows]
) -> Rows:
    """The largest t, up to ties, for which the tokens with key < t weigh at most `budget`: bisection on the bits of t.

    Args:
      keys, weights: float32 [B, V]; no weights are weights of 1.
      budget: float32 [B].
      low, high: int32 [B], order-preserving bits: the budget holds at `low`, and t < `high`. `high = low + 1` closes
        a row.
      least: what a token with key >= t weighs at least, [B] -> [B]. A row is done once no two can be in its bracket.
    """

    def halve(bracket: _Bracket) -> _Bracket:
        low, high, at_low, at_high = bracket
        # The mean without overflow. A closed row has middle == low, and stays as it is.
        middle = settled((low & high) + ((low ^ high) >> 1))
        below = keys < _from_bits(middle)[:, None]
        removed = settled(row_sums(below.astype(jnp.float32) if weights is None else jnp.where(below, weights, 0.0)))
        fits = (removed <= budget) | (middle == low)
        return (
            jnp.where(fits, middle, low),
            jnp.where(fits, high, middle),
            jnp.where(fits, removed, at_low),
            jnp.where(fits, at_high, removed),
        )

    def unsettled(bracket: _Bracket) -> Bool[jax.Array, ""]:
        low, high, at_low, at_high = bracket
        return jnp.any((high > low + 1) & (at_high - at_low >= 1.5 * least(_from_bits(low))))

    start = (low, high, jnp.zeros_like(budget), jnp.full_like(budget, jnp.inf))
    return _from_bits(lax.while_loop(unsettled, halve, start)[0])
