"""Random steering vectors of a model that is none: a name, a fingerprint, a width and layers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from mechanex_jax.steering import SteeringVector

WIDTH = 6
MODEL = SimpleNamespace(name="tiny", fingerprint="f" * 8, model=SimpleNamespace(spec=SimpleNamespace(width=WIDTH, layers=5)))


def steering_vector(layers=(2, 3), site="resid_pre", gate=False, **about) -> SteeringVector:
    """The same vector each time; with `gate` one that a perceptron gates; `about` replaces what it says of itself."""
    rng = np.random.default_rng(0)
    n, normal = len(layers), lambda *shape: rng.normal(size=shape).astype(np.float32)
    perceptron = (normal(n, WIDTH, 3), normal(n, 3), normal(n, 3), normal(n)) if gate else None
    about = {"method": "caa", "model": "tiny", "fingerprint": "f" * 8, "metrics": {"loss": [2.0, 1.0]}, **about}
    return SteeringVector(normal(n, WIDTH), layers, site, perceptron=perceptron, **about)


def assert_same(one: SteeringVector, other: SteeringVector) -> None:
    """Every part of two vectors is equal."""
    assert one.summary() == other.summary()
    np.testing.assert_array_equal(one.vectors, other.vectors)
    assert (one.perceptron is None) == (other.perceptron is None)
    for a, b in zip(one.perceptron or (), other.perceptron or (), strict=True):
        np.testing.assert_array_equal(a, b)
