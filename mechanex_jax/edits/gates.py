"""Conditional steering: a vector is added where the activation itself says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int32

from mechanex_jax import rows
from mechanex_jax.edits.arguments import (
    SMALLEST_SQUARE,
    Layers,
    Values,
    Vectors,
    normalize,
    number_per_row,
    parse_layers,
    parse_site,
    per_layer,
    require_equal,
)
from mechanex_jax.edits.operations import Activations, Operation, Weights
from mechanex_jax.edits.schedule import Scopes, make_schedule
from mechanex_jax.errors import expected
from mechanex_jax.rows import Array, PerRow


@rows.row_tree
class Cosine:
    """1 where cos(h, direction) > threshold, else 0; with finite sharpness sigmoid(sharpness * (cos - threshold)).

    Attributes:
      directions: unit vectors.
      threshold: -1 to 1.
      sharpness: infinity is the hard threshold.
    """

    directions: Float32[Array, "N D"] = rows.row(2)
    threshold: Float32[Array, ""] = rows.row()
    sharpness: Float32[Array, ""] = rows.row()

    def opening(self, h: Activations, entry: Int32[jax.Array, ""]) -> Float32[jax.Array, " S"]:
        """Compute g in [0, 1] for each position."""
        norm = jnp.sqrt(jnp.maximum(jnp.sum(h * h, axis=-1), SMALLEST_SQUARE))
        above = jnp.sum(h * self.directions[entry], axis=-1) / norm - self.threshold
        hard = jnp.isinf(self.sharpness)
        soft = jax.nn.sigmoid(jnp.where(hard, 1.0, self.sharpness) * above)
        return jnp.where(hard, (above > 0).astype(jnp.float32), soft)


@rows.row_tree
class Perceptron:
    """sigmoid(w2 . tanh(h w1 + b1) + b2). If activations are to be standardised first, w1 and b1 have to do it.

    Attributes:
      w1, b1: of the H hidden units.
      w2, b2: of the answer.
    """

    w1: Float32[Array, "N D H"] = rows.row(3)
    b1: Float32[Array, "N H"] = rows.row(2)
    w2: Float32[Array, "N H"] = rows.row(2)
    b2: Float32[Array, " N"] = rows.row(1)

    def opening(self, h: Activations, entry: Int32[jax.Array, ""]) -> Float32[jax.Array, " S"]:
        """Compute g in [0, 1] for each position."""
        hidden = jnp.tanh(jnp.matmul(h, self.w1[entry], precision="highest") + self.b1[entry])
        return jax.nn.sigmoid(jnp.sum(hidden * self.w2[entry], axis=-1) + self.b2[entry])


@rows.row_tree
class Gate(Operation):
    """h + g(h) w v; `decision` computes g."""

    decision: Cosine | Perceptron = rows.nested()

    def acts(self, layer: Int32[jax.Array, ""]) -> Bool[jax.Array, ""]:
        """Whether a layer is listed: a decision costs a hundred times an addition, and is made there only."""
        return jnp.any(self.schedule.layers == layer) & (self.schedule.strength != 0)

    def change(self, h: Activations, entry: Int32[jax.Array, ""], weight: Weights) -> Activations:
        opening = self.decision.opening(h, entry)[:, None]
        return jnp.where(opening == 0, h, h + opening * weight * self.vectors[entry])


if TYPE_CHECKING:
    PerceptronLike: TypeAlias = Perceptron | tuple[Values, Values, Values, Values]
else:  # as `mechanex_jax.rows.PerRow`
    PerceptronLike = object


def _parse_perceptron(perceptron: PerceptronLike, layers: Int32[np.ndarray, "*B N"], width: int) -> Perceptron:
    p = perceptron
    parts = (p.w1, p.b1, p.w2, p.b2) if isinstance(p, Perceptron) else p
    if not isinstance(parts, (tuple, list)) or len(parts) != 4:
        raise expected("perceptron", perceptron, "a Perceptron, or its arrays (w1, b1, w2, b2)")
    names = ("perceptron.w1", "perceptron.b1", "perceptron.w2", "perceptron.b2")
    w1, b1, w2, b2 = (
        per_layer(name, part, axes, layers) for name, part, axes in zip(names, parts, ("D H", "H", "H", ""), strict=True)
    )
    require_equal(names[0], "D", w1.shape[-2], "vector", width)
    require_equal(names[1], "H", b1.shape[-1], "w1", w1.shape[-1])
    require_equal(names[2], "H", w2.shape[-1], "w1", w1.shape[-1])
    return Perceptron(w1, b1, w2, b2)


def _parse_sharpness(value: PerRow | None) -> Float32[Array, "*B"]:
    if value is None:
        return np.full((), np.inf, np.float32)
    array = number_per_row("sharpness", value)
    if isinstance(array, np.ndarray) and not (array > 0).all():
        raise expected("sharpness", value, "more than 0, or None for a hard threshold")
    return array


def _parse_cosine(
    direction: Vectors, threshold: PerRow, sharpness: PerRow | None, layers: Int32[np.ndarray, "*B N"], width: int
) -> Cosine:
    units, _ = normalize("direction", per_layer("direction", direction, "D", layers), layers)
    require_equal("direction", "D", units.shape[-1], "vector", width)
    level = number_per_row("threshold", threshold)
    if isinstance(level, np.ndarray) and (np.abs(level) > 1).any():
        raise expected("threshold", threshold, "a cosine, from -1 to 1")
    return Cosine(units, level, _parse_sharpness(sharpness))


def gate(
    vector: Vectors,
    layer: Layers,
    strength: PerRow = 1.0,
    *,
    threshold: PerRow | None = None,
    direction: Vectors | None = None,
    sharpness: PerRow | None = None,
    perceptron: PerceptronLike | None = None,
    site: str = "resid_pre",
    scope: Scopes = "all",
    decay: PerRow = 1.0,
) -> Gate:
    """Add a vector where a gate opens: h + g(h) * strength * vector, g from 0 to 1 for each row, layer and position by itself.

    g compares h with a direction, or is a small perceptron's answer. To act where the cosine is small, negate the direction
    and the threshold.

    >>> from mechanex_jax.edits import TextPositions
    >>> where = TextPositions(jnp.arange(2), prompt_length=jnp.int32(2))
    >>> edit = gate([0.0, 1.0], layer=3, direction=[1.0, 0.0], threshold=0.5)
    >>> edit.apply(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.int32(3), where)
    Array([[1., 1.],
           [0., 1.]], dtype=float32)

    Args:
      vector, layer, strength, site, scope, decay: as for `add`.
      threshold: a cosine, a number or one per row [B]: g = 1 where cos(h, direction) is above it. None is 0.
      direction: as `vector`; None is the vector itself.
      sharpness: None is the hard threshold; a number, or one per row, makes g = sigmoid(sharpness * (cos - threshold)).
      perceptron: a `Perceptron`, or its arrays (w1 [N, D, H], b1 [N, H], w2 [N, H], b2 [N]), with B in front or, for one
        layer, without N: g = sigmoid(w2 . tanh(h w1 + b1) + b2). In place of the three above.

    Raises:
      ArgumentError: as `add`; a direction of length 0; a perceptron together with a threshold, direction or sharpness.

    Source: conditional activation steering (arXiv 2409.05907), which decides once for a prompt; this decides at each position.
    """
    layers = parse_layers(layer)
    vectors = per_layer("vector", vector, "D", layers)
    width = vectors.shape[-1]
    if perceptron is None:
        level = 0.0 if threshold is None else threshold
        decision = _parse_cosine(vectors if direction is None else direction, level, sharpness, layers, width)
    else:
        for name, value in (("threshold", threshold), ("direction", direction), ("sharpness", sharpness)):
            if value is not None:
                raise expected(name, value, "None beside a perceptron", "The perceptron alone decides.")
        decision = _parse_perceptron(perceptron, layers, width)
    return Gate(parse_site(site), make_schedule(layers, strength, scope, decay), vectors, decision)
