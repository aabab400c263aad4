"""Arguments of the transforms' factories, on the host: converted, checked for range and shape, refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Bool, Float64

from mechanex_jax.errors import expected
from mechanex_jax.rows import Array, as_field

LARGEST_INT = 2**31 - 1

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy.typing import ArrayLike

    Bias: TypeAlias = Float[ArrayLike, "*B V"]
    TokenIds: TypeAlias = Int[ArrayLike, " E"]
    Unembedding: TypeAlias = Float[ArrayLike, "V D"]
else:  # as `mechanex_jax.rows.PerRow`
    Bias = TokenIds = Unembedding = object

# Which numbers are in range.
Valid: TypeAlias = Callable[[Float64[np.ndarray, "..."]], Bool[np.ndarray, "..."] | np.bool_]


def as_float64(value: object) -> np.ndarray:
    """float64 on the host, to be checked; a single NaN, which passes no check, where `value` is not numbers."""
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return np.full((), np.nan)


def check_float32(name: str, value: object, array: np.ndarray) -> None:
    """Raise ArgumentError where a finite number of `array`, the float64 of `value`, is infinite in float32."""
    if np.any(np.isfinite(array) & (np.abs(array) > np.finfo(np.float32).max)):
        raise expected(name, value, "numbers that float32 holds, at most 3.403e+38")


def number_per_row(name: str, value: object, valid: Valid, allowed: str, dtype: DTypeLike = jnp.float32) -> Array:
    """One number, or one per row [B], as `dtype`; what is traced passes unchecked.

    Args:
      name: the argument, for errors.
      value: a number, a list, or an array of NumPy, JAX or torch.
      valid: whether float64 numbers are in range; NaN must not be.
      allowed: the range, for errors.
      dtype: float32, or int32 for whole numbers, where larger ones become the largest.

    Raises:
      ArgumentError: not numbers, out of range, not whole, or on more than one axis.
    """
    if isinstance(value, Tracer):
        return as_field(value, dtype)
    array = as_float64(value)
    whole = dtype is not jnp.int32 or bool(np.all(np.floor(array) == array))
    if array.ndim > 1 or not whole or not np.all(valid(array)):
        raise expected(name, value, allowed + ", or a list with one per row")
    if dtype is not jnp.int32:
        check_float32(name, value, array)
    if isinstance(value, jax.Array):
        return as_field(value, dtype)
    return as_field(np.minimum(array, LARGEST_INT) if dtype is jnp.int32 else array, dtype)
