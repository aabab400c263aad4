"""Files of models: read exactly as their own library reads them, refused when damaged, kept whole or not at all."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import time
import zipfile
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from mechanex_jax import checkpoints
from mechanex_jax.checkpoints import Checkpoint, TensorReader, build_folder, gguf, sources, wheel
from mechanex_jax.checkpoints import safetensors as ours
from mechanex_jax.checkpoints.catalogue import FolderSource, HubSource, WheelSource, find, models_folder
from mechanex_jax.errors import CheckpointError, ModelNotFoundError

# --- reading -------------------------------------------------------------------------------------------------------


def _arrays() -> dict[str, np.ndarray]:
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


def _single(folder: Path) -> Path:
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(_arrays(), path, metadata={"format": "pt"})
    return path


def _sharded(folder: Path) -> None:
    arrays, shards = _arrays(), ["model-1.safetensors", "model-2.safetensors"]
    where = {name: shards[index % 2] for index, name in enumerate(sorted(arrays))}
    for shard in shards:
        safetensors.numpy.save_file({name: arrays[name] for name in arrays if where[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.mark.parametrize("save", [_single, _sharded])
def test_every_tensor_equals_what_was_saved(tmp_path: Path, save):
    save(tmp_path)
    reader, arrays = TensorReader(tmp_path), _arrays()
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
    _single(tmp_path)
    with pytest.raises(CheckpointError, match=r"'b\.matrixx'.*b\.matrix"):
        TensorReader(tmp_path).read("b.matrixx")


def test_a_file_cut_at_any_length_is_refused(tmp_path: Path):
    path = _single(tmp_path)
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
    path = _single(tmp_path)
    reader = TensorReader(tmp_path)
    os.truncate(path, path.stat().st_size - reader.nbytes)
    with pytest.raises(CheckpointError, match=r"got 0 bytes.*expected 13"):
        reader.read("g.bytes")


def test_missing_and_foreign_shards_are_refused(tmp_path: Path):
    _sharded(tmp_path)
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


# --- checkpoints and names -----------------------------------------------------------------------------------------


def _model(folder: Path, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    _single(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


def test_a_folder_that_is_no_model_says_what_was_found(tmp_path: Path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"found holiday\.jpg; expected config\.json"):
        checkpoints.resolve(tmp_path)
    for content, message in (("{", "not JSON"), ("[]", "names no model"), ("{}", "names no model")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            checkpoints.resolve(tmp_path)


def test_the_fingerprint_is_of_the_content_alone(tmp_path: Path):
    first = Checkpoint.from_folder(_model(tmp_path / "a", transformers_version="4"))
    second = Checkpoint.from_folder(_model(tmp_path / "b", transformers_version="5"))
    sharded = _model(tmp_path / "c")
    (sharded / "model.safetensors").unlink()
    _sharded(sharded)
    assert first.fingerprint == second.fingerprint == Checkpoint.from_folder(sharded).fingerprint
    changed = _arrays()
    changed["b.matrix"] = changed["b.matrix"] * 2
    safetensors.numpy.save_file(changed, tmp_path / "b" / "model.safetensors")
    other_config = Checkpoint.from_folder(_model(tmp_path / "d", rope_theta=5.0))
    prints = {first.fingerprint, Checkpoint.from_folder(tmp_path / "b").fingerprint, other_config.fingerprint}
    assert len(prints) == 3


def test_an_unknown_name_lists_what_would_be_known(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"Did you mean 'smollm2-135m-instruct'.*gpt2.*folder.*hub id"):
        checkpoints.resolve("smollm2-135m-instrct")
    for name in ("", "zzz", "./no/such/folder", "no/such.gguf"):
        with pytest.raises(ModelNotFoundError, match="Expected a name of the catalogue"):
            checkpoints.resolve(name)
    (tmp_path / "weights.txt").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        checkpoints.resolve("weights.txt")


def test_every_catalogue_entry_has_a_source_and_the_default_a_card():
    entries = checkpoints.catalogue()
    assert [entry.default for entry in entries].count(True) == 1 and entries[0].default
    assert entries[0].name == checkpoints.default_name()
    assert (models_folder() / "cards" / f"{entries[0].name}.md").is_file()
    for entry in entries:
        assert isinstance(entry.source, WheelSource | HubSource | FolderSource) and entry.licence and entry.context > 0
        assert all(find(name.upper()) is entry for name in (entry.name, *entry.aliases))
    assert isinstance(entries[0].source, WheelSource)
    assert entries[0].source.sha256 in (models_folder() / "cards" / f"{entries[0].name}.md").read_text()


def test_the_hub_is_asked_for_safetensors_only_and_its_errors_say_what_to_do(tmp_path: Path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    asked = {}

    def answer(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(_model(tmp_path / "hub"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    checkpoint = checkpoints.resolve("some-org/some-model")
    assert checkpoint.name == asked["repo_id"] == "some-org/some-model"
    kept = huggingface_hub.utils.filter_repo_objects(
        ["model-1.safetensors", "config.json", "tokenizer.model", "pytorch_model.bin", "onnx/config.json", "README.md"],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(kept) == ["model-1.safetensors", "config.json", "tokenizer.model"]

    response = mock.MagicMock(status_code=404)  # of whichever HTTP library the hub's client uses
    for error, kind, message in (
        (errors.RepositoryNotFoundError("no", response=response), ModelNotFoundError, "hub has no such model"),
        (errors.GatedRepoError("no", response=response), CheckpointError, "accept"),
        (errors.LocalEntryNotFoundError("no"), CheckpointError, "cannot be reached.*pull some-org/some-model"),
        (OSError("no space left"), CheckpointError, "no space left"),
    ):

        def fail(*args, error=error, **options):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(kind, match=message):
            checkpoints.resolve("some-org/some-model")


# --- the cache -----------------------------------------------------------------------------------------------------


def _whole(folder: Path) -> None:
    (folder / "whole").write_text("whole")


class _Interrupt(BaseException):
    """Stands for Ctrl-C, which pytest would take for its own."""


@pytest.mark.parametrize("error", [_Interrupt, ValueError])
def test_an_interrupted_build_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path, error):
    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise error

    with pytest.raises(error):
        build_folder(tmp_path / "sub" / "target", interrupted)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == [".target.lock"]
    build_folder(tmp_path / "sub" / "target", _whole)
    assert [path.name for path in (tmp_path / "sub" / "target").iterdir()] == ["whole"]


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_build_forever, args=(tmp_path / "target", started))
    process.start()
    assert started.wait(60)
    process.kill()
    process.join()
    assert not (tmp_path / "target").exists() and list(tmp_path.glob(".target.tmp-*"))
    build_folder(tmp_path / "target", _whole)
    assert {path.name for path in tmp_path.iterdir()} == {"target", ".target.lock"}


def _build_forever(target: Path, started) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        started.set()
        time.sleep(600)

    build_folder(target, build)


def test_two_processes_build_once_and_both_see_all_of_it(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        seen = pool.starmap(_build_slowly, [(tmp_path, "first"), (tmp_path, "second")], chunksize=1)
    assert seen == [20, 20]
    assert len((tmp_path / "builds").read_text().splitlines()) == 1


def _build_slowly(place: Path, name: str) -> int:
    # Both are here before either begins.
    (place / f"ready-{name}").touch()
    while len(list(place.glob("ready-*"))) < 2:
        time.sleep(0.01)

    def build(folder: Path) -> None:
        with open(place / "builds", "a") as log:
            log.write(f"{name}\n")
        for index in range(20):
            (folder / str(index)).touch()
            time.sleep(0.01)

    return len(list(build_folder(place / "target", build).iterdir()))


def test_a_file_in_the_way_is_an_error_that_names_the_way_out(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="MECHANEX_CACHE"):
        build_folder(tmp_path / "file" / "target", lambda folder: None)


# --- GGUF ----------------------------------------------------------------------------------------------------------

LAYERS, WIDTH, HEADS, KV_HEADS, MLP = 2, 64, 4, 2, 96
CONTEXT = 128
EXTRA = ["<s>", "</s>", "<tool>", "he", "Ġhe", "12"]


def _byte_tokens() -> list[str]:
    """GPT-2's 256 single-byte tokens, by its published rule."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + rank) for rank in range(len(others))]


def _weights(tied: bool) -> dict[str, np.ndarray]:
    """Random weights by their names in the Hugging Face layout."""
    rng, head = np.random.default_rng(1), WIDTH // HEADS
    vocabulary = len(_byte_tokens()) + len(EXTRA)
    shapes = {"model.embed_tokens.weight": (vocabulary, WIDTH), "model.norm.weight": (WIDTH,)}
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, WIDTH)
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        shapes |= {
            f"{block}.input_layernorm.weight": (WIDTH,),
            f"{block}.post_attention_layernorm.weight": (WIDTH,),
            f"{block}.self_attn.q_proj.weight": (HEADS * head, WIDTH),
            f"{block}.self_attn.k_proj.weight": (KV_HEADS * head, WIDTH),
            f"{block}.self_attn.v_proj.weight": (KV_HEADS * head, WIDTH),
            f"{block}.self_attn.o_proj.weight": (WIDTH, HEADS * head),
            f"{block}.mlp.gate_proj.weight": (MLP, WIDTH),
            f"{block}.mlp.up_proj.weight": (MLP, WIDTH),
            f"{block}.mlp.down_proj.weight": (WIDTH, MLP),
        }
    return {name: rng.standard_normal(shape).astype(np.float32) / 4 for name, shape in shapes.items()}


def _permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k of a Llama model."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_gguf(path: Path, weights: dict[str, np.ndarray], kind: str, change=lambda writer: None, **overrides) -> Path:
    import gguf as library

    options = {"architecture": "llama", "tokenizer": "gpt2", "pre": "smollm", "begins": True} | overrides
    writer = library.GGUFWriter(path, options["architecture"])
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    tokens = [*_byte_tokens(), *EXTRA]
    writer.add_tokenizer_model(options["tokenizer"])
    writer.add_tokenizer_pre(options["pre"])
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<s>", "</s>") else 4 if token == "<tool>" else 1 for token in tokens])
    writer.add_token_merges(["h e", "Ġ he", "1 2"])
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    writer.add_eot_token_id(tokens.index("<tool>"))
    if options["begins"] is not None:
        writer.add_add_bos_token(options["begins"])
    change(writer)
    names = library.get_tensor_name_map(library.MODEL_ARCH.LLAMA, LAYERS)
    for name, array in weights.items():
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
        stored = _permuted(array, heads) if heads else array
        quantisation = library.GGMLQuantizationType[kind if stored.ndim == 2 else "F32"]
        data = library.quants.quantize(stored, quantisation)
        writer.add_tensor(f"{names.get_name(name.removesuffix('.weight'))}.weight", data, raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# The largest error, in units of the largest weight of a block of 32.
PRECISION = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 0.6 / 127, "Q4_0": 1.1 / 8, "Q4_1": 1.1 / 15}


@pytest.mark.parametrize("kind", PRECISION)
def test_a_gguf_file_gives_back_the_weights_that_went_in(tmp_path: Path, kind: str):
    weights = _weights(tied=kind == "F32")
    gguf.convert(_write_gguf(tmp_path / "model.gguf", weights, kind), tmp_path)
    reader = TensorReader(tmp_path)
    assert set(reader.names) == set(weights)
    for name, array in weights.items():
        read = reader.read(name)
        assert read.dtype == np.float32 and read.shape == array.shape
        limit = PRECISION[kind] * np.abs(array).max() if array.ndim == 2 else 0.0
        assert np.abs(read - array).max() <= limit + 1e-9, name


@pytest.mark.parametrize("tied", [True, False])
def test_a_converted_model_computes_in_transformers_what_the_original_does(tmp_path: Path, tied: bool):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    weights = _weights(tied)
    gguf.convert(_write_gguf(tmp_path / "model.gguf", weights, "F32"), tmp_path)
    config = LlamaConfig(
        vocab_size=len(_byte_tokens()) + len(EXTRA),
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        tie_word_embeddings=tied,
    )
    original = LlamaForCausalLM(config).eval()
    missing = original.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    original.tie_weights()
    converted = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert converted.config.rope_parameters["rope_theta"] == 50000.0 and converted.config.rms_norm_eps == 1e-5
    tokens = torch.arange(40)[None] * 5 % 250
    with torch.no_grad():
        torch.testing.assert_close(converted(tokens).logits, original(tokens).logits, rtol=0, atol=1e-5)


def test_a_gguf_files_tokenizer_has_its_special_and_user_defined_tokens(tmp_path: Path):
    gguf.convert(_write_gguf(tmp_path / "model.gguf", _weights(tied=True), "F32"), tmp_path)
    tokenizer = Checkpoint.from_folder(tmp_path).tokenizer()
    bos, eos, tool, he, space_he = range(256, 261)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.size) == (bos, (eos, tool), 262)
    assert tokenizer.encode("he<tool> he</s>") == [bos, he, tool, space_he, eos]
    assert tokenizer.decode([bos, he, tool, space_he, eos]) == "he<tool> he"
    assert tokenizer.decode(tokenizer.encode("12 €")) == "12 €"


# How each cuts "I'LL see 1234\n\n x": by hand from the published rules. Digits one by one; GPT-2's words, in which only
# small letters contract; Llama 3's, with three digits at most and line ends in a piece of their own.
PIECES = {
    "smollm": ["I", "'", "LL", "Ġsee", "Ġ", "1", "2", "3", "4", "ĊĊ", "Ġx"],
    "gpt-2": ["I", "'", "LL", "Ġsee", "Ġ1234", "ĊĊ", "Ġx"],
    "llama-bpe": ["I", "'LL", "Ġsee", "Ġ", "123", "4", "ĊĊ", "Ġx"],
}


@pytest.mark.parametrize("pre", PIECES)
def test_a_gguf_files_pre_tokenizer_cuts_texts_as_its_name_says(tmp_path: Path, pre: str):
    gguf.convert(_write_gguf(tmp_path / "model.gguf", _weights(tied=True), "F32", pre=pre, begins=None), tmp_path)
    cut = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).pre_tokenizer
    assert cut is not None and [piece for piece, _ in cut.pre_tokenize_str("I'LL see 1234\n\n x")] == PIECES[pre]
    begins = Checkpoint.from_folder(tmp_path).tokenizer().encode("12")
    assert begins == {"smollm": _ids("1", "2"), "gpt-2": _ids("12"), "llama-bpe": _ids("<s>", "12")}[pre]


def _ids(*tokens: str) -> list[int]:
    return [[*_byte_tokens(), *EXTRA].index(token) for token in tokens]


def test_a_gguf_file_is_loaded_by_its_path_and_converted_once(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MECHANEX_CACHE", str(tmp_path / "cache"))
    path = _write_gguf(tmp_path / "tiny.gguf", _weights(tied=True), "Q8_0")
    first = checkpoints.pull(path, progress=False)
    monkeypatch.setattr(gguf, "convert", lambda *args: pytest.fail("converted again"))
    second = checkpoints.resolve(str(path))
    assert first == second and first.name == "tiny" and first.folder.is_relative_to(tmp_path / "cache")
    os.utime(path, ns=(1, 1))
    with pytest.raises(pytest.fail.Exception, match="converted again"):
        checkpoints.resolve(path)


UNSUPPORTED = {
    "architecture": ({"architecture": "qwen2"}, "F32", lambda writer: None, "'qwen2'"),
    "tokenizer": ({"tokenizer": "llama"}, "F32", lambda writer: None, "kind 'llama'"),
    "pre-tokenizer": ({"pre": "qwen9"}, "F32", lambda writer: None, "'qwen9'"),
    "quantisation": ({}, "Q5_0", lambda writer: None, "Q5_0"),
    "tensor": ({}, "F32", lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32)), "rope_freqs"),
    "rope scaling": ({}, "F32", lambda writer: writer.add_string("llama.rope.scaling.type", "yarn"), "'yarn'"),
    "partial rotation": ({}, "F32", lambda writer: writer.add_rope_dimension_count(8), "rotates 8 of 16"),
    "parts": ({}, "F32", lambda writer: writer.add_uint16("split.count", 3), "one of 3 parts"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_supported_in_a_gguf_file_is_named(tmp_path: Path, case: str):
    overrides, kind, change, message = UNSUPPORTED[case]
    path = _write_gguf(tmp_path / "model.gguf", _weights(tied=True), kind, change, **overrides)
    with pytest.raises(CheckpointError, match=rf"model\.gguf.*{message}.*"):
        gguf.convert(path, tmp_path)


def test_a_truncated_gguf_file_is_refused_and_nothing_is_kept(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MECHANEX_CACHE", str(tmp_path / "cache"))
    path = _write_gguf(tmp_path / "model.gguf", _weights(tied=True), "Q8_0")
    whole = path.read_bytes()
    for length in (0, 3, 4, 20, 200, 5000, len(whole) // 2, len(whole) - 64):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.gguf.*truncated"):
            checkpoints.resolve(path)
    path.write_bytes(whole[:40] + bytes(200) + whole[240:])
    with pytest.raises(CheckpointError, match=r"model\.gguf"):
        checkpoints.resolve(path)
    assert all(found.suffix == ".lock" for found in (tmp_path / "cache" / "gguf").iterdir())


# --- wheels --------------------------------------------------------------------------------------------------------


@pytest.fixture
def wheel_source(tmp_path: Path, monkeypatch) -> WheelSource:
    """A wheel with a tiny model in a folder that pip takes for its only index."""
    path = _write_gguf(tmp_path / "tiny.gguf", _weights(tied=True), "Q8_0")
    links = tmp_path / "links"
    links.mkdir()
    info = "mechanex_tiny_model-1.0.dist-info"
    with zipfile.ZipFile(links / "mechanex_tiny_model-1.0-py3-none-any.whl", "w") as archive:
        archive.write(path, "mechanex_tiny_model/tiny.gguf")
        archive.writestr("mechanex_tiny_model/__init__.py", "raise ImportError('must not be imported')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: mechanex-tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("MECHANEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return WheelSource("mechanex-tiny-model", "1.0", "mechanex_tiny_model/tiny.gguf", digest)


def _kept(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache" / "models").rglob("*") if path.suffix != ".lock"]


def test_a_wheel_is_fetched_verified_converted_and_only_the_result_kept(tmp_path: Path, wheel_source: WheelSource, capfd):
    folder = sources._fetch(wheel_source, "tiny", True)
    assert len(TensorReader(folder).names) == 20
    assert sorted(_kept(tmp_path)) == sorted(
        [
            folder.name,
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    )
    captured = capfd.readouterr()
    assert "Downloading mechanex-tiny-model" in captured.err and not captured.out


@pytest.mark.parametrize(
    ("field", "message"), [("sha256", "got SHA-256.*expected 0000"), ("file", "no readable mechanex_tiny_model/no")]
)
def test_a_wheel_with_another_content_keeps_nothing(tmp_path: Path, wheel_source: WheelSource, field: str, message: str):
    values = vars(wheel_source) | {field: {"sha256": "0" * 64, "file": "mechanex_tiny_model/no.gguf"}[field]}
    with pytest.raises(CheckpointError, match=message):
        sources._fetch(WheelSource(**values), "tiny", False)
    assert _kept(tmp_path) == []


def test_offline_with_an_empty_cache_says_what_to_do(tmp_path: Path, wheel_source: WheelSource, monkeypatch):
    ways = r"pip download --no-deps mechanex-tiny-model==1\.0.*MECHANEX_CACHE.*\.gguf"
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(CheckpointError, match=ways):
        sources._fetch(wheel_source, "tiny", False)
    find_spec = wheel.importlib.util.find_spec
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    with pytest.raises(CheckpointError, match="no pip.*" + ways):
        sources._fetch(wheel_source, "tiny", False)
    assert _kept(tmp_path) == []


def test_an_installed_package_is_used_without_importing_it(tmp_path: Path, wheel_source: WheelSource, monkeypatch):
    with zipfile.ZipFile(tmp_path / "links" / "mechanex_tiny_model-1.0-py3-none-any.whl") as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(wheel, "_download", lambda *args: pytest.fail("downloaded"))
    assert len(TensorReader(sources._fetch(wheel_source, "tiny", False)).names) == 20
    assert "mechanex_tiny_model" not in sys.modules


def test_pip_does_not_outlive_an_interrupted_download():
    with pytest.raises(_Interrupt), wheel._running([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        raise _Interrupt
    assert process.poll() is not None
