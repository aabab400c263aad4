"""Small checkpoints on disk, for the tests that read them."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy


def some_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "b.matrix": rng.standard_normal((7, 5)).astype(np.float32),
        "a.half": rng.standard_normal((3, 2, 4)).astype(np.float16),
        "c.brain": rng.standard_normal((9,)).astype(ml_dtypes.bfloat16),
        "d.scalar": np.array(3, np.int64),
        "e.flags": np.array([True, False, True]),
        "f.empty": np.zeros((0, 4), np.float32),
        "g.bytes": np.arange(13, dtype=np.uint8),
    }


def save_single(folder: Path) -> Path:
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(some_arrays(), path, metadata={"format": "pt"})
    return path


def save_sharded(folder: Path) -> None:
    arrays, shards = some_arrays(), ["model-1.safetensors", "model-2.safetensors"]
    where = {name: shards[index % 2] for index, name in enumerate(sorted(arrays))}
    for shard in shards:
        safetensors.numpy.save_file({name: arrays[name] for name in arrays if where[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
