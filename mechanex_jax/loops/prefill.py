"""Prompts into a cache: in chunks, and what several rows share once."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial

import jax
import numpy as np
from jaxtyping import Int32, Integer

from mechanex_jax import rows
from mechanex_jax.edits import Edit
from mechanex_jax.loops.chunks import wait
from mechanex_jax.loops.language_model import LanguageModel, ModelCache

PREFILL_CHUNK = 512
SMALLEST_PREFILL = 16


def bucket(size: int, smallest: int) -> int:
    """The next power of two, at least `smallest`."""
    return max(smallest, 1 << max(size - 1, 0).bit_length())


def chunk_sizes(length: int) -> list[int]:
    """Sizes of the calls that prefill `length` tokens: whole chunks, then one bucket for the rest."""
    whole, rest = divmod(length, PREFILL_CHUNK)
    return [PREFILL_CHUNK] * whole + ([bucket(rest, SMALLEST_PREFILL)] if rest else [])


def prefill_positions(length: int) -> int:
    """How many positions of a cache are written when `length` tokens are prefilled: whole chunks, padding included."""
    return sum(chunk_sizes(length))


@partial(jax.jit, static_argnames=("batch", "capacity"))
def _empty(model: LanguageModel, batch: int, capacity: int) -> ModelCache:
    return model.init_cache(batch, capacity)


@partial(jax.jit, donate_argnames="cache")
def _extend(
    model: LanguageModel,
    edits: tuple[Edit, ...],
    cache: ModelCache,
    tokens: Int32[jax.Array, "B S"],
    valid: Int32[jax.Array, " B"],
    prompt_lengths: Int32[jax.Array, " B"],
) -> ModelCache:
    """Run S prompt tokens, of which row b has `valid[b]`, into the cache."""
    return model.extend(cache, tokens, valid, edits, prompt_lengths=prompt_lengths, logits="none").cache


@jax.jit
def _spread(cache: ModelCache, sources: Int32[jax.Array, " B"]) -> ModelCache:
    """A cache whose row b is row `sources[b]` of this one."""
    return jax.tree.map(lambda leaf: leaf[sources], cache)


def _distinct(
    history: Int32[np.ndarray, "B T"], lengths: Integer[np.ndarray, " B"], edits: tuple[Edit, ...] | None
) -> tuple[Int32[np.ndarray, " R"], Int32[np.ndarray, " B"]]:
    """R rows to prefill, and which of them each row's cache is: rows of one prompt under the same edits share theirs.

    Padded to a power of two; where that saves less than half of the rows, all of them.
    """
    everyone = np.arange(len(history), dtype=np.int32)
    leaves = rows.row_leaves(edits)
    if any(isinstance(leaf, jax.Array) for leaf in leaves):  # on a device: fetching it may cost more than it saves
        return everyone, everyone
    seen: dict[Hashable, int] = {}
    keys = [(lengths[row], history[row].tobytes(), *(leaf[row].tobytes() for leaf in leaves)) for row in everyone]
    source = np.array([seen.setdefault(key, len(seen)) for key in keys], np.int32)
    size = bucket(len(seen), 1)
    if 2 * size > len(history):
        return everyone, everyone
    first = np.unique(source, return_index=True)[1].astype(np.int32)
    return np.concatenate([first, np.repeat(first[:1], size - len(first))]), source


def prefill(
    model: LanguageModel,
    edits: tuple[tuple[Edit, ...], tuple[Edit, ...]],
    history: Int32[np.ndarray, "B T"],
    lengths: Int32[np.ndarray, " B"],
) -> ModelCache:
    """Fill a cache of T positions with all but the last token of each prompt.

    Args:
      model: weights, `init_cache` and `extend`.
      edits: broadcast to B rows, as they are on the host and as they are on the device.
      history: the prompts, padded on the right.
      lengths: tokens of each prompt, at least 1.
    """
    on_host, on_device = edits
    (batch, capacity), longest = history.shape, int(lengths.max(initial=1))
    first, source = _distinct(history, lengths, on_host)
    shared = len(first) < batch
    edits_of_rows = rows.take_rows(on_host, first.tolist(), batch) if shared else on_device
    cache, at = _empty(model, len(first), capacity), 0
    for size in chunk_sizes(longest - 1):
        valid = np.clip(lengths[first] - 1 - at, 0, size).astype(np.int32)
        cache = _extend(model, edits_of_rows, cache, history[first, at : at + size], valid, lengths[first])
        wait(jax.tree.leaves(cache)[0])
        at += size
    return _spread(cache, source) if shared else cache
