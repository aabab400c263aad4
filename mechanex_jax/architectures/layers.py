"""The parts that decoder-only transformers are made of. A family file picks and arranges them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Int32

from mechanex_jax.architectures import kv_cache
from mechanex_jax.edits import Edit, Taps, TextPositions

# (cos, sin) of the angles of half of a head's dimensions.
Rotation: TypeAlias = tuple[Float32[jax.Array, "B S half"], Float32[jax.Array, "B S half"]]
# One layer's part of a cache.
KeysValues: TypeAlias = tuple[Float[jax.Array, "B K T H"], Float[jax.Array, "B K T H"]]


class CallPositions(NamedTuple):
    """The places of one call's tokens, which all blocks share.

    Attributes:
      lengths: tokens each row already has in the cache.
      positions: position of each token in its text.
      rotation: (cos, sin) of half of a head's dimensions; None for models with learned positions.
      blocks: how many blocks of the cache to attend over, traced; None: all of them.
    """

    lengths: Int32[jax.Array, " B"]
    positions: Int32[jax.Array, "B S"]
    rotation: Rotation | None
    blocks: Int32[jax.Array, ""] | None


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones(width, dtype))
        self.eps = eps

    def __call__(self, x: Float[jax.Array, "*B D"]) -> Float[jax.Array, "*B D"]:
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return self.scale[...] * wide.astype(x.dtype)


class LayerNorm(nnx.Module):
    """Mean and variance normalisation with scale and bias, computed in float32 (arXiv 1607.06450)."""

    def __init__(self, width: int, eps: float, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones(width, dtype))
        self.bias = nnx.Param(jnp.zeros(width, dtype))
        self.eps = eps

    def __call__(self, x: Float[jax.Array, "*B D"]) -> Float[jax.Array, "*B D"]:
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (self.scale[...].astype(jnp.float32) * wide + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class Linear(nnx.Module):
    """x @ kernel + bias, the kernel [in, out]: XLA's CPU backend reads that layout at full memory bandwidth."""

    def __init__(self, inputs: int, outputs: int, bias: bool, dtype: DTypeLike):
        self.kernel = nnx.Param(jnp.zeros((inputs, outputs), dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, dtype)) if bias else None

    def __call__(self, x: Float[jax.Array, "*B inputs"]) -> Float[jax.Array, "*B outputs"]:
        out = x @ self.kernel[...]
        return out if self.bias is None else out + self.bias[...]


class Unembedding(nnx.Module):
    """Hidden states to logits, kernel [D, V]; also the input embedding of a model that ties the two."""

    def __init__(self, width: int, vocabulary: int, dtype: DTypeLike):
        self.kernel = nnx.Param(jnp.zeros((width, vocabulary), dtype))

    def __call__(self, x: Float[jax.Array, "*B D"]) -> Float32[jax.Array, "*B V"]:
        return jnp.matmul(x, self.kernel[...], preferred_element_type=jnp.float32)

    def embed(self, tokens: Int32[jax.Array, "B S"]) -> Float[jax.Array, "B S D"]:
        """Look the tokens up among the kernel's columns; as `Embedding`, of ids out of range too."""
        return jnp.moveaxis(jnp.take(self.kernel[...], tokens, axis=1, mode="clip"), 0, -1)


class Embedding(nnx.Module):
    """A table [N, D] looked up by row.

    Ids out of range, which only padding has, give some row and not NaN: a weight of 0 in attention does not stop NaN.
    """

    def __init__(self, entries: int, width: int, dtype: DTypeLike):
        self.table = nnx.Param(jnp.zeros((entries, width), dtype))

    def embed(self, ids: Int32[jax.Array, "B S"]) -> Float[jax.Array, "B S D"]:
        """Return the rows of the table."""
        return jnp.take(self.table[...], ids, axis=0, mode="clip")


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """Rotary frequencies for longer contexts: `linear` (arXiv 2306.15595) or `llama3` (Llama 3.1's model card).

    Attributes:
      kind: "linear" or "llama3".
      factor: what slowed frequencies are divided by.
      low_freq_factor, high_freq_factor: turns within `original_context`, below the first of which a frequency is slowed, and
        above the second of which it is kept; "llama3" only.
      original_context: positions that the model was trained on before it was extended; "llama3" only.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


def rotary_frequencies(head_dim: int, theta: float, scaling: RotaryScaling | None) -> Float32[np.ndarray, " half"]:
    """Compute the angle per position, in radians, for each pair of a head's dimensions."""
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return frequencies.astype(np.float32)
    slowed = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slowed.astype(np.float32)
    # llama3: long wavelengths are slowed, short ones kept, those between blended.
    turns = scaling.original_context * frequencies / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return ((1 - blend) * slowed + blend * frequencies).astype(np.float32)


def rotate(x: Float[jax.Array, "B S heads H"], rotation: Rotation) -> Float[jax.Array, "B S heads H"]:
    """Apply rotary position embeddings; the halves of H are the pairs, as in HF (arXiv 2104.09864)."""
    cos, sin = (part[:, :, None, :] for part in rotation)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention over a cache. One matrix holds queries, keys and values: fewer, larger products."""

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool,
        out_bias: bool,
        window: int | None,
        dtype: DTypeLike,
    ):
        self.qkv = Linear(width, (heads + 2 * kv_heads) * head_dim, qkv_bias, dtype)
        self.out = Linear(heads * head_dim, width, out_bias, dtype)
        self.heads, self.kv_heads, self.head_dim, self.window = heads, kv_heads, head_dim, window

    def __call__(
        self, x: Float[jax.Array, "B S D"], past: KeysValues, at: CallPositions
    ) -> tuple[Float[jax.Array, "B S D"], KeysValues]:
        batch, length, _ = x.shape
        kv, head = self.kv_heads, self.head_dim
        group = self.heads // kv
        q, k, v = jnp.split(self.qkv(x), [self.heads * head, (self.heads + kv) * head], axis=-1)
        q = q.reshape(batch, length, self.heads, head)
        k = k.reshape(batch, length, kv, head)
        v = v.reshape(batch, length, kv, head)
        if at.rotation is not None:
            q, k = rotate(q, at.rotation), rotate(k, at.rotation)
        keys = kv_cache.write(past[0], k.transpose(0, 2, 1, 3), at.lengths)
        values = kv_cache.write(past[1], v.transpose(0, 2, 1, 3), at.lengths)
        # [B, S, K*G, H] -> [B, K, S*G, H]: the queries of one key head side by side.
        q = q.reshape(batch, length, kv, group, head).transpose(0, 2, 1, 3, 4).reshape(batch, kv, length * group, head)
        positions = jnp.repeat(at.positions, group, axis=1)
        out = kv_cache.attend(q, keys, values, positions, at.blocks, scale=head**-0.5, window=self.window)
        out = out.reshape(batch, kv, length, group, head).transpose(0, 2, 1, 3, 4).reshape(batch, length, -1)
        return self.out(out.astype(x.dtype)), (keys, values)


class GatedMLP(nnx.Module):
    """silu(x G) * (x U) D, with G and U in one matrix (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, bias: bool, dtype: DTypeLike):
        self.gate_up = Linear(width, 2 * hidden, bias, dtype)
        self.down = Linear(hidden, width, bias, dtype)

    def __call__(self, x: Float[jax.Array, "B S D"]) -> Float[jax.Array, "B S D"]:
        gate, up = jnp.split(self.gate_up(x), 2, axis=-1)
        return self.down(jax.nn.silu(gate) * up)


class MLP(nnx.Module):
    """Two matrices with GPT-2's tanh-approximated GELU between them (arXiv 1606.08415)."""

    def __init__(self, width: int, hidden: int, dtype: DTypeLike):
        self.up = Linear(width, hidden, True, dtype)
        self.down = Linear(hidden, width, True, dtype)

    def __call__(self, x: Float[jax.Array, "B S D"]) -> Float[jax.Array, "B S D"]:
        return self.down(jax.nn.gelu(self.up(x), approximate=True))


class Block(nnx.Module):
    """A pre-norm transformer block with its five taps."""

    def __init__(self, norm1: RMSNorm | LayerNorm, attention: Attention, norm2: RMSNorm | LayerNorm, mlp: GatedMLP | MLP):
        self.norm1, self.attention, self.norm2, self.mlp = norm1, attention, norm2, mlp

    def __call__(
        self, x: Float[jax.Array, "B S D"], past: KeysValues, at: CallPositions, taps: Taps, layer: Int32[jax.Array, ""]
    ) -> tuple[Float[jax.Array, "B S D"], KeysValues]:
        x = taps("resid_pre", layer, x)
        mixed, past = self.attention(self.norm1(x), past, at)
        x = taps("resid_mid", layer, x + taps("attn_out", layer, mixed))
        hidden = self.mlp(self.norm2(x))
        x = taps("resid_post", layer, x + taps("mlp_out", layer, hidden))
        return x, past


@partial(jax.jit, static_argnames=("graphdef", "capture"))
def _run_block(
    graphdef: nnx.GraphDef[Block],
    state: nnx.State,
    x: Float[jax.Array, "B S D"],
    past: KeysValues,
    at: CallPositions,
    edits: tuple[Edit, ...],
    where: TextPositions,
    layer: Int32[jax.Array, ""],
    capture: tuple[str, ...],
) -> tuple[Float[jax.Array, "B S D"], KeysValues, dict[str, Float[jax.Array, "B S D"]]]:
    taps = Taps(edits, where, capture)
    x, past = nnx.merge(graphdef, state)(x, past, at, taps, layer)
    return x, past, taps.captured


def run_blocks(
    blocks: Iterable[Block], x: Float[jax.Array, "B S D"], cache: kv_cache.Cache, at: CallPositions, taps: Taps
) -> tuple[Float[jax.Array, "B S D"], kv_cache.Cache, dict[str, Float[jax.Array, "B L S D"]]]:
    """Run all blocks in order: (activations, cache without its lengths moved, captured by site).

    Layers are unrolled (a scan would slice a stack of weights), but all blocks of a model have one structure: an inner `jit`
    traces the first and reuses it for the rest.
    """
    keys, values, captured = [], [], []
    for index, block in enumerate(blocks):
        graphdef, state = nnx.split(block)
        past = (cache.keys[index], cache.values[index])
        x, past, kept = _run_block(graphdef, state, x, past, at, taps.edits, taps.where, jnp.int32(index), taps.capture)
        keys.append(past[0])
        values.append(past[1])
        captured.append(kept)
    stacked = {site: jnp.stack([kept[site] for kept in captured], axis=1) for site in taps.capture}
    return x, kv_cache.Cache(tuple(keys), tuple(values), cache.lengths), stacked


__all__ = [
    "MLP",
    "Attention",
    "Block",
    "CallPositions",
    "Embedding",
    "GatedMLP",
    "LayerNorm",
    "Linear",
    "RMSNorm",
    "RotaryScaling",
    "Unembedding",
    "rotary_frequencies",
    "rotate",
    "run_blocks",
]
