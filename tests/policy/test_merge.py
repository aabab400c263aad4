"""Arguments of `generate` and a policy: what is given fills what is left out, and where both speak they agree."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from operator import attrgetter

import numpy as np
import pytest

from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.errors import ArgumentError
from mechanex_jax.generation import Generation
from mechanex_jax.policy import controls
from mechanex_jax.policy.controls import Policy
from mechanex_jax.policy.merge import FIELDS, merge
from mechanex_jax.policy.validate import read, to_dict

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
SIGNATURE = inspect.signature(Generation.generate).parameters
DEFAULTS = {name: p.default for name, p in SIGNATURE.items() if p.default is not inspect.Parameter.empty}
DEFAULTS.setdefault("forbidden_terms", None)

# Every argument with a field: a value, the same in another form (or another value), a value that disagrees.
VALUES = {
    "model": ("smollm2", "smollm2", "other"),
    "sampling_method": ("top-p", "top-p", "greedy"),
    "temperature": (0.2, np.float64(0.2), 0.3),
    "top_k": (10, np.int32(10), 11),
    "top_p": (0.5, 0.5, 1),
    "min_p": (0.1, 0.1, 0.2),
    "typical_p": (0.5, 0.5, 0.6),
    "epsilon_cutoff": (0.01, 0.01, 0.02),
    "ads_subset_size": (4, 4, 5),
    "ads_beta": (0.5, 0.5, 0.6),
    "draft_model": ("small", "small", "tiny"),
    "ensemble_models": (["a", "b"], ("a", "b"), ["b", "a"]),
    "beam_width": (2, 2, 3),
    "speculative_steps": (8, 8, 2),
    "voting": ("mean", "mean", "product"),
    "repetition_penalty": (1.2, 1.2, 1.3),
    "presence_penalty": (0.5, 0.5, 0),
    "frequency_penalty": (-0.5, -0.5, 0.5),
    "adaptive_temperature": (True, True, None),
    "adaptive_temperature_schedule": ([0.5, 0.2], (0.5, 0.2), [0.5]),
    "adaptive_top_p": (True, True, None),
    "adaptive_top_p_schedule": ([0.5, 0.2], (0.5, 0.2), [0.5]),
    "steering_vector": ({11: [1.0, 2.0]}, {"11": np.array([1, 2], np.float32)}, "sv_00000000"),
    "steering_strength": (2.0, 2, -1),
    "steering_preset": ("brevity", "brevity", "truthfulness"),
    "json_schema": (SCHEMA, type("M", (), {"model_json_schema": lambda: SCHEMA}), {"type": "object"}),
    "json_closed": (True, True, False),
    "regex_pattern": ("(?i)a+", re.compile("a+", re.IGNORECASE), "b+"),
    "grammar": ('root ::= "a"', 'root ::= "a"', 'root ::= "b"'),
    "forbidden_terms": (["no"], ("no",), ["yes"]),
    "stop": ("END", ["END"], "STOP"),
    "best_of_n": (4, 4, 5),
    "confidence_triggered_regeneration": (True, True, None),
    "confidence_threshold": (0.9, 0.9, 0.1),
    "code_unit_tests": (["assert f()"], ("assert f()",), ["assert g()"]),
}
MORE = {"steering_strength": {"steering_preset": "brevity"}}  # what an argument does nothing without


def kept(name: str, value):
    """As a policy holds it."""
    if name in ("stop", "forbidden_terms", "ensemble_models", "code_unit_tests") or name.endswith("schedule"):
        return (value,) if isinstance(value, str) else tuple(value)
    return {"11": [1.0, 2.0]} if name == "steering_vector" else value


def test_every_argument_with_a_field_is_one_of_generate_and_every_field_exists():
    assert set(VALUES) == set(FIELDS) <= set(DEFAULTS) and set(FIELDS.values()) <= set(controls.fields())
    without = {f.name for f in dataclasses.fields(GenerationConfig)} - set(FIELDS)
    assert {"max_tokens", "min_tokens", "chat", "logit_bias", "include_trace", "length_penalty"} <= without


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(
    "policy", [None, {}, {"name": "mine", "sampling": None, "constraints": {}}], ids=["none", "empty", "named"]
)
def test_an_argument_fills_what_the_policy_leaves_out(name, policy):
    value = VALUES[name][0]
    found = read(merge(policy, {**DEFAULTS, **MORE.get(name, {}), name: value}, DEFAULTS))
    assert attrgetter(FIELDS[name])(found) == kept(name, value) != attrgetter(FIELDS[name])(Policy())
    assert found.name == ("mine" if policy else None)


@pytest.mark.parametrize("name", VALUES)
def test_an_argument_and_a_policy_may_say_the_same_and_must_not_disagree(name):
    value, same, other = VALUES[name]
    policy = merge(None, {name: value}, DEFAULTS)
    before = json.dumps(policy)
    assert merge(policy, {**DEFAULTS, name: same}, DEFAULTS) == policy
    assert merge(policy, DEFAULTS, DEFAULTS) == policy
    if other is not None:  # a flag's only other value is its default
        with pytest.raises(ArgumentError, match=rf"^{name}: got .*which policy\.{FIELDS[name]} says"):
            merge(policy, {**DEFAULTS, name: other}, DEFAULTS)
    assert json.dumps(policy) == before


@pytest.mark.parametrize("name", ["adaptive_temperature", "adaptive_top_p", "confidence_triggered_regeneration"])
def test_a_flag_that_the_policy_refuses_disagrees_with_one_that_is_set(name):
    section, field = FIELDS[name].split(".")
    with pytest.raises(ArgumentError, match=rf"{name}: got True.*False, which policy\.{FIELDS[name]} says"):
        merge({section: {field: False}}, {name: True}, DEFAULTS)


def test_a_stored_vector_and_one_that_is_given_disagree():
    policy = {"steering": {"vector_id": "sv_00000000"}}
    assert merge(None, {"steering_vector": "sv_00000000"}, DEFAULTS)["steering"]["vector_id"] == "sv_00000000"
    assert merge(policy, {"steering_vector": "sv_00000000"}, DEFAULTS) == policy
    for other in ("sv_11111111", {1: [1.0]}):
        with pytest.raises(ArgumentError, match=r"steering_vector: got .*policy\.steering\.vector_id"):
            merge(policy, {"steering_vector": other}, DEFAULTS)


def test_what_says_nothing_in_particular_gives_way():
    policy = {"model": {"model": "default"}, "sampling": {"min_p": None, "top_k": None}, "steering": None}
    merged = merge(policy, {"model": "smollm2", "min_p": 0.1, "steering_preset": "brevity"}, DEFAULTS)
    assert merged["model"]["model"] == "smollm2" and merged["sampling"]["min_p"] == 0.1
    assert merged["steering"] == {"preset": "brevity"}
    with pytest.raises(ArgumentError, match=r"top_k: got 3.*None, which policy\.sampling\.top_k says"):  # None is no top-k
        merge(policy, {"top_k": 3}, DEFAULTS)
    assert merge({}, {"model": object()}, DEFAULTS) == {}


def test_a_policy_that_was_read_counts_as_it_was_given():
    policy = read({"sampling": {"temperature": 0.2}})
    assert read(merge(policy, {"top_p": 0.5}, DEFAULTS)).sampling.top_p == 0.5
    with pytest.raises(ArgumentError, match="temperature"):
        merge(policy, {"temperature": 0.3}, DEFAULTS)
    with pytest.raises(ArgumentError, match="top_p"):  # written out in full, it says everything
        merge(to_dict(policy), {"top_p": 0.5}, DEFAULTS)


@pytest.mark.parametrize(
    ("arguments", "enabled"),
    [
        ({}, ()),
        ({"best_of_n": 4}, ()),
        ({"json_schema": SCHEMA}, ("syntax", "json_schema")),
        ({"regex_pattern": "a"}, ("regex",)),
        ({"grammar": "regex:a"}, ()),
        ({"code_unit_tests": ["f()"]}, ("unit_tests",)),
        ({"json_schema": SCHEMA, "code_unit_tests": ["f()"]}, ("syntax", "json_schema", "unit_tests")),
        ({"regex_pattern": "a", "code_unit_tests": ["f()"]}, ("regex", "unit_tests")),
    ],
)
def test_without_a_policy_arguments_bring_their_verifiers_and_nothing_is_retried_by_itself(arguments, enabled):
    found = read(merge(None, {**DEFAULTS, **arguments}, DEFAULTS))
    assert found.verifiers.enabled == enabled and found.optimization.retry_on_failure == 0
    assert found.sampling == read({"optimization": {}}).sampling
    with_policy = read(merge({}, {**DEFAULTS, **arguments}, DEFAULTS))
    assert with_policy.optimization.retry_on_failure == 1
    assert with_policy.verifiers.enabled == tuple(name for name in enabled if name == "unit_tests")


def test_without_a_policy_strength_means_what_it_means_in_generate():
    assert merge(None, {**DEFAULTS, "steering_preset": "brevity"}, DEFAULTS)["steering"] == {"strength": 0, "preset": "brevity"}
    both = merge(None, {"steering_vector": "sv_1", "steering_strength": 2.0}, DEFAULTS)
    assert both["steering"] == {"strength": 2.0, "vector_id": "sv_1"}


@pytest.mark.parametrize("policy", ["strict", ["a"], 3])
def test_what_is_no_policy_is_an_error(policy):
    with pytest.raises(ArgumentError, match="policy: got"):
        merge(policy, {}, DEFAULTS)


def test_what_is_wrong_stays_for_read_to_say():
    for policy, arguments, said in [
        ({"sampling": "top-k"}, {"temperature": 0.1}, r"policy\.sampling: got 'top-k'"),
        ({"sampling": {"temperatur": 1}}, {"temperature": 0.1}, "temperatur: got an unknown field"),
        ({}, {"best_of_n": 0}, "best_of_n: got 0"),
        ({}, {"best_of_n": True}, "best_of_n: got True"),
        ({}, {"adaptive_temperature_schedule": []}, r"adaptive_temperature_schedule: got \[\]"),
        ({}, {"temperature": float("nan")}, "temperature: got nan"),
        ({}, {"steering_vector": 3}, r"steering\.vector: got 3"),
        ({"constraints": {"regex_pattern": "a"}}, {"json_schema": SCHEMA}, "json_schema and policy.constraints.regex_pattern"),
    ]:
        with pytest.raises(ArgumentError, match=said):
            read(merge(policy, arguments, DEFAULTS))
