"""Temperature and the four truncations, fused: top-k, top-p, min-p, typical.

Every one of them keeps an interval of logits: the first three all that is at least some threshold, typical sampling
what lies around the mean surprisal. So a row needs two scalars, `lowest` and `highest`, and one pass over V writes the
result.

Thresholds come from one primitive: the largest t such that the tokens with key < t weigh no more than a budget
(`_largest_cut`). Two shortcuts keep it cheap. The 64 largest logits, found in two stages, answer top-k up to 64 and
every nucleus that fits; and what no row of the batch needs is skipped by a `lax.cond` on the batch. `jax.vmap` would
turn such a cond into a select that runs both branches, hence the `custom_vmap`.

What float32 decides: sums are good to 1e-6, so a cut that near to equality may fall to either side; and probabilities
(for typical sampling, distances to the entropy) that float32 cannot tell apart are ties.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap

from mechanex_jax.errors import expected
from mechanex_jax.rows import as_field, row, row_tree
from mechanex_jax.transforms.base import Logits, Stateless, Step
from mechanex_jax.transforms.draw import argmax_rows

_STAGES = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_CANDIDATES = 64
_LARGEST = float(np.finfo(np.float32).max)
_LOWEST_BITS = -(2**31) + 0x007FFFFF  # what `_to_bits` makes of -inf


@row_tree
class Truncation(Stateless):
    """Temperature, then top-k, top-p, min-p and typical truncation, each on what the ones before left, renormalised.

    A stage whose field is None is absent from the program; a neutral value (1, V, 1, 0, 1) is the identity, so that
    rows of different methods share one program. Tokens cut get -inf, the others `logits / temperature`. Ties at a cut
    are kept, a token at -inf stays there, and a row with a finite logit keeps at least one token.

    Attributes:
      temperature: float32 []; 0 is greedy: everything but the argmax (lowest id on a tie) is cut.
      top_k: int32 []; V or more is the identity.
      top_p: float32 [], in (0, 1]; 1 is the identity.
      min_p: float32 [], in [0, 1]; 0 is the identity.
      typical_p: float32 [], in (0, 1]; 1 is the identity.
    """

    temperature: Any = row(default=None)
    top_k: Any = row(dtype=jnp.int32, default=None)
    top_p: Any = row(default=None)
    min_p: Any = row(default=None)
    typical_p: Any = row(default=None)

    def apply(self, state: Any, logits: Logits, step: Step) -> Logits:
        values = jax.tree.map(lambda value: jnp.asarray(value)[None], tuple(getattr(self, name) for name in _STAGES))
        return _truncate_rows(logits.astype(jnp.float32)[None], values)[0]

    def fuse(self, other: Any) -> Truncation | None:
        """One transform for `self` and then `other`; None if a stage of `other` does not come after all of `self`."""
        if not isinstance(other, Truncation):
            return None
        mine, others = ([i for i, n in enumerate(_STAGES) if getattr(t, n) is not None] for t in (self, other))
        if mine and others and mine[-1] >= others[0]:
            return None
        return Truncation(**{n: getattr(self, n) if getattr(self, n) is not None else getattr(other, n) for n in _STAGES})


def truncation(
    temperature: Any = None, top_k: Any = None, top_p: Any = None, min_p: Any = None, typical_p: Any = None
) -> Truncation:
    """Several truncations at once, in the order of the arguments; see the factory of each.

    Args:
      temperature, top_k, top_p, min_p, typical_p: a number, or one per row [B]. None leaves the stage out.

    Raises:
      ArgumentError: a value is out of its range.
    """
    return Truncation(
        _field("temperature", temperature, lambda t: t >= 0, "a number >= 0"),
        _field("top_k", top_k, lambda k: k >= 1, "a whole number >= 1", jnp.int32),
        _field("top_p", top_p, lambda p: (p > 0) & (p <= 1), "a number in (0, 1]"),
        _field("min_p", min_p, lambda m: (m >= 0) & (m <= 1), "a number in [0, 1]"),
        _field("typical_p", typical_p, lambda t: (t > 0) & (t <= 1), "a number in (0, 1]"),
    )


def temperature(t: Any) -> Truncation:
    """Divide logits by `t`. `t=1` is the identity, `t=0` greedy: only the argmax (lowest id on a tie) is left.

    Args:
      t: float >= 0, or one per row [B].

    Raises:
      ArgumentError: `t` is negative or NaN.
    """
    return truncation(temperature=t)


def top_k(k: Any) -> Truncation:
    """Keep the `k` largest logits, and all that tie with the smallest of them. `k >= V` is the identity.

    Fan et al. 2018, arXiv:1805.04833.

    Args:
      k: whole number >= 1, or one per row [B].

    Raises:
      ArgumentError: `k` is below 1 or not whole.
    """
    return truncation(top_k=k)


def top_p(p: Any) -> Truncation:
    """Keep the smallest set of likeliest tokens whose probabilities sum to `p` or more. `p=1` is the identity.

    Tokens as likely as the last one kept are kept too. Holtzman et al. 2019, arXiv:1904.09751.

    Args:
      p: float in (0, 1], or one per row [B].

    Raises:
      ArgumentError: `p` is out of (0, 1].
    """
    return truncation(top_p=p)


def min_p(m: Any) -> Truncation:
    """Keep tokens at least `m` times as likely as the likeliest. `m=0` is the identity, `m=1` keeps the maxima.

    Nguyen et al. 2024, arXiv:2407.01082.

    Args:
      m: float in [0, 1], or one per row [B].

    Raises:
      ArgumentError: `m` is out of [0, 1].
    """
    return truncation(min_p=m)


def typical_p(tau: Any) -> Truncation:
    """Keep the tokens whose surprisal is nearest to the entropy, until they sum to `tau`. `tau=1` is the identity.

    Tokens as near as the last one kept are kept too; the likeliest token may be cut. Meister et al. 2022,
    arXiv:2202.00666.

    Args:
      tau: float in (0, 1], or one per row [B].

    Raises:
      ArgumentError: `tau` is out of (0, 1].
    """
    return truncation(typical_p=tau)


def _field(name: str, value: Any, valid: Any, wanted: str, dtype: Any = jnp.float32) -> Any:
    if value is None or isinstance(value, Tracer):
        return value if value is None else as_field(value, dtype)
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.full((), np.nan)
    whole = dtype is not jnp.int32 or bool(np.all(np.floor(array) == array))
    if array.ndim > 1 or not whole or not np.all(valid(array)):
        raise expected(name, value, wanted + ", or a list with one per row")
    if isinstance(value, jax.Array):
        return value.astype(dtype)
    return as_field(np.minimum(array, 2**31 - 1) if dtype is jnp.int32 else array, dtype)


# From here on, arrays have a row axis: z float32 [B, V], one value per row [B].


# jit so that a call outside of any jit compiles once, not each time.
@custom_vmap
@jax.jit
def _truncate_rows(z: jax.Array, values: tuple[Any, ...]) -> jax.Array:
    heat, k, p, m, tau = values
    size = z.shape[-1]
    z = jnp.minimum(z, _LARGEST)
    top = _settled(jnp.max(z, axis=-1))
    # Of a row without a finite logit, every token is infinitely far from this.
    top = jnp.where(top == -jnp.inf, 0.0, top)
    hot = jnp.full(top.shape, True) if heat is None else heat > 0
    # XLA may divide by multiplying with 1 / heat, which must not underflow.
    heat = jnp.where(hot, 1.0 if heat is None else jnp.minimum(heat, 1e37), 1.0)
    lowest = jnp.full(top.shape, -jnp.inf)

    use_k = hot & (k < size) if k is not None else jnp.full(top.shape, False)
    use_p = hot & (p < 1) if p is not None else jnp.full(top.shape, False)
    count = min(_CANDIDATES, size)
    if k is not None or p is not None:
        best = lax.cond(jnp.any(use_k | use_p), lambda: _best(z, count), lambda: jnp.full((z.shape[0], count), -jnp.inf))
        if k is not None:
            lowest = _settled(_top_k_cut(z, best, k, use_k))
        if p is not None:
            lowest = _settled(
                lax.cond(jnp.any(use_p), lambda: _top_p_cut(z, top, heat, best, p, use_p, lowest), lambda: lowest)
            )
    if m is not None:
        lowest = jnp.maximum(lowest, jnp.where(hot & (m > 0), _min_p_cut(top, heat, m), -jnp.inf))
    highest = jnp.full(top.shape, jnp.inf)
    if tau is not None:
        use_tau = hot & (tau < 1)
        lowest, highest = lax.cond(
            jnp.any(use_tau),
            lambda: _typical_interval(z, top, heat, lowest, tau, use_tau),
            lambda: (lowest, highest),
        )
    lowest, highest = _settled((lowest, highest))
    keep = z >= lowest[:, None]
    if tau is not None:
        keep &= z <= highest[:, None]
    if values[0] is not None:
        only = lax.cond(jnp.all(hot), lambda: jnp.full(top.shape, -1), lambda: jnp.where(hot, -1, argmax_rows(z)))
        only, heat = _settled((only, heat))
        keep &= (only[:, None] < 0) | (lax.broadcasted_iota(jnp.int32, z.shape, 1) == only[:, None])
        # Where the quotient would overflow, the distance to the maximum is what counts.
        shift = _settled(jnp.where(jnp.isfinite(top / heat), 0.0, top))
        z = (z - shift[:, None]) / heat[:, None]
    return jnp.where(keep, z, -jnp.inf)


@_truncate_rows.def_vmap
def _truncate_rows_vmapped(axis_size: int, batched: Any, z: jax.Array, values: Any) -> tuple[jax.Array, bool]:
    # One more batch axis only means more rows; so vmap of vmap keeps one cond and one loop for all of them.
    z, values = jax.tree.map(
        lambda leaf, has: leaf if has else jnp.broadcast_to(leaf, (axis_size, *leaf.shape)), (z, values), tuple(batched)
    )
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (z, values))
    return _truncate_rows(*flat).reshape(z.shape), True


def _settled(scalars: Any) -> Any:
    """Per-row scalars, computed once: XLA's CPU backend repeats row reductions inside V-wide fusions that read them."""
    return lax.optimization_barrier(scalars)


def _best(z: jax.Array, count: int) -> jax.Array:
    """The `count` largest logits of each row, sorted: best blocks by their maxima, then the best tokens inside them."""
    rows, size = z.shape
    block = next((b for b in (32, 64, 16, 8) if size % b == 0), None)
    if block is None or size // block <= count:
        return lax.top_k(z, count)[0]
    blocks = z.reshape(rows, -1, block)
    chosen = lax.top_k(jnp.max(blocks, axis=-1), count)[1]
    inside = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1)
    return lax.top_k(inside.reshape(rows, -1), count)[0]


def _top_k_cut(z: jax.Array, best: jax.Array, k: jax.Array, use: jax.Array) -> jax.Array:
    """The k-th largest logit of each row, -inf where not in use."""
    size, count = z.shape[-1], best.shape[-1]
    k = jnp.maximum(k, 1)
    near = jnp.take_along_axis(best, jnp.minimum(k, count)[:, None] - 1, axis=-1)[:, 0]
    cut = jnp.where(use & (k <= count), near, -jnp.inf)
    far = use & (k > count)
    low = jnp.full(k.shape, _LOWEST_BITS, jnp.int32)

    def search() -> jax.Array:
        high = _to_bits(best[:, -1]) + 1
        found = _largest_cut(z, None, (size - k).astype(jnp.float32), low, jnp.where(far, high, low + 1), jnp.ones_like)
        return jnp.where(far, found, cut)

    return lax.cond(jnp.any(far), search, lambda: cut)


def _top_p_cut(
    z: jax.Array, top: jax.Array, heat: jax.Array, best: jax.Array, p: jax.Array, use: jax.Array, lowest: jax.Array
) -> jax.Array:
    """`lowest`, raised to the smallest logit of the nucleus where in use."""

    def weigh(logits: jax.Array) -> jax.Array:
        return jnp.where(logits >= lowest[:, None], jnp.exp((logits - top[:, None]) / heat[:, None]), 0.0)

    e = weigh(z)
    total = _settled(_sum(e))
    budget = jnp.maximum(1.0 - p, 0.0) * total
    near = weigh(best)
    reached = jnp.cumsum(near, axis=-1) >= (total - budget)[:, None]
    cut = jnp.take_along_axis(best, jnp.argmax(reached, axis=-1)[:, None], axis=-1)[:, 0]
    far = use & ~reached[:, -1]

    def search() -> jax.Array:
        # Tokens below `low` weigh half the budget at most, all together; the cut is no higher than the last candidate.
        low = _to_bits(budget / (2 * z.shape[-1]))
        high = _to_bits(near[:, -1]) + 1
        found = _largest_cut(e, e, budget, low, jnp.where(far, high, low + 1), lambda t: t)
        smallest = jnp.min(jnp.where((e >= found[:, None]) & (z >= lowest[:, None]), z, jnp.inf), axis=-1)
        return jnp.where(far, smallest, cut)

    cut = lax.cond(jnp.any(far), search, lambda: cut)
    return jnp.where(use, jnp.maximum(cut, lowest), lowest)


def _min_p_cut(top: jax.Array, heat: jax.Array, m: jax.Array) -> jax.Array:
    """The smallest float32 z with (top - z) / heat <= -ln m: rounding `top + heat * ln m` may miss it by a step.

    Near 0, floats are so dense that a step of z does not change top - z. There it is a step of the distance that does.
    """
    limit = jnp.maximum(-jnp.log(m), 0.0)
    distance = heat * limit
    near = top - distance
    nearer = top - jnp.nextafter(distance, 0.0)
    steps = jnp.stack([jnp.nextafter(near, -jnp.inf), near, jnp.nextafter(near, jnp.inf), nearer])
    return jnp.min(jnp.where((top - steps) / heat <= limit, steps, top), axis=0)


def _typical_interval(
    z: jax.Array, top: jax.Array, heat: jax.Array, lowest: jax.Array, tau: jax.Array, use: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest logit of the typical set; (lowest, inf) where not in use."""
    size = z.shape[-1]
    alive = z >= lowest[:, None]
    distance = (top[:, None] - z) / heat[:, None]
    e = jnp.where(alive, jnp.exp(-distance), 0.0)
    total, moment = _settled((_sum(e), _sum(jnp.where(e > 0, e * distance, 0.0))))
    # -ln p - H = distance - mean distance: the normaliser cancels, and p = 0 adds nothing.
    mean = moment / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    # One more than the distance to the mean: the bits near 0, of which there are many, are not worth telling apart.
    keys = jnp.where(e > 0, -1.0 - jnp.abs(distance - mean[:, None]), -jnp.inf)
    budget = jnp.maximum(1.0 - tau, 0.0) * total
    # As for top-p: tokens with e < budget / 2V weigh half the budget at most, all together.
    reach = jnp.maximum(mean, -jnp.log(budget / (2 * size)) - mean)
    low = _to_bits(-1.001 - 1.001 * reach)
    high = _to_bits(jnp.max(keys, axis=-1)) + 1
    found = _largest_cut(keys, e, budget, low, jnp.where(use, high, low + 1), lambda t: jnp.exp(1.0 + t - mean))
    kept = alive & (keys >= found[:, None])
    smallest = jnp.min(jnp.where(kept, z, jnp.inf), axis=-1)
    largest = jnp.max(jnp.where(kept, z, -jnp.inf), axis=-1)
    return jnp.where(use, smallest, lowest), jnp.where(use, largest, jnp.inf)


def _to_bits(values: jax.Array) -> jax.Array:
    """float32 -> int32 with the same order."""
    bits = lax.bitcast_convert_type(values, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _from_bits(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits), jnp.float32)


def _sum(values: jax.Array) -> jax.Array:
    """Row sums. By columns of 128 first: XLA's CPU backend vectorises that, and rounding errors grow less."""
    rows, size = values.shape
    return jnp.sum(values.reshape(rows, -1, 128).sum(axis=1) if size % 128 == 0 else values, axis=-1)


def _largest_cut(
    keys: jax.Array,
    weights: jax.Array | None,
    budget: jax.Array,
    low: jax.Array,
    high: jax.Array,
    least: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """The largest t, up to ties, for which the tokens with key < t weigh at most `budget`: bisection on the bits of t.

    Args:
      keys, weights: float32 [B, V]; no weights are weights of 1.
      budget: float32 [B].
      low, high: int32 [B], order-preserving bits: the budget holds at `low`, and t < `high`. `high = low + 1` closes
        a row.
      least: what a token with key >= t weighs at least, [B] -> [B]. A row is done once no two can be in its bracket.
    """

    def step(carry: Any) -> Any:
        low, high, at_low, at_high = carry
        # The mean without overflow. A closed row has middle == low, and stays as it is.
        middle = _settled((low & high) + ((low ^ high) >> 1))
        below = keys < _from_bits(middle)[:, None]
        removed = _settled(_sum(below.astype(jnp.float32) if weights is None else jnp.where(below, weights, 0.0)))
        fits = (removed <= budget) | (middle == low)
        return (
            jnp.where(fits, middle, low),
            jnp.where(fits, high, middle),
            jnp.where(fits, removed, at_low),
            jnp.where(fits, at_high, removed),
        )

    def unsettled(carry: Any) -> jax.Array:
        low, high, at_low, at_high = carry
        return jnp.any((high > low + 1) & (at_high - at_low >= 1.5 * least(_from_bits(low))))

    start = (low, high, jnp.zeros_like(budget), jnp.full_like(budget, jnp.inf))
    return _from_bits(lax.while_loop(unsettled, step, start)[0])
