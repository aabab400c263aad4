"""GGUF files: the weights and tokenizers that went in come out, and what is unsupported is named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from ggufs import CONTEXT, EXTRA, HEADS, KV_HEADS, LAYERS, MLP, WIDTH, byte_tokens, random_weights, write_gguf

from mechanex_jax import checkpoints
from mechanex_jax.checkpoints import Checkpoint, TensorReader, gguf
from mechanex_jax.errors import CheckpointError

# The largest error, in units of the largest weight of a block of 32.
PRECISION = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 0.6 / 127, "Q4_0": 1.1 / 8, "Q4_1": 1.1 / 15}


@pytest.mark.parametrize("kind", PRECISION)
def test_a_gguf_file_gives_back_the_weights_that_went_in(tmp_path: Path, kind: str):
    weights = random_weights(tied=kind == "F32")
    gguf.convert(write_gguf(tmp_path / "model.gguf", weights, kind), tmp_path)
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

    weights = random_weights(tied)
    gguf.convert(write_gguf(tmp_path / "model.gguf", weights, "F32"), tmp_path)
    config = LlamaConfig(
        vocab_size=len(byte_tokens()) + len(EXTRA),
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
    gguf.convert(write_gguf(tmp_path / "model.gguf", random_weights(tied=True), "F32"), tmp_path)
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
    gguf.convert(write_gguf(tmp_path / "model.gguf", random_weights(tied=True), "F32", pre=pre, begins=None), tmp_path)
    cut = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).pre_tokenizer
    assert cut is not None and [piece for piece, _ in cut.pre_tokenize_str("I'LL see 1234\n\n x")] == PIECES[pre]
    begins = Checkpoint.from_folder(tmp_path).tokenizer().encode("12")
    assert begins == {"smollm": _ids("1", "2"), "gpt-2": _ids("12"), "llama-bpe": _ids("<s>", "12")}[pre]


def _ids(*tokens: str) -> list[int]:
    return [[*byte_tokens(), *EXTRA].index(token) for token in tokens]


def test_a_gguf_file_is_loaded_by_its_path_and_converted_once(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MECHANEX_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "tiny.gguf", random_weights(tied=True), "Q8_0")
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
    path = write_gguf(tmp_path / "model.gguf", random_weights(tied=True), kind, change, **overrides)
    with pytest.raises(CheckpointError, match=rf"model\.gguf.*{message}.*"):
        gguf.convert(path, tmp_path)


def test_a_truncated_gguf_file_is_refused_and_nothing_is_kept(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MECHANEX_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "model.gguf", random_weights(tied=True), "Q8_0")
    whole = path.read_bytes()
    for length in (0, 3, 4, 20, 200, 5000, len(whole) // 2, len(whole) - 64):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.gguf.*truncated"):
            checkpoints.resolve(path)
    path.write_bytes(whole[:40] + bytes(200) + whole[240:])
    with pytest.raises(CheckpointError, match=r"model\.gguf"):
        checkpoints.resolve(path)
    assert all(found.suffix == ".lock" for found in (tmp_path / "cache" / "gguf").iterdir())
