"""Distinct strings on the device: keys of one object, or items of one array, no two of which may be equal.

A row remembers the strings that it has closed in a Bloom filter (Bloom 1970) of hashes of the string and of the place where its
object or array began. Two strings of one hash are taken for equal, so that a collision only forbids. See
`mechanex_jax.constraints.automata.pushdown` for where a string may be closed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

QUOTE, _BACKSLASH = 0x22, 0x5C
_WORDS = 1024  # of the filter, 32 bits each: of 1,000 strings, one in 280 is taken for one of the others
_PRIME = 0x01000193  # FNV-1a's


class DistinctState(NamedTuple):
    """What one row remembers of its strings.

    Attributes:
      digest: uint32 [], the hash of what has been read since the last quote that is not escaped.
      escaped: bool [], whether a backslash escapes the next byte.
      position: int32 [], bytes read.
      opened: int32 [D + 1], where the frame above so many return sites began.
      seen: uint32 [1024], the filter.
    """

    digest: jax.Array
    escaped: jax.Array
    position: jax.Array
    opened: jax.Array
    seen: jax.Array


def nothing_read(max_depth: int) -> DistinctState:
    """The state at the beginning of a text."""
    zero = jnp.int32(0)
    return DistinctState(
        jnp.uint32(0), jnp.bool_(False), zero, jnp.zeros(max_depth + 1, jnp.int32), jnp.zeros(_WORDS, jnp.uint32)
    )


def read_byte(state: DistinctState, byte: jax.Array) -> jax.Array:
    """The digest once a byte has been read; of the byte's shape."""
    following = (state.digest ^ byte.astype(jnp.uint32)) * jnp.uint32(_PRIME) + jnp.uint32(1)
    return jnp.where((byte == QUOTE) & ~state.escaped, jnp.uint32(0), following)


def advance(state: DistinctState, byte: jax.Array, consumed: jax.Array) -> DistinctState:
    """The state once a byte has been read, if it is `consumed`."""
    return state._replace(
        digest=jnp.where(consumed, read_byte(state, byte), state.digest),
        escaped=jnp.where(consumed, (byte == _BACKSLASH) & ~state.escaped, state.escaped),
        position=state.position + consumed.astype(jnp.int32),
    )


def _bits(state: DistinctState, digest: jax.Array, height: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two bits of the filter, by number, for a string of the frame at `height`."""
    place = state.opened.at[height].get(mode="promise_in_bounds").astype(jnp.uint32)
    mixed = digest ^ (place * jnp.uint32(0x9E3779B1))
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    mixed = mixed ^ (mixed >> 16)
    return mixed % (32 * _WORDS), (mixed // (32 * _WORDS)) % (32 * _WORDS)


def is_seen(state: DistinctState, digest: jax.Array, height: jax.Array) -> jax.Array:
    """Whether a string was closed before in the frame at `height`; bool of the digest's shape."""
    both = jnp.ones(digest.shape, jnp.bool_)
    for bit in _bits(state, digest, height):
        word = state.seen.at[(bit >> 5).astype(jnp.int32)].get(mode="promise_in_bounds")
        both = both & ((word >> (bit & 31)) & 1).astype(jnp.bool_)
    return both


def remembered(state: DistinctState, closes: jax.Array, height: jax.Array) -> DistinctState:
    """The state with the string read last in the filter, if `closes`."""
    seen = state.seen
    for bit in _bits(state, state.digest, height):
        word = (bit >> 5).astype(jnp.int32)
        flag = jnp.where(closes, jnp.uint32(1) << (bit & 31), jnp.uint32(0))
        seen = seen.at[word].set(seen[word] | flag, mode="promise_in_bounds")
    return state._replace(seen=seen)
