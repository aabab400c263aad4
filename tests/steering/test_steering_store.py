"""Vectors on disk: nothing is lost, nothing half-written is seen, and other programs' files mean the same here."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors import safe_open
from steering_vectors import MODEL, WIDTH, assert_same, steering_vector

import mechanex_jax
from mechanex_jax.errors import ArgumentError, MechanexError
from mechanex_jax.steering import Steering, Store, VectorError, formats, store

ROOT = Path(mechanex_jax.__file__).parent.parent


@pytest.fixture
def kept(tmp_path) -> Store:
    return Store(tmp_path / "made" / "on demand")


@pytest.fixture
def steering(kept) -> Steering:
    return Steering(SimpleNamespace(local_model=lambda name: MODEL, generation=None), kept)


@pytest.mark.parametrize("gate", [False, True])
def test_what_is_kept_comes_back(kept, gate):
    vector = steering_vector(gate=gate, name="honesty \N{SNOWMAN}", label="mine")
    id = kept.add(vector)
    assert id[:3] == "sv_" and len(id) == 11 and kept.ids() == [id]
    assert_same(kept.get(id), vector)
    kept.delete(id)
    assert kept.ids() == []


def test_the_file_is_safetensors_that_the_package_reads(kept):
    vector = steering_vector(gate=True)
    path = kept.folder / f"{kept.add(vector)}.safetensors"
    with safe_open(path, framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("vectors"), vector.vectors)
        known = json.loads(file.metadata()["mechanex_jax.steering"])
    assert known["layers"] == [2, 3] and known["fingerprint"] == "f" * 8 and known["metrics"] == {"loss": [2.0, 1.0]}


def test_an_unknown_id_lists_those_there_are(kept, steering):
    with pytest.raises(ArgumentError, match="holds none"):
        steering.resolve("sv_00000000")
    id = kept.add(steering_vector())
    for call in (steering.resolve, steering.get_vectors, steering.delete, steering.describe):
        with pytest.raises(ArgumentError, match=f"got 'sv_00000000'.*{id}"):
            call("sv_00000000")


@pytest.mark.parametrize("id", ["../secret", "sv_1234567/", "/etc/passwd", "sv_0000000G", "", "sv_00000000\n", "..", None, 3])
def test_no_id_reaches_out_of_the_folder(kept, id):
    kept.add(steering_vector())
    secret = kept.folder.parent / "secret.safetensors"
    secret.write_bytes(steering_vector().to_bytes())
    for call in (kept.get, kept.delete):
        with pytest.raises(ArgumentError, match="the id of a stored vector"):
            call(id)
    assert secret.exists()


def spoil(kind: str, content: bytes) -> bytes:
    middle = len(content) - 10
    return {
        "empty": b"",
        "cut": content[:-5],
        "a bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "length": b"\xff" * 8 + content[8:],
        "text": b"hello, this is no vector",
        "another": safetensors.numpy.save({"vectors": np.zeros((2, 3), np.float32)}),
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "cut", "a bit", "length", "text", "another"])
def test_a_corrupt_file_is_named_and_left_and_the_others_are_listed(kept, steering, kind):
    good, bad = kept.add(steering_vector(name="good")), kept.add(steering_vector(name="bad"))
    path = kept.folder / f"{bad}.safetensors"
    path.write_bytes(spoiled := spoil(kind, path.read_bytes()))
    with pytest.raises(VectorError, match=f"{bad}.safetensors.*delete it"):
        steering.resolve(bad)
    with pytest.warns(UserWarning, match=bad):
        listed = steering.list()
    assert [item["id"] for item in listed] == [good]
    assert path.read_bytes() == spoiled
    steering.delete(bad)
    assert kept.ids() == [good]


def test_a_vector_of_another_model_names_both(kept, steering):
    other = kept.add(steering_vector(model="large", fingerprint="0"))
    with pytest.raises(ArgumentError, match="made for large; expected one made for tiny"):
        steering.resolve(other)
    same_name = kept.add(steering_vector(fingerprint="0"))
    with pytest.raises(ArgumentError, match="other weights under the name tiny"):
        steering.resolve(same_name)


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from steering_vectors import steering_vector
from mechanex_jax.steering import Store
kept = Store({folder!r})
print("ready", flush=True)
for index in range({count}):
    kept.add(steering_vector(name={name!r} + str(index)))
"""


def writer(folder: Path, name: str, count: int) -> subprocess.Popen:
    code = WRITER.format(tests=str(Path(__file__).parents[1] / "support"), folder=str(folder), count=count, name=name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_concurrent_writers_lose_nothing_and_a_killed_one_leaves_whole_files(kept):
    processes = [writer(kept.folder, name, 15) for name in ("a", "b")]
    killed = writer(kept.folder, "k", 10**6)
    killed.stdout.readline()
    while not kept.ids():
        time.sleep(0.01)
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert [process.wait() for process in processes] == [0, 0]
    names = [vector.name for _, vector in kept.items()]  # all readable, or this would warn
    assert {f"{letter}{i}" for letter in "ab" for i in range(15)} <= set(names)
    assert len(set(names)) == len(names)


def test_an_id_that_is_taken_is_never_overwritten(kept, monkeypatch):
    drawn = iter(["00000001", "t" * 16, "00000001", "t" * 16, "00000002", "t" * 16])
    monkeypatch.setattr(store.secrets, "token_hex", lambda size: next(drawn))
    assert kept.add(steering_vector(name="first")) == "sv_00000001"
    assert kept.add(steering_vector(name="second")) == "sv_00000002"
    assert kept.get("sv_00000001").name == "first"


def test_a_write_that_breaks_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    store.write_whole(path, b"before", replace=True)

    def broken(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(store.os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        store.write_whole(path, b"after", replace=True)
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_old_remains_are_swept_and_fresh_ones_left(kept):
    kept.add(steering_vector())
    old, fresh = kept.folder / ".tmp-old", kept.folder / ".tmp-fresh"
    for path in (old, fresh):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    kept.add(steering_vector())
    assert not old.exists() and fresh.exists() and len(kept.ids()) == 2


def test_the_folder_is_the_users_unless_the_environment_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHANEX_DATA", str(tmp_path))
    assert Store().folder == tmp_path / "steering"
    monkeypatch.delenv("MECHANEX_DATA")
    assert "mechanex_jax" in str(Store().folder)


# --- files for other programs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".gguf"])
@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_every_format_gives_back_what_was_saved(kept, steering, tmp_path, suffix, site):
    vector = steering_vector(layers=(2, 3, 4), site=site)
    path = tmp_path / f"vector{suffix}"
    steering.save_vectors(kept.add(vector), path)
    found = steering.load_vectors(path)
    names = [2, 3, 4] if site == "resid_pre" else [f"blocks.{i}.hook_resid_post" for i in (2, 3, 4)]
    assert list(found) == names
    for key, row in zip(names, vector.vectors, strict=True):
        np.testing.assert_array_equal(found[key], row)
    again = kept.get(steering.add(path))
    np.testing.assert_array_equal(again.vectors, vector.vectors)
    assert (again.layers, again.site) == (vector.layers, site)


def test_json_is_the_published_clients(steering, tmp_path):
    """Written there as json.dump({str(layer): tensor.tolist()}), read as {int: tensor}."""
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps({"11": torch.arange(WIDTH).float().tolist(), "3": [[0.5] * WIDTH]}))
    found = steering.load_vectors(path)
    assert list(found) == [11, 3]
    np.testing.assert_array_equal(found[11], np.arange(WIDTH))
    steering.save_vectors({3: torch.full((1, WIDTH), 0.5)}, path)
    assert json.loads(path.read_text()) == {"3": [0.5] * WIDTH}


def test_gguf_is_llama_cpps_control_vector(kept, steering, tmp_path):
    """What enters block l leaves block l - 1, and `direction.N` is added to what leaves block N."""
    path = tmp_path / "vector.gguf"
    vector = steering_vector(layers=(2, 4))
    steering.save_vectors(kept.add(vector), path)
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "tiny"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.3"]
    np.testing.assert_array_equal(reader.tensors[1].data, vector.vectors[1])


def test_a_control_vector_of_another_program_acts_where_it_does_there(steering, tmp_path):
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "controlvector")
    for layer in (1, 2, 10):
        writer.add_tensor(f"direction.{layer}", np.full(WIDTH, layer, np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    found = steering.load_vectors(path)
    assert list(found) == [f"blocks.{i}.hook_resid_post" for i in (1, 2, 10)]
    np.testing.assert_array_equal(found["blocks.2.hook_resid_post"], np.full(WIDTH, 2))


@pytest.mark.parametrize(
    ("vector", "name", "words"),
    [
        (steering_vector(layers=(0,)), "v.gguf", "layers from 2 on"),
        (steering_vector(layers=(1, 2)), "v.gguf", "layers from 2 on"),
        (steering_vector(layers=(0,), site="resid_post"), "v.gguf", "layers from 1 on"),
        (steering_vector(site="mlp_out"), "v.gguf", "no vectors at mlp_out"),
        (steering_vector(gate=True), "v.json", "hold no gate"),
        (steering_vector(gate=True), "v.gguf", "hold no gate"),
        (steering_vector(), "v.txt", "ends with .json, .safetensors, .gguf"),
        (steering_vector(), "absent/v.json", "a folder that exists"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(tmp_path, vector, name, words):
    with pytest.raises(ArgumentError, match=words):
        formats.save(vector, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b"[1]", b'{"1": "x"}', b'{"1": [[1, 2], [3, 4]]}', b'{"1": [NaN]}', b"GGUF\x03", b"\x00" * 40]
)
def test_unreadable_files_are_named(steering, tmp_path, content):
    path = tmp_path / "vector.bin"
    path.write_bytes(content)
    with pytest.raises(VectorError, match=str(path)):
        steering.load_vectors(path)
    with pytest.raises(ArgumentError, match="a file of vectors"):
        steering.load_vectors(tmp_path / "absent")


def test_a_gate_survives_the_way_through_a_file(kept, steering, tmp_path):
    vector = steering_vector(gate=True, name="gated")
    steering.save_vectors(kept.add(vector), tmp_path / "v.safetensors")
    assert_same(kept.get(steering.add(tmp_path / "v.safetensors")), vector)
    other = dataclasses.replace(vector, fingerprint="0", model="large")
    formats.save(other, tmp_path / "other.safetensors")
    with pytest.raises(ArgumentError, match="large"):
        steering.add(tmp_path / "other.safetensors")


@pytest.mark.parametrize("vectors", [{}, {9: [0.0] * WIDTH}, {1: [0.0] * 5}, {1: [float("nan")] * WIDTH}, {"x": [0.0] * WIDTH}])
def test_vectors_that_do_not_fit_the_model_are_refused(kept, steering, vectors):
    with pytest.raises(MechanexError):
        steering.add(vectors)
    with pytest.raises(MechanexError):
        steering.resolve(vectors)
    assert kept.ids() == []
