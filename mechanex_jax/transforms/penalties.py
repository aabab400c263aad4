"""Transforms that follow what a row has said: repetition, presence, frequency penalties; a bias; a minimum length."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float32, Int32

from mechanex_jax.errors import expected
from mechanex_jax.rows import Array, PerRow, as_field, row, row_tree, shared, static
from mechanex_jax.transforms.arguments import Bias, TokenIds, as_float64, check_float32, number_per_row
from mechanex_jax.transforms.base import Logits, Stateless, Step, Token


class Spoken(NamedTuple):
    """The tokens that one row has said.

    Attributes:
      seen: bool [V], the tokens of the prompt and of the answer.
      counts: int32 [V], how often each token was generated; the prompt does not count.
    """

    seen: Bool[jax.Array, " V"]
    counts: Int32[jax.Array, " V"]


@row_tree
class Penalties:
    """Repetition, presence and frequency penalties. A token at -inf stays there under all of them.

    Attributes:
      vocab_size: V, static: `init` sees the prompt alone, and the state has V entries.
      repetition: float32 []; logits of tokens in prompt or answer are divided by it if positive, else multiplied
        (Keskar et al. 2019, arXiv:1909.05858, as in `transformers`). 1 is the identity.
      presence: float32 []; subtracted once from tokens generated so far. 0 is the identity.
      frequency: float32 []; subtracted once per time a token was generated. 0 is the identity.
    """

    vocab_size: int = static()
    repetition: Float32[Array, ""] = row(neutral=1.0)
    presence: Float32[Array, ""] = row(neutral=0.0)
    frequency: Float32[Array, ""] = row(neutral=0.0)

    def init(self, prompt: Int32[Array, " T"], length: Token) -> Spoken:
        real = (jnp.arange(prompt.shape[0]) < length) & (prompt >= 0)
        # An id that no token has is dropped, as is padding.
        ids = jnp.where(real, prompt, self.vocab_size)
        seen = jnp.zeros((self.vocab_size,), jnp.bool_).at[ids].set(True, mode="drop")
        return Spoken(seen, jnp.zeros((self.vocab_size,), jnp.int32))

    def apply(self, state: Spoken, logits: Logits, step: Step) -> Logits:
        if logits.shape[-1] != self.vocab_size:
            raise expected("vocab_size", self.vocab_size, f"{logits.shape[-1]}, the size of the model's logits")
        scaled = jnp.where(logits < 0, logits * self.repetition, logits / self.repetition)
        penalised = jnp.where(state.seen, scaled, logits)
        counts = state.counts.astype(jnp.float32)
        penalised -= self.presence * (counts > 0).astype(jnp.float32) + self.frequency * counts
        return jnp.where(logits == -jnp.inf, -jnp.inf, penalised)

    def advance(self, state: Spoken, token: Token, step: Step) -> Spoken:
        at = jnp.where(token >= 0, token, self.vocab_size)
        return Spoken(state.seen.at[at].set(True, mode="drop"), state.counts.at[at].add(1, mode="drop"))


@row_tree
class LogitBias(Stateless):
    """A number added to every logit. A token at -inf stays there; a bias of -inf bans a token.

    Attributes:
      bias: float32 [V]; 0 is the identity.
    """

    bias: Float32[Array, " V"] = row(rank=1)

    def apply(self, state: tuple[()], logits: Logits, step: Step) -> Logits:
        if logits.shape != self.bias.shape:
            raise expected("bias", self.bias.shape, f"{logits.shape}, one number per logit of the model")
        return jnp.where(logits == -jnp.inf, -jnp.inf, logits + self.bias)


@row_tree
class MinNewTokens(Stateless):
    """Bans the ids that end a text until enough tokens are generated, unless nothing else is left to say.

    Attributes:
      minimum: int32 []; 0 is the identity.
      ids: int32 [E], shared by all rows, padded with -1.
    """

    minimum: Int32[Array, ""] = row(dtype=jnp.int32, neutral=0)
    ids: Int32[Array, " E"] = shared()

    def apply(self, state: tuple[()], logits: Logits, step: Step) -> Logits:
        at = jnp.where(self.ids >= 0, self.ids, logits.shape[-1])
        banned = logits.at[at].set(-jnp.inf, mode="drop")
        ban = (step.index < self.minimum) & (jnp.max(banned) > -jnp.inf)
        return jnp.where(ban, banned, logits)


def penalties(vocab_size: int, repetition: PerRow = 1.0, presence: PerRow = 0.0, frequency: PerRow = 0.0) -> Penalties:
    """Penalise what was said, by repetition, presence and frequency penalties with one state for all three.

    >>> fresh = penalties(49152, repetition=1.1, frequency=[0.0, 0.5])  # two rows

    Args:
      vocab_size: V, the size of the model's logits.
      repetition: float > 0, or one per row [B]; above 1 discourages tokens of prompt and answer. 1 is the identity.
      presence: float, or one per row [B], subtracted from tokens of the answer. 0 is the identity.
      frequency: float, or one per row [B], subtracted for each time a token is in the answer. 0 is the identity.

    Raises:
      ArgumentError: `vocab_size` is below 1, `repetition` is not above 0, or a value is not a finite number.
    """
    if not isinstance(vocab_size, int | np.integer) or vocab_size < 1:
        raise expected("vocab_size", vocab_size, "a whole number >= 1, the size of the model's logits")
    return Penalties(
        int(vocab_size),
        number_per_row("repetition", repetition, lambda r: np.isfinite(r) & (r > 0), "a number > 0"),
        number_per_row("presence", presence, np.isfinite, "a finite number"),
        number_per_row("frequency", frequency, np.isfinite, "a finite number"),
    )


def repetition_penalty(vocab_size: int, penalty: PerRow) -> Penalties:
    """Divide positive logits of tokens in prompt or answer by `penalty`, multiply negative ones. 1 is the identity.

    Keskar et al. 2019, arXiv:1909.05858.

    >>> step = Step(jnp.int32(0), jnp.int32(9), jax.random.key(0))
    >>> transform = repetition_penalty(3, 2.0)
    >>> state = transform.init(jnp.array([0, 1]), jnp.int32(2))
    >>> transform.apply(state, jnp.array([4.0, -4.0, 4.0]), step)
    Array([ 2., -8.,  4.], dtype=float32)

    Args:
      vocab_size: V, the size of the model's logits.
      penalty: float > 0, or one per row [B].

    Raises:
      ArgumentError: as `penalties`.
    """
    return penalties(vocab_size, repetition=penalty)


def presence_penalty(vocab_size: int, penalty: PerRow) -> Penalties:
    """Subtract `penalty` once from the logits of tokens that the answer has. 0 is the identity.

    >>> step = Step(jnp.int32(0), jnp.int32(9), jax.random.key(0))
    >>> transform = presence_penalty(3, 0.5)
    >>> state = transform.init(jnp.array([0, 1]), jnp.int32(2))
    >>> transform.apply(transform.advance(state, jnp.int32(2), step), jnp.zeros(3), step)
    Array([ 0. ,  0. , -0.5], dtype=float32)

    Args:
      vocab_size: V, the size of the model's logits.
      penalty: float, or one per row [B].

    Raises:
      ArgumentError: as `penalties`.
    """
    return penalties(vocab_size, presence=penalty)


def frequency_penalty(vocab_size: int, penalty: PerRow) -> Penalties:
    """Subtract `penalty` from the logit of a token for each time that the answer has it. 0 is the identity.

    >>> step = Step(jnp.int32(0), jnp.int32(9), jax.random.key(0))
    >>> transform = frequency_penalty(3, 0.5)
    >>> state = transform.init(jnp.array([0, 1]), jnp.int32(2))
    >>> for token in (2, 2):
    ...     state = transform.advance(state, jnp.int32(token), step)
    >>> transform.apply(state, jnp.zeros(3), step)
    Array([ 0.,  0., -1.], dtype=float32)

    Args:
      vocab_size: V, the size of the model's logits.
      penalty: float, or one per row [B].

    Raises:
      ArgumentError: as `penalties`.
    """
    return penalties(vocab_size, frequency=penalty)


def logit_bias(bias: Bias) -> LogitBias:
    """Add `bias` to the logits; zeros are the identity, -inf bans a token.

    >>> step = Step(jnp.int32(0), jnp.int32(9), jax.random.key(0))
    >>> logit_bias([0.0, -jnp.inf, 2.0]).apply((), jnp.ones(3), step)
    Array([  1., -inf,   3.], dtype=float32)

    Args:
      bias: float [V], or [B, V] with one per row.

    Raises:
      ArgumentError: `bias` has another rank, or holds NaN or +inf.
    """
    if isinstance(bias, Tracer):
        return LogitBias(as_field(bias))
    array = as_float64(bias)
    if array.ndim not in (1, 2) or not np.all(array < np.inf):
        raise expected("bias", bias, "numbers below infinity of shape [V], or [B, V] with one row for each")
    check_float32("bias", bias, array)
    return LogitBias(as_field(bias))


def min_new_tokens(n: PerRow, eos_ids: TokenIds) -> MinNewTokens:
    """Ban `eos_ids` until `n` tokens are generated. `n=0` is the identity.

    A row that could say nothing but one of them (a finished constraint, say) may say it.

    >>> step = Step(jnp.int32(0), jnp.int32(9), jax.random.key(0))
    >>> min_new_tokens(1, eos_ids=2).apply((), jnp.zeros(3), step)
    Array([  0.,   0., -inf], dtype=float32)

    Args:
      n: whole number >= 0, or one per row [B].
      eos_ids: int [E], one id or several; -1 is padding.

    Raises:
      ArgumentError: `n` is negative or not whole, or `eos_ids` are not whole numbers.
    """
    if not isinstance(n, Tracer):
        array = as_float64(n)
        if array.ndim > 1 or not np.all((array >= 0) & (np.floor(array) == array)):
            raise expected("min_new_tokens", n, "a whole number >= 0, or a list with one per row")
    ids = np.atleast_1d(np.asarray(eos_ids))
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise expected("eos_ids", eos_ids, "one token id or a list of them")
    return MinNewTokens(as_field(n, jnp.int32), ids.astype(np.int32))
