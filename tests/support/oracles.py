"""Small random models of `transformers`, on disk and in memory: what ours are compared with.

All parameters are random, norms and biases too: at the usual initialisation (ones, zeros, matrices of scale 0.02) half
of the mistakes that a port can have would change no logit by more than 1e-4.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, PreTrainedConfig
from transformers.utils import logging

from mechanex_jax import architectures, checkpoints
from mechanex_jax.architectures import Model

logging.disable_progress_bar()
torch.set_num_threads(1)  # beside JAX's threads, PyTorch's spin while they wait for each other: up to ten times slower

VOCABULARY = 97
_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def llama(**changes: Any) -> PreTrainedConfig:
    return LlamaConfig(**(_SMALL | changes))


def mistral(**changes: Any) -> PreTrainedConfig:
    return MistralConfig(**(_SMALL | {"sliding_window": None} | changes))


def gpt2(**changes: Any) -> PreTrainedConfig:
    small = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 320}
    return GPT2Config(**(small | {"bos_token_id": None, "eos_token_id": None} | changes))


def saved(config: PreTrainedConfig, folder: Path, *, seed: int = 0, shard: str = "5GB") -> Path:
    """A checkpoint with random weights, as `transformers` writes it."""
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            if parameter.ndim == 1:
                parameter.copy_(0.2 * noise + ("bias" not in name))
            else:  # embeddings so that logits have a size of about 4, matrices so that scores have one of about 1
                embedding = any(part in name for part in ("embed", "wte", "wpe", "lm_head"))
                parameter.copy_(noise * (4.0 if embedding else 1.2) * config.hidden_size**-0.5)
    hf.save_pretrained(folder, max_shard_size=shard)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def rewrite_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = read_config(folder)
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def rewrite_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """`change` edits the tensors in place, or returns others."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    changed = change(tensors)
    tensors = tensors if changed is None else changed
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, {"format": "pt"})


def ours(folder: Path, dtype: str = "float32") -> Model:
    return architectures.build(read_config(folder), checkpoints.TensorReader(folder), dtype=dtype, device=jax.devices("cpu")[0])


def theirs(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def logits_of(hf: Any, tokens: Any) -> np.ndarray:
    """float32 [B, S, V] of tokens without padding, by a forward pass without a cache."""
    with torch.inference_mode():
        return hf(torch.as_tensor(np.asarray(tokens), dtype=torch.long), use_cache=False).logits.float().numpy()


@dataclasses.dataclass(frozen=True)
class Parts:
    """The modules of one block under names common to all families."""

    block: Any
    attention: Any
    norm2: Any
    mlp: Any


def parts(hf: Any) -> list[Parts]:
    if hf.config.model_type == "gpt2":
        return [Parts(block, block.attn, block.ln_2, block.mlp) for block in hf.transformer.h]
    return [Parts(b, b.self_attn, b.post_attention_layernorm, b.mlp) for b in hf.model.layers]


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _with_first(output: Any, value: Any) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


@contextmanager
def edited(hf: Any, site: str, layer: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """While active, the activation at one of our sites goes through `change`, by hooks on PyTorch's modules."""
    part = parts(hf)[layer]
    entered: list[torch.Tensor] = []

    def enter(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = change(args[0]) if site == "resid_pre" else args[0]
        entered[:] = [x]
        return (x, *args[1:])

    def leave(module: Any, args: Any, output: Any) -> Any:
        return _with_first(output, change(_first(output)))

    def mix(module: Any, args: Any, output: Any) -> Any:  # so that x + attn_out becomes change(x + attn_out)
        return _with_first(output, change(entered[0] + _first(output)) - entered[0])

    handles = [part.block.register_forward_pre_hook(enter)]
    if site == "resid_mid":
        handles.append(part.attention.register_forward_hook(mix))
    elif site != "resid_pre":
        module = {"attn_out": part.attention, "mlp_out": part.mlp, "resid_post": part.block}[site]
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def activations(hf: Any, tokens: Any) -> dict[str, np.ndarray]:
    """site -> [B, L, S, D], by hooks."""
    found: dict[str, list[torch.Tensor]] = {}
    handles = []

    def keep(site: str) -> Callable[..., None]:
        return lambda module, args, output=None: found.setdefault(site, []).append(
            _first(args if output is None else output).detach()
        )

    for part in parts(hf):
        handles += [
            part.block.register_forward_pre_hook(keep("resid_pre")),
            part.attention.register_forward_hook(keep("attn_out")),
            part.norm2.register_forward_pre_hook(keep("resid_mid")),
            part.mlp.register_forward_hook(keep("mlp_out")),
            part.block.register_forward_hook(keep("resid_post")),
        ]
    try:
        logits_of(hf, tokens)
    finally:
        for handle in handles:
            handle.remove()
    return {site: torch.stack(values, dim=1).numpy() for site, values in found.items()}


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE of about 300 tokens beside a model, without special tokens; it needs a vocabulary of 320."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["the future of artificial intelligence is in the hands of the users"] * 9, trainer)
    backend.save(str(folder / "tokenizer.json"))
    # Of no class that has special tokens of its own, as GPT2's has, which transformers takes for a model of GPT-2.
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
