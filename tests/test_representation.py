"""What an object shows of itself: one short line."""

from __future__ import annotations

import numpy as np
import pytest

import mechanex_jax
from mechanex_jax.edits import parse_steering
from mechanex_jax.representation import short
from mechanex_jax.steering.vector import SteeringVector

VECTOR = np.linspace(0.0, 1.0, 576, dtype=np.float32)


def _prepared(mx):
    configs = [mx.generation.GenerationConfig(regex_pattern="[a-z]+", steering_vector={1: VECTOR}, steering_strength=1.0)]
    call = {"model": None, "seed": 1, "transform": None, "edits": None}
    return mx.generation.default._prepare(["Hello " * 50], configs, ["prompt"], **call)


OBJECTS = {
    "loaded": lambda mx: mx.runtime.default.local_model(),
    "model": lambda mx: mx.runtime.default.local_model().model,
    "tokenizer": lambda mx: mx.runtime.default.local_model().tokenizer,
    "vocabulary": lambda mx: mx.runtime.default.local_model().tokenizer.vocabulary,
    "session": lambda mx: mx.runtime.default.session,
    "Mechanex": lambda mx: mx.runtime.default,
    "generation": lambda mx: mx.generation.default,
    "policy": lambda mx: mx.policy.default,
    "steering": lambda mx: mx.steering.default,
    "models": lambda mx: mx.runtime.default.models,
    "vector": lambda mx: SteeringVector(np.stack([VECTOR] * 30), tuple(range(30)), "resid_pre", "caa", "m", "f", name="kind"),
    "row steering": lambda mx: parse_steering({1: VECTOR, 2: VECTOR}, 576, 30),
    "edit": lambda mx: mx.edits.add(VECTOR, layer=3),
    "transform": lambda mx: mx.transforms.logit_bias(np.zeros((4, 49152))),
    "config": lambda mx: mx.generation.GenerationConfig(
        steering_vector={1: VECTOR.tolist()}, logit_bias=dict.fromkeys(range(99), 1.0)
    ),
    "constraint": lambda mx: mx.constraints.compile(tokenizer=mx.runtime.default.local_model(), regex="[a-z]+"),
    "tables": lambda mx: _prepared(mx).requests[0].constraint,
    "request": lambda mx: _prepared(mx).requests[0],
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_with_large_arrays_is_one_short_line(mx, name):
    text = repr(OBJECTS[name](mx))
    assert len(text) <= 400 + 300 * (name == "request") and "\n" not in text and " object at 0x" not in text


def test_a_loaded_model_tells_name_family_parameters_dtype_and_device(loaded):
    count = sum(array.size for array in loaded.model.params)
    place = f"{loaded.device.platform}:{loaded.device.id}"
    assert repr(loaded) == f"LoadedModel('smollm2-135m-instruct', llama, {count:,} parameters, float32, {place})"


def test_a_configuration_shows_what_is_not_the_default():
    config = mechanex_jax.generation.GenerationConfig(max_tokens=5, top_p=0.9, stop="x", include_trace=True)
    assert repr(config) == "GenerationConfig(max_tokens=5, stop='x', include_trace=True)"


def test_no_key_is_shown():
    assert "secret" not in repr(mechanex_jax.Mechanex(api_key="ax_secret"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(2), repr(np.float32(2))),
        (np.zeros(3), "array([0., 0., 0.])"),
        (np.zeros((3, 4)), "float64[3, 4]"),
        ((1,), "(1,)"),
        ([1, 2, 3, 4, 5], "[1, 2, 3, 4, ... 5 in all]"),
        ({"a": [VECTOR]}, "{'a': [float32[576]]}"),
        ("a" * 200, "'" + "a" * 79 + "..."),
    ],
    ids=lambda value: str(value)[:20],
)
def test_values_are_written_out_while_they_are_small(value, text):
    assert short(value) == text
