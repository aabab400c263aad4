"""Edits: pure functions of activations at named sites of a model.

`add, ablate, clamp, affine, norm_preserving, gate` make them; `scope` says at which positions they act; `compose` puts several
in order. One's own edit is a row tree with a static `site` and `apply(x, layer, where)` for one row (see `Edit`).
"""

from mechanex_jax.edits.arguments import parse_hook_point
from mechanex_jax.edits.base import SITES, Edit, Edits, Taps, TextPositions, check, compose
from mechanex_jax.edits.gates import Cosine, Gate, Perceptron, gate
from mechanex_jax.edits.operations import Add, Affine, Clamp, NormPreserving, ablate, add, affine, clamp, norm_preserving
from mechanex_jax.edits.row_steering import GatedVector, RowSteering, parse_steering, steering
from mechanex_jax.edits.schedule import Schedule, Scope, scope

__all__ = [
    "SITES",
    "Add",
    "Affine",
    "Clamp",
    "Cosine",
    "Edit",
    "Edits",
    "Gate",
    "GatedVector",
    "NormPreserving",
    "Perceptron",
    "RowSteering",
    "Schedule",
    "Scope",
    "Taps",
    "TextPositions",
    "ablate",
    "add",
    "affine",
    "check",
    "clamp",
    "compose",
    "gate",
    "norm_preserving",
    "parse_hook_point",
    "parse_steering",
    "scope",
    "steering",
]
