"""Damaged files of a checkpoint are refused with the library's own error, whatever is wrong with them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ggufs import random_weights, write_gguf

from mechanex_jax import loading
from mechanex_jax.checkpoints import gguf
from mechanex_jax.errors import CheckpointError

DEEP = b"[" * 100_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A model's folder, made from a GGUF file."""
    folder = tmp_path_factory.mktemp("tiny")
    gguf.convert(write_gguf(folder.parent / "tiny.gguf", random_weights(tied=True), "F32"), folder)
    return folder


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def load(path: Path) -> loading.LoadedModel:
    """Load a model with everything of it that is read late."""
    loaded = loading.load(path, device="cpu", progress=False)
    assert loaded.token_bytes and loaded.fingerprint
    return loaded


def test_the_undamaged_model_loads(folder: Path):
    assert load(folder).model.spec.layers == 2


JSON_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"]
DAMAGES = {
    "100,000 levels": DEEP,
    "100,000 levels inside an object": b'{"model_type": "llama", "a": ' + b'{"a":' * 100_000,
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "a list": b"[]",
    "nothing": b"",
    "cut": b'{"model_type": "lla',
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", JSON_FILES)
def test_a_file_that_is_no_json_object_is_refused(folder: Path, name: str, damage: str):
    (folder / name).write_bytes(DAMAGES[damage])
    with pytest.raises(CheckpointError, match=name):
        load(folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_index_or_header_that_is_no_json_object_is_refused(folder: Path, damage: str):
    (folder / "model.safetensors").write_bytes(len(DAMAGES[damage]).to_bytes(8, "little") + DAMAGES[damage])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: got"):
        load(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_bytes(DAMAGES[damage])
    with pytest.raises(CheckpointError, match=r"index\.json: got"):
        load(folder)


def test_a_chat_template_that_is_no_text_is_refused(folder: Path):
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: got"):
        load(folder)


def _set(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps({**content, **values}), "utf-8")

    return change


def _set_decoder(decoder: Any) -> Callable[[Path], None]:
    return _set("tokenizer.json", decoder=decoder)


def _far_token(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    content["model"]["vocab"]["far"] = 2**32 - 2
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")


def _long_prefix(folder: Path) -> None:
    """A model on which the tokenizers library panics: merged tokens would be shorter than the prefix to cut off."""
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    content["model"]["continuing_subword_prefix"] = "x" * 5_000
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")


VALUES = {
    "fractional end": (_set("generation_config.json", eos_token_id=2.5), "eos_token_id: got 2.5"),
    "fractional end among others": (_set("generation_config.json", eos_token_id=[2, 2.5]), "eos_token_id: got"),
    "negative beginning": (_set("generation_config.json", bos_token_id=-1), "bos_token_id: got -1"),
    "fractional end in config.json": (_set("config.json", eos_token_id=2.5), "eos_token_id: got 2.5"),
    "vast vocabulary": (_set("config.json", vocab_size=10**12), "vocab_size 1000000000000"),
    "vocabulary of text": (_set("config.json", vocab_size="97"), "vocab_size 97"),
    "vast id": (_far_token, "got ids up to 4,294,967,294"),
    "a named token that is a number": (_set("tokenizer_config.json", eos_token=3), "got eos_token 3"),
    "a named token without content": (_set("tokenizer_config.json", eos_token={"id": 3}), "got eos_token"),
    "a chat template that is a number": (_set("tokenizer_config.json", chat_template=3), "got chat_template 3"),
    "chat templates without names": (_set("tokenizer_config.json", chat_template=["a", 3]), "got chat_template"),
    "a prefix longer than its tokens": (_long_prefix, "tokenizer.json cannot be read"),
    "a decoder that is not one": (_set_decoder({"type": "ByteLevel"}), "decoder|cannot be read"),
}


@pytest.mark.parametrize("case", VALUES)
def test_a_value_that_no_tokenizer_has_is_refused(folder: Path, case: str):
    change, words = VALUES[case]
    change(folder)
    with pytest.raises(CheckpointError, match=words):
        load(folder)


# --- GGUF ----------------------------------------------------------------------------------------------------------------


def _flipped(whole: bytes, at: int, bits: int) -> bytes:
    return whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :]


def _loads_or_is_refused(path: Path, folder: Path) -> bool:
    """Whether a GGUF file gives a model; anything but `CheckpointError` passes through."""
    folder.mkdir()
    try:
        gguf.convert(path, folder)
        load(folder)
    except CheckpointError:
        return False
    finally:
        shutil.rmtree(folder)
    return True


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory) -> tuple[bytes, int]:
    """A tiny GGUF file, and the length of its header."""
    from gguf import GGUFReader

    path = write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", random_weights(tied=True), "F32")
    return path.read_bytes(), GGUFReader(path).data_offset


def test_a_gguf_array_that_is_longer_than_the_file_is_refused_at_once(gguf_bytes, tmp_path: Path):
    """The format's own library would read its elements one after another, though none is there."""
    whole, _ = gguf_bytes
    key = b"tokenizer.ggml.token_type"
    count = whole.index(key) + len(key) + 4 + 4  # behind the types of the value and of its elements
    path = tmp_path / "model.gguf"
    path.write_bytes(whole[:count] + (2**40).to_bytes(8, "little") + whole[count + 8 :])
    with pytest.raises(CheckpointError, match=r"model\.gguf: got .* ends at byte"):
        gguf.convert(path, tmp_path)


# A number of heads of another type, and a text that is no UTF-8.
@pytest.mark.parametrize(
    ("key", "behind", "bits"),
    [("llama.attention.head_count", 4, 0x04), ("tokenizer.ggml.model", 12, 0x80)],
)
def test_a_damaged_gguf_field_is_refused(key: str, behind: int, bits: int, gguf_bytes, tmp_path: Path):
    whole, _ = gguf_bytes
    at = whole.index(key.encode()) + len(key) + behind
    path = tmp_path / "model.gguf"
    path.write_bytes(_flipped(whole, at, bits))
    assert not _loads_or_is_refused(path, tmp_path / "model")


FLIPS = int(os.environ.get("MECHANEX_FLIPS", "150"))


@pytest.mark.slow
def test_a_gguf_header_with_any_byte_changed_loads_or_is_refused(gguf_bytes, tmp_path: Path):
    whole, header = gguf_bytes
    draw = np.random.default_rng(0)
    path = tmp_path / "model.gguf"
    refused = 0
    for at in draw.permutation(header)[:FLIPS]:
        path.write_bytes(_flipped(whole, int(at), int(draw.integers(1, 256))))
        refused += not _loads_or_is_refused(path, tmp_path / "model")
    assert refused > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"])
def test_a_json_file_with_any_byte_changed_loads_or_is_refused(folder: Path, name: str):
    whole = (folder / name).read_bytes()
    draw = np.random.default_rng(0)
    refused = 0
    for at in draw.integers(0, len(whole), FLIPS // 3):
        (folder / name).write_bytes(_flipped(whole, int(at), int(draw.integers(1, 256))))
        try:
            load(folder)
        except CheckpointError:
            refused += 1
    assert refused > 0
