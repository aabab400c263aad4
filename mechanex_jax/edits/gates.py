"""Conditional steering: a vector is added where the activation itself says so."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechanex_jax import rows
from mechanex_jax.edits.arguments import SMALLEST_SQUARE, normalize, number_per_row, parse_layers, per_layer, require_equal
from mechanex_jax.edits.base import parse_site
from mechanex_jax.edits.operations import Operation
from mechanex_jax.edits.schedule import make_schedule
from mechanex_jax.errors import expected


@rows.row_tree
class Cosine:
    """1 where cos(h, direction) > threshold, else 0; with finite sharpness sigmoid(sharpness * (cos - threshold)).

    Attributes:
      directions: unit vectors [N, D].
      threshold: -1 to 1.
      sharpness: infinity is the hard threshold.
    """

    directions: Any = rows.row(2)
    threshold: Any = rows.row()
    sharpness: Any = rows.row()

    def opening(self, h: jax.Array, entry: jax.Array) -> jax.Array:
        """g in [0, 1] for each position, [S]."""
        norm = jnp.sqrt(jnp.maximum(jnp.sum(h * h, axis=-1), SMALLEST_SQUARE))
        above = jnp.sum(h * self.directions[entry], axis=-1) / norm - self.threshold
        hard = jnp.isinf(self.sharpness)
        soft = jax.nn.sigmoid(jnp.where(hard, 1.0, self.sharpness) * above)
        return jnp.where(hard, (above > 0).astype(jnp.float32), soft)


@rows.row_tree
class Perceptron:
    """sigmoid(w2 . tanh(h w1 + b1) + b2). What activations are standardised by belongs into w1 and b1.

    Attributes:
      w1: [N, D, H].
      b1: [N, H].
      w2: [N, H].
      b2: [N].
    """

    w1: Any = rows.row(3)
    b1: Any = rows.row(2)
    w2: Any = rows.row(2)
    b2: Any = rows.row(1)

    def opening(self, h: jax.Array, entry: jax.Array) -> jax.Array:
        """g in [0, 1] for each position, [S]."""
        hidden = jnp.tanh(jnp.matmul(h, self.w1[entry], precision="highest") + self.b1[entry])
        return jax.nn.sigmoid(jnp.sum(hidden * self.w2[entry], axis=-1) + self.b2[entry])


@rows.row_tree
class Gate(Operation):
    """h + g(h) w v; `decision` computes g."""

    decision: Any = rows.nested()

    def acts(self, layer: jax.Array) -> jax.Array:
        """A decision costs a hundred times an addition: it is made at the listed layers only."""
        return jnp.any(self.schedule.layers == layer) & (self.schedule.strength != 0)

    def change(self, h: jax.Array, entry: jax.Array, weight: jax.Array) -> jax.Array:
        opening = self.decision.opening(h, entry)[:, None]
        return jnp.where(opening == 0, h, h + opening * weight * self.vectors[entry])


def _perceptron(given: Any, layers: np.ndarray, width: int) -> Perceptron:
    parts = (given.w1, given.b1, given.w2, given.b2) if isinstance(given, Perceptron) else given
    if not isinstance(parts, (tuple, list)) or len(parts) != 4:
        raise expected("perceptron", given, "a Perceptron, or its arrays (w1, b1, w2, b2)")
    names = ("perceptron.w1", "perceptron.b1", "perceptron.w2", "perceptron.b2")
    w1, b1, w2, b2 = (
        per_layer(name, part, axes, layers) for name, part, axes in zip(names, parts, ("D H", "H", "H", ""), strict=True)
    )
    require_equal(names[0], "D", w1.shape[-2], "vector", width)
    require_equal(names[1], "H", b1.shape[-1], "w1", w1.shape[-1])
    require_equal(names[2], "H", w2.shape[-1], "w1", w1.shape[-1])
    return Perceptron(w1, b1, w2, b2)


def _sharpness(value: Any) -> Any:
    if value is None:
        return np.float32(np.inf)
    array = number_per_row("sharpness", value)
    if isinstance(array, np.ndarray) and not (array > 0).all():
        raise expected("sharpness", value, "more than 0, or None for a hard threshold")
    return array


def _cosine(direction: Any, threshold: Any, sharpness: Any, layers: np.ndarray, width: int) -> Cosine:
    units, _ = normalize("direction", per_layer("direction", direction, "D", layers), layers)
    require_equal("direction", "D", units.shape[-1], "vector", width)
    level = number_per_row("threshold", threshold)
    if isinstance(level, np.ndarray) and (np.abs(level) > 1).any():
        raise expected("threshold", threshold, "a cosine, from -1 to 1")
    return Cosine(units, level, _sharpness(sharpness))


def gate(
    vector: Any,
    layer: Any,
    strength: Any = 1.0,
    *,
    threshold: Any = None,
    direction: Any = None,
    sharpness: Any = None,
    perceptron: Any = None,
    site: str = "resid_pre",
    scope: Any = "all",
    decay: Any = 1.0,
) -> Gate:
    """Conditional steering: h + g(h) * strength * vector, g between 0 and 1 for every row, layer and position by itself.

    g compares h with a direction, or is a small perceptron's answer. To act where the cosine is small, negate the direction
    and the threshold.

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
        decision: Any = _cosine(vectors if direction is None else direction, level, sharpness, layers, width)
    else:
        for name, value in (("threshold", threshold), ("direction", direction), ("sharpness", sharpness)):
            if value is not None:
                raise expected(name, value, "None beside a perceptron", "The perceptron alone decides.")
        decision = _perceptron(perceptron, layers, width)
    return Gate(parse_site(site), make_schedule(layers, strength, scope, decay), vectors, decision)
