"""Adaptive determinantal sampling: keep few tokens that are likely and unlike each other.

Top-k keeps the k likeliest tokens even where they are spellings of one word. Here a determinantal point process over the
likeliest M candidates trades probability for diversity, measured by the directions of their unembeddings, and the number of
tokens kept follows the entropy: a sure model keeps one.

The subset is the greedy maximum of the determinant (Chen et al. 2018, arXiv 1709.05135). Its Cholesky factor grows by one row
for each token taken, so that similarities to the tokens taken are needed and no others; a step costs O(M D k + M k^2).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Bool, Float, Float32, Int32

from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.rows import Array, PerRow, row, row_tree, shared, static
from mechanex_jax.transforms.arguments import Unembedding, number_per_row
from mechanex_jax.transforms.base import Logits, Stateless, Step
from mechanex_jax.transforms.thresholds import LARGEST, merge_axis, row_sums, settled

MOST_CANDIDATES = 1024
# Candidates and subset: what is allocated but not used costs little, so that small values share a program.
_SMALLEST_ROOM = (64, 16)
_JITTER = 1e-6  # added to the diagonal of the similarities
_SAME = 1e-5  # a candidate with less than this left beside the ones taken is a copy of them: what float32 cannot tell from 0
_ROUNDING = 1e-5  # of exp(entropy) in float32: two equal tokens are 2 and not 3


class Directions(NamedTuple):
    """The unembedding that `determinantal` measures similarity by. Made by `directions`.

    Attributes:
      rows: the unembedding of each token.
      mean: of all rows.
    """

    rows: Float[jax.Array, "V D"]
    mean: Float32[jax.Array, " D"]


@jax.jit
def _mean(table: Float[jax.Array, "V D"]) -> Float32[jax.Array, " D"]:
    return jnp.mean(table.astype(jnp.float32), axis=0)


def directions(unembedding: Unembedding) -> Directions:
    """Compute the mean of an unembedding's rows, once for many calls of `determinantal`.

    >>> directions(jnp.array([[1.0, 0.0], [0.0, 1.0]])).mean
    Array([0.5, 0.5], dtype=float32)

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
    """A few likely tokens that are unlike each other; see `determinantal`.

    Attributes:
      directions: of the unembedding, shared by all rows.
      subset_size: the most tokens kept; 0 leaves a row as it is.
      beta: weight of diversity, in (0, 1).
      top_k: number of candidates.
      temperature: 0 is greedy.
      room: candidates and tokens kept that arrays have room for.
    """

    directions: Directions = shared()
    subset_size: Int32[Array, ""] = row(dtype=jnp.int32, neutral=0)
    beta: Float32[Array, ""] = row(neutral=0.3)
    top_k: Int32[Array, ""] = row(dtype=jnp.int32, neutral=1)
    temperature: Float32[Array, ""] = row()
    room: tuple[int, int] = static()

    def apply(self, state: tuple[()], logits: Logits, step: Step) -> Logits:
        size = self.directions.rows.shape[0]
        if logits.shape[-1] != size:
            raise expected("unembedding", Verbatim(f"{size} rows"), f"{logits.shape[-1]}, one for each logit")
        fields = (self.subset_size, self.beta, self.top_k, self.temperature)
        values = jax.tree.map(lambda value: jnp.asarray(value)[None], fields)
        return _keeper(self.room)(self.directions, logits.astype(jnp.float32)[None], values)[0]


def determinantal(
    unembedding: Unembedding | Directions,
    subset_size: PerRow = 8,
    beta: PerRow = 0.3,
    top_k: PerRow = 50,
    temperature: PerRow = 1.0,
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

    >>> unembedding = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-2.0, -1.1]])  # the first two tokens are alike
    >>> step = Step(jnp.int32(0), jnp.int32(9), jax.random.key(0))
    >>> determinantal(unembedding, subset_size=2).apply((), jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1])), step) == -jnp.inf
    Array([False,  True, False,  True], dtype=bool)

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
    size = number_per_row("subset_size", subset_size, lambda k: k >= 0, "a whole number >= 0", jnp.int32)
    weight = number_per_row("beta", beta, lambda b: (b > 0) & (b < 1), "a number in (0, 1)")
    most = f"a whole number from 1 to {MOST_CANDIDATES}"
    count = number_per_row("top_k", top_k, lambda k: (k >= 1) & (k <= MOST_CANDIDATES), most, jnp.int32)
    heat = number_per_row("temperature", temperature, lambda t: t >= 0, "a number >= 0")
    largest = [int(np.max(np.asarray(values), initial=1)) for values in (count, size)]
    candidates, kept = (max(least, 1 << (n - 1).bit_length()) for least, n in zip(_SMALLEST_ROOM, largest, strict=True))
    candidates = min(candidates, table.rows.shape[0])
    return Determinantal(table, size, weight, count, heat, (candidates, min(kept, candidates)))


# From here on, arrays have a row axis: z float32 [B, V], one value per row [B]; M candidates.


def top_rows(z: Float32[jax.Array, "B V"], count: int) -> tuple[Float32[jax.Array, "B M"], Int32[jax.Array, "B M"]]:
    """Find the `count` largest of each row, sorted, and where they are; of equal ones the first come first.

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


# Logits, and the fields of `Determinantal` but for its directions.
_LogitRows: TypeAlias = Float32[jax.Array, "B V"]
_Values: TypeAlias = tuple[Int32[jax.Array, " B"], Float32[jax.Array, " B"], Int32[jax.Array, " B"], Float32[jax.Array, " B"]]
# Tokens taken, which they are, the Cholesky factor of their similarities, and what is left of each candidate.
_Search: TypeAlias = tuple[Int32[jax.Array, ""], Bool[jax.Array, "B M"], Float32[jax.Array, "B K M"], Float32[jax.Array, "B M"]]


@functools.lru_cache(maxsize=32)
def _keeper(room: tuple[int, int]) -> Callable[[Directions, _LogitRows, _Values], _LogitRows]:
    """`_keep_rows` with these sizes; under vmap the added axes become rows, so that one cond serves all of them."""

    @custom_vmap
    @jax.jit
    def keep(table: Directions, z: _LogitRows, values: _Values) -> _LogitRows:
        return lax.cond(jnp.any(values[0] > 0), lambda: _keep_rows(table, z, values, room), lambda: z)

    @keep.def_vmap
    def _(
        axis_size: int,
        batched: Sequence[object],
        table: Directions,
        z: Float32[jax.Array, "*AB V"],
        values: tuple[jax.Array, ...],
    ) -> tuple[Float32[jax.Array, "A B V"], bool]:
        if any(jax.tree.leaves(batched[0])):
            raise expected("unembedding", Verbatim("one per row"), "one that all rows share")
        (z, values), shape = merge_axis(axis_size, batched[1:], (z, values))
        return keep(table, z, values).reshape(shape), True

    return keep


def _keep_rows(table: Directions, z: _LogitRows, values: _Values, room: tuple[int, int]) -> _LogitRows:
    size, beta, count, heat = values
    active, hot = size > 0, heat > 0
    finite = jnp.minimum(z, LARGEST)
    best, ids = top_rows(finite, room[0])
    top = best[:, 0]
    top = jnp.where(top == -jnp.inf, 0.0, top)  # of a row without a finite logit, every token is infinitely far from this
    heat = jnp.where(hot, jnp.minimum(heat, 1e37), 1.0)
    top, heat = settled((top, heat))

    distance = (top[:, None] - finite) / heat[:, None]
    e = jnp.exp(-distance)
    total, moment = settled((row_sums(e), row_sums(jnp.where(e > 0, e * distance, 0.0))))
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

    def unfinished(search: _Search) -> Bool[jax.Array, ""]:
        return search[0] < jnp.max(size)

    def take(search: _Search) -> _Search:
        index, chosen, factor, left = search
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
