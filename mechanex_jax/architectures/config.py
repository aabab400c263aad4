"""The sizes that every family's configuration has, whatever else it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

# The content of `config.json`. Its values are read as the types that Hugging Face writes.
CheckpointConfig: TypeAlias = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a model, hashable; a family's own configuration adds to it.

    Attributes:
      vocabulary: V, how many logits there are.
      width: D, of the residual stream.
      layers: L, how many blocks there are.
      heads: query heads, a multiple of `kv_heads`.
      kv_heads: K, key and value heads.
      head_dim: H, dimensions of one head.
      context: the most positions that a text may have.
      tied: whether the embedding is the output matrix too; each family has its own default.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    if TYPE_CHECKING:
        tied: bool
