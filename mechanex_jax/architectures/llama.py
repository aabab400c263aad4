"""Llama and its kin (SmolLM2, Llama 2 and 3, Mistral): rotary positions, RMS norms, gated MLP (arXiv 2302.13971)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float, Int32

from mechanex_jax.architectures import layers
from mechanex_jax.architectures.config import CheckpointConfig, Config
from mechanex_jax.architectures.weights import AS_STORED, TRANSPOSED, WeightPlan
from mechanex_jax.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class LlamaConfig(Config):
    """Configuration of a Llama.

    Attributes:
      hidden: F, width of the MLP.
      norm_eps: what the norms add to the mean square.
      theta: base of the rotary frequencies; `scaling` slows them for longer contexts.
      window: Mistral's sliding window, None for full attention.
      qkv_bias, out_bias, mlp_bias: which matrices have a bias.
      tied: whether the unembedding is the embedding, too.
    """

    hidden: int
    norm_eps: float
    theta: float
    scaling: layers.RotaryScaling | None = None
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False


def _scaling(hf: CheckpointConfig) -> tuple[float, layers.RotaryScaling | None]:
    """Rotary base and scaling, from the old spelling (`rope_theta`, `rope_scaling`) or the new (`rope_parameters`)."""
    rope = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    theta = float(rope.get("rope_theta", hf.get("rope_theta", 10_000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    part = rope.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
    if part not in (None, 1):
        raise CheckpointError(f"config.json: got partial_rotary_factor {part!r}; expected 1, rotation of whole heads.")
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise CheckpointError(
            f"config.json: got rope scaling {kind!r}; expected default, linear or llama3. Use a checkpoint without it."
        )
    factor = float(rope["factor"])
    if kind == "linear":
        return theta, layers.RotaryScaling("linear", factor)
    return theta, layers.RotaryScaling(
        "llama3",
        factor,
        float(rope["low_freq_factor"]),
        float(rope["high_freq_factor"]),
        int(rope["original_max_position_embeddings"]),
    )


def configure(hf: CheckpointConfig) -> LlamaConfig:
    """Read HF's `config.json` of model type `llama` or `mistral`."""
    activation = hf.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(f"config.json: got hidden_act {activation!r}; expected 'silu'.")
    heads = hf["num_attention_heads"]
    mistral = hf.get("model_type") == "mistral"  # what config.json leaves out is what HF's class of this type has
    kv_heads = hf.get("num_key_value_heads", 8 if mistral else None) or heads
    if heads % kv_heads:
        raise CheckpointError(
            f"config.json: got num_attention_heads {heads}, num_key_value_heads {kv_heads}; expected a multiple of the latter."
        )
    theta, scaling = _scaling(hf)
    bias = bool(hf.get("attention_bias", False))
    return LlamaConfig(
        vocabulary=hf["vocab_size"],
        width=hf["hidden_size"],
        layers=hf["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
        context=hf.get("max_position_embeddings", 131_072 if mistral else 2048),
        hidden=hf["intermediate_size"],
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        theta=theta,
        scaling=scaling,
        window=hf.get("sliding_window", 4096) if mistral else None,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bool(hf.get("mlp_bias", False)),
        tied=bool(hf.get("tie_word_embeddings", False)),
    )


class Llama(nnx.Module):
    """Embedding, blocks, norm and unembedding of a Llama."""

    def __init__(self, config: LlamaConfig, dtype: DTypeLike):
        c = config
        self.config = config
        self.embedding = None if c.tied else layers.Embedding(c.vocabulary, c.width, dtype)
        self.blocks = nnx.List(
            layers.Block(
                layers.RMSNorm(c.width, c.norm_eps, dtype),
                layers.Attention(
                    c.width,
                    c.heads,
                    c.kv_heads,
                    c.head_dim,
                    qkv_bias=c.qkv_bias,
                    out_bias=c.out_bias,
                    window=c.window,
                    dtype=dtype,
                ),
                layers.RMSNorm(c.width, c.norm_eps, dtype),
                layers.GatedMLP(c.width, c.hidden, c.mlp_bias, dtype),
            )
            for _ in range(c.layers)
        )
        self.norm = layers.RMSNorm(c.width, c.norm_eps, dtype)
        self.unembedding = layers.Unembedding(c.width, c.vocabulary, dtype)

    def embed(self, tokens: Int32[jax.Array, "B S"], positions: Int32[jax.Array, "B S"]) -> Float[jax.Array, "B S D"]:
        """See `Decoder`."""
        return (self.embedding or self.unembedding).embed(tokens)

    def rotation(self, positions: Int32[jax.Array, "B S"]) -> layers.Rotation:
        """See `Decoder`."""
        frequencies = layers.rotary_frequencies(self.config.head_dim, self.config.theta, self.config.scaling)
        angles = positions[..., None].astype(jnp.float32) * frequencies
        return jnp.cos(angles), jnp.sin(angles)


def weights(config: LlamaConfig, names: Collection[str]) -> WeightPlan:
    """Say where each parameter lies in a checkpoint."""

    def linear(ours: str, theirs: tuple[str, ...], bias: bool) -> WeightPlan:
        plan: WeightPlan = {f"{ours}.kernel": (tuple(f"{name}.weight" for name in theirs), TRANSPOSED)}
        if bias:
            plan[f"{ours}.bias"] = (tuple(f"{name}.bias" for name in theirs), AS_STORED)
        return plan

    c = config
    plan: WeightPlan = {"norm.scale": (("model.norm.weight",), AS_STORED)}
    if not c.tied:
        plan["embedding.table"] = (("model.embed_tokens.weight",), AS_STORED)
    plan["unembedding.kernel"] = (("model.embed_tokens.weight" if c.tied else "lm_head.weight",), TRANSPOSED)
    for i in range(c.layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        plan[f"{ours}.norm1.scale"] = ((f"{theirs}.input_layernorm.weight",), AS_STORED)
        plan[f"{ours}.norm2.scale"] = ((f"{theirs}.post_attention_layernorm.weight",), AS_STORED)
        plan |= linear(f"{ours}.attention.qkv", tuple(f"{attention}.{x}_proj" for x in "qkv"), c.qkv_bias)
        plan |= linear(f"{ours}.attention.out", (f"{attention}.o_proj",), c.out_bias)
        plan |= linear(f"{ours}.mlp.gate_up", (f"{mlp}.gate_proj", f"{mlp}.up_proj"), c.mlp_bias)
        plan |= linear(f"{ours}.mlp.down", (f"{mlp}.down_proj",), c.mlp_bias)
    return plan
