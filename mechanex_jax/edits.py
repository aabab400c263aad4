"""Edits: pure functions of activations at named sites of a model, and the taps through which blocks apply them.

A block calls `taps(site, layer, x)` at each of `SITES`. A tap applies the edits made for that site and, where asked, keeps the
activation (after the edits) as a capture. A site that nobody uses costs nothing: no operation is emitted for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, Int32

from mechanex_jax import rows
from mechanex_jax.errors import Said, expected

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


class Where(NamedTuple):
    """Where one row's activations stand in its text.

    Attributes:
      positions: int32 [S], position of each activation, 0 for the row's first token.
      prompt_length: int32 [], positions below it belong to the prompt.
    """

    positions: jax.Array
    prompt_length: jax.Array


@runtime_checkable
class Edit(Protocol):
    """A pure function of one row's activations at one site. Implementations are row trees; `site` is static."""

    site: str

    def apply(self, x: Float[jax.Array, "S D"], layer: Int32[jax.Array, ""], where: Where) -> Float[jax.Array, "S D"]:
        """The activation after the edit; called at every layer, with the layer's index traced."""
        ...


@rows.row_tree
class Add:
    """h + strength * vector at the listed layers. A layer of -1 is no layer."""

    site: str = rows.static()
    layers: Any = rows.row(1, jnp.int32)
    vectors: Any = rows.row(2)
    strength: Any = rows.row()

    def apply(self, x: jax.Array, layer: jax.Array, where: Where) -> jax.Array:
        if self.vectors.shape[-1] != x.shape[-1]:
            raise expected("vector", Said(f"width {self.vectors.shape[-1]}"), f"{x.shape[-1]}, the width of this model")
        weights = jnp.where(self.layers == layer, self.strength, 0.0)
        return x + jnp.sum(weights[:, None] * self.vectors, axis=0).astype(x.dtype)


def _floats(name: str, value: Any) -> Any:
    """float32 on the host from a list, NumPy, JAX or torch; what is traced, for a gradient by it, stays traced."""
    if isinstance(value, Tracer):
        return value.astype(jnp.float32)
    if hasattr(value, "detach"):  # a torch tensor, which may be on a device, or bfloat16, which NumPy lacks
        value = value.detach().cpu().float().numpy()
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise expected(name, value, "numbers") from error
    if not np.isfinite(array).all():
        raise expected(name, "NaN or infinity", "finite numbers")
    return array


def add(vector: Any, layer: Any, strength: Any = 1.0, *, site: str = "resid_pre") -> Add:
    """Activation addition: h + strength * vector, at every position (prompt and generated).

    Args:
      vector: [D] for one layer or [N, D] for N layers; [B, N, D] gives every row its own. May be traced.
      layer: an index, N of them, or [B, N] with -1 where a row has fewer.
      strength: a number or one per row [B]; 0 is the identity.
      site: one of `SITES`; `resid_pre` is the residual stream as it enters the block.

    Raises:
      ArgumentError: unknown site, a value that is not a finite number, or shapes that don't fit each other.

    Source: activation addition (arXiv 2308.10248).
    """
    if site not in SITES:
        raise expected("site", site, f"one of {', '.join(SITES)}")
    vectors = _floats("vector", vector)
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    layers = np.atleast_1d(np.asarray(layer))
    if not np.issubdtype(layers.dtype, np.integer):
        raise expected("layer", layer, "whole numbers")
    if vectors.ndim not in (2, 3) or layers.shape[-1] != vectors.shape[-2]:
        raise expected("vector", vectors.shape, f"one vector [D] for each of the layers {layers.tolist()}")
    return Add(site, layers.astype(np.int32), vectors, _floats("strength", strength))


_HOOK_NAME = re.compile(r"blocks\.(\d+)\.(?:hook_)?(" + "|".join(SITES) + ")")


def parse_steering(vectors: Any, width: int, layers: int) -> dict[str, dict[int, np.ndarray]]:
    """`steering_vector` as the API takes it -> site -> layer -> float32 [D].

    Args:
      vectors: {layer: vector}; a layer is an int, a string of digits, or a name such as `blocks.11.hook_resid_pre`; a vector is
        [D], [1, D] or [1, 1, D], as a list, NumPy, JAX or torch (converted by duck typing).
      width: D of the model.
      layers: how many layers the model has.

    Raises:
      ArgumentError: another width, a layer that is absent, NaN, or nothing at all.
    """
    if not isinstance(vectors, Mapping) or not vectors:
        raise expected("steering_vector", vectors, "{layer: vector} with at least one layer")
    found: dict[str, dict[int, np.ndarray]] = {}
    for name, value in vectors.items():
        match = _HOOK_NAME.fullmatch(str(name))
        site, index = (match[2], match[1]) if match else ("resid_pre", str(name))
        if not index.isdecimal() or int(index) >= layers:
            raise expected(
                "steering_vector", name, f"a layer from 0 to {layers - 1}, or a name such as 'blocks.0.hook_resid_pre'"
            )
        vector = _floats(f"steering_vector[{name!r}]", value)
        if vector.size != width or vector.shape[-1:] != (width,):
            raise expected(f"steering_vector[{name!r}]", vector.shape, f"{width} numbers, the width of this model")
        found.setdefault(site, {})[int(index)] = vector.reshape(width)
    return found


def steering(
    per_row: Sequence[dict[str, dict[int, np.ndarray]] | None], strengths: Sequence[float], width: int
) -> tuple[Add, ...]:
    """The edits of a batch in which every row has vectors of its own, as `parse_steering` gives them, or none."""
    edits = []
    for site in sorted({site for vectors in per_row for site in vectors or ()}):
        chosen = [(vectors or {}).get(site, {}) for vectors in per_row]
        # Padded to a power of two: another number of layers then seldom means another compilation.
        entries = 1 << (max(map(len, chosen)) - 1).bit_length()
        layers = np.full((len(chosen), entries), -1, np.int32)
        matrix = np.zeros((len(chosen), entries, width), np.float32)
        for row, by_layer in enumerate(chosen):
            for slot, (layer, vector) in enumerate(sorted(by_layer.items())):
                layers[row, slot], matrix[row, slot] = layer, vector
        edits.append(add(matrix, layers, strengths, site=site))
    return tuple(edits)


def compose(edits: Any) -> tuple[Edit, ...]:
    """One edit, several or none, as the tuple that taps take; they apply in this order.

    Raises:
      ArgumentError: something in it is not an Edit.
    """
    if edits is None:
        return ()
    several = tuple(edits) if isinstance(edits, (list, tuple)) else (edits,)
    for edit in several:
        if not (rows.is_row_tree(edit) and isinstance(edit, Edit) and edit.site in SITES):
            raise expected("edits", edit, "edits made by mx.edits, or row trees with `site` and `apply`")
    return several


class Taps:
    """The edits and captures of one forward call, as blocks see them.

    Attributes:
      edits: row trees, broadcast to B rows.
      where: `Where` with B in front of every leaf.
      capture: sites whose activations are wanted.
      captured: site -> [B, S, D] of the block at hand, filled as the block runs.
    """

    def __init__(self, edits: tuple[Any, ...], where: Where, capture: tuple[str, ...] = ()):
        self.edits, self.where, self.capture = edits, where, capture
        self.captured: dict[str, jax.Array] = {}

    def __call__(self, site: str, layer: Int32[jax.Array, ""], x: Float[jax.Array, "B S D"]) -> Float[jax.Array, "B S D"]:
        for edit in self.edits:
            if edit.site == site:
                apply = jax.vmap(lambda e, h, w: e.apply(h, layer, w), in_axes=(rows.row_axes(edit), 0, 0))
                x = apply(edit, x, self.where)
        if site in self.capture:
            self.captured[site] = x
        return x
