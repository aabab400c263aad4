"""`Model`: what the loops decode with. Arrays to trace, a hashable description, and pure methods."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int32

from mechanex_jax.architectures import kv_cache
from mechanex_jax.architectures.layers import Positions, run_blocks
from mechanex_jax.architectures.weights import Layout
from mechanex_jax.edits import Taps, TextPositions


@runtime_checkable
class Config(Protocol):
    """What every family's frozen, hashable configuration tells."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int


class Family(NamedTuple):
    """One architecture: how to read its configuration, build its module and find its weights.

    Attributes:
      configure: HF `config.json` as a dict -> Config.
      module: (config, dtype) -> an nnx.Module with `embed(tokens, positions)`, `rotation(positions)`, `blocks`, `norm` and
        `unembedding`.
      weights: config, names in the checkpoint -> {parameter path: (HF tensor names, side by side along the last axis, and how
        each lies there)}.
    """

    configure: Callable[[dict[str, Any]], Any]
    module: Callable[[Any, Any], Any]
    weights: Callable[[Any, Any], dict[str, tuple[tuple[str, ...], Layout]]]


@dataclasses.dataclass(frozen=True)
class Static:
    """The part of a model that belongs to the compile key."""

    family: Family
    config: Any
    dtype: str


@functools.lru_cache(maxsize=64)
def _structure(static: Static) -> tuple[Any, Any, tuple[str, ...], tuple[jax.ShapeDtypeStruct, ...]]:
    """Graph definition, tree structure, parameter paths and shapes; nothing is allocated."""
    abstract = nnx.eval_shape(lambda: static.family.module(static.config, jnp.dtype(static.dtype)))
    graphdef, state = nnx.split(abstract)
    flat, treedef = jax.tree_util.tree_flatten_with_path(state)
    paths = tuple(
        ".".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path).removesuffix(".value") for path, _ in flat
    )
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for _, leaf in flat)
    return graphdef, treedef, paths, shapes


def parameter_shapes(static: Static) -> dict[str, jax.ShapeDtypeStruct]:
    """Parameter path -> shape and dtype, in the order of `Model.params`."""
    _, _, paths, shapes = _structure(static)
    return dict(zip(paths, shapes, strict=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """Attributes:
    logits: float32 [B, V] for `logits="last"`, [B, S, V] for "all", None for "none".
    cache: with the call's valid tokens added.
    captured: site -> [B, L, S, D], after the edits at that site.
    """

    logits: jax.Array | None
    cache: kv_cache.Cache
    captured: dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder-only language model.

    Attributes:
      params: the weights, a flat tuple of arrays: traced, never donated, never closed over.
      static: hashable; the same for two models of one shape, which then share their compiled programs.
    """

    params: tuple[jax.Array, ...]
    static: Static = dataclasses.field(metadata={"static": True})

    if TYPE_CHECKING:  # a cached_property is no property to a type checker's eyes

        @property
        def spec(self) -> Config:
            """The family's configuration."""
            ...

    else:
        spec = functools.cached_property(lambda self: self.static.config)

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(getattr(array, "size", 0) for array in self.params)  # a tree of axes has no arrays

    def __repr__(self) -> str:
        family = type(self.static.config).__name__.removesuffix("Config")
        return f"Model({family}, {self.size:,} parameters, {self.static.dtype})"

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.static.dtype)

    def _module(self) -> Any:
        graphdef, treedef, _, _ = _structure(self.static)
        return nnx.merge(graphdef, jax.tree_util.tree_unflatten(treedef, self.params))

    def init_cache(self, batch: int, positions: int) -> kv_cache.Cache:
        """An empty cache for `positions` tokens in each of `batch` rows."""
        spec = self.spec
        return kv_cache.empty(spec.layers, batch, spec.kv_heads, positions, spec.head_dim, self.dtype)

    def unembedding(self) -> Float[jax.Array, "D V"]:
        """The matrix that turns the last hidden state into logits."""
        return self._module().unembedding.kernel[...]

    def predict(self, hidden: Float[jax.Array, "... D"]) -> Float[jax.Array, "... V"]:
        """The logits that follow from activations as they leave the last block."""
        module = self._module()
        return module.unembedding(module.norm(hidden))

    def extend(
        self,
        cache: kv_cache.Cache,
        tokens: Int32[jax.Array, "B S"],
        valid: Int32[jax.Array, " B"],
        edits: tuple[Any, ...] = (),
        *,
        prompt_lengths: Int32[jax.Array, " B"] | None = None,
        logits: Literal["last", "all", "none"] = "last",
        capture: tuple[str, ...] = (),
    ) -> ModelOutput:
        """Run S more positions of every row: prefill, one decode step, and verification are all this.

        Args:
          cache: what came before; it must have room for S more positions in every row.
          tokens: the first `valid[b]` of row b are real; 0 leaves the row as it is.
          valid: real tokens per row.
          edits: row trees with B rows, see `mechanex_jax.edits`.
          prompt_lengths: where each row's prompt ends, for edits that ask; None: everything is prompt.
          logits: of each row's last valid position, of all positions, or of none.
          capture: sites to return activations of.
        """
        module = self._module()
        length = tokens.shape[1]
        positions = cache.lengths[:, None] + jnp.arange(length, dtype=jnp.int32)
        blocks = None
        if cache.capacity - length >= kv_cache.BLOCK:  # else all are live, and a fixed count is differentiable
            live = jnp.max(jnp.where(valid > 0, cache.lengths + valid, 1))
            blocks = (live + kv_cache.BLOCK - 1) // kv_cache.BLOCK
        prompt = jnp.full_like(valid, jnp.iinfo(jnp.int32).max) if prompt_lengths is None else prompt_lengths
        taps = Taps(edits, TextPositions(positions, prompt), capture)
        at = Positions(cache.lengths, positions, module.rotation(positions), blocks)
        x, cache, captured = run_blocks(module.blocks, module.embed(tokens, positions), cache, at, taps)
        cache = dataclasses.replace(cache, lengths=cache.lengths + valid)
        if logits == "none":
            return ModelOutput(None, cache, captured)
        if logits == "last":
            last = jnp.maximum(valid - 1, 0)[:, None, None]
            x = jnp.take_along_axis(x, last, axis=1)[:, 0]
        return ModelOutput(module.unembedding(module.norm(x)), cache, captured)
