"""The toy of `toys.py` with a cache by positions, as speculation needs it: it can forget what was refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from toys import Toy, ToySpec, toy

from mechanex_jax import edits
from mechanex_jax.transforms import row, row_tree, shared, static


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Remembered:
    tokens: jax.Array  # [B, T]
    lengths: jax.Array  # [B]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    logits: jax.Array | None
    cache: Remembered
    captured: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PositionalToy:
    """The same function as `Toy`, h(t) = sum of embedding[token j] / 2^(t - j), recomputed from the tokens kept."""

    embedding: jax.Array
    kernel: jax.Array

    @property
    def spec(self) -> ToySpec:
        return ToySpec(self.embedding.shape[0])

    def init_cache(self, batch: int, positions: int) -> Remembered:
        return Remembered(jnp.zeros((batch, positions), jnp.int32), jnp.zeros(batch, jnp.int32))

    def extend(self, cache, tokens, valid, edits_=(), *, prompt_lengths=None, logits="last", capture=()) -> Output:
        write = jax.vmap(lambda past, new, at: jax.lax.dynamic_update_slice(past, new, (at,)))
        kept = write(cache.tokens, tokens, cache.lengths)
        positions = cache.lengths[:, None] + jnp.arange(tokens.shape[1])
        distance = positions[:, :, None] - jnp.arange(kept.shape[1])
        weights = jnp.where(distance >= 0, 0.5 ** jnp.maximum(distance, 0).astype(jnp.float32), 0.0)
        hidden = jnp.einsum("bst,btd->bsd", weights, self.embedding[kept])
        prompt = valid if prompt_lengths is None else prompt_lengths
        hidden = edits.Taps(edits_, edits.TextPositions(positions, prompt))("resid_post", jnp.int32(0), hidden)
        after = Remembered(kept, cache.lengths + valid)
        if logits == "none":
            return Output(None, after)
        if logits == "last":
            hidden = jnp.take_along_axis(hidden, jnp.maximum(valid - 1, 0)[:, None, None], axis=1)[:, 0]
        return Output(hidden @ self.kernel, after)

    def unembedding(self) -> jax.Array:
        return self.kernel


def positional(vocabulary: int = 11, width: int = 6, seed: int = 0) -> PositionalToy:
    model: Toy = toy(vocabulary, width, seed)
    return PositionalToy(model.embedding, model.kernel)


@row_tree
class Automaton:
    """A constraint in miniature: only tokens with table[state, token] >= 0 are legal, and that is the next state."""

    first: Any = row(dtype=jnp.int32)
    table: Any = shared()

    def init(self, prompt, length):
        return self.first

    def apply(self, state, logits, step):
        return jnp.where(jnp.asarray(self.table)[state] >= 0, logits, -jnp.inf)

    def advance(self, state, token, step):
        return jnp.asarray(self.table)[state, token]


def automaton(vocabulary: int, states: int = 5, seed: int = 0, first: Any = 0) -> Automaton:
    """A random one in which about half of the tokens are legal everywhere, and one at least."""
    rng = np.random.default_rng(seed)
    table = np.where(rng.random((states, vocabulary)) < 0.5, rng.integers(0, states, (states, vocabulary)), -1)
    table[np.arange(states), rng.integers(0, vocabulary, states)] = rng.integers(0, states, states)
    return Automaton(np.asarray(first, np.int32), table.astype(np.int32))


@row_tree
class Witness:
    """Keeps, in its state, all that the loop tells it."""

    size: int = static()

    def init(self, prompt, length):
        return {"seen": jnp.full(self.size, -1), "calls": jnp.int32(0)}

    def apply(self, state, logits, step):
        return logits

    def advance(self, state, token, step):
        code = token + 100 * step.remaining + 10_000 * step.index
        return {"seen": state["seen"].at[state["calls"]].set(code), "calls": state["calls"] + 1}
