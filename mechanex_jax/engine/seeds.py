"""Seeds of several texts under one seed. Three rules, side by side, because every text must be drawable by itself.

- Row i of a batch draws from fold_in(key(seed), i): `row_seeds` and `row_keys`. One executable draws for all rows.
- Text i of a run over prompts has a seed of its own, by NumPy's SeedSequence: `text_seed`, and `candidate_seed` for the
  candidates of a policy. `generate` with that seed draws the same text, which a fold_in of a key could not offer.
- Line i of a batch job has a seed of its own, by BLAKE2b: `line_seed`. It is written to the job's output and must not change
  with a library's version.
"""

from __future__ import annotations

import hashlib
import operator
import secrets
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Key, UInt32

from mechanex_jax.errors import Verbatim, expected


def as_seed(value: object) -> int | None:
    """The seed as an `int`, or None.

    Raises:
      ArgumentError: neither a whole number from 0 to 4294967295, of any integer type, nor None.
    """
    if value is None:
        return None
    try:
        seed = -1 if isinstance(value, bool) else operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        seed = -1
    if not 0 <= seed < 2**32:
        raise expected("seed", value, "a whole number from 0 to 4294967295, or None for a fresh one")
    return seed


def row_seeds(seed: int | Sequence[int | None] | None, rows: int) -> list[tuple[int, int]]:
    """(seed, index) of each row: one seed counts the rows, a list gives every row the first draw of its own seed.

    Args:
      seed: 0 to 4294967295; None draws a fresh one.
      rows: how many there are.

    Raises:
      ArgumentError: no seed, or a list of another length.
    """
    if isinstance(seed, Sequence):
        if len(seed) != rows:
            raise expected("seed", Verbatim(f"{len(seed)} seeds"), f"one seed, or a list of {rows} (one per prompt)")
        return [(fresh(as_seed(value)), 0) for value in seed]
    first = fresh(as_seed(seed))
    return [(first, index) for index in range(rows)]


def fresh(seed: int | None) -> int:
    """The seed itself, or a new one for None."""
    return secrets.randbits(32) if seed is None else seed


@partial(jax.jit, static_argnames="impl")
def _row_keys(
    seeds: UInt32[np.ndarray, " B"], indices: UInt32[np.ndarray, " B"], impl: str = "threefry2x32"
) -> Key[jax.Array, " B"]:
    # By name: the "rbg" generator draws differently under vmap, and rows would depend on each other.
    data = jnp.stack([jnp.zeros_like(seeds), seeds], axis=-1)
    return jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(data, impl=impl), indices)


def row_keys(pairs: Sequence[tuple[int, int]]) -> Key[jax.Array, " B"]:
    """fold_in(key(seed), index) for each pair (seed, index): typed keys [B]."""
    seeds, indices = np.asarray(pairs, np.uint32).reshape(-1, 2).T
    return _row_keys(np.ascontiguousarray(seeds), np.ascontiguousarray(indices))


def text_seed(seed: int, index: int) -> int:
    """The seed of the index-th of several texts; the first one's is the seed itself."""
    return seed if index == 0 else int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def candidate_seed(seed: int, round: int, slot: int) -> int:
    """The seed of a policy's candidate; the first one's is the run's own, so that it draws as `generate` does with it."""
    return seed if round == slot == 0 else int(np.random.SeedSequence([seed, round, slot]).generate_state(1)[0])


def line_seed(seed: int, index: int) -> int:
    """The seed of the index-th line of a batch job, 0 to 4294967295."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {index}".encode(), digest_size=4).digest())
