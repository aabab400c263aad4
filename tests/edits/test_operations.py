"""One table of operations times one list of properties."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import edit_oracles as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from edit_oracles import CASES, PROMPTS, SCOPES, D, vectors, weights

import mechanex_jax as mechanex
from mechanex_jax import edits, rows
from mechanex_jax.edits import Taps, TextPositions

every_operation = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Callable[[str], tuple[Any, Any]]:
    """Our model and transformers', by family."""
    return functools.cache(lambda family: oracle.pair(family, tmp_path_factory.mktemp(family)))


@functools.partial(jax.jit, static_argnames="site")
def _tapped(edit: Any, x: jax.Array, layer: jax.Array, prompts: jax.Array, site: str) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    return Taps((edit,), TextPositions(positions, prompts))(site, layer, x)


def tapped(edit: Any, x: Any, layer: int, prompts: Any) -> np.ndarray:
    """Activations [B, S, D] of one layer after the edit, as a block gets them."""
    batch = rows.broadcast_rows(edit, len(x))
    return np.asarray(_tapped(batch, jnp.asarray(x), jnp.int32(layer), np.asarray(prompts, np.int32), edit.site))


# --- against formulas --------------------------------------------------------------------------------------


@pytest.mark.slow
@every_operation
def test_equals_the_formula_in_float64(name: str) -> None:
    """All scopes, strengths, decays, vectors and layers at once: every row of one batch has its own."""
    case, count, total = CASES[name], 2 * len(SCOPES), 9
    x = 2 * vectors(count, total, D, seed=9)
    prompts = [(3 * row) % 8 + 1 for row in range(count)]
    names = [*SCOPES, *SCOPES]
    strengths, decays = np.linspace(-2, 3, count), [1.0] * len(SCOPES) + [0.5] * len(SCOPES)
    layers = np.stack([np.arange(count) % 3, (np.arange(count) + 1) % 3], axis=1)  # entry 0 or 1, or neither, is for layer 1
    drawn = [case.draw(10 * row, 2) for row in range(count)]
    values = {key: np.stack([row[key] for row in drawn]) for key in drawn[0]}
    edit = case.make(values, layers, strengths, scope=[edits.scope(**SCOPES[s][0]) for s in names], decay=decays)
    got = tapped(edit, x, 1, prompts)
    moved = 0
    for row in range(count):
        w = weights(names[row], prompts[row], total, strengths[row], decays[row])
        expected = x[row].astype(np.float64)
        for slot in np.flatnonzero(layers[row] == 1):
            expected = case.formula(oracle.entry(values, row, slot), expected, w)
        np.testing.assert_allclose(got[row], expected, rtol=2e-5, atol=2e-5)
        moved += np.abs(expected - x[row]).max() > 0.1
    assert moved > count // 2


# --- identity, independence, compilation -----------------------------------------------------------------------------

NOTHING: dict[str, Callable[[Any, Any], Any]] = {
    "strength 0": lambda case, p: case.make(p, 1, 0.0),
    "strength -0": lambda case, p: case.make(p, 1, -0.0),
    "layer -1": lambda case, p: case.make(p, -1, 2.0),
    "another layer": lambda case, p: case.make(p, 0, 2.0),
    "scope elsewhere": lambda case, p: case.make(p, 1, 2.0, scope="generated"),
    "decayed to 0": lambda case, p: case.make(p, 1, 0.0, decay=1e-30),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@every_operation
def test_weight_zero_is_the_identity_bit_for_bit(name: str, dtype: Any) -> None:
    """Of -0, infinity and the smallest numbers too."""
    x = np.asarray(vectors(2, 5, D, seed=1))
    x[0, :, :6] = [-0.0, 0.0, np.inf, 1e-45, -1e-39, 3e38]
    x = np.asarray(jnp.asarray(x).astype(dtype))
    bits = np.uint32 if dtype == jnp.float32 else np.uint16
    case = CASES[name]
    for what, make in NOTHING.items():
        got = tapped(make(case, case.draw(0, 1)), x, 1, [5, 5])
        np.testing.assert_array_equal(got.view(bits), x.view(bits), err_msg=what)


@pytest.mark.slow
@every_operation
def test_positions_outside_the_scope_stay_bit_for_bit(name: str) -> None:
    case = CASES[name]
    x = vectors(1, 9, D, seed=1)
    x[..., 0] = -0.0
    got = tapped(case.make(case.draw(0, 1), 1, 2.0, scope=edits.scope("prompt", last=4)), x, 1, [6])
    changed = (got.view(np.uint32) != x.view(np.uint32)).any(-1)[0]
    assert not changed[[0, 1, 6, 7, 8]].any()
    assert changed[2:6].any()


@pytest.mark.slow
@every_operation
def test_rows_are_independent_and_values_never_recompile(name: str, both, compilations) -> None:
    model, _ = both("llama")
    case = CASES[name]

    def run(p: Any, layer: Any, strength: Any, **common: Any) -> np.ndarray:
        return np.asarray(mechanex.forward(model, PROMPTS, edits=case.make(p, layer, strength, **common)).logits)

    p = case.draw(0, 1)
    calm = run(p, 1, [0, 0, 0])
    steered = run(p, 1, [0, 9, 0])
    np.testing.assert_array_equal(steered[::2], calm[::2])
    assert np.abs(steered[1] - calm[1]).max() > 0.1
    np.testing.assert_allclose(calm, mechanex.forward(model, PROMPTS).logits, rtol=0, atol=1e-5)

    per_row = {key: np.stack([value] * 3) for key, value in p.items()}
    changed = [
        lambda: run(case.draw(50, 1), 1, 1.0),
        lambda: run(p, 0, -3),
        lambda: run(p, [-1], [1.0, 0.0, 2.5]),
        lambda: run(p, [[0], [1], [-1]], 1.0),
        lambda: run(per_row, 1, np.float64(0.5)),
        lambda: run(p, 1, 1.0, scope="prompt", decay=0.5),
        lambda: run(p, 1, 1.0, scope=["all", edits.scope("prompt", last=2), "generated"], decay=[1, 0.9, 0.1]),
    ]
    assert compilations(lambda: [call() for call in changed]) == 0


def test_the_kind_of_threshold_is_data(both, compilations) -> None:
    model, _ = both("llama")

    def run(**gate: Any) -> None:
        mechanex.forward(model, PROMPTS, edits=edits.gate(vectors(D), 1, **gate))

    run()
    many = [{"sharpness": 3}, {"threshold": [0.1, 0, -1]}, {"sharpness": [1, 2, 3], "direction": vectors(D, seed=1)}]
    assert compilations(lambda: [run(**gate) for gate in many]) == 0


# --- what single operations promise ----------------------------------------------------------------------------------


def test_ablation_leaves_no_component_and_clamp_the_one_asked_for() -> None:
    x, v = vectors(1, 7, D, seed=1), vectors(D)
    unit = v / np.linalg.norm(v)
    scaled = 1e-25 * v  # the square of this is no float32
    for vector in (v, scaled):
        np.testing.assert_allclose(tapped(edits.ablate(vector, 1), x, 1, [7]) @ unit, 0, atol=1e-5)
    along = tapped(edits.clamp(v, 1, 1.5), x, 1, [7]) @ unit
    np.testing.assert_allclose(along, 1.5 * np.linalg.norm(v), rtol=1e-5)


def test_clamp_takes_a_value_per_row_and_layer() -> None:
    x, v = vectors(2, 4, D, seed=1), vectors(2, D)
    for layer in (0, 1):
        unit = v[layer] / np.linalg.norm(v[layer])
        got = tapped(edits.clamp(v, [0, 1], [[1, 2], [3, 4]]), x, layer, [4, 4]) @ unit / np.linalg.norm(v[layer])
        np.testing.assert_allclose(got, np.broadcast_to([[1 + layer], [3 + layer]], (2, 4)), rtol=1e-5)


def test_norm_preserving_keeps_norms_and_zeros() -> None:
    x = vectors(1, 6, D, seed=1)
    x[0, 2] = 0
    unit = vectors(D)
    for inner in (edits.add(unit, 1, 5.0), edits.ablate(unit, 1), edits.affine(vectors(2, D), vectors(2, D, seed=3), 1)):
        got = tapped(edits.norm_preserving(inner), x, 1, [6])
        np.testing.assert_allclose(np.linalg.norm(got, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5, atol=1e-8)
    parallel = np.broadcast_to(unit, (1, 6, D)).copy()
    assert np.isfinite(tapped(edits.norm_preserving(edits.ablate(unit, 1)), parallel, 1, [6])).all()


def test_a_closed_gate_changes_no_bit() -> None:
    x = vectors(1, 6, D, seed=1)
    x[..., 0] = -0.0
    got = tapped(edits.gate(vectors(D), 1, threshold=1.0), x, 1, [6])
    np.testing.assert_array_equal(got.view(np.uint32), x.view(np.uint32))
    assert (tapped(edits.gate(vectors(D), 1, threshold=-1.0), x, 1, [6]) != x).any(-1).all()


@pytest.mark.slow
@every_operation
def test_gradients_by_the_vector_are_finite_and_right(name: str) -> None:
    """What optimises a vector starts at 0, and sees padding of 0."""
    case = CASES[name]
    x = vectors(1, 4, D, seed=1)
    x[0, 3] = 0

    def loss(v: jax.Array, p: dict[str, np.ndarray], real: int = 3) -> jax.Array:
        edit = rows.broadcast_rows(case.make(p | {"v": v}, 0, 1.5), 1)
        out = _tapped(edit, jnp.asarray(x), jnp.int32(0), np.array([4], np.int32), edit.site)
        return jnp.sum(jnp.sin(out[:, :real]))

    p = case.draw(0, 1)
    assert np.isfinite(jax.grad(loss)(jnp.zeros((1, D)), p, real=4)).all()
    got = jax.grad(loss)(jnp.asarray(p["v"]), p)
    aim = vectors(1, D, seed=8)

    def value(t: float) -> float:
        moved = oracle.entry(p | {"v": p["v"] + t * aim.astype(np.float64)}, 0)
        return np.sin(case.formula(moved, x[0, :3].astype(np.float64), np.full((3, 1), 1.5))).sum()

    expected = (value(1e-5) - value(-1e-5)) / 2e-5
    np.testing.assert_allclose(np.sum(got * aim), expected, rtol=1e-3, atol=1e-3)
