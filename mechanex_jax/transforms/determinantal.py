"""Adaptive determinantal sampling: keep few tokens that are likely and unlike each other.

Top-k keeps the k likeliest tokens even where they are spellings of one word. Here a determinantal point process over the
likeliest M candidates trades probability for diversity, measured by the directions of their unembeddings, and the number of
tokens kept follows the entropy: a sure model keeps one.

The subset is the greedy maximum of the determinant (Chen et al. 2018, arXiv 1709.05135). Its Cholesky factor grows by one row
for each token taken, so that similarities to the tokens taken are needed and no others; a step costs O(M D k + M k^2).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Bool, Float, Float32, Int32

from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.rows import row, row_tree, shared, static
from mechanex_jax.transforms.base import Logits, Stateless, Step
from mechanex_jax.transforms.truncation import _LARGEST, _field, _settled, _sum

MOST_CANDIDATES = 1024
_SMALLEST_ROOM = (
    64,
    16,
)  # candidates and subset: what is allocated but not used costs little, so that small values share a program
_JITTER = 1e-6  # added to the diagonal of the similarities
_SAME = 1e-5  # a candidate with less than this left beside the ones taken is a copy of them: what float32 cannot tell from 0
_ROUNDING = 1e-5  # of exp(entropy) in float32: two equal tokens are 2 and not 3


class Directions(NamedTuple):
    """What `determinantal` reads of a model. Made by `directions`.

    Attributes:
      rows: [V, D], the unembedding of each token.
      mean: float32 [D], of all rows.
    """

    rows: jax.Array
    mean: jax.Array


@jax.jit
def _mean(table: Float[jax.Array, "V D"]) -> Float32[jax.Array, " D"]:
    return jnp.mean(table.astype(jnp.float32), axis=0)


def directions(unembedding: Any) -> Directions:
    """An unembedding with the mean of its rows, to be computed once for many calls of `determinantal`.

    Args:
      unembedding: float [V, D], one row per token; `model.unembedding().T`. It is not copied: only the rows of candidates
        are centred and normalised. float16 halves its memory and changes cosines by 1e-4.

    Raises:
      ArgumentError: not floating-point numbers on two axes.
    """
    table = jnp.asarray(unembedding)
    if table.ndim != 2 or not table.size or not jnp.issubdtype(table.dtype, jnp.floating):
        raise expected("unembedding", Verbatim(f"{table.dtype.name} {table.shape}"), "floating-point numbers [V, D]")
    return Directions(table, _mean(table))


@row_tree
class Determinantal(Stateless):
    """See `determinantal`.

    Attributes:
      directions: of the unembedding, shared by all rows.
      subset_size: int32 [], the most tokens kept; 0 leaves a row as it is.
      beta: float32 [], in (0, 1).
      top_k: int32 [], candidates.
      temperature: float32 [].
      room: candidates and tokens kept that arrays have room for.
    """

    directions: Directions = shared()
    subset_size: Any = row(dtype=jnp.int32)
    beta: Any = row()
    top_k: Any = row(dtype=jnp.int32)
    temperature: Any = row()
    room: tuple[int, int] = static()

    def apply(self, state: Any, logits: Logits, step: Step) -> Logits:
        size = self.directions.rows.shape[0]
        if logits.shape[-1] != size:
            raise expected("unembedding", Verbatim(f"{size} rows"), f"{logits.shape[-1]}, one for each logit")
        values = (self.subset_size, self.beta, self.top_k, self.temperature)
        values = jax.tree.map(lambda value: jnp.asarray(value)[None], values)
        return _keeper(self.room)(self.directions, logits.astype(jnp.float32)[None], values)[0]


def determinantal(
    unembedding: Any, subset_size: Any = 8, beta: Any = 0.3, top_k: Any = 50, temperature: Any = 1.0
) -> Determinantal:
    """Keep at most `subset_size` of the likeliest tokens, chosen to be unlike each other; `subset_size=0` is the identity.

    Adaptive determinantal sampling (ADS) has no public definition; this one is this library's own. With p the softmax of
    logits / temperature and C its `top_k` largest tokens, S_ij is the cosine of the centred unembeddings of tokens i and j,
    and a subset Y of C is worth

        (1 - beta) * sum over Y of ln p_i  +  beta * ln det S_Y,

    which is beta times the log-determinant of a determinantal point process with kernel p_i^a S_ij p_j^a and
    a = (1 - beta) / (2 beta). Y is its greedy maximum among subsets of min(subset_size, ceil(exp(H(p)))) tokens, H being the
    entropy: it starts with the likeliest token and grows by the token that adds most. Logits become ln p in Y and -inf
    outside, so that the draw is from p renormalised on Y. A token at -inf is never in Y, and a row with a finite logit keeps
    at least one token. Of tokens with one direction only the likeliest is kept, and Y is smaller if no others are left.

    Args:
      unembedding: float [V, D], or what `directions` made of it: then its mean is not computed again.
      subset_size: whole number, or one per row [B]. 1 is greedy; 0 is the identity, for rows that use another method.
      beta: weight of diversity in (0, 1), or one per row. Towards 0 this becomes top-k with k = the size of Y.
      top_k: candidates, from 1 to 1024, or one per row; of equal logits the lowest ids.
      temperature: a number >= 0, or one per row; 0 is greedy. 1 is neutral, if an earlier transform has divided already.

    Raises:
      ArgumentError: a value out of its range, another shape.

    Source: greedy maximisation by Chen et al. 2018 (arXiv 1709.05135); determinantal processes: Kulesza and Taskar 2012
      (arXiv 1207.6083).
    """
    for name, value in {"subset_size": subset_size, "beta": beta, "top_k": top_k, "temperature": temperature}.items():
        if value is None:
            raise expected(name, value, "a number, or a list with one per row")
    table = unembedding if isinstance(unembedding, Directions) else directions(unembedding)
    size = _field("subset_size", subset_size, lambda k: k >= 0, "a whole number >= 0", jnp.int32)
    weight = _field("beta", beta, lambda b: (b > 0) & (b < 1), "a number in (0, 1)")
    most = f"a whole number from 1 to {MOST_CANDIDATES}"
    count = _field("top_k", top_k, lambda k: (k >= 1) & (k <= MOST_CANDIDATES), most, jnp.int32)
    heat = _field("temperature", temperature, lambda t: t >= 0, "a number >= 0")
    wanted = [int(np.max(np.asarray(values), initial=1)) for values in (count, size)]
    candidates, kept = (max(least, 1 << (n - 1).bit_length()) for least, n in zip(_SMALLEST_ROOM, wanted, strict=True))
    candidates = min(candidates, table.rows.shape[0])
    return Determinantal(table, size, weight, count, heat, (candidates, min(kept, candidates)))


# From here on, arrays have a row axis: z float32 [B, V], one value per row [B]; M candidates.


def top_rows(z: Float32[jax.Array, "B V"], count: int) -> tuple[Float32[jax.Array, "B M"], Int32[jax.Array, "B M"]]:
    """The `count` largest of each row, sorted, and where they are; of equal ones the first come first.

    In two stages: the blocks with the largest maxima, then the best inside them. Blocks are put back into order, so that
    equal values still come in the order of their places.
    """
    rows, size = z.shape
    block = next((b for b in (32, 64, 16, 8) if size % b == 0), None)
    # The barriers: XLA would merge a later slice into top_k's own, no longer know it as one, and sort the whole row.
    if block is None or size // block <= count:
        values, ids = lax.optimization_barrier(lax.top_k(z, count))
        return values, ids.astype(jnp.int32)
    blocks = z.reshape(rows, -1, block)
    chosen = jnp.sort(lax.top_k(jnp.max(blocks, axis=-1), count)[1], axis=-1).astype(jnp.int32)
    inside = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(rows, -1)
    values, at = lax.optimization_barrier(lax.top_k(inside, count))
    at = at.astype(jnp.int32)
    return values, jnp.take_along_axis(chosen, at // block, axis=1) * block + at % block


@functools.lru_cache(maxsize=32)
def _keeper(room: tuple[int, int]) -> Callable[..., jax.Array]:
    """`_keep_rows` with these sizes; under vmap the added axes become rows, so that one cond serves all of them."""

    @custom_vmap
    @jax.jit
    def keep(table: Directions, z: jax.Array, values: tuple[jax.Array, ...]) -> jax.Array:
        return lax.cond(jnp.any(values[0] > 0), lambda: _keep_rows(table, z, values, room), lambda: z)

    @keep.def_vmap
    def _(axis_size: int, batched: Any, table: Directions, z: jax.Array, values: Any) -> tuple[jax.Array, bool]:
        if any(jax.tree.leaves(batched[0])):
            raise expected("unembedding", Verbatim("one per row"), "one that all rows share")
        z, values = jax.tree.map(
            lambda leaf, has: leaf if has else jnp.broadcast_to(leaf, (axis_size, *leaf.shape)), (z, values), tuple(batched[1:])
        )
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (z, values))
        return keep(table, *flat).reshape(z.shape), True

    return keep


def _keep_rows(table: Directions, z: jax.Array, values: tuple[jax.Array, ...], room: tuple[int, int]) -> jax.Array:
    size, beta, count, heat = values
    active, hot = size > 0, heat > 0
    finite = jnp.minimum(z, _LARGEST)
    best, ids = top_rows(finite, room[0])
    top = best[:, 0]
    top = jnp.where(top == -jnp.inf, 0.0, top)  # of a row without a finite logit, every token is infinitely far from this
    heat = jnp.where(hot, jnp.minimum(heat, 1e37), 1.0)
    top, heat = _settled((top, heat))

    distance = (top[:, None] - finite) / heat[:, None]
    e = jnp.exp(-distance)
    total, moment = _settled((_sum(e), _sum(jnp.where(e > 0, e * distance, 0.0))))
    total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    enough = jnp.ceil(jnp.exp(jnp.log(total) + moment / total) * (1 - _ROUNDING))
    size = jnp.minimum(size, jnp.where(hot, jnp.minimum(enough, room[1]).astype(jnp.int32), 1))

    log_p = (best - top[:, None]) / heat[:, None] - jnp.log(total)[:, None]
    legal = (log_p > -jnp.inf) & (jnp.arange(room[0]) < count[:, None])
    chosen = _greedy_map(table, ids, log_p, legal, size, beta, room[1])
    places = jnp.where(active[:, None], jnp.where(chosen, log_p, -jnp.inf), jnp.take_along_axis(z, ids, axis=1))
    others = jnp.where(active[:, None], -jnp.inf, z)
    return jax.vmap(lambda row, at, new: row.at[at].set(new, unique_indices=True))(others, ids, places)


def _greedy_map(
    table: Directions,
    ids: Int32[jax.Array, "B M"],
    log_p: Float32[jax.Array, "B M"],
    legal: Bool[jax.Array, "B M"],
    size: Int32[jax.Array, " B"],
    beta: Float32[jax.Array, " B"],
    room: int,
) -> Bool[jax.Array, "B M"]:
    """Which candidates are in Y. Every row of the batch takes one token a round, until all have theirs.

    `left` is what remains of each candidate's diagonal entry once the tokens taken are projected out: the factor by which
    taking it would multiply det S_Y.
    """
    unit = table.rows[ids].astype(jnp.float32) - table.mean
    # A token without a direction is like no other.
    unit = unit * lax.rsqrt(jnp.maximum(jnp.sum(unit * unit, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny))
    batch, count = ids.shape
    at = jnp.arange(batch)

    def unfinished(carry: Any) -> jax.Array:
        return carry[0] < jnp.max(size)

    def take(carry: Any) -> Any:
        index, chosen, factor, left = carry
        gain = (1 - beta[:, None]) * log_p + beta[:, None] * jnp.log(left)
        gain = jnp.where(legal & ~chosen & (left > _SAME), gain, -jnp.inf)
        pick = jnp.argmax(gain, axis=-1)
        takes = (index < size) & (gain[at, pick] > -jnp.inf)
        chosen = chosen | (takes[:, None] & (jnp.arange(count) == pick[:, None]))

        alike = jnp.einsum("bmd,bd->bm", unit, unit[at, pick], precision=lax.Precision.HIGHEST)
        known = jnp.einsum("bk,bkm->bm", factor[at, :, pick], factor, precision=lax.Precision.HIGHEST)
        new = (alike - known) * lax.rsqrt(jnp.maximum(left[at, pick], _SAME))[:, None]
        return index + 1, chosen, factor.at[:, index].set(new), jnp.maximum(left - new * new, 0.0)

    nothing = (
        jnp.int32(0),
        jnp.zeros((batch, count), jnp.bool_),
        jnp.zeros((batch, room, count), jnp.float32),
        jnp.full((batch, count), 1 + _JITTER, jnp.float32),
    )
    return lax.while_loop(unfinished, take, nothing)[1]
