"""Reading and writing safetensors: an 8-byte length, a JSON header, and the tensors' bytes one after another.

The format is read here with plain file reads instead of a memory map: pages of a map count as the process's memory, on
top of the arrays made from them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mechanex_jax.errors import CheckpointError
from mechanex_jax.storage.json_values import parse_json

_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_LONGEST_HEADER = 100_000_000  # the limit of the format's own library
_ALIGNMENT = 64  # what XLA asks of a host buffer that it adopts without a copy
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_AGAIN = "The file is truncated or corrupt: delete it and fetch it again."


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: `start` counts from the beginning of the file."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


class TensorReader:
    """The tensors of a folder, in one `model.safetensors` or in the shards that an index lists.

    Opening reads and checks the headers of all files: a truncated or inconsistent file is refused before any tensor is
    read.

    Args:
      folder: the checkpoint's folder.

    Raises:
      CheckpointError: no safetensors, a missing shard, or a file whose header and size do not agree.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = Path(folder)
        self._places = _places(self._folder)

    @property
    def names(self) -> tuple[str, ...]:
        """All tensor names, sorted."""
        return tuple(sorted(self._places))

    @property
    def nbytes(self) -> int:
        """The size of all tensors together."""
        return sum(place.nbytes for place in self._places.values())

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape as stored."""
        return self._place(name).shape

    def dtype(self, name: str) -> np.dtype:
        """The tensor's element type as stored; `bfloat16` is `ml_dtypes`'."""
        return self._place(name).dtype

    def read(self, name: str) -> np.ndarray:
        """The tensor as a fresh array whose memory starts at a multiple of 64 bytes."""
        place = self._place(name)
        buffer = _aligned(place.nbytes)
        _read_into(place.path, place.start, buffer)
        return buffer.view(place.dtype).reshape(place.shape)

    def strips(self, name: str, size: int = 1 << 22) -> Iterator[tuple[int, np.ndarray]]:
        """The tensor in pieces of about `size` bytes along its first axis: (index of the first row, rows)."""
        place = self._place(name)
        count = place.shape[0] if place.shape else 1
        row = place.nbytes // max(count, 1)
        step = max(1, size // max(row, 1))
        for first in range(0, count, step):
            rows = min(step, count - first)
            buffer = np.empty(rows * row, np.uint8)
            _read_into(place.path, place.start + first * row, buffer)
            yield first, buffer.view(place.dtype).reshape(rows, *place.shape[1:])

    def digest(self) -> str:
        """A cheap SHA-256 of the weights: names, types, shapes and 64 bytes from each tensor's middle."""
        digest = hashlib.sha256()
        for name in self.names:
            place = self._places[name]
            sample = np.empty(min(64, place.nbytes), np.uint8)
            _read_into(place.path, place.start + (place.nbytes - sample.size) // 2, sample)
            digest.update(f"{name} {place.dtype} {place.shape} ".encode() + sample.tobytes())
        return digest.hexdigest()

    def _place(self, name: str) -> _Place:
        place = self._places.get(name)
        if place is None:
            close = difflib.get_close_matches(name, self._places, n=3, cutoff=0.5)
            raise CheckpointError(
                f"{self._folder} has no tensor {name!r} among its {len(self._places)}"
                + (f"; the closest are {', '.join(close)}." if close else ".")
                + " Check that config.json and the weights belong to the same model."
            )
        return place


def write(path: Path, tensors: Sequence[tuple[str, tuple[int, ...]]], arrays: Iterable[np.ndarray]) -> None:
    """Write float32 tensors, taking one array at a time so that only one is in memory.

    Args:
      path: the file to make.
      tensors: name and shape of each.
      arrays: their values in the same order.
    """
    header: dict[str, dict[str, object]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors:
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(8 + len(encoded)) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for (name, shape), array in zip(tensors, arrays, strict=True):
            if array.shape != shape:
                raise ValueError(f"{name}: got shape {array.shape}; expected {shape}.")
            file.write(np.ascontiguousarray(array, "<f4").data)


def _places(folder: Path) -> dict[str, _Place]:
    if (folder / _SINGLE).is_file():
        return _read_header(folder / _SINGLE)
    if (folder / _INDEX).is_file():
        return _read_shards(folder)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    advice = (
        f"{pickled[0]} holds pickled PyTorch weights, which are not read here: convert them once with "
        "`AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)` of transformers."
        if pickled
        else "Pass the folder that holds the weights; a repository without safetensors must be converted first."
    )
    raise CheckpointError(f"{folder}: found {_listed(names)}; expected {_SINGLE} or {_INDEX}. {advice}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "no files"


def _read_shards(folder: Path) -> dict[str, _Place]:
    index = folder / _INDEX
    try:
        files: dict[str, str] = dict(parse_json(index.read_bytes())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index}: got {error!r}; expected JSON with a weight_map of names. {_AGAIN}") from error
    outside = [file for file in files.values() if not isinstance(file, str) or Path(file).name != file]
    if outside:
        raise CheckpointError(f"{index}: got the shard {outside[0]!r}; expected a file name inside {folder}. {_AGAIN}")
    shards = sorted(set(files.values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(shards)} shards are missing ({_listed(missing)}); expected every file "
            f"that {_INDEX} lists. Fetch the model again."
        )
    headers = {shard: _read_header(folder / shard) for shard in shards}
    absent = [name for name, shard in files.items() if name not in headers[shard]]
    if absent:
        raise CheckpointError(f"{folder / files[absent[0]]}: no tensor {absent[0]!r}; {_INDEX} expects it there. {_AGAIN}")
    return {name: headers[shard][name] for name, shard in files.items()}


def _read_header(path: Path) -> dict[str, _Place]:
    size = path.stat().st_size
    if size < 8:
        raise CheckpointError(f"{path}: got {size:,} bytes; expected at least the 8 of a safetensors file. {_AGAIN}")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _LONGEST_HEADER):
            raise CheckpointError(f"{path}: got {size:,} bytes; expected a header of {length:,} after the first 8. {_AGAIN}")
        encoded = file.read(length)
    try:
        header = parse_json(encoded)
        header.pop("__metadata__", None)
        places = {name: _parse(path, 8 + length, name, item) for name, item in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: got a header that cannot be read ({error!r}); expected safetensors. {_AGAIN}"
        ) from error
    end = 8 + length
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if place.start != end:
            raise CheckpointError(f"{path}: {name} starts at byte {place.start:,}; expected {end:,}. {_AGAIN}")
        end += place.nbytes
    if end != size:
        raise CheckpointError(f"{path}: got {size:,} bytes; expected {end:,}. {_AGAIN}")
    return places


def _parse(path: Path, base: int, name: str, item: dict[str, Any]) -> _Place:
    if item["dtype"] not in _DTYPES:
        raise CheckpointError(f"{path}: {name} has type {item['dtype']!r}; expected one of {', '.join(_DTYPES)}.")
    dtype = _DTYPES[item["dtype"]]
    shape = tuple(item["shape"])
    begin, end = item["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"{name}: negative or fractional numbers")
    if end - begin != math.prod(shape) * dtype.itemsize:
        needed = math.prod(shape) * dtype.itemsize
        raise CheckpointError(f"{path}: {name} has {end - begin:,} bytes; expected {needed:,} for its shape {shape}. {_AGAIN}")
    return _Place(path, dtype, shape, base + begin, end - begin)


def _aligned(nbytes: int) -> np.ndarray:
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    skip = -memory.ctypes.data % _ALIGNMENT
    return memory[skip : skip + nbytes]


def _read_into(path: Path, start: int, buffer: np.ndarray) -> None:
    view, done = buffer.data, 0
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while done < len(view):  # one call reads at most 2 GiB
            count = file.readinto(view[done:])
            if not count:
                raise CheckpointError(f"{path}: got {done:,} bytes from {start:,} on; expected {len(view):,}. {_AGAIN}")
            done += count
