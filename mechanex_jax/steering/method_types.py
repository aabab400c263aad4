"""What methods are given and what they return."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mechanex_jax.progress import Report
from mechanex_jax.steering.examples import Example


@dataclasses.dataclass(frozen=True)
class Task:
    """What a method is to make.

    Attributes:
      loaded: the model.
      examples: tokenised, of both kinds.
      layers: N of them, rising.
      site: where vectors are added, hence where activations are read.
      seed: of everything random.
      report: called with what is done and the total.
      settings: of the method, by name.
    """

    loaded: Any
    examples: Sequence[Example]
    layers: tuple[int, ...]
    site: str
    seed: int
    report: Report
    settings: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """What a method made.

    Attributes:
      vectors: float32 [N, D].
      perceptron: None, or float32 (w1 [N, D, H], b1 [N, H], w2 [N, H], b2 [N]), see `mx.edits.gate`.
      metrics: of the making; JSON.
    """

    vectors: np.ndarray
    perceptron: tuple[np.ndarray, ...] | None = None
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
