"""From a checkpoint's tensors to a model's parameters, one parameter at a time so that memory stays near the model's own."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from jax.typing import DTypeLike

from mechanex_jax.architectures.config import Config
from mechanex_jax.errors import CheckpointError

ConfigT = TypeVar("ConfigT", bound=Config)
Strips = Iterable[tuple[int, np.ndarray]]
"""A tensor in pieces along its first axis: (index of the first row, rows)."""


@runtime_checkable
class Tensors(Protocol):
    """A checkpoint: names, shapes, and reading a tensor strip by strip."""

    @property
    def names(self) -> Collection[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> np.dtype: ...
    def strips(self, name: str) -> Strips: ...


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Make an uninitialised array at a 64-byte boundary, which JAX's CPU client adopts without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _copy(out: np.ndarray, strips: Strips) -> None:
    with np.errstate(over="ignore"):  # what overflows is refused in `parameter`
        for first, strip in strips:
            out[first : first + len(strip)] = strip


def _transpose(out: np.ndarray, strips: Strips) -> None:
    with np.errstate(over="ignore"):
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


_HEAD = "lm_head.weight"
_FLOATS = ("float64", "float32", "float16", "bfloat16")
# What older versions of transformers saved and nobody reads: rotary frequencies, causal masks.
_BUFFERS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|h\.\d+\.attn\.(bias|masked_bias))")


def resolve_tying(
    config: ConfigT, weights: Callable[[ConfigT, Collection[str]], WeightPlan], tensors: Tensors
) -> tuple[ConfigT, WeightPlan, frozenset[str]]:
    """Decide where the output matrix of a model with tied embeddings comes from, as transformers does.

    A file may hold the embedding, the output matrix, or both: where both are there and differ, they are not tied.

    Returns:
      The configuration, the plan of its weights, and the tensors that may stay unread.
    """
    names = tensors.names
    plan = weights(config, names)
    if not config.tied or _HEAD not in names:
        return config, plan, frozenset()
    (embedding,), layout = plan["unembedding.kernel"]
    if embedding not in names:
        return config, plan | {"unembedding.kernel": ((_HEAD,), layout)}, frozenset()
    if _equal(tensors, embedding, _HEAD):
        return config, plan, frozenset({_HEAD})
    config = dataclasses.replace(config, tied=False)
    return config, weights(config, names), frozenset()


def _equal(tensors: Tensors, first: str, second: str) -> bool:
    """Whether two tensors are the same, bit for bit."""
    if tensors.shape(first) != tensors.shape(second) or tensors.dtype(first) != tensors.dtype(second):
        return False
    strips = zip(tensors.strips(first), tensors.strips(second), strict=True)
    return all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for (_, a), (_, b) in strips)


def check_tensors(plan: WeightPlan, tensors: Tensors, unneeded: Collection[str]) -> None:
    """Compare the names and types of a checkpoint's tensors with what is read of them, before anything is.

    Args:
      plan: what is read.
      tensors: the checkpoint's.
      unneeded: further tensors that may be there.

    Raises:
      CheckpointError: a tensor is missing, is read but not of floating point, or is there and nothing reads it.
    """
    present = frozenset(tensors.names)
    for path, (names, _) in plan.items():
        missing = [name for name in names if name not in present]
        if missing:
            raise CheckpointError(
                f"Missing tensors for {path}: got {len(present)} others; expected {json.dumps(missing)} too. "
                "The weights do not belong to config.json, or the download is incomplete: fetch it again."
            )
        for name in names:
            if tensors.dtype(name).name not in _FLOATS:
                raise CheckpointError(
                    f"{name}: got a tensor of type {tensors.dtype(name).name}; expected one of {', '.join(_FLOATS)}. The "
                    "weights are quantised: load the original checkpoint, or a GGUF file of the model."
                )
    read = {name for names, _ in plan.values() for name in names}.union(unneeded)
    unread = [name for name in tensors.names if name not in read and not _BUFFERS.fullmatch(name)]
    if unread:
        listed = ", ".join(f"{name} ({tensors.dtype(name).name})" for name in unread[:8]) + ", ..." * (len(unread) > 8)
        raise CheckpointError(
            f"Tensors that nothing reads: got {len(unread)}, {listed}; expected only those that config.json describes. The "
            "model is another than config.json says, or its weights are quantised or carry an adapter: load the original "
            "checkpoint, or remove these tensors if the model does not need them."
        )


_EXPONENTS = {"float32": 0x7F80_0000, "float16": 0x7C00, "bfloat16": 0x7F80}
"""The bits of the exponent: all are set in NaN and infinity, and in nothing else."""


def finite(array: np.ndarray) -> bool:
    """Whether a contiguous array holds neither NaN nor infinity.

    The test is of bits: `np.isfinite` is no faster on float32, and four times slower on bfloat16.
    """
    unsigned = np.dtype(f"u{array.dtype.itemsize}")
    mask = unsigned.type(_EXPONENTS[array.dtype.name])
    bits = array.reshape(-1).view(unsigned)
    exponents = np.empty(min(bits.size, 1 << 16), unsigned)  # of a size that stays in the cache
    for start in range(0, bits.size, exponents.size):
        piece = bits[start : start + exponents.size]
        if np.bitwise_and(piece, mask, out=exponents[: piece.size]).max() == mask:
            return False
    return True


def parameter(
    path: str, shape: tuple[int, ...], dtype: DTypeLike, names: tuple[str, ...], layout: Layout, tensors: Tensors
) -> np.ndarray:
    """Read the tensors of one parameter, side by side along its last axis, into an aligned array.

    Raises:
      CheckpointError: the shapes don't add up to the parameter's, or a number is NaN or infinite.
    """
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
    if not finite(out):
        raise CheckpointError(
            f"{path}: got NaN or infinity as {out.dtype.name} in {json.dumps(names)}; expected finite numbers. The file is "
            "corrupt, or its numbers are beyond that type: fetch the model again, or load it with dtype='float32'."
        )
    return out
