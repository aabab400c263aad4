"""From a checkpoint's tensors to a model's parameters, one parameter at a time so that memory stays near the model's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mechanex_jax.errors import CheckpointError


@runtime_checkable
class Tensors(Protocol):
    """What is needed of a checkpoint: names, shapes and reading one tensor."""

    @property
    def names(self) -> Any: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str) -> np.ndarray: ...


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array at a 64-byte boundary, which JAX's CPU client adopts without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def copy(out: np.ndarray, *parts: np.ndarray) -> None:
    """The tensors as they are, one behind the other along their last axis."""
    np.concatenate(parts, axis=-1, out=out, casting="unsafe")


def side_by_side(out: np.ndarray, *parts: np.ndarray) -> None:
    """HF's [out, in] matrices transposed to [in, out] and put side by side."""
    start = 0
    for part in parts:
        # In strips: a transposing copy of a whole large matrix misses the cache on every element.
        for first in range(0, part.shape[0], 64):
            strip = part[first : first + 64]
            out[:, start + first : start + first + len(strip)] = strip.T
        start += part.shape[0]


def parameter(
    path: str,
    shape: tuple[int, ...],
    dtype: Any,
    names: tuple[str, ...],
    assemble: Callable[..., None],
    tensors: Tensors,
) -> np.ndarray:
    """Read the tensors of one parameter and assemble them into an aligned array.

    Raises:
      CheckpointError: a tensor is missing, or the shapes don't add up to the parameter's.
    """
    missing = [name for name in names if name not in tensors.names]
    if missing:
        raise CheckpointError(
            f"Missing tensors for {path}: got {len(tensors.names)} others; expected {json.dumps(missing)} too. "
            "The weights do not belong to config.json, or the download is incomplete: fetch it again."
        )
    out = aligned(shape, dtype)
    try:
        parts = [tensors.read(name) for name in names]
        if sum(part.size for part in parts) != out.size or any(part.ndim != out.ndim for part in parts):
            raise ValueError("sizes differ")
        assemble(out, *parts)
    except ValueError as error:
        got = [tuple(tensors.shape(name)) for name in names]
        raise CheckpointError(
            f"{path}: got tensors {list(names)} of shape {got}; expected them to make {shape}. "
            "config.json does not describe these weights."
        ) from error
    return out
