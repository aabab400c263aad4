"""What factories do with their arguments, on the host: convert, check shapes, and say what is wrong."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mechanex_jax.errors import Verbatim, expected

# Squared norms on the device are at least this, so that an activation or a vector of 0 gives no NaN, in a gradient neither: the
# square of its inverse is still a float32.
SMALLEST_SQUARE = 1e-18


def as_float32(name: str, value: Any) -> Any:
    """float32 on the host from a list, NumPy, JAX or torch; what is traced, for a gradient by it, stays traced.

    Raises:
      ArgumentError: not numbers, or not finite ones.
    """
    if isinstance(value, Tracer):
        return value.astype(jnp.float32)
    if hasattr(value, "detach"):  # a torch tensor, which may be on a device, or bfloat16, which NumPy lacks
        value = value.detach().cpu().float().numpy()
    try:
        array = np.asarray(value)
        if array.dtype.kind in "OSUMmc":  # NumPy would read "3" as a number, and drop an imaginary part
            raise TypeError
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise expected(name, value, "numbers") from error
    if not np.isfinite(array).all():
        raise expected(name, Verbatim("NaN or infinity"), "finite numbers")
    return array


def number_per_row(name: str, value: Any) -> Any:
    """`as_float32` of which there is one, or one per row [B]."""
    array = as_float32(name, value)
    if array.ndim > 1 or not array.size:
        raise expected(name, Verbatim(f"shape {array.shape}"), "a number, or one per row [B]")
    return array


def parse_layers(layer: Any) -> np.ndarray:
    """int32 [N] or [B, N] from one index, N of them, or N for each row; -1 is no layer.

    Raises:
      ArgumentError: not whole numbers, below -1, or one layer twice in a row: what is applied twice has an order.
    """
    array = np.atleast_1d(np.asarray(layer))
    if not np.issubdtype(array.dtype, np.integer) or array.ndim > 2 or not array.size:
        raise expected("layer", layer, "whole numbers: one, N of them, or [B, N]")
    if array.min() < -1:
        raise expected("layer", layer, "layers from 0, or -1 for none", "Layers don't count from the end.")
    array = array.astype(np.int32)
    for row in np.atleast_2d(array):
        used = row[row >= 0]
        if len(used) != len(set(used.tolist())):
            raise expected("layer", row.tolist(), "each layer once", "Make two edits and pass both: they apply in order.")
    return array


def per_layer(name: str, value: Any, axes: str, layers: np.ndarray) -> Any:
    """float32 with one entry for each layer: [N, ...] or [B, N, ...]. A single entry may come without N.

    Args:
      name: the argument, for errors.
      value: as `as_float32` takes it.
      axes: names of one entry's axes, such as "R D"; "" for a number.
      layers: from `parse_layers`.

    Raises:
      ArgumentError: another number of axes, of entries or of rows.
    """
    array = as_float32(name, value)
    given, rank, count = array.shape, len(axes.split()), layers.shape[-1]
    if array.ndim == rank and count == 1:
        array = array[None]
    lead = array.shape[: array.ndim - rank]
    if array.ndim - rank not in (1, 2) or lead[-1] != count or not array.size:
        one = f"[{', '.join(axes.split())}]" if rank else "a number"
        raise expected(name, Verbatim(f"shape {given}"), f"{one} for each of the layers {layers.tolist()}")
    if len(lead) == 2 and layers.ndim == 2 and lead[0] != len(layers):
        raise expected(name, Verbatim(f"{lead[0]} rows"), f"{len(layers)}, as layer has")
    return array


def require_equal(name: str, axis: str, got: int, other: str, wanted: int) -> None:
    """Raise unless an axis of one argument is as long as that of another."""
    if got != wanted:
        raise expected(name, Verbatim(f"{axis} = {got}"), f"{wanted}, as {other} has")


def normalize(name: str, vectors: Any, layers: np.ndarray) -> tuple[Any, Any]:
    """(vectors / |vectors|, |vectors|); an entry of layer -1 may be 0.

    Raises:
      ArgumentError: a vector of length 0 has no direction.
    """
    if isinstance(vectors, Tracer):  # what an optimiser moves can't be looked at; 0 must not give NaN in the gradient
        length = jnp.sqrt(jnp.maximum(jnp.sum(vectors * vectors, axis=-1), SMALLEST_SQUARE))
        return vectors / length[..., None], length
    wide = np.asarray(vectors, np.float64)
    length = np.linalg.norm(wide, axis=-1)
    if ((length == 0) & (layers >= 0)).any():
        raise expected(name, Verbatim("a vector of length 0"), "vectors that have a direction")
    return (wide / np.where(length == 0, 1, length)[..., None]).astype(np.float32), length.astype(np.float32)
