"""Arguments of edits as users write them, on the host: parsed, converted, checked for shape, refused with a reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float32, Int32

from mechanex_jax.edits.base import SITES
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.rows import Array

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy.typing import ArrayLike

    Vectors: TypeAlias = Float[ArrayLike, "*BN D"]
    LowRank: TypeAlias = Float[ArrayLike, "*BN R D"]
    Layers: TypeAlias = Int[ArrayLike, "*BN"]
    Values: TypeAlias = Float[ArrayLike, "*BN"]
else:  # as `mechanex_jax.rows.PerRow`
    Vectors = LowRank = Layers = Values = object

# Squared norms on the device are at least this, so that an activation or a vector of 0 gives no NaN, in a gradient neither: the
# square of its inverse is still a float32.
SMALLEST_SQUARE = 1e-18


def as_float32(name: str, value: object) -> Float32[Array, ...]:
    """Convert to float32 on the host, from a list, NumPy, JAX or torch; what is traced, for a gradient by it, stays traced.

    Raises:
      ArgumentError: not numbers, or not finite ones.
    """
    if isinstance(value, Tracer):
        return value.astype(jnp.float32)
    detach = getattr(value, "detach", None)
    if detach is not None:  # a torch tensor, which may be on a device, or bfloat16, which NumPy lacks
        value = detach().cpu().float().numpy()
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


def number_per_row(name: str, value: object) -> Float32[Array, "*B"]:
    """Convert one number, or one per row [B], to float32 on the host.

    Raises:
      ArgumentError: as `as_float32`, or more axes.
    """
    array = as_float32(name, value)
    if array.ndim > 1 or not array.size:
        raise expected(name, Verbatim(f"shape {array.shape}"), "a number, or one per row [B]")
    return array


def parse_site(site: object) -> str:
    """Check that a site is one of `SITES`.

    Raises:
      ArgumentError: another name.
    """
    if not isinstance(site, str) or site not in SITES:
        raise expected("site", site, f"one of {', '.join(SITES)}")
    return site


def parse_layers(layer: object) -> Int32[np.ndarray, "*B N"]:
    """Convert one index, N of them, or N for each row, to [N] or [B, N]; -1 is no layer.

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


def per_layer(name: str, value: object, axes: str, layers: Int32[np.ndarray, "*B N"]) -> Float32[Array, ...]:
    """Convert to float32 with one entry for each layer: [N, ...] or [B, N, ...]. A single entry may come without N.

    Args:
      name: the argument, for errors.
      value: as `as_float32` takes it.
      axes: names of one entry's axes, such as "R D"; "" for a number.
      layers: from `parse_layers`.

    Raises:
      ArgumentError: another number of axes, of entries or of rows.
    """
    array = as_float32(name, value)
    shape, rank, count = array.shape, len(axes.split()), layers.shape[-1]
    if array.ndim == rank and count == 1:
        array = array[None]
    lead = array.shape[: array.ndim - rank]
    if array.ndim - rank not in (1, 2) or lead[-1] != count or not array.size:
        one = f"[{', '.join(axes.split())}]" if rank else "a number"
        raise expected(name, Verbatim(f"shape {shape}"), f"{one} for each of the layers {layers.tolist()}")
    if len(lead) == 2 and layers.ndim == 2 and lead[0] != len(layers):
        raise expected(name, Verbatim(f"{lead[0]} rows"), f"{len(layers)}, as layer has")
    return array


def require_equal(name: str, axis: str, size: int, other: str, other_size: int) -> None:
    """Raise unless an axis of one argument is as long as that of another."""
    if size != other_size:
        raise expected(name, Verbatim(f"{axis} = {size}"), f"{other_size}, as {other} has")


def normalize(
    name: str, vectors: Float32[Array, "*BN D"], layers: Int32[np.ndarray, ...]
) -> tuple[Float32[Array, "*BN D"], Float32[Array, "*BN"]]:
    """Divide vectors by their lengths, and return both; an entry of layer -1 may be 0.

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


_HOOK_NAME = re.compile(r"blocks\.(\d+)\.(?:hook_)?(" + "|".join(SITES) + ")")


def parse_hook_point(name: object, layers: int, argument: str, site: str = "resid_pre") -> tuple[str, int]:
    """Find (site, layer) of an int, a string of digits, or a name such as `blocks.11.hook_resid_post`.

    >>> parse_hook_point("blocks.11.hook_mlp_out", layers=12, argument="steering_vector")
    ('mlp_out', 11)

    Args:
      name: as the user wrote it.
      layers: how many layers the model has.
      argument: what errors call it.
      site: what a bare number means.

    Raises:
      ArgumentError: neither, or a layer that is absent.
    """
    match = _HOOK_NAME.fullmatch(str(name))
    site, index = (match[2], match[1]) if match else (site, str(name))
    if not index.isdecimal() or int(index) >= layers:
        raise expected(argument, name, f"a layer from 0 to {layers - 1}, or a name such as 'blocks.0.hook_resid_pre'")
    return site, int(index)


def parse_vectors(vectors: object, width: int, layers: int) -> dict[str, dict[int, np.ndarray]]:
    """Read `steering_vector` as users write it: site -> layer -> float32 [D].

    >>> parse_vectors({11: [[0.0, 1.0]]}, width=2, layers=12)
    {'resid_pre': {11: array([0., 1.], dtype=float32)}}

    Args:
      vectors: {layer: vector}; a layer is an int, a string of digits, or a name such as `blocks.11.hook_resid_pre`; a vector is
        [D], [1, D] or [1, 1, D], as a list, NumPy, JAX or torch (converted by duck typing).
      width: D of the model.
      layers: how many layers the model has.

    Raises:
      ArgumentError: another width, a layer that is absent or given twice, NaN, or nothing at all.
    """
    if not isinstance(vectors, Mapping) or not vectors:
        raise expected("steering_vector", vectors, "{layer: vector} with at least one layer")
    parsed: dict[str, dict[int, np.ndarray]] = {}
    names: dict[tuple[str, int], object] = {}
    for name, value in vectors.items():
        site, layer = parse_hook_point(name, layers, "steering_vector")
        if (site, layer) in names:
            both = Verbatim(f"layer {layer} twice, as {names[site, layer]!r} and as {name!r}")
            raise expected("steering_vector", both, f"one vector for {site} of each layer", "Add the two up.")
        names[site, layer] = name
        vector = as_float32(f"steering_vector[{name!r}]", value)
        if vector.size != width or vector.shape[-1:] != (width,):
            raise expected(f"steering_vector[{name!r}]", vector.shape, f"{width} numbers, the width of this model")
        parsed.setdefault(site, {})[layer] = np.asarray(vector.reshape(width))
    return parsed
