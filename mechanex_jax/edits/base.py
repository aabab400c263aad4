"""The protocol of an edit, and the taps through which blocks apply edits.

A block calls `taps(site, layer, x)` at each of `SITES`. A tap applies the edits made for that site and, where asked, keeps the
activation (after the edits) as a capture. A site that nobody uses costs nothing: no operation is emitted for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int32

from mechanex_jax import rows
from mechanex_jax.errors import expected

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


class TextPositions(NamedTuple):
    """Where one row's activations stand in its text.

    Attributes:
      positions: position of each activation, 0 for the row's first token.
      prompt_length: positions below it belong to the prompt.
    """

    positions: Int32[jax.Array, " S"]
    prompt_length: Int32[jax.Array, ""]


@runtime_checkable
class Edit(Protocol):
    """A pure function of one row's activations at one site. Implementations are row trees; `site` is static.

    An edit may also have `check(layers, width)`, called on the host before anything compiles (see `check`), and
    `acts(layer) -> bool []`, whether it does anything at a layer: where no row's does, `apply` is not run.
    """

    @property
    def site(self) -> str: ...

    def apply(self, x: Float[jax.Array, "S D"], layer: Int32[jax.Array, ""], where: TextPositions) -> Float[jax.Array, "S D"]:
        """Return the activation after the edit; called at every layer, with the layer's index traced."""
        ...


# What public functions accept: one edit, several of them in their order, or none.
Edits: TypeAlias = Edit | Sequence[Edit] | None


def compose(edits: object) -> tuple[Edit, ...]:
    """Put one edit, several or none into the tuple that taps take; at one site they apply one after another, in this order.

    >>> from mechanex_jax import edits
    >>> len(compose([edits.add([0.0, 1.0], layer=3), edits.ablate([1.0, 0.0], layer=3)]))
    2

    Args:
      edits: as `Edits`.

    Raises:
      ArgumentError: something in it is not an Edit.
    """
    if edits is None:
        return ()
    several: list[Edit] = []
    for edit in edits if isinstance(edits, (list, tuple)) else (edits,):
        if not (rows.is_row_tree(edit) and isinstance(edit, Edit) and edit.site in SITES):
            raise expected("edits", edit, "edits made by mx.edits, or row trees with `site` and `apply`")
        several.append(edit)
    return tuple(several)


def check(edits: object, layers: int | None, width: int | None) -> tuple[Edit, ...]:
    """Compose edits and hold them against a model, on the host: else a layer that the model lacks would be a silent no-op.

    >>> from mechanex_jax import edits
    >>> [type(edit).__name__ for edit in check(edits.add([0.0, 1.0], layer=3), layers=12, width=2)]
    ['Add']

    Args:
      edits: as `Edits`; those of one's own that have no method `check` pass.
      layers: how many layers the model has; None, of a model that does not say, accepts all.
      width: D of the model, or None.

    Raises:
      ArgumentError: a layer that is absent, or vectors of another width.
    """
    several = compose(edits)
    if layers is not None and width is not None:
        for edit in several:
            check_edit = getattr(edit, "check", None)
            if check_edit is not None:
                check_edit(layers, width)
    return several


class Taps:
    """The edits and captures of one forward call, as blocks see them.

    Attributes:
      edits: row trees, broadcast to B rows.
      where: `TextPositions` with B in front of every leaf.
      capture: sites whose activations are kept.
      captured: site -> [B, S, D] of the block at hand, filled as the block runs.
    """

    def __init__(self, edits: tuple[Edit, ...], where: TextPositions, capture: tuple[str, ...] = ()):
        self.edits, self.where, self.capture = edits, where, capture
        self.captured: dict[str, Float[jax.Array, "B S D"]] = {}

    def __call__(self, site: str, layer: Int32[jax.Array, ""], x: Float[jax.Array, "B S D"]) -> Float[jax.Array, "B S D"]:
        for edit in self.edits:
            if edit.site == site:
                x = self._apply(edit, layer, x)
        if site in self.capture:
            self.captured[site] = x
        return x

    def _apply(self, edit: Edit, layer: Int32[jax.Array, ""], x: Float[jax.Array, "B S D"]) -> Float[jax.Array, "B S D"]:
        axes = rows.row_axes(edit)
        apply = jax.vmap(lambda e, h, w: e.apply(h, layer, w), in_axes=(axes, 0, 0))
        if not hasattr(edit, "acts"):
            return apply(edit, x, self.where)
        acts = jax.vmap(lambda e: e.acts(layer), in_axes=(axes,))(edit)
        return jax.lax.cond(jnp.any(acts), lambda: apply(edit, x, self.where), lambda: x)
