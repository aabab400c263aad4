"""A warning names the line of the caller, not one of the library."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import mechanex_jax
from mechanex_jax.policy import JsonStore
from mechanex_jax.steering.store import Store
from mechanex_jax.warning import warn


def _no_strength(mx, tmp_path):
    return mx.generation.generate("x", max_tokens=1, steering_vector={1: np.ones(576)})


def _no_strength_in_a_batch(mx, tmp_path):
    return mx.generation.generate_batch(["x"], max_tokens=1, steering_vector={1: np.ones(576)})


def _no_strength_in_a_policy(mx, tmp_path):
    return mx.generation.generate("x", max_tokens=1, best_of_n=2, steering_vector={1: np.ones(576)})


def _one_member(mx, tmp_path):
    members = {"sampling_method": "ensemble-sampling", "ensemble_models": ["default"]}
    return mx.generation.generate("x", max_tokens=1, **members)


@pytest.mark.parametrize("call", [_no_strength, _no_strength_in_a_batch, _no_strength_in_a_policy, _one_member])
def test_a_warning_of_a_call_points_at_the_call(mx, tmp_path, call):
    with pytest.warns(UserWarning, match="steering_vector has no effect|is the one member") as caught:
        call(mx, tmp_path)
    lines, first = inspect.getsourcelines(call)
    assert {warning.filename for warning in caught} == {__file__}
    assert {warning.lineno for warning in caught} == {first + len(lines) - 1}


@pytest.mark.parametrize("kind", ["policy", "vector"])
def test_a_warning_of_a_corrupt_file_points_at_the_call(tmp_path, kind):
    store = JsonStore("policies", "policy", "pol", tmp_path) if kind == "policy" else Store(tmp_path)
    (tmp_path / ("pol_1.json" if kind == "policy" else "sv_00000001.safetensors")).write_text("{")
    with pytest.warns(UserWarning, match=str(tmp_path)) as caught:
        _ = store.list() if isinstance(store, JsonStore) else store.items()
    assert [warning.filename for warning in caught] == [__file__]


def test_the_helper_points_at_whoever_calls_it_from_outside():
    with pytest.warns(FutureWarning, match="careful") as caught:
        warn("careful", FutureWarning)
    assert caught[0].filename == __file__


def test_library_code_uses_no_other_way_to_warn():
    from pathlib import Path

    root = Path(mechanex_jax.__file__).parent
    texts = {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.py")}
    assert [name for name, text in texts.items() if "warnings.warn(" in text] == ["warning.py"]
