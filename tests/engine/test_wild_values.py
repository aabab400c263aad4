"""Values that no caller means, found by `make fuzz`: each is refused by the name of its argument, at once."""

from __future__ import annotations

import numpy as np
import pytest

from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.errors import ArgumentError
from mechanex_jax.policy import validate
from mechanex_jax.session import Session


def endless() -> list[object]:
    """A list that holds itself."""
    value: list[object] = []
    value.append(value)
    return value


def deep(levels: int) -> dict[str, object]:
    value: dict[str, object] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


REFUSED = {
    "no number": [("max_tokens", None), ("min_tokens", None), ("top_k", None), ("temperature", None)],
    "an array": [
        ("voting", np.zeros(0)),
        ("on_failure", np.zeros(3)),
        ("early_stopping", np.zeros((2, 2))),
        ("json_numbers", np.zeros(3)),
    ],
    "no hash": [("steering_preset", {}), ("voting", []), ("sampling_method", {"a": 1})],
    "no end": [
        ("steering_layers", endless()),
        ("stop", endless()),
        ("max_tokens", endless()),
        ("sampling_method", {1: endless()}),
    ],
    "no repr": [("min_p", 10**5000), ("temperature", -(10**5000))],
    "too deep": [("json_schema", deep(5_000)), ("policy", deep(5_000)), ("steering_vector", {0: [deep(5_000)]})],
    "too many": [("best_of_n", 2**31), ("beam_width", 10**12)],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [case for cases in REFUSED.values() for case in cases],
    ids=[f"{kind}, {name}" for kind, cases in REFUSED.items() for name, _ in cases],
)
def test_a_wild_value_is_refused_by_name(name: str, value: object):
    with pytest.raises(ArgumentError, match=f"(?s)^{name}.*: got .*; expected "):
        GenerationConfig(**{name: value})


@pytest.mark.parametrize("value", [deep(5_000), {"metadata": endless()}, {"sampling": {"num_candidates": 2**31}}], ids=type)
def test_a_policy_without_end_or_bound_is_refused(value: object):
    with pytest.raises(ArgumentError, match=r"^policy.*: got .*; expected "):
        validate.read(value)


@pytest.mark.parametrize("value", [np.array(["a"]), {}, 3], ids=repr)
def test_a_model_of_another_type_than_a_name_is_refused(value):
    session = Session()
    session.set_execution_mode("local")
    with pytest.raises(ArgumentError, match=r"^model: got .*; expected the name"):
        session.local_model(value)


def test_what_is_deep_has_a_short_repr():
    assert repr(GenerationConfig(json_schema=deep(150))) == "GenerationConfig(json_schema={'a': {'a': {'a': {'a': ...}}}})"
