"""Edits: pure functions of activations at named sites of a model.

`add, ablate, clamp, affine, norm_preserving, gate` make them; `scope` says at which positions they act; `compose` puts several
in order. One's own edit is a row tree with a static `site` and `apply(x, layer, where)` for one row (see `Edit`).
"""

from mechanex_jax.edits.base import SITES, Edit, Taps, Where, check, compose
from mechanex_jax.edits.gates import Cosine, Gate, Perceptron, gate
from mechanex_jax.edits.operations import Add, Affine, Clamp, NormPreserving, ablate, add, affine, clamp, norm_preserving
from mechanex_jax.edits.row_steering import Gated, Steering, parse_steering, place_of, steering
from mechanex_jax.edits.schedule import Scope, When, scope

__all__ = [
    "SITES",
    "Add",
    "Affine",
    "Clamp",
    "Cosine",
    "Edit",
    "Gate",
    "Gated",
    "NormPreserving",
    "Perceptron",
    "Scope",
    "Steering",
    "Taps",
    "When",
    "Where",
    "ablate",
    "add",
    "affine",
    "check",
    "clamp",
    "compose",
    "gate",
    "norm_preserving",
    "parse_steering",
    "place_of",
    "scope",
    "steering",
]
