"""`Model`, which the loops decode with: arrays to trace, a hashable description, and pure methods."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import PyTreeDef
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Int32

from mechanex_jax.architectures import kv_cache
from mechanex_jax.architectures.config import CheckpointConfig, Config
from mechanex_jax.architectures.layers import Block, CallPositions, LayerNorm, RMSNorm, Rotation, Unembedding, run_blocks
from mechanex_jax.architectures.weights import WeightPlan
from mechanex_jax.edits import Edit, Taps, TextPositions


@runtime_checkable
class Decoder(Protocol):
    """The Flax module of a family: embedding, blocks, the last norm and the unembedding."""

    @property
    def blocks(self) -> Iterable[Block]: ...
    @property
    def norm(self) -> RMSNorm | LayerNorm: ...
    @property
    def unembedding(self) -> Unembedding: ...

    def embed(self, tokens: Int32[jax.Array, "B S"], positions: Int32[jax.Array, "B S"]) -> Float[jax.Array, "B S D"]:
        """Return the activations that enter the first block."""
        ...

    def rotation(self, positions: Int32[jax.Array, "B S"]) -> Rotation | None:
        """Return (cos, sin) of rotary positions; None where positions are learned."""
        ...


ConfigT = TypeVar("ConfigT", bound=Config)


@dataclasses.dataclass(frozen=True)
class Family(Generic[ConfigT]):
    """One architecture: how to read its configuration, build its module and find its weights.

    Attributes:
      configure: the content of `config.json` -> configuration. Raises KeyError for a missing key, and CheckpointError for what
        the module does not do.
      module: (configuration, dtype) -> module.
      weights: (configuration, names in the checkpoint) -> where each parameter lies.
    """

    configure: Callable[[CheckpointConfig], ConfigT]
    module: Callable[[ConfigT, DTypeLike], Decoder]
    weights: Callable[[ConfigT, Collection[str]], WeightPlan]


@dataclasses.dataclass(frozen=True)
class Static:
    """The part of a model that belongs to the compile key.

    Attributes:
      family: the architecture.
      config: the family's configuration.
      dtype: of the parameters, by name.
    """

    family: Family
    config: Config
    dtype: str


@functools.lru_cache(maxsize=64)
def _structure(
    static: Static,
) -> tuple[
    nnx.GraphDef[Decoder],
    PyTreeDef,  # pyright: ignore[reportInvalidTypeForm]  # no class to a type checker
    tuple[str, ...],
    tuple[jax.ShapeDtypeStruct, ...],
]:
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
    """Return the shape and dtype of each parameter by its path, in the order of `Model.params`. Nothing is allocated."""
    _, _, paths, shapes = _structure(static)
    return dict(zip(paths, shapes, strict=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """The result of `Model.extend`.

    Attributes:
      logits: [B, V] for `logits="last"`, [B, S, V] for "all", None for "none".
      cache: with the call's valid tokens added.
      captured: site -> activations of every layer, after the edits at that site.
    """

    logits: Float32[jax.Array, "B *S V"] | None
    cache: kv_cache.Cache
    captured: dict[str, Float[jax.Array, "B L S D"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder-only language model; it is a `loops.LanguageModel`.

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
    def dtype(self) -> np.dtype:
        """The type of the parameters, and of what a cache holds."""
        return jnp.dtype(self.static.dtype)

    def _module(self) -> Decoder:
        graphdef, treedef, _, _ = _structure(self.static)
        return nnx.merge(graphdef, jax.tree_util.tree_unflatten(treedef, self.params))

    def init_cache(self, batch: int, positions: int) -> kv_cache.Cache:
        """Make an empty cache for `positions` tokens in each of `batch` rows."""
        spec = self.spec
        return kv_cache.empty(spec.layers, batch, spec.kv_heads, positions, spec.head_dim, self.dtype)

    def unembedding(self) -> Float[jax.Array, "D V"]:
        """Return the matrix that turns what the last norm gives into logits."""
        return self._module().unembedding.kernel[...]

    def predict(self, hidden: Float[jax.Array, "*B D"]) -> Float32[jax.Array, "*B V"]:
        """Compute logits, float32, from activations as they leave the last block."""
        module = self._module()
        return module.unembedding(module.norm(hidden))

    def extend(
        self,
        cache: kv_cache.Cache,
        tokens: Int32[jax.Array, "B S"],
        valid: Int32[jax.Array, " B"],
        edits: tuple[Edit, ...] = (),
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
        at = CallPositions(cache.lengths, positions, module.rotation(positions), blocks)
        x, cache, captured = run_blocks(module.blocks, module.embed(tokens, positions), cache, at, taps)
        cache = dataclasses.replace(cache, lengths=cache.lengths + valid)
        if logits == "none":
            return ModelOutput(None, cache, captured)
        if logits == "last":
            last = jnp.maximum(valid - 1, 0)[:, None, None]
            x = jnp.take_along_axis(x, last, axis=1)[:, 0]
        return ModelOutput(module.unembedding(module.norm(x)), cache, captured)
