"""From a checkpoint's tensors to a model's parameters, one parameter at a time so that memory stays near the model's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jax.typing import DTypeLike

from mechanex_jax.errors import CheckpointError

Strips = Iterable[tuple[int, np.ndarray]]
"""A tensor in pieces along its first axis: (index of the first row, rows)."""


@runtime_checkable
class Tensors(Protocol):
    """A checkpoint: names, shapes, and reading a tensor strip by strip."""

    @property
    def names(self) -> Collection[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def strips(self, name: str) -> Strips: ...


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Make an uninitialised array at a 64-byte boundary, which JAX's CPU client adopts without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _copy(out: np.ndarray, strips: Strips) -> None:
    for first, strip in strips:
        out[first : first + len(strip)] = strip


def _transpose(out: np.ndarray, strips: Strips) -> None:
    for first, strip in strips:
        # 64 rows at a time: transposing more misses the cache on every element.
        for row in range(0, len(strip), 64):
            piece = strip[row : row + 64]
            out[:, first + row : first + row + len(piece)] = piece.T


class Layout(NamedTuple):
    """How a stored tensor lies in a parameter.

    Attributes:
      shape: shape in the checkpoint -> shape in the parameter.
      place: writes the tensor's strips to where they belong in the parameter.
    """

    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    place: Callable[[np.ndarray, Strips], None]


WeightPlan: TypeAlias = dict[str, tuple[tuple[str, ...], Layout]]
"""Parameter path -> names of the checkpoint's tensors, side by side along the last axis, and how each lies there."""

AS_STORED = Layout(lambda shape: shape, _copy)
TRANSPOSED = Layout(lambda shape: shape[::-1], _transpose)  # HF's [out, in] matrices as [in, out]


def parameter(
    path: str, shape: tuple[int, ...], dtype: DTypeLike, names: tuple[str, ...], layout: Layout, tensors: Tensors
) -> np.ndarray:
    """Read the tensors of one parameter, side by side along its last axis, into an aligned array.

    Raises:
      CheckpointError: a tensor is missing, or the shapes don't add up to the parameter's.
    """
    missing = [name for name in names if name not in tensors.names]
    if missing:
        raise CheckpointError(
            f"Missing tensors for {path}: got {len(tensors.names)} others; expected {json.dumps(missing)} too. "
            "The weights do not belong to config.json, or the download is incomplete: fetch it again."
        )
    parts = [layout.shape(tuple(tensors.shape(name))) for name in names]
    fits = all(len(part) == len(shape) and part[:-1] == shape[:-1] for part in parts)
    if not fits or sum(part[-1] for part in parts) != shape[-1]:
        got = [tuple(tensors.shape(name)) for name in names]
        raise CheckpointError(
            f"{path}: got tensors {list(names)} of shape {got}; expected them to make {shape}. "
            "config.json does not describe these weights."
        )
    out, start = aligned(shape, dtype), 0
    for name, part in zip(names, parts, strict=True):
        layout.place(out[..., start : start + part[-1]], tensors.strips(name))
        start += part[-1]
    return out
