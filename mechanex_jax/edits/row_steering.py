"""Steering of one row as generation holds it, on the host, and the edits of a batch of such rows."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mechanex_jax.edits.arguments import as_float32
from mechanex_jax.edits.base import SITES, Edit
from mechanex_jax.edits.gates import Gate, gate
from mechanex_jax.edits.operations import Add, add
from mechanex_jax.edits.schedule import EVERYWHERE, Scope
from mechanex_jax.errors import Verbatim, expected


class GatedVector(NamedTuple):
    """A vector behind a perceptron, at one layer.

    Attributes:
      site: one of `SITES`.
      layer: its index.
      vector: float32 [D].
      perceptron: (w1 [D, H], b1 [H], w2 [H], b2 []), see `Perceptron`.
    """

    site: str
    layer: int
    vector: np.ndarray
    perceptron: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class RowSteering:
    """What steers one row.

    Attributes:
      additions: site -> layer -> float32 [D], strength included.
      gates: vectors behind perceptrons.
      scope: at which positions; by default at all.
    """

    additions: Mapping[str, Mapping[int, np.ndarray]]
    gates: tuple[GatedVector, ...] = ()
    scope: Scope = EVERYWHERE

    @property
    def hook_points(self) -> list[tuple[str, int]]:
        """(site, layer) of all vectors, sorted."""
        found = {(site, layer) for site, vectors in self.additions.items() for layer in vectors}
        return sorted(found | {(gated.site, gated.layer) for gated in self.gates})

    def only(self, hook_points: Collection[tuple[str, int]]) -> RowSteering:
        """The vectors at these (site, layer) only."""
        return dataclasses.replace(
            self,
            additions={
                site: {layer: vector for layer, vector in found.items() if (site, layer) in hook_points}
                for site, found in self.additions.items()
            },
            gates=tuple(gated for gated in self.gates if (gated.site, gated.layer) in hook_points),
        )

    def scaled(self, strength: float) -> RowSteering:
        """All vectors times `strength`; 0 keeps the shape of the batch's edits, hence their program, and steers nothing."""
        factor = np.float32(strength)
        return dataclasses.replace(
            self,
            additions={
                site: {layer: factor * vector for layer, vector in found.items()} for site, found in self.additions.items()
            },
            gates=tuple(gated._replace(vector=factor * gated.vector) for gated in self.gates),
        )

    def __add__(self, other: RowSteering) -> RowSteering:
        """Both: vectors at the same site and layer add up, gates apply one after another.

        Raises:
          ArgumentError: they act at different positions.
        """
        if self.scope != other.scope:
            raise expected("scope", Verbatim("two of them"), "one for all that steers a row", "Scope the sum.")
        total = {site: dict(found) for site, found in self.additions.items()}
        for site, found in other.additions.items():
            here = total.setdefault(site, {})
            for layer, vector in found.items():
                here[layer] = here[layer] + vector if layer in here else vector
        return RowSteering(total, self.gates + other.gates, self.scope)


_HOOK_NAME = re.compile(r"blocks\.(\d+)\.(?:hook_)?(" + "|".join(SITES) + ")")


def parse_hook_point(name: Any, layers: int, argument: str, site: str = "resid_pre") -> tuple[str, int]:
    """(site, layer) of an int, a string of digits, or a name such as `blocks.11.hook_resid_post`.

    Args:
      name: as the user wrote it.
      layers: how many layers the model has.
      argument: what errors call it.
      site: what a bare number means.

    Raises:
      ArgumentError: neither, or a layer that is absent.
    """
    match = _HOOK_NAME.fullmatch(str(name))
    site, index = (match[2], match[1]) if match else (site, str(name))
    if not index.isdecimal() or int(index) >= layers:
        raise expected(argument, name, f"a layer from 0 to {layers - 1}, or a name such as 'blocks.0.hook_resid_pre'")
    return site, int(index)


def parse_steering(vectors: Any, width: int, layers: int) -> RowSteering:
    """`steering_vector` as the API takes it.

    Args:
      vectors: {layer: vector}; a layer is an int, a string of digits, or a name such as `blocks.11.hook_resid_pre`; a vector is
        [D], [1, D] or [1, 1, D], as a list, NumPy, JAX or torch (converted by duck typing).
      width: D of the model.
      layers: how many layers the model has.

    Raises:
      ArgumentError: another width, a layer that is absent or given twice, NaN, or nothing at all.
    """
    if not isinstance(vectors, Mapping) or not vectors:
        raise expected("steering_vector", vectors, "{layer: vector} with at least one layer")
    found: dict[str, dict[int, np.ndarray]] = {}
    names: dict[tuple[str, int], Any] = {}
    for name, value in vectors.items():
        place = parse_hook_point(name, layers, "steering_vector")
        site, index = place
        if place in names:
            both = Verbatim(f"layer {index} twice, as {names[place]!r} and as {name!r}")
            raise expected("steering_vector", both, f"one vector for {site} of each layer", "Add the two up.")
        names[place] = name
        vector = as_float32(f"steering_vector[{name!r}]", value)
        if vector.size != width or vector.shape[-1:] != (width,):
            raise expected(f"steering_vector[{name!r}]", vector.shape, f"{width} numbers, the width of this model")
        found.setdefault(site, {})[index] = vector.reshape(width)
    return RowSteering(found)


def _power_of_two(size: int) -> int:
    """Padded so, another number of layers seldom means another compilation."""
    return 1 << max(size - 1, 0).bit_length()


def _table(chosen: Sequence[Mapping[int, np.ndarray]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Layers [B, N] and vectors [B, N, D]; a vector of zeros gets layer -1 and is no steering, bit for bit."""
    count = _power_of_two(max(map(len, chosen)))
    layers = np.full((len(chosen), count), -1, np.int32)
    matrix = np.zeros((len(chosen), count, width), np.float32)
    for row, by_layer in enumerate(chosen):
        for slot, (layer, vector) in enumerate(sorted(by_layer.items())):
            if vector.shape != (width,):
                raise expected(
                    "steering", Verbatim(f"a vector of shape {vector.shape}"), f"({width},), the width of this model"
                )
            layers[row, slot], matrix[row, slot] = layer if vector.any() else -1, vector
    return layers, matrix


def _additions(site: str, chosen: Sequence[Mapping[int, np.ndarray]], scopes: Sequence[Scope], width: int) -> Add:
    layers, matrix = _table(chosen, width)
    return add(matrix, layers, site=site, scope=scopes)


def _gates(site: str, chosen: Sequence[Mapping[int, GatedVector]], scopes: Sequence[Scope], width: int) -> Gate:
    """At most one gate per row and layer. Hidden units that a perceptron lacks have weight 0."""
    layers, matrix = _table([{layer: gated.vector for layer, gated in row.items()} for row in chosen], width)
    hidden = _power_of_two(max(gated.perceptron[0].shape[-1] for row in chosen for gated in row.values()))
    w1 = np.zeros((*layers.shape, width, hidden), np.float32)
    b1, w2 = (np.zeros((*layers.shape, hidden), np.float32) for _ in range(2))
    b2 = np.zeros(layers.shape, np.float32)
    for row, by_layer in enumerate(chosen):
        for slot, (_, gated) in enumerate(sorted(by_layer.items())):
            parts = gated.perceptron
            size = parts[0].shape[-1]
            w1[row, slot, :, :size], b1[row, slot, :size], w2[row, slot, :size], b2[row, slot] = parts
    return gate(matrix, layers, perceptron=(w1, b1, w2, b2), site=site, scope=scopes)


def _rounds(gates: Sequence[GatedVector], site: str) -> list[dict[int, GatedVector]]:
    """The gates of one row at one site, those of one layer in different rounds."""
    rounds: list[dict[int, GatedVector]] = []
    for gated in gates:
        if gated.site == site:
            free = next((taken for taken in rounds if gated.layer not in taken), None)
            if free is None:
                rounds.append(free := {})
            free[gated.layer] = gated
    return rounds


def steering(per_row: Sequence[RowSteering | None], width: int) -> tuple[Edit, ...]:
    """The edits of a batch in which every row is steered by itself, or not: one addition per site for all rows, then the gates.

    Args:
      per_row: B values.
      width: D of the model.

    Raises:
      ArgumentError: a vector of another width.
    """
    present = [row or RowSteering({}) for row in per_row]
    scopes = [row.scope for row in present]
    edits: list[Edit] = []
    for site in SITES:
        chosen = [row.additions.get(site, {}) for row in present]
        if any(chosen):
            edits.append(_additions(site, chosen, scopes, width))
        rounds = [_rounds(row.gates, site) for row in present]
        for turn in range(max(map(len, rounds), default=0)):
            edits.append(_gates(site, [row[turn] if turn < len(row) else {} for row in rounds], scopes, width))
    return tuple(edits)
