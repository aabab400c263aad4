"""Transforms that follow what a row has said: repetition, presence, frequency penalties; a bias; a minimum length."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Int32

from mechanex_jax.errors import expected
from mechanex_jax.rows import as_field, row, row_tree, shared, static
from mechanex_jax.transforms.base import Logits, Stateless, Step, Token


class Spoken(NamedTuple):
    """What one row has said.

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
    repetition: Any = row()
    presence: Any = row()
    frequency: Any = row()

    def init(self, prompt: Int32[jax.Array, " T"], length: Token) -> Spoken:
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

    bias: Any = row(rank=1)

    def apply(self, state: Any, logits: Logits, step: Step) -> Logits:
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

    minimum: Any = row(dtype=jnp.int32)
    ids: Any = shared()

    def apply(self, state: Any, logits: Logits, step: Step) -> Logits:
        at = jnp.where(self.ids >= 0, self.ids, logits.shape[-1])
        banned = logits.at[at].set(-jnp.inf, mode="drop")
        ban = (step.index < self.minimum) & (jnp.max(banned) > -jnp.inf)
        return jnp.where(ban, banned, logits)


def penalties(vocab_size: int, repetition: Any = 1.0, presence: Any = 0.0, frequency: Any = 0.0) -> Penalties:
    """Repetition, presence and frequency penalties, with one state for all three.

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
        _field("repetition", repetition, "a number > 0", lambda r: r > 0),
        _field("presence", presence, "a finite number"),
        _field("frequency", frequency, "a finite number"),
    )


def repetition_penalty(vocab_size: int, penalty: Any) -> Penalties:
    """Divide positive logits of tokens in prompt or answer by `penalty`, multiply negative ones. 1 is the identity.

    Keskar et al. 2019, arXiv:1909.05858. See `penalties` for the arguments.
    """
    return penalties(vocab_size, repetition=penalty)


def presence_penalty(vocab_size: int, penalty: Any) -> Penalties:
    """Subtract `penalty` from tokens that the answer has. 0 is the identity. See `penalties` for the arguments."""
    return penalties(vocab_size, presence=penalty)


def frequency_penalty(vocab_size: int, penalty: Any) -> Penalties:
    """Subtract `penalty` for each time the answer has a token. 0 is the identity. See `penalties` for the arguments."""
    return penalties(vocab_size, frequency=penalty)


def logit_bias(bias: Any) -> LogitBias:
    """Add `bias` to the logits: float [V], or [B, V] with one per row; zeros are the identity, -inf bans a token.

    Raises:
      ArgumentError: `bias` has another rank, or holds NaN or +inf.
    """
    if isinstance(bias, Tracer):
        return LogitBias(as_field(bias))
    array = _numbers(bias)
    if array.ndim not in (1, 2) or not np.all(array < np.inf):
        raise expected("bias", bias, "numbers below infinity of shape [V], or [B, V] with one row for each")
    return LogitBias(as_field(bias))


def min_new_tokens(n: Any, eos_ids: Any) -> MinNewTokens:
    """Ban `eos_ids` until `n` tokens are generated. `n=0` is the identity.

    A row that could say nothing but one of them (a finished constraint, say) may say it.

    Args:
      n: whole number >= 0, or one per row [B].
      eos_ids: int [E], one id or several; -1 is padding.

    Raises:
      ArgumentError: `n` is negative or not whole, or `eos_ids` are not whole numbers.
    """
    if not isinstance(n, Tracer):
        array = _numbers(n)
        if array.ndim > 1 or not np.all((array >= 0) & (np.floor(array) == array)):
            raise expected("min_new_tokens", n, "a whole number >= 0, or a list with one per row")
    ids = np.atleast_1d(np.asarray(eos_ids))
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise expected("eos_ids", eos_ids, "one token id or a list of them")
    return MinNewTokens(as_field(n, jnp.int32), ids.astype(np.int32))


def _numbers(value: Any) -> np.ndarray:
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return np.full((), np.nan)


def _field(name: str, value: Any, wanted: str, valid: Any = lambda array: True) -> Any:
    if not isinstance(value, Tracer):
        array = _numbers(value)
        if array.ndim > 1 or not np.all(np.isfinite(array) & valid(array)):
            raise expected(name, value, f"{wanted}, or a list with one per row")
    return as_field(value)
