"""Operations on activations: add, ablate, clamp, affine, norm_preserving.

Each is a few lines of `change`, for one row. A `Schedule`, the same for all of them, says at which layers, at which
positions and how strongly they act.
"""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32

from mechanex_jax import rows
from mechanex_jax.edits.arguments import (
    SMALLEST_SQUARE,
    Layers,
    LowRank,
    Values,
    Vectors,
    as_float32,
    normalize,
    parse_layers,
    parse_site,
    per_layer,
    require_equal,
)
from mechanex_jax.edits.base import Edit, TextPositions, check, compose
from mechanex_jax.edits.schedule import Schedule, Scopes, make_schedule
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.rows import Array, PerRow

# One row's activations while they are changed, and the weight of each position.
Activations: TypeAlias = Float32[jax.Array, "S D"]
Weights: TypeAlias = Float32[jax.Array, "S 1"]


@rows.row_tree
class Operation:
    """Base of the operations: N entries, one vector each, of which a layer takes its own.

    Attributes:
      site: one of `SITES`.
      schedule: layers, scope, strength and decay.
      vectors: one for each entry.
    """

    site: str = rows.static()
    schedule: Schedule = rows.nested()
    vectors: Float32[Array, "N D"] = rows.row(2)

    def change(self, h: Activations, entry: Int32[jax.Array, ""], weight: Weights) -> Activations:
        """Return activations after the operation of one entry."""
        raise NotImplementedError

    def apply(self, x: Float[jax.Array, "S D"], layer: Int32[jax.Array, ""], where: TextPositions) -> Float[jax.Array, "S D"]:
        self._check_width(x.shape[-1])
        entry, weight = self.schedule.at(layer, where)
        weight = weight[:, None]
        # Chosen, not added: h + 0 would turn -0 into 0, and the formulas with a norm round.
        return jnp.where(weight == 0, x, self.change(x.astype(jnp.float32), entry, weight).astype(x.dtype))

    def check(self, layers: int, width: int) -> None:
        self._check_width(width)
        used = np.asarray(self.schedule.layers)
        if used.max(initial=-1) >= layers:
            raise expected("layer", int(used.max()), f"a layer from 0 to {layers - 1}", "This model has no others.")

    def _check_width(self, width: int) -> None:
        if self.vectors.shape[-1] != width:
            raise expected("vector", Verbatim(f"width {self.vectors.shape[-1]}"), f"{width}, the width of this model")


@rows.row_tree
class Add(Operation):
    """h + w v."""

    def change(self, h: Activations, entry: Int32[jax.Array, ""], weight: Weights) -> Activations:
        return h + weight * self.vectors[entry]


@rows.row_tree
class Clamp(Operation):
    """h + w u (target - u.h): at w = 1 the component of h along the unit vector u becomes the target."""

    targets: Float32[Array, " N"] = rows.row(1)

    def change(self, h: Activations, entry: Int32[jax.Array, ""], weight: Weights) -> Activations:
        u = self.vectors[entry]
        along = jnp.sum(h * u, axis=-1, keepdims=True)
        return h + weight * (self.targets[entry] - along) * u


@rows.row_tree
class Affine(Operation):
    """h + w (A^T B h + v), A and B [N, R, D]."""

    a: Float32[Array, "N R D"] = rows.row(3)
    b: Float32[Array, "N R D"] = rows.row(3)

    def change(self, h: Activations, entry: Int32[jax.Array, ""], weight: Weights) -> Activations:
        inner = jnp.matmul(h, self.b[entry].T, precision="highest")
        return h + weight * (jnp.matmul(inner, self.a[entry], precision="highest") + self.vectors[entry])


@rows.row_tree
class NormPreserving:
    """h' |h| / |h'|, h' the activation after another edit."""

    site: str = rows.static()
    edit: Edit = rows.nested()

    def apply(self, x: Float[jax.Array, "S D"], layer: Int32[jax.Array, ""], where: TextPositions) -> Float[jax.Array, "S D"]:
        edited = self.edit.apply(x, layer, where)
        before, after = x.astype(jnp.float32), edited.astype(jnp.float32)
        squares = [jnp.maximum(jnp.sum(h * h, axis=-1, keepdims=True), SMALLEST_SQUARE) for h in (before, after)]
        scaled = (after * jnp.sqrt(squares[0] / squares[1])).astype(x.dtype)
        return jnp.where(jnp.all(edited == x, axis=-1, keepdims=True), x, scaled)

    def check(self, layers: int, width: int) -> None:
        check(self.edit, layers, width)


def add(
    vector: Vectors,
    layer: Layers,
    strength: PerRow = 1.0,
    *,
    site: str = "resid_pre",
    scope: Scopes = "all",
    decay: PerRow = 1.0,
) -> Add:
    """Add a vector to activations: h + strength * vector.

    The arguments from `layer` on mean the same for all operations. All but `site` are data: another value, layer or scope
    never recompiles.

    >>> where = TextPositions(jnp.arange(1), prompt_length=jnp.int32(1))
    >>> add([0.0, 1.0], layer=3, strength=2.0).apply(jnp.ones((1, 2)), jnp.int32(3), where)
    Array([[1., 3.]], dtype=float32)

    Args:
      vector: [D] for one layer or [N, D] for N layers; [B, N, D] gives every row its own. May be traced.
      layer: an index, N different ones, or [B, N]; -1 is no layer, for rows that have fewer.
      strength: a number or one per row [B]; 0 is the identity, bit for bit.
      site: one of `SITES`; `resid_pre` is the residual stream as it enters the block.
      scope: which positions: "all" (prompt and generated), "prompt", "generated", a window made by `scope`, or one of these
        per row.
      decay: gamma in (0, 1], a number or one per row: strength * gamma ** t, t positions after the scope's start; 1 is none.

    Raises:
      ArgumentError: unknown site or scope, a value that is not a finite number, or shapes that don't fit each other.

    Source: activation addition (arXiv 2308.10248).
    """
    layers = parse_layers(layer)
    return Add(parse_site(site), make_schedule(layers, strength, scope, decay), per_layer("vector", vector, "D", layers))


def ablate(
    vector: Vectors,
    layer: Layers,
    strength: PerRow = 1.0,
    *,
    site: str = "resid_pre",
    scope: Scopes = "all",
    decay: PerRow = 1.0,
) -> Clamp:
    """Project a direction out: h - strength * u (u.h), u = vector / |vector|.

    >>> where = TextPositions(jnp.arange(1), prompt_length=jnp.int32(1))
    >>> ablate([0.0, 5.0], layer=3).apply(jnp.ones((1, 2)), jnp.int32(3), where)
    Array([[1., 0.]], dtype=float32)

    Args:
      vector: as for `add`; only its direction counts.
      layer, site, scope, decay: as for `add`.
      strength: 1 removes the component, 0 is the identity, 2 mirrors h.

    Raises:
      ArgumentError: as `add`, and for a vector of length 0.

    Source: directional ablation (arXiv 2406.11717).
    """
    return clamp(vector, layer, 0.0, strength, site=site, scope=scope, decay=decay)


def clamp(
    vector: Vectors,
    layer: Layers,
    value: Values,
    strength: PerRow = 1.0,
    *,
    site: str = "resid_pre",
    scope: Scopes = "all",
    decay: PerRow = 1.0,
) -> Clamp:
    """Set the component along a direction: h - u (u.h) + value * vector, u = vector / |vector|.

    >>> where = TextPositions(jnp.arange(1), prompt_length=jnp.int32(1))
    >>> clamp([0.0, 1.0], layer=3, value=7.0).apply(jnp.ones((1, 2)), jnp.int32(3), where)
    Array([[1., 7.]], dtype=float32)

    Args:
      vector: as for `add`.
      layer, site, scope, decay: as for `add`.
      value: c, in units of the vector: a number, one per row [B], or one per row and layer [B, N]. 0 is `ablate`.
      strength: how much of the way, a number or one per row: 1 is the formula above, 0 the identity.

    Raises:
      ArgumentError: as `add`, and for a vector of length 0.

    Source: feature clamping as in "Scaling Monosemanticity" (Anthropic, 2024), for any direction.
    """
    layers = parse_layers(layer)
    units, lengths = normalize("vector", per_layer("vector", vector, "D", layers), layers)
    values = as_float32("value", value)
    if values.ndim > 2 or (values.ndim == 2 and values.shape[1] != layers.shape[-1]):
        raise expected("value", Verbatim(f"shape {values.shape}"), "a number, one per row [B], or one per row and layer [B, N]")
    if values.ndim and lengths.ndim == 2 and len(values) not in (1, len(lengths)):
        raise expected("value", Verbatim(f"{len(values)} rows"), f"{len(lengths)}, as vector has")
    targets = (values[:, None] if values.ndim == 1 else values) * lengths
    return Clamp(parse_site(site), make_schedule(layers, strength, scope, decay), units, targets)


def affine(
    a: LowRank,
    b: LowRank,
    layer: Layers,
    strength: PerRow = 1.0,
    *,
    vector: Vectors | None = None,
    site: str = "resid_pre",
    scope: Scopes = "all",
    decay: PerRow = 1.0,
) -> Affine:
    """Apply a low-rank affine map: h + strength * (A^T B h + vector).

    >>> where = TextPositions(jnp.arange(1), prompt_length=jnp.int32(1))
    >>> affine([[0.0, 1.0]], [[2.0, 3.0]], layer=3).apply(jnp.ones((1, 2)), jnp.int32(3), where)
    Array([[1., 6.]], dtype=float32)

    Args:
      a, b: [R, D] for one layer or [N, R, D]; [B, N, R, D] gives every row its own. May be traced. Another R compiles anew.
      layer, strength, site, scope, decay: as for `add`.
      vector: v, as for `add`; None is 0.

    Raises:
      ArgumentError: as `add`.

    Source: LoReFT is h + R^T (W h + b - R h), that is A = R, B = W - R and v = R^T b (arXiv 2404.03592).
    """
    layers = parse_layers(layer)
    a, b = per_layer("a", a, "R D", layers), per_layer("b", b, "R D", layers)
    require_equal("b", "R", b.shape[-2], "a", a.shape[-2])
    require_equal("b", "D", b.shape[-1], "a", a.shape[-1])
    nothing = np.zeros((layers.shape[-1], a.shape[-1]), np.float32)
    shift = nothing if vector is None else per_layer("vector", vector, "D", layers)
    require_equal("vector", "D", shift.shape[-1], "a", a.shape[-1])
    return Affine(parse_site(site), make_schedule(layers, strength, scope, decay), shift, a, b)


def norm_preserving(edit: object) -> NormPreserving:
    """Keep each activation's norm through another edit: h' |h| / |h'|, so that only its direction changes.

    >>> where = TextPositions(jnp.arange(1), prompt_length=jnp.int32(1))
    >>> norm_preserving(add([0.0, 5.0], layer=3)).apply(jnp.array([[10.0, 0.0]]), jnp.int32(3), where).round()
    Array([[9., 4.]], dtype=float32)

    Args:
      edit: one edit, or a row tree of one's own with `site` and `apply`. Where it changes nothing, nothing is scaled.

    Raises:
      ArgumentError: not one edit.
    """
    inner = compose(edit)
    if len(inner) != 1:
        raise expected("edit", edit, "one edit")
    return NormPreserving(inner[0].site, inner[0])


__all__ = ["Add", "Affine", "Clamp", "NormPreserving", "Operation", "ablate", "add", "affine", "clamp", "norm_preserving"]
