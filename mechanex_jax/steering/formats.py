"""Files of vectors for other programs: JSON as the hosted service's client writes it, safetensors, GGUF control vectors."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32

from mechanex_jax.errors import ArgumentError, Verbatim, expected
from mechanex_jax.steering.vector import LayerName, SteeringVector, VectorError, layer_name, metadata
from mechanex_jax.storage.atomic import write_whole
from mechanex_jax.storage.json_values import parse_json

_SITE = "mechanex_jax.site"
_DIRECTION = "direction."
Vectors: TypeAlias = dict[LayerName, Float32[np.ndarray, " D"]]


def _to_json(vector: SteeringVector) -> bytes:
    """JSON {"layer": [numbers]}."""
    return json.dumps({str(layer): row.tolist() for layer, row in vector.by_layer().items()}).encode()


def _to_gguf(vector: SteeringVector) -> bytes:
    """A control vector of llama.cpp: `direction.N` is added to what block N puts out, N from 1 on.

    What leaves block N is what enters block N + 1: a vector at `resid_pre` of layer l is `direction.{l - 1}`, one at
    `resid_post` of layer l is `direction.{l}`. Block 0's output has no name there.
    """
    import gguf

    shift = {"resid_pre": 1, "resid_post": 0}
    if vector.site not in shift:
        raise expected("path", "a .gguf file", f"another kind: GGUF holds no vectors at {vector.site}", "Save as .safetensors.")
    outputs = [layer - shift[vector.site] for layer in vector.layers]
    if min(outputs) < 1:
        raise expected(
            "path",
            Verbatim(f"a .gguf file for {vector.site} of layer {vector.layers[0]}"),
            f"layers from {1 + shift[vector.site]} on, because llama.cpp steers no output before block 1's",
            "Save as .safetensors or .json.",
        )
    with tempfile.TemporaryDirectory() as folder:  # the writer takes a path only
        path = Path(folder) / "vector.gguf"
        writer = gguf.GGUFWriter(path, "controlvector")
        writer.add_string("controlvector.model_hint", vector.model)
        writer.add_uint32("controlvector.layer_count", len(outputs))
        writer.add_string(_SITE, vector.site)
        for output, row in zip(outputs, vector.vectors, strict=True):
            writer.add_tensor(f"{_DIRECTION}{output}", np.ascontiguousarray(row, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _from_json(content: bytes, path: Path) -> Vectors:
    data = parse_json(content)
    if not isinstance(data, dict):
        raise ValueError(f"{type(data).__name__}")
    vectors: Vectors = {}
    for key, value in data.items():
        row = np.asarray(value, np.float32)
        if row.ndim > 3 or row.size != row.shape[-1] or not np.isfinite(row).all():
            raise ValueError(f"layer {key} of shape {row.shape}")
        vectors[int(key) if key.isdecimal() else key] = row.reshape(-1)
    return vectors


def _from_safetensors(content: bytes, path: Path) -> Vectors:
    from safetensors.numpy import load

    if "mechanex_jax.steering" in metadata(content):
        return SteeringVector.from_bytes(content, str(path)).by_layer()
    # A file of another program: one tensor per layer, named by it.
    return {int(name) if name.isdecimal() else name: array.astype(np.float32) for name, array in load(content).items()}


def _from_gguf(content: bytes, path: Path) -> Vectors:
    import gguf

    reader = gguf.GGUFReader(path)
    field = reader.get_field(_SITE)
    site = field.contents() if field else "resid_post"
    shift = 1 if site == "resid_pre" else 0
    vectors: Vectors = {}
    for tensor in reader.tensors:
        if tensor.name.startswith(_DIRECTION):
            layer = int(tensor.name.removeprefix(_DIRECTION)) + shift
            vectors[layer_name(site, layer)] = np.array(tensor.data, np.float32).reshape(-1)
    return dict(sorted(vectors.items(), key=lambda item: str(item[0]).zfill(40)))


_WRITERS: dict[str, Callable[[SteeringVector], bytes]] = {
    ".json": _to_json,
    ".safetensors": SteeringVector.to_bytes,
    ".gguf": _to_gguf,
}


def save(vector: SteeringVector, path: str | os.PathLike[str]) -> None:
    """Write a vector in the format that the suffix names: .json, .safetensors or .gguf. See `Steering.save_vectors`."""
    target = Path(path)
    writer = _WRITERS.get(target.suffix.lower())
    if writer is None:
        raise expected("path", str(path), f"a name that ends with {', '.join(_WRITERS)}")
    if vector.perceptron is not None and writer is not SteeringVector.to_bytes:
        raise expected("path", str(path), "a .safetensors file, because the others hold no gate")
    if not target.parent.is_dir():
        raise expected("path", str(path), "a file in a folder that exists")
    write_whole(target, writer(vector), replace=True)


def _reader(content: bytes) -> Callable[[bytes, Path], Vectors]:
    """The reader for a file's content, since names may say anything."""
    if content[:4] == b"GGUF":
        return _from_gguf
    return _from_json if content.lstrip()[:1] in (b"{", b"[") else _from_safetensors


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise VectorError(f"{path}: cannot be read ({error.strerror or error}). Check its rights.") from error


def load(path: str | os.PathLike[str]) -> Vectors:
    """Read a file of vectors; see `Steering.load_vectors`."""
    source = Path(path)
    if not source.is_file():
        raise expected("path", str(path), "a file of vectors: JSON, safetensors or GGUF")
    content = _content(source)
    try:
        vectors = _reader(content)(content, source)
    except (VectorError, ArgumentError):
        raise
    except Exception as error:  # each format's library has its own
        raise VectorError(
            f"{source}: got {error!r}; expected vectors as JSON {{layer: [numbers]}}, safetensors or a GGUF control vector."
        ) from error
    if not vectors:
        raise VectorError(f"{source}: got no vectors; expected at least one layer.")
    return vectors


def read_whole(path: str | os.PathLike[str]) -> SteeringVector | None:
    """Read a vector with its gate and record if the file is one that this library wrote as safetensors, else None."""
    content = _content(Path(path)) if Path(path).is_file() else b""
    try:
        written_here = content[:4] != b"GGUF" and "mechanex_jax.steering" in metadata(content)
    except (ValueError, AttributeError):
        return None
    return SteeringVector.from_bytes(content, str(path)) if written_here else None
