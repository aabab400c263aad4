"""Configurations with random weights, and both sides of each: ours, and `transformers` on PyTorch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import torch
from oracles import VOCABULARY, gpt2, llama, mistral

from mechanex_jax.architectures import Model

TOLERANCE = 1e-4
LLAMA3 = {
    "rope_theta": 1e3,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
      config: as `transformers` has it.
      length: tokens of the longest text, one more than a multiple of three.
      spelling: the same model as another row, written differently: only its logits are compared.
      rewrite: what happens to the folder before both sides read it.
      without: changes to the configuration that must change the logits; otherwise the case would show nothing.
    """

    config: Any
    length: int = 40
    spelling: bool = False
    rewrite: Callable[[Path], None] | None = None
    without: dict[str, Any] = dataclasses.field(default_factory=dict)


def old_rope(folder: Path, kind: str = "rope_type") -> None:
    """As transformers before 5 wrote it: `rope_theta` beside `rope_scaling`; before 4.43 the kind was under `type`."""

    def change(config: dict[str, Any]) -> None:
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else {kind: rope.pop("rope_type"), **rope}

    oracles.rewrite_config(folder, change)


def drop_keys(folder: Path, names: tuple[str, ...]) -> None:
    oracles.rewrite_config(folder, lambda config: [config.pop(name) for name in names])


def bare_names(folder: Path) -> None:
    """As GPT-2's first checkpoints: no `transformer.` before the names, and the causal masks among the tensors."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        return bare | {"h.0.attn.bias": torch.ones(1, 1, 8, 8)}

    oracles.rewrite_tensors(folder, change)


def rope(kind: str, theta: float = 10_000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": theta, "rope_type": kind, **more}}


DEFAULT_ROPE = rope("default")
TABLE = {
    "llama": Case(llama()),
    "llama, multi-head": Case(llama(num_key_value_heads=4)),
    "llama, one key head": Case(llama(num_key_value_heads=1)),
    "llama, tied": Case(llama(tie_word_embeddings=True)),
    "llama, biases": Case(llama(attention_bias=True, mlp_bias=True), without={"attention_bias": False, "mlp_bias": False}),
    "llama, wide heads": Case(llama(head_dim=24)),
    "llama, linear": Case(llama(**rope("linear", factor=4.0)), without=DEFAULT_ROPE),
    "llama, llama3": Case(llama(rope_parameters=LLAMA3), 301, without=rope("default", 1e3)),
    "mistral": Case(mistral()),
    "mistral, short window": Case(mistral(sliding_window=9), without={"sliding_window": None}),
    "mistral, blocks out of sight": Case(mistral(sliding_window=50), 301, without={"sliding_window": None}),
    "gpt2": Case(gpt2()),
    "gpt2, 768 wide": Case(gpt2(n_embd=768, n_head=12)),
    "gpt2, long": Case(gpt2(n_inner=40), 301),
    "llama, theta": Case(llama(**rope("default", 500.0)), spelling=True, without=DEFAULT_ROPE),
    "llama, theta, old spelling": Case(llama(**rope("default", 500.0)), spelling=True, rewrite=old_rope),
    "llama, linear, old spelling": Case(llama(**rope("linear", factor=4.0)), spelling=True, rewrite=old_rope),
    "llama, linear, oldest": Case(llama(**rope("linear", factor=4.0)), spelling=True, rewrite=partial(old_rope, kind="type")),
    "llama, llama3, old spelling": Case(llama(rope_parameters=LLAMA3), spelling=True, rewrite=old_rope),
    "llama, defaults not written": Case(
        llama(num_key_value_heads=4),
        spelling=True,
        rewrite=partial(drop_keys, names=("rope_parameters", "head_dim", "num_key_value_heads", "rms_norm_eps", "mlp_bias")),
    ),
    "mistral, long window": Case(mistral(sliding_window=400), spelling=True),
    "mistral, defaults not written": Case(
        mistral(num_attention_heads=16, num_key_value_heads=8, sliding_window=4096),
        spelling=True,
        rewrite=partial(drop_keys, names=("sliding_window", "num_key_value_heads", "max_position_embeddings")),
    ),
    "gpt2, untied": Case(gpt2(tie_word_embeddings=False), spelling=True),
    "gpt2, bare names": Case(gpt2(), spelling=True, rewrite=bare_names),
    "gpt2, bare names, untied": Case(gpt2(tie_word_embeddings=False), spelling=True, rewrite=bare_names),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both sides of a case, and a ragged batch: three texts, the longest first and the last a single token."""

    folder: Path
    model: Model
    hf: Any
    tokens: np.ndarray
    lengths: np.ndarray

    @functools.cached_property
    def truth(self) -> np.ndarray:
        """float32 [3, S, V] by transformers, each row by itself; zero behind its end."""
        found = np.zeros((*self.tokens.shape, VOCABULARY), np.float32)
        for row, length in enumerate(self.lengths):
            found[row, :length] = oracles.logits_of(self.hf, self.tokens[row : row + 1, :length])[0]
        return found

    @property
    def real(self) -> np.ndarray:
        """bool [3, S]: not padding."""
        return np.arange(self.tokens.shape[1]) < self.lengths[:, None]


def pairs(folders: Any) -> Callable[[str], Pair]:
    """Makes the pair of a name, once; `folders` is pytest's `tmp_path_factory`."""

    @functools.cache
    def make(name: str) -> Pair:
        case = TABLE[name]
        folder = oracles.saved(case.config, folders.mktemp("model"))
        if case.rewrite:
            case.rewrite(folder)
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, (3, case.length)).astype(np.int32)
        lengths = np.array([case.length, case.length // 2 + 1, 1], np.int32)
        return Pair(folder, oracles.ours(folder), oracles.theirs(folder), tokens, lengths)

    return make


@partial(jax.jit, static_argnames=("logits", "capture"))
def extend(
    model: Model, cache: Any, tokens: Any, valid: Any, edits: Any = (), *, logits: str = "all", capture: Any = ()
) -> Any:
    return model.extend(cache, tokens, valid, edits, logits=logits, capture=capture)


def whole(model: Model, tokens: np.ndarray, lengths: Any, *, capacity: int | None = None, cache: Any = None) -> Any:
    cache = cache or model.init_cache(len(tokens), capacity or tokens.shape[1])
    return extend(model, cache, jnp.asarray(tokens), jnp.asarray(lengths, jnp.int32))
