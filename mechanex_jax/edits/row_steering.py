"""Steering of one row as generation holds it, on the host, and the edits of a batch of such rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from mechanex_jax.edits.arguments import parse_vectors
from mechanex_jax.edits.base import SITES, Edit
from mechanex_jax.edits.gates import Gate, gate
from mechanex_jax.edits.operations import Add
from mechanex_jax.edits.schedule import EVERYWHERE, Schedule, Scope
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.representation import short_repr


class GatedVector(NamedTuple):
    """A vector behind a perceptron, at one layer.

    Attributes:
      site: one of `SITES`.
      layer: its index.
      vector: what is added where the gate opens.
      perceptron: w1, b1, w2 and b2 of `Perceptron`, for one layer.
    """

    site: str
    layer: int
    vector: Float32[np.ndarray, " D"]
    perceptron: tuple[Float32[np.ndarray, "D H"], Float32[np.ndarray, " H"], Float32[np.ndarray, " H"], Float32[np.ndarray, ""]]


@dataclasses.dataclass(frozen=True, eq=False)
class RowSteering:
    """The vectors and gates that steer one row, on the host.

    Attributes:
      additions: site -> layer -> float32 [D], strength included.
      gates: vectors behind perceptrons.
      scope: at which positions; by default at all.
    """

    __repr__ = short_repr

    additions: Mapping[str, Mapping[int, np.ndarray]]
    gates: tuple[GatedVector, ...] = ()
    scope: Scope = EVERYWHERE

    @property
    def hook_points(self) -> list[tuple[str, int]]:
        """(site, layer) of all vectors, sorted."""
        added = {(site, layer) for site, by_layer in self.additions.items() for layer in by_layer}
        return sorted(added | {(gated.site, gated.layer) for gated in self.gates})

    def only(self, hook_points: Collection[tuple[str, int]]) -> RowSteering:
        """Keep the vectors and gates at these (site, layer) only."""
        return dataclasses.replace(
            self,
            additions={
                site: {layer: vector for layer, vector in by_layer.items() if (site, layer) in hook_points}
                for site, by_layer in self.additions.items()
            },
            gates=tuple(gated for gated in self.gates if (gated.site, gated.layer) in hook_points),
        )

    def scaled(self, strength: float) -> RowSteering:
        """Multiply all vectors by `strength`. 0 steers nothing, but keeps the shapes of a batch's edits, hence the program."""
        factor = np.float32(strength)
        return dataclasses.replace(
            self,
            additions={
                site: {layer: factor * vector for layer, vector in by_layer.items()}
                for site, by_layer in self.additions.items()
            },
            gates=tuple(gated._replace(vector=factor * gated.vector) for gated in self.gates),
        )

    def __add__(self, other: RowSteering) -> RowSteering:
        """Combine two: vectors at the same site and layer add up, gates apply one after another.

        Raises:
          ArgumentError: they act at different positions.
        """
        if self.scope != other.scope:
            raise expected("scope", Verbatim("two of them"), "one for all that steers a row", "Scope the sum.")
        total = {site: dict(by_layer) for site, by_layer in self.additions.items()}
        for site, by_layer in other.additions.items():
            here = total.setdefault(site, {})
            for layer, vector in by_layer.items():
                here[layer] = here[layer] + vector if layer in here else vector
        return RowSteering(total, self.gates + other.gates, self.scope)


def parse_steering(vectors: object, width: int, layers: int) -> RowSteering:
    """Read `steering_vector` as users write it, at strength 1; see `parse_vectors`."""
    return RowSteering(parse_vectors(vectors, width, layers))


def _power_of_two(size: int) -> int:
    """Round up, so that another number of layers seldom means another compilation."""
    return 1 << max(size - 1, 0).bit_length()


def _table(
    chosen: Sequence[Mapping[int, np.ndarray]], width: int
) -> tuple[Int32[np.ndarray, "B N"], Float32[np.ndarray, "B N D"]]:
    """Lay out layers and vectors of B rows; a vector of zeros gets layer -1 and is no steering, bit for bit."""
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
    bounds = np.array([dataclasses.astuple(scope) for scope in scopes], np.int32).T
    return Add(site, Schedule(layers, *np.ones((2, len(chosen)), np.float32), *bounds), matrix)


def _gates(site: str, chosen: Sequence[Mapping[int, GatedVector]], scopes: Sequence[Scope], width: int) -> Gate:
    """Lay out at most one gate per row and layer. Hidden units that a perceptron lacks have weight 0."""
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
    """Group the gates of one row at one site by rounds, each with one gate per layer at most."""
    rounds: list[dict[int, GatedVector]] = []
    for gated in gates:
        if gated.site == site:
            free = next((taken for taken in rounds if gated.layer not in taken), None)
            if free is None:
                rounds.append(free := {})
            free[gated.layer] = gated
    return rounds


def steering(per_row: Sequence[RowSteering | None], width: int) -> tuple[Edit, ...]:
    """Make the edits of a batch in which every row is steered by itself, or not.

    One addition per site serves all rows, then the gates.

    >>> [type(edit).__name__ for edit in steering([parse_steering({1: [1.0, 0.0]}, width=2, layers=3), None], width=2)]
    ['Add']

    Args:
      per_row: B values; None is a row that is not steered.
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
