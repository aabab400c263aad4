"""A tiny Llama model as a GGUF file, written by the format's own library."""

from __future__ import annotations

from pathlib import Path

import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, MLP = 2, 64, 4, 2, 96
CONTEXT = 128
EXTRA = ["<s>", "</s>", "<tool>", "he", "Ġhe", "12"]


def byte_tokens() -> list[str]:
    """GPT-2's 256 single-byte tokens, by its published rule."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + rank) for rank in range(len(others))]


def random_weights(tied: bool) -> dict[str, np.ndarray]:
    """Random weights by their names in the Hugging Face layout."""
    rng, head = np.random.default_rng(1), WIDTH // HEADS
    vocabulary = len(byte_tokens()) + len(EXTRA)
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


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k of a Llama model."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, weights: dict[str, np.ndarray], kind: str, change=lambda writer: None, **overrides) -> Path:
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
    tokens = [*byte_tokens(), *EXTRA]
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
        stored = permuted(array, heads) if heads else array
        quantisation = library.GGMLQuantizationType[kind if stored.ndim == 2 else "F32"]
        data = library.quants.quantize(stored, quantisation)
        writer.add_tensor(f"{names.get_name(name.removesuffix('.weight'))}.weight", data, raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
