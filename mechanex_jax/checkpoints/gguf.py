"""From a GGUF file to a folder in the Hugging Face layout: dequantised once, read fast ever after."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechanex_jax.checkpoints import gguf_header, safetensors
from mechanex_jax.errors import CheckpointError, MechanexError
from mechanex_jax.progress import Report, silent
from mechanex_jax.tokenization import gguf_tokenizer
from mechanex_jax.tokenization.gguf_tokenizer import Fields

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

VERSION = 1
"""Part of the cache's folder names: raise it when a conversion would write something else than before."""

_TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0")
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(source: str | os.PathLike[str], folder: Path, report: Report = silent) -> None:
    """Write a GGUF model as `config.json`, `model.safetensors` (float32), tokenizer and generation files.

    Llama models (Llama, Mistral, SmolLM2 and others of that shape) with F32, F16, BF16, Q4_0, Q4_1 or Q8_0 tensors.

    Args:
      source: the GGUF file.
      folder: an existing folder to write into.
      report: called with the bytes written and their total.

    Raises:
      CheckpointError: the file is truncated or corrupt, or uses something that is not supported, which is named.
    """
    source = Path(source)
    reader = _open(source)
    try:
        _write_folder(source, reader, folder, report)
    except MechanexError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:  # whatever damaged values lead to
        raise CheckpointError(
            f"{source}: got values that make no Llama model ({error!r}); expected fields and tensors that fit together. The "
            "file is corrupt: delete it and fetch it again."
        ) from error


def _write_folder(source: Path, reader: GGUFReader, folder: Path, report: Report) -> None:
    fields = {name: field.contents() for name, field in reader.fields.items()}
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(
            f"{source}: got the architecture {architecture!r}; expected 'llama'. Load the model's safetensors instead."
        )
    if fields.get("split.count", 1) > 1:
        raise CheckpointError(
            f"{source}: one of {fields['split.count']} parts; expected one file. Merge it with llama-gguf-split."
        )
    tensors = {_hf_name(source, tensor.name): tensor for tensor in reader.tensors}
    config = _config(source, fields, tensors)
    texts = gguf_tokenizer.tokenizer_files(source, fields)
    ids = gguf_tokenizer.special_ids(fields)
    texts["config.json"] = json.dumps(config | ids, indent=2)
    texts["generation_config.json"] = json.dumps(ids, indent=2)
    _write_weights(folder / "model.safetensors", source, tensors, config, report)
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")


def _open(source: Path) -> GGUFReader:
    from gguf import GGUFReader

    try:
        gguf_header.check(source)
        return GGUFReader(source)
    except OSError as error:
        raise CheckpointError(f"{source} cannot be read: {error}.") from error
    except Exception as error:  # whatever the reader meets when the bytes make no sense
        raise CheckpointError(
            f"{source}: got {source.stat().st_size:,} bytes that are no whole GGUF file ({error!r}). The file is "
            "truncated or corrupt: delete it and fetch it again."
        ) from error


def _hf_name(source: Path, name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if kind == "weight" and stem in _OUTER:
        return f"{_OUTER[stem]}.weight"
    block, _, part = stem.removeprefix("blk.").partition(".")
    if kind == "weight" and block.isdecimal() and part in _INNER:
        return f"model.layers.{block}.{_INNER[part]}.weight"
    raise CheckpointError(
        f"{source}: got the tensor {name!r}; expected those of a plain Llama model "
        f"({', '.join((*_OUTER, *_INNER))}). Load the model's safetensors instead."
    )


def _config(source: Path, fields: Fields, tensors: Mapping[str, ReaderTensor]) -> dict[str, Any]:
    def field(key: str, default: Any = None) -> Any:
        value = fields.get(f"llama.{key}", default)
        if value is None:
            raise CheckpointError(f"{source}: no field llama.{key}; expected it in a Llama model. The file is incomplete.")
        return value

    heads = field("attention.head_count")
    head_dim = field("attention.key_length", field("embedding_length") // heads)
    if field("rope.dimension_count", head_dim) != head_dim:
        raise CheckpointError(
            f"{source}: rotates {field('rope.dimension_count')} of {head_dim} dimensions; expected all of them."
        )
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None:
        raise CheckpointError(f"{source}: no tensor token_embd.weight; expected the token embedding. The file is incomplete.")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": int(embedding.shape[1]),
        "hidden_size": field("embedding_length"),
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": _shortest(field("attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(field("rope.freq_base", 10000.0)),
        **_rope_scaling(source, fields),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "torch_dtype": "float32",
    }


def _rope_scaling(source: Path, fields: Fields) -> dict[str, object]:
    kind = fields.get("llama.rope.scaling.type", "none")
    if kind == "none":
        return {}
    if kind != "linear":
        raise CheckpointError(
            f"{source}: got the rope scaling {kind!r}; expected none or linear. Load the model's safetensors instead."
        )
    return {"rope_scaling": {"rope_type": "linear", "factor": fields["llama.rope.scaling.factor"]}}


def _shortest(value: float) -> float:
    """The decimal that the float32 in the file was rounded from: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _write_weights(
    path: Path, source: Path, tensors: Mapping[str, ReaderTensor], config: Mapping[str, Any], report: Report
) -> None:
    unknown = {tensor.tensor_type.name for tensor in tensors.values()}.difference(_TYPES)
    if unknown:
        raise CheckpointError(f"{source}: got tensors of type {', '.join(sorted(unknown))}; expected {', '.join(_TYPES)}.")
    shapes = [(name, tuple(int(size) for size in reversed(tensor.shape))) for name, tensor in tensors.items()]
    total = 4 * sum(tensor.n_elements for tensor in tensors.values())
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def arrays() -> Iterator[np.ndarray]:
        from gguf.quants import dequantize

        done = 0
        for name, tensor in tensors.items():
            array = dequantize(tensor.data, tensor.tensor_type)
            projection = name.split(".")[-2]
            yield _rotate_halves(array, heads[projection]) if projection in heads else array
            done += 4 * tensor.n_elements
            report(done, total)

    safetensors.write(path, shapes, arrays())


def _rotate_halves(weights: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of rows: it rotates pairs of neighbours, the Hugging Face layout halves of a head."""
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
