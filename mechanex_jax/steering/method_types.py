"""The input and the result that all methods of making vectors share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from mechanex_jax.loading import LoadedModel
from mechanex_jax.progress import Report
from mechanex_jax.steering.examples import Example
from mechanex_jax.steering.vector import Metrics, PerceptronWeights


@dataclasses.dataclass(frozen=True)
class MethodInput:
    """One vector to be made.

    Attributes:
      loaded: the model.
      examples: tokenized, of both kinds.
      layers: N of them, rising.
      site: where vectors are added, hence where activations are read.
      seed: of everything random.
      report: called with steps or answers done and their total.
      settings: all that the method reads, by name.
    """

    loaded: LoadedModel
    examples: Sequence[Example]
    layers: tuple[int, ...]
    site: str
    seed: int
    report: Report
    settings: Mapping[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class MethodResult:
    """Vectors at strength 1.

    Attributes:
      vectors: one per layer.
      perceptron: None, or the weights of a gate per layer.
      metrics: how the making went, such as the norms; by layer or by step.
    """

    vectors: Float32[np.ndarray, "N D"]
    perceptron: PerceptronWeights | None = None
    metrics: Metrics = dataclasses.field(default_factory=dict)
