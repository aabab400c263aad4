"""Tensors are read exactly as the format's own library reads them, and refused when damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from files import save_sharded, save_single, some_arrays

from mechanex_jax.checkpoints import TensorReader
from mechanex_jax.checkpoints import safetensors as ours
from mechanex_jax.errors import CheckpointError


@pytest.mark.parametrize("save", [save_single, save_sharded])
def test_every_tensor_equals_what_was_saved(tmp_path: Path, save):
    save(tmp_path)
    reader, arrays = TensorReader(tmp_path), some_arrays()
    assert reader.names == tuple(sorted(arrays))
    assert reader.nbytes == sum(array.nbytes for array in arrays.values())
    for name, array in arrays.items():
        read = reader.read(name)
        assert name in reader and reader.shape(name) == array.shape == read.shape
        assert reader.dtype(name) == array.dtype == read.dtype
        assert read.tobytes() == array.tobytes()
        assert read.size == 0 or (read.ctypes.data % 64 == 0 and read.flags.writeable)


def test_the_real_model_reads_as_with_the_formats_own_library(smollm2_folder: Path):
    reader = TensorReader(smollm2_folder)
    with safetensors.safe_open(smollm2_folder / "model.safetensors", "numpy") as theirs:
        assert set(reader.names) == set(theirs.keys()) and len(reader.names) == 272
        for name in ("model.embed_tokens.weight", "model.layers.17.self_attn.k_proj.weight", "model.norm.weight"):
            np.testing.assert_array_equal(reader.read(name), theirs.get_tensor(name))


def test_what_is_written_is_read_by_the_formats_own_library(tmp_path: Path):
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7], np.float32), np.ones((4, 2), np.float32).T]
    specs = [(f"t{index}", array.shape) for index, array in enumerate(arrays)]
    ours.write(tmp_path / "model.safetensors", specs, iter(arrays))
    theirs = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    for (name, _), array in zip(specs, arrays, strict=True):
        np.testing.assert_array_equal(theirs[name], array)


def test_a_missing_tensor_is_named_with_the_closest_ones(tmp_path: Path):
    save_single(tmp_path)
    with pytest.raises(CheckpointError, match=r"'b\.matrixx'.*b\.matrix"):
        TensorReader(tmp_path).read("b.matrixx")


def test_a_file_cut_at_any_length_is_refused(tmp_path: Path):
    path = save_single(tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors.*got.*expected"):
            TensorReader(tmp_path)


def _with_header(change) -> bytes:
    header = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [3], "data_offsets": [8, 20]},
    }
    header = change(header) or header
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(20)


DAMAGES = {
    "no damage": lambda header: None,
    "not JSON": lambda header: b"{" * 40,
    "not UTF-8": lambda header: b"\xff" * 40,
    "not an object": lambda header: b"[1, 2, 3]",
    "a tensor without offsets": lambda header: header["a"].pop("data_offsets") and None,
    "unknown type": lambda header: header["a"].update(dtype="F17"),
    "overlap": lambda header: header["b"].update(data_offsets=[4, 16]),
    "gap": lambda header: header["b"].update(shape=[2], data_offsets=[12, 20]),
    "beyond the end": lambda header: header["b"].update(shape=[30], data_offsets=[8, 128]),
    "short of the end": lambda header: header.pop("b") and None,
    "shape and size differ": lambda header: header["a"].update(shape=[3]),
    "reversed offsets": lambda header: header["a"].update(data_offsets=[8, 0]),
    "negative shape": lambda header: header["a"].update(shape=[-1, -2]),
    "fractional offset": lambda header: header["a"].update(data_offsets=[0.0, 8]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_header_is_refused(tmp_path: Path, damage: str):
    (tmp_path / "model.safetensors").write_bytes(_with_header(DAMAGES[damage]))
    if damage == "no damage":
        assert TensorReader(tmp_path).names == ("a", "b")
        return
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        TensorReader(tmp_path)


def test_a_file_that_shrinks_after_opening_is_noticed(tmp_path: Path):
    path = save_single(tmp_path)
    reader = TensorReader(tmp_path)
    os.truncate(path, path.stat().st_size - reader.nbytes)
    with pytest.raises(CheckpointError, match=r"got 0 bytes.*expected 13"):
        reader.read("g.bytes")


def test_missing_and_foreign_shards_are_refused(tmp_path: Path):
    save_sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": listed["weight_map"] | {"absent": "model-2.safetensors"}}))
    with pytest.raises(CheckpointError, match="no tensor 'absent'"):
        TensorReader(tmp_path)
    index.write_text(json.dumps({"weight_map": listed["weight_map"] | {"a": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"\.\./secret.*expected a file name inside"):
        TensorReader(tmp_path)
    index.write_text("{")
    with pytest.raises(CheckpointError, match="weight_map"):
        TensorReader(tmp_path)
    index.write_text(json.dumps(listed))
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards.*model-2"):
        TensorReader(tmp_path)


def test_folders_without_safetensors_say_what_they_hold(tmp_path: Path):
    with pytest.raises(CheckpointError, match="found no files"):
        TensorReader(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*save_pretrained"):
        TensorReader(tmp_path)
