"""Llama and its kin (SmolLM2, Llama 2 and 3, Mistral): rotary positions, RMS norms, gated MLP (arXiv 2302.13971)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float, Int32

from mechanex_jax import checkpoint_fields
from mechanex_jax.architectures import hf_config, layers
from mechanex_jax.architectures.config import CheckpointConfig, Config
from mechanex_jax.architectures.weights import AS_STORED, TRANSPOSED, WeightPlan
from mechanex_jax.checkpoint_fields import Kind, check
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


_USED = {
    "vocab_size": checkpoint_fields.SIZE,
    "hidden_size": checkpoint_fields.SIZE,
    "intermediate_size": checkpoint_fields.SIZE,
    "num_hidden_layers": checkpoint_fields.LAYERS,
    "num_attention_heads": checkpoint_fields.SIZE,
    "num_key_value_heads": checkpoint_fields.SIZE.or_null(),
    "head_dim": checkpoint_fields.SIZE.or_null(),
    "max_position_embeddings": checkpoint_fields.POSITIONS,
    "rms_norm_eps": checkpoint_fields.POSITIVE,
    "rope_parameters": checkpoint_fields.OBJECT,
    "rope_scaling": checkpoint_fields.OBJECT,  # as transformers before 5 spelt it
    "tie_word_embeddings": checkpoint_fields.FLAG,
    "bos_token_id": checkpoint_fields.TOKEN_IDS,
    "eos_token_id": checkpoint_fields.TOKEN_IDS,
}
_WITHOUT_EFFECT = hf_config.INHERITED_WITHOUT_EFFECT | {
    "initializer_range",
    "use_cache",
    "pad_token_id",
    "attention_dropout",
}
_FIXED = hf_config.INHERITED_FIXED | {"hidden_act": ("silu", "swish")}

LLAMA_FIELDS = checkpoint_fields.Fields(
    used=_USED | {"attention_bias": checkpoint_fields.FLAG, "mlp_bias": checkpoint_fields.FLAG},
    without_effect=_WITHOUT_EFFECT | {"pretraining_tp"},
    fixed=_FIXED,
)
# What a Mistral has no field for (`attention_bias`, `mlp_bias`) changes nothing in transformers; biases among the tensors are
# then refused as tensors that nothing reads.
MISTRAL_FIELDS = checkpoint_fields.Fields(
    used=_USED | {"sliding_window": checkpoint_fields.POSITIONS.or_null()},
    without_effect=_WITHOUT_EFFECT,
    fixed=_FIXED,
)
_LAYER_TYPES = {"full_attention": False, "attention": False, "sliding_attention": True}


def _scaling(hf: CheckpointConfig, context: int) -> tuple[float, layers.RotaryScaling | None]:
    """Rotary base and scaling, resolved as transformers 5 does.

    `rope_scaling` of the old spelling replaces `rope_parameters` of the new as a whole; `rope_theta` inside either wins over
    the one beside it; `original_max_position_embeddings` beside them wins over the one inside.
    """
    rope: CheckpointConfig = hf.get("rope_scaling") or hf.get("rope_parameters") or {}

    def value(name: str, kind: Kind, default: float | None = None) -> float:
        given = rope.get(name, default)
        if given is None and name not in rope:
            raise KeyError(name)
        check(given, name, kind)
        assert given is not None  # `check` has refused it
        return given

    nested = [name for name, inner in rope.items() if isinstance(inner, dict)]
    if nested:
        raise CheckpointError(
            f"config.json: got rotary parameters by layer type ({', '.join(nested)}); expected the same for all layers. "
            "Use a checkpoint without them."
        )
    theta = float(value("rope_theta", checkpoint_fields.POSITIVE, hf.get("rope_theta", 10_000.0)))
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
    factor = float(value("factor", checkpoint_fields.POSITIVE))
    if kind == "linear":
        return theta, layers.RotaryScaling("linear", factor)
    low, high = (float(value(f"{name}_freq_factor", checkpoint_fields.POSITIVE)) for name in ("low", "high"))
    if low >= high:
        raise CheckpointError(
            f"config.json: got low_freq_factor {low} and high_freq_factor {high}; expected the first below the second."
        )
    inside = value("original_max_position_embeddings", checkpoint_fields.POSITIONS, context)
    original = hf.get("original_max_position_embeddings", inside)
    check(original, "original_max_position_embeddings", checkpoint_fields.POSITIONS)
    return theta, layers.RotaryScaling("llama3", factor, low, high, original)


def _window(hf: CheckpointConfig) -> int | None:
    """Mistral's sliding window. With `layer_types`, transformers reads a Mistral as a Ministral: a window a layer."""
    window = hf.get("sliding_window", 4096)
    types = hf.get("layer_types")
    if types is None:
        return window
    known = isinstance(types, list) and all(isinstance(name, str) and name in _LAYER_TYPES for name in types)
    sliding = {_LAYER_TYPES[name] for name in types} if known else set()
    if len(sliding) != 1 or len(types) != hf["num_hidden_layers"] or (sliding == {True} and window is None):
        shown = ", ".join(map(str, dict.fromkeys(map(str, types)))) if isinstance(types, list) else repr(types)
        raise CheckpointError(
            f"config.json: got layer_types {shown[:120]} with sliding_window {window}; expected one type, full_attention or "
            f"sliding_attention, for all {hf['num_hidden_layers']} layers. Use a checkpoint whose layers are alike."
        )
    return window if sliding == {True} else None


def configure(hf: CheckpointConfig) -> LlamaConfig:
    """Read HF's `config.json` of model type `llama` or `mistral`."""
    mistral = hf.get("model_type") == "mistral"  # what config.json leaves out is what HF's class of this type has
    hf = (MISTRAL_FIELDS if mistral else LLAMA_FIELDS).check(hf)
    width, heads = hf["hidden_size"], hf["num_attention_heads"]
    kv_heads = hf.get("num_key_value_heads", 8 if mistral else None) or heads
    if heads % kv_heads:
        raise CheckpointError(
            f"config.json: got num_attention_heads {heads}, num_key_value_heads {kv_heads}; expected a multiple of the latter."
        )
    head_dim = hf.get("head_dim") or width // heads
    if head_dim % 2 or (hf.get("head_dim") is None and width % heads):
        raise CheckpointError(
            f"config.json: got hidden_size {width}, num_attention_heads {heads} and head_dim {hf.get('head_dim')}; expected "
            "heads of an even size that make up hidden_size, or head_dim."
        )
    context = hf.get("max_position_embeddings", 131_072 if mistral else 2048)
    theta, scaling = _scaling(hf, context)
    bias = not mistral and hf.get("attention_bias", False)
    return LlamaConfig(
        vocabulary=hf["vocab_size"],
        width=width,
        layers=hf["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=context,
        hidden=hf["intermediate_size"],
        norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
        theta=theta,
        scaling=scaling,
        window=_window(hf) if mistral else None,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=not mistral and hf.get("mlp_bias", False),
        tied=hf.get("tie_word_embeddings", False),
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
