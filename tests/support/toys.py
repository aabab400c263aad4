"""A model small enough to recompute by hand: the loops decode anything that has its interface."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class ToySpec(NamedTuple):
    vocabulary: int
    width: int | None = None
    layers: int | None = None
    context: int | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyCache:
    hidden: jax.Array  # [B, D]
    lengths: jax.Array  # [B]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ToyOutput:
    logits: jax.Array | None
    cache: ToyCache
    captured: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Toy:
    """h <- h / 2 + embedding[token]; logits = h @ kernel. Every token of the past matters."""

    embedding: jax.Array  # [V, D]
    kernel: jax.Array  # [D, V]

    @property
    def spec(self) -> ToySpec:
        return ToySpec(self.embedding.shape[0])

    def init_cache(self, batch: int, positions: int) -> ToyCache:
        return ToyCache(jnp.zeros((batch, self.embedding.shape[1])), jnp.zeros(batch, jnp.int32))

    def extend(self, cache, tokens, valid, edits=(), *, prompt_lengths=None, logits="last", capture=()) -> ToyOutput:
        def read(hidden, column):
            token, real = column
            return jnp.where(real[:, None], hidden / 2 + self.embedding[token], hidden), None

        real = jnp.arange(tokens.shape[1])[:, None] < valid
        hidden, _ = jax.lax.scan(read, cache.hidden, (tokens.T, real))
        out = ToyCache(hidden, cache.lengths + valid)
        return ToyOutput(None if logits == "none" else hidden @ self.kernel, out)

    def unembedding(self) -> jax.Array:
        return self.kernel


def toy(vocabulary: int = 11, width: int = 6, seed: int = 0) -> Toy:
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return Toy(normal(vocabulary, width), 2 * normal(width, vocabulary))


def toy_logits(model: Toy, tokens) -> np.ndarray:
    """The oracle, in float64: logits after the last of `tokens`."""
    embedding, kernel = (np.asarray(a, np.float64) for a in (model.embedding, model.kernel))
    hidden = np.zeros(embedding.shape[1])
    for token in tokens:
        hidden = hidden / 2 + embedding[int(token)]
    return hidden @ kernel


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
