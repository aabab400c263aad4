"""Drawing a token from logits: two-level Gumbel-max.

Gumbel noise for a whole vocabulary costs more than every truncation of this library. Instead, noise for the log-masses
of blocks of tokens picks a block, then noise for its tokens picks one of them: the law is softmax(logits) all the same.
As each block's noise has a key of its own, a token's noise depends on nothing but the row's key and the token. Small
changes of logits hence change few draws, which an inverse CDF cannot offer.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float32, Int32, Key

from mechanex_jax.transforms.base import Logits, RowKey, Token

_BLOCK = 256


def draw(key: RowKey, logits: Logits) -> Token:
    """Draw one token from softmax(logits).

    One row sees its key and its logits; `jax.vmap` over both draws for a batch, each row independent of the others.

    >>> draw(jax.random.key(0), jnp.array([-jnp.inf, 1.0, -jnp.inf]))
    Array(1, dtype=int32)

    Args:
      key: typed key [], consumed here. Pass a `threefry2x32` key: `rbg` is not row-independent under vmap.
      logits: float32 [V], of any scale and shift. -inf is never drawn as long as one logit is finite.

    Returns:
      int32 []. With a single finite logit it is that one, whatever the noise; with none it is 0.
    """
    size = logits.shape[-1]
    # A row's maximum goes through a barrier, or XLA's CPU backend computes it again inside the fusion that reads it.
    top = lax.optimization_barrier(jnp.max(_over_blocks(logits, jnp.max)))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    # A block that is e^-87 of the likeliest token has mass 0 here: float32 noise could not have picked it either.
    log_mass = jnp.log(_over_blocks(jnp.exp(logits - top), jnp.sum))
    block = _pick(jax.random.fold_in(key, 0), log_mass)
    ids = block * _BLOCK + jnp.arange(_BLOCK, dtype=jnp.int32)
    inside = jnp.where(ids < size, logits[jnp.minimum(ids, size - 1)], -jnp.inf)
    return block * _BLOCK + _pick(jax.random.fold_in(key, block + 1), inside)


def draw_rows(keys: Key[jax.Array, " B"], logits: Float32[jax.Array, "B V"]) -> Int32[jax.Array, " B"]:
    """Draw one token for each of B rows, as `draw` does.

    >>> draw_rows(jax.random.split(jax.random.key(0), 2), jnp.array([[9.0, -jnp.inf], [-jnp.inf, 9.0]]))
    Array([0, 1], dtype=int32)
    """
    return jax.vmap(draw)(keys, logits)


def argmax_rows(logits: Float32[jax.Array, "B V"]) -> Int32[jax.Array, " B"]:
    """Find the first index of each row's maximum. Faster than `jnp.argmax` on a CPU.

    >>> argmax_rows(jnp.array([[1.0, 3.0, 3.0]]))
    Array([1], dtype=int32)
    """
    size = logits.shape[-1]
    block = jnp.argmax(_over_blocks(logits, jnp.max), axis=-1).astype(jnp.int32)
    ids = block[:, None] * _BLOCK + jnp.arange(_BLOCK, dtype=jnp.int32)
    inside = jnp.take_along_axis(logits, jnp.minimum(ids, size - 1), axis=-1)
    inside = jnp.where(ids < size, inside, -jnp.inf)
    return block * _BLOCK + jnp.argmax(inside, axis=-1).astype(jnp.int32)


def _pick(key: RowKey, log_mass: Float32[jax.Array, " N"]) -> Token:
    noise = jax.random.gumbel(key, log_mass.shape, jnp.float32)
    return jnp.argmax(log_mass + noise).astype(jnp.int32)


def _over_blocks(values: Float32[jax.Array, "*B V"], reduce: Callable[..., jax.Array]) -> Float32[jax.Array, "*B N"]:
    """Reduce each block of 256. The last, shorter one is reduced apart: padding would copy the whole row."""
    whole = values.shape[-1] // _BLOCK * _BLOCK
    parts = []
    if whole:
        parts.append(reduce(values[..., :whole].reshape(*values.shape[:-1], -1, _BLOCK), axis=-1))
    if whole < values.shape[-1]:
        parts.append(reduce(values[..., whole:], axis=-1, keepdims=True))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
