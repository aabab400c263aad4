"""The protocol that the loops ask of a model. `architectures.Model`, `Ensemble` and a researcher's toy all have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import jax
from jaxtyping import Float, Float32, Int32

from mechanex_jax.edits import Edit

LogitsOf: TypeAlias = Literal["last", "all", "none"]


@runtime_checkable
class ModelSpec(Protocol):
    """The sizes of a model.

    Attributes:
      vocabulary: V, how many logits there are.
      width, layers: D and L. Edits are held against them; those of a model that leaves them out, or None, are not.
      context: the most positions that a text may have; None: any number.
    """

    @property
    def vocabulary(self) -> int: ...
    @property
    def width(self) -> int | None: ...
    @property
    def layers(self) -> int | None: ...
    @property
    def context(self) -> int | None: ...


@runtime_checkable
class ModelCache(Protocol):
    """What a model remembers of its rows: a dataclass and pytree, B in front of every leaf.

    Attributes:
      lengths: positions that hold real tokens. A loop may lower them: what lies beyond is as if it had not been read.
    """

    @property
    def lengths(self) -> Int32[jax.Array, " B"]: ...


CacheT = TypeVar("CacheT", bound=ModelCache)
CacheT_co = TypeVar("CacheT_co", bound=ModelCache, covariant=True)


@runtime_checkable
class ExtendOutput(Protocol[CacheT_co]):
    """The result of `LanguageModel.extend`.

    Attributes:
      logits: [B, V] for `logits="last"`, [B, S, V] for "all", None for "none".
      cache: with the call's valid tokens added.
      captured: site -> activations of every layer, after the edits at that site. Read only where something was captured.
    """

    @property
    def logits(self) -> Float32[jax.Array, "B *S V"] | None: ...
    @property
    def cache(self) -> CacheT_co: ...
    @property
    def captured(self) -> Mapping[str, Float[jax.Array, "B L S D"]]: ...


@runtime_checkable
class LanguageModel(Protocol[CacheT]):
    """A pytree of weights with pure methods: everything that decodes."""

    @property
    def spec(self) -> ModelSpec: ...

    def init_cache(self, batch: int, positions: int) -> CacheT:
        """An empty cache for `positions` tokens in each of `batch` rows."""
        ...

    def unembedding(self) -> Float[jax.Array, "D V"]:
        """The matrix that turns the last hidden state into logits."""
        ...

    def extend(
        self,
        cache: CacheT,
        tokens: Int32[jax.Array, "B S"],
        valid: Int32[jax.Array, " B"],
        edits: tuple[Edit, ...] = (),
        *,
        prompt_lengths: Int32[jax.Array, " B"] | None = None,
        logits: LogitsOf = "last",
        capture: tuple[str, ...] = (),
    ) -> ExtendOutput[CacheT]:
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
        ...


@runtime_checkable
class ModelHandle(Protocol):
    """Anything that carries a model, such as what `mx.load` returns."""

    @property
    def model(self) -> LanguageModel: ...


def logits_of(output: ExtendOutput) -> Float32[jax.Array, "B *S V"]:
    """The logits of a call that asked for them."""
    assert output.logits is not None, 'the model was called with logits="none"'
    return output.logits
