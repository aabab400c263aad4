"""GGUF files: the weights and tokenizers that went in come out, and what is unsupported is named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from mechanex_jax import checkpoints
from mechanex_jax.checkpoints import Checkpoint, TensorReader, gguf
from mechanex_jax.errors import CheckpointError

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
