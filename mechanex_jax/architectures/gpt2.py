"""GPT-2: learned positions, layer norms with bias, full multi-head attention (Radford et al. 2019)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float, Int32

from mechanex_jax import checkpoint_fields
from mechanex_jax.architectures import hf_config, layers
from mechanex_jax.architectures.config import CheckpointConfig, Config
from mechanex_jax.architectures.weights import AS_STORED, TRANSPOSED, WeightPlan
from mechanex_jax.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class GPT2Config(Config):
    """Configuration of a GPT-2.

    Attributes:
      hidden: F, width of the MLP.
      norm_eps: what the norms add to the variance.
      tied: whether the unembedding is the embedding, too.
    """

    hidden: int
    norm_eps: float
    tied: bool = True


FIELDS = checkpoint_fields.Fields(
    used={
        "vocab_size": checkpoint_fields.SIZE,
        "n_positions": checkpoint_fields.POSITIONS,
        "n_embd": checkpoint_fields.SIZE,
        "n_layer": checkpoint_fields.LAYERS,
        "n_head": checkpoint_fields.SIZE,
        "n_inner": checkpoint_fields.SIZE.or_null(),
        "layer_norm_epsilon": checkpoint_fields.POSITIVE,
        "tie_word_embeddings": checkpoint_fields.FLAG,
        "bos_token_id": checkpoint_fields.TOKEN_IDS,
        "eos_token_id": checkpoint_fields.TOKEN_IDS,
    },
    without_effect=hf_config.INHERITED_WITHOUT_EFFECT
    | {
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "initializer_range",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "use_cache",
        "pad_token_id",
        "reorder_and_upcast_attn",  # the precision of training; scores are float32 here
    },
    fixed=hf_config.INHERITED_FIXED
    | {
        "activation_function": ("gelu_new",),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
)


def configure(hf: CheckpointConfig) -> GPT2Config:
    """Read HF's `config.json` of model type `gpt2`."""
    hf = FIELDS.check(hf)
    width, heads = hf["n_embd"], hf["n_head"]
    if width % heads:
        raise CheckpointError(f"config.json: got n_embd {width} and n_head {heads}; expected a multiple of the latter.")
    return GPT2Config(
        vocabulary=hf["vocab_size"],
        width=width,
        layers=hf["n_layer"],
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        context=hf.get("n_positions", 1024),
        hidden=hf.get("n_inner") or 4 * width,
        norm_eps=float(hf.get("layer_norm_epsilon", 1e-5)),
        tied=hf.get("tie_word_embeddings", True),
    )


class GPT2(nnx.Module):
    """Embeddings of tokens and positions, blocks, norm and unembedding of a GPT-2."""

    def __init__(self, config: GPT2Config, dtype: DTypeLike):
        c = config
        self.embedding = None if c.tied else layers.Embedding(c.vocabulary, c.width, dtype)
        self.places = layers.Embedding(c.context, c.width, dtype)
        self.blocks = nnx.List(
            layers.Block(
                layers.LayerNorm(c.width, c.norm_eps, dtype),
                layers.Attention(
                    c.width, c.heads, c.kv_heads, c.head_dim, qkv_bias=True, out_bias=True, window=None, dtype=dtype
                ),
                layers.LayerNorm(c.width, c.norm_eps, dtype),
                layers.MLP(c.width, c.hidden, dtype),
            )
            for _ in range(c.layers)
        )
        self.norm = layers.LayerNorm(c.width, c.norm_eps, dtype)
        self.unembedding = layers.Unembedding(c.width, c.vocabulary, dtype)

    def embed(self, tokens: Int32[jax.Array, "B S"], positions: Int32[jax.Array, "B S"]) -> Float[jax.Array, "B S D"]:
        """See `Decoder`."""
        return (self.embedding or self.unembedding).embed(tokens) + self.places.embed(positions)

    def rotation(self, positions: Int32[jax.Array, "B S"]) -> None:
        """Nothing: positions are learned."""
        return None


def weights(config: GPT2Config, names: Collection[str]) -> WeightPlan:
    """Say where each parameter lies in a checkpoint. GPT-2's own matrices are [in, out] already.

    Checkpoints come with and without `transformer.` in front of all but the `lm_head`.
    """
    root = "" if "wte.weight" in names else "transformer."
    plan: WeightPlan = {
        "places.table": ((f"{root}wpe.weight",), AS_STORED),
        "norm.scale": ((f"{root}ln_f.weight",), AS_STORED),
        "norm.bias": ((f"{root}ln_f.bias",), AS_STORED),
        "unembedding.kernel": ((f"{root}wte.weight" if config.tied else "lm_head.weight",), TRANSPOSED),
    }
    if not config.tied:
        plan["embedding.table"] = ((f"{root}wte.weight",), AS_STORED)
    matrices = {
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    }
    norms = {"norm1": "ln_1", "norm2": "ln_2"}
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}", f"{root}h.{i}"
        for mine, hf in matrices.items():
            plan[f"{ours}.{mine}.kernel"] = ((f"{theirs}.{hf}.weight",), AS_STORED)
            plan[f"{ours}.{mine}.bias"] = ((f"{theirs}.{hf}.bias",), AS_STORED)
        for mine, hf in norms.items():
            plan[f"{ours}.{mine}.scale"] = ((f"{theirs}.{hf}.weight",), AS_STORED)
            plan[f"{ours}.{mine}.bias"] = ((f"{theirs}.{hf}.bias",), AS_STORED)
    return plan
