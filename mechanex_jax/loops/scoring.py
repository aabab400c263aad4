"""How likely given texts are, and which of several candidates several models prefer.

Models with different tokenisers can't vote on tokens. They vote on texts: every model generates candidates, every model scores
all of them in its own tokens, and log-likelihoods per UTF-8 byte compare across tokenisers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, Integer, Num

from mechanex_jax import rows
from mechanex_jax.edits import Edit, Edits, compose
from mechanex_jax.errors import expected
from mechanex_jax.loops.inputs import IntPerRow, Number, Tokens, Whole, unwrap
from mechanex_jax.loops.language_model import LanguageModel, ModelCache, ModelHandle, logits_of
from mechanex_jax.loops.prefill import bucket
from mechanex_jax.loops.voting import Weights, check_voting, normalized
from mechanex_jax.rows import Array

_LARGEST_CHUNK, _SMALLEST_CHUNK = 512, 8
_LOGITS = 2**25  # numbers that the logits of one chunk may have: 128 MiB


class _Progress(NamedTuple):
    """A text that is scored up to position `at`."""

    at: Int32[jax.Array, ""]
    cache: ModelCache
    total: Float32[jax.Array, " B"]


@partial(jax.jit, static_argnames=("capacity", "size"))
def _score(
    model: LanguageModel,
    edits: tuple[Edit, ...],
    tokens: Int32[jax.Array, "B S"],
    lengths: Int32[jax.Array, " B"],
    prompts: Int32[jax.Array, " B"],
    capacity: int,
    size: int,
) -> Float32[jax.Array, " B"]:
    """In chunks of `size` positions, so that logits of all of them never exist at once."""

    def piece(carry: _Progress) -> _Progress:
        at, cache, total = carry
        here = jax.lax.dynamic_slice_in_dim(tokens, at, size, axis=1)
        following = jax.lax.dynamic_slice_in_dim(tokens, at + 1, size, axis=1)
        valid = jnp.clip(lengths - 1 - at, 0, size)
        # Position p predicts token p + 1.
        target = at + 1 + jnp.arange(size, dtype=jnp.int32)
        counts = (target >= prompts[:, None]) & (target < lengths[:, None])
        out = model.extend(cache, here, valid, edits, prompt_lengths=prompts, logits="all")
        logits = logits_of(out)
        chosen = jnp.take_along_axis(logits, following[:, :, None], axis=2)[:, :, 0]
        log_p = chosen - jax.nn.logsumexp(logits, axis=-1)
        return _Progress(at + size, out.cache, total + jnp.sum(jnp.where(counts, log_p, 0.0), axis=1))

    batch = tokens.shape[0]
    begin = _Progress(jnp.int32(0), model.init_cache(batch, capacity), jnp.zeros(batch, jnp.float32))
    return jax.lax.while_loop(lambda carry: carry.at < jnp.max(lengths) - 1, piece, begin).total


def score(
    model: LanguageModel | ModelHandle,
    tokens: Tokens,
    lengths: IntPerRow,
    prompt_lengths: IntPerRow,
    *,
    edits: Edits = None,
) -> Float32[np.ndarray, " B"]:
    """Sum ln p(token | all tokens before it) over each row's tokens after its prompt: their log-likelihood.

    >>> [f"{value:.2f}" for value in score(toy(), [[1, 2, 3, 4], [1, 2, 5, 0]], lengths=[4, 3], prompt_lengths=2)]
    ['-18.84', '-11.73']

    Args:
      model: as `decode` takes it, or what `mx.load` returns.
      tokens: whole numbers [B, S], prompt and continuation, padded on the right.
      lengths: whole numbers [B], real tokens of each row, or one for all rows.
      prompt_lengths: whole numbers [B], at least 1, or one for all rows; a row with as many tokens as its prompt scores 0.
      edits: an Edit or several, applied to the model's activations.

    Returns:
      float32 [B], on the host; natural logarithms; -inf if a token is impossible.

    Raises:
      ArgumentError: shapes that don't fit each other.
    """
    model = unwrap(model)
    ids = np.asarray(tokens, np.int32)
    if ids.ndim != 2 or not ids.size:
        raise expected("tokens", ids.shape, "two axes [B, S], neither empty")
    batch, longest = ids.shape
    real, prompts = (np.broadcast_to(np.asarray(n, np.int32), batch) for n in (lengths, prompt_lengths))
    if prompts.min() < 1 or (prompts > real).any():
        raise expected("prompt_lengths", prompts.tolist(), f"1 token to each row's length {real.tolist()}")
    if real.max() > longest:
        raise expected("lengths", real.tolist(), f"at most {longest} tokens in every row")
    positions = bucket(int(real.max()) - 1, _SMALLEST_CHUNK)
    affordable = max(_SMALLEST_CHUNK, _LOGITS // (batch * model.spec.vocabulary))
    size = min(positions, _LARGEST_CHUNK, 1 << (affordable.bit_length() - 1))
    padded = np.zeros((batch, positions + 1), np.int32)
    padded[:, : min(longest, positions + 1)] = ids[:, : positions + 1]
    edits_of_rows = jax.device_put(rows.broadcast_rows(compose(edits), batch))
    return np.asarray(_score(model, edits_of_rows, padded, real, prompts, positions, size))


def select(
    loglikelihoods: Num[Array, "M C"] | Sequence[Sequence[Number]],
    byte_lengths: Integer[Array, " C"] | Sequence[Whole],
    *,
    voting: str = "majority",
    weights: Weights | None = None,
) -> int:
    """Choose the candidate text that several models prefer, by log-likelihood per UTF-8 byte.

    "mean" and "product" choose the highest weighted arithmetic and geometric mean of the models' likelihoods per byte. With
    "majority" every model votes for its likeliest candidate (the first of equals), and the mean breaks ties. What is equal
    after that: the first candidate.

    >>> select([[-9.0, -4.0], [-6.0, -5.0]], byte_lengths=[6, 2])  # per byte, both models prefer the first
    0

    Args:
      loglikelihoods: float [M, C], of candidate c under model m, in nats, as `score` gives it: of the continuation alone, in
        the model's own tokens.
      byte_lengths: whole numbers [C], of each continuation in UTF-8; one without bytes counts as a single byte.
      voting, weights: as in `ensemble_decode`; weights [M].

    Raises:
      ArgumentError: no candidates, NaN, shapes that don't fit each other, an unknown vote, weights that don't fit.
    """
    likelihoods, sizes = np.asarray(loglikelihoods, np.float64), np.asarray(byte_lengths)
    if likelihoods.ndim != 2 or not likelihoods.size or np.isnan(likelihoods).any():
        raise expected("loglikelihoods", loglikelihoods, "numbers [M, C], at least one candidate")
    if sizes.shape != likelihoods.shape[1:] or not np.issubdtype(sizes.dtype, np.integer) or (sizes < 0).any():
        raise expected("byte_lengths", byte_lengths, f"{likelihoods.shape[1]} whole numbers >= 0, one for each candidate")
    check_voting(voting)
    shares = normalized(weights, len(likelihoods)).astype(np.float64)
    per_byte = likelihoods / np.maximum(sizes, 1)
    heard = shares > 0
    means = {
        "mean": np.logaddexp.reduce(np.log(shares[heard])[:, None] + per_byte[heard], axis=0),
        "product": shares[heard] @ per_byte[heard],
    }
    if voting != "majority":
        return int(np.argmax(means[voting]))
    votes = np.bincount(per_byte.argmax(axis=1), shares, minlength=len(sizes))
    return int(np.argmax(np.where(votes >= votes.max() - 1e-6, means["mean"], -np.inf)))
