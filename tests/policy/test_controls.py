"""What a policy is: the hosted API's fields and defaults, every mistake found before anything runs, nothing lost on the way."""

from __future__ import annotations

import dataclasses
import json
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
import torch

from mechanex_jax.engine.methods import METHODS
from mechanex_jax.errors import ArgumentError, NotLocalError
from mechanex_jax.policy import controls, field_readers
from mechanex_jax.policy.controls import Policy
from mechanex_jax.policy.validate import read, to_dict
from mechanex_jax.steering.presets import PRESETS

# The component schemas of the hosted API that make up a policy.
WIRE: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "runtime_policy_schema.json").read_text())
DOCUMENT = {"$ref": "#/components/schemas/RuntimePolicy", "components": {"schemas": WIRE}}


def wire() -> dict[str, dict]:
    """Dotted path -> the hosted API's schema of the field."""
    fields = {}
    for name, field in WIRE["RuntimePolicy"]["properties"].items():
        section = WIRE.get(field.get("$ref", "").rpartition("/")[2])
        fields |= {name: field} if section is None else {f"{name}.{k}": v for k, v in section["properties"].items()}
    return fields


# Fields that only this library has, as the hosted API would write them.
EXTENSIONS = {
    "sampling.epsilon_cutoff": {"anyOf": [{"type": "number"}, {"type": "null"}]},
    "constraints.json_closed": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
}


def default(field: dict):
    """What a field is without being given; lists and mappings have no written default, and are empty."""
    return field.get("default", {"array": [], "object": {}}.get(str(field.get("type"))))


def put(path: str, value) -> dict:
    section, _, field = path.rpartition(".")
    return {section: {field: value}} if section else {field: value}


def test_names_and_defaults_are_those_of_the_hosted_api():
    assert set(controls.fields()) == set(wire()) | set(EXTENSIONS) and not set(wire()) & set(EXTENSIONS)
    assert len(controls.fields()) == len(set(controls.fields()))
    for path, field in wire().items():
        ours = attrgetter(path)(Policy())
        ours = list(ours) if isinstance(ours, tuple) else ours
        assert (ours, type(ours)) == (default(field), type(default(field))), path


def test_a_policy_that_uses_no_extension_is_written_with_the_fields_of_the_hosted_api_alone():
    written = to_dict(Policy())
    paths = {f"{name}.{k}" if isinstance(v, dict) else name for name, v in written.items() for k in (v or [None])}
    assert not paths & set(EXTENSIONS)
    for path in EXTENSIONS:
        section, field = path.split(".")
        assert field not in to_dict(read({section: {field: None}}))[section]
        assert field in to_dict(read({section: {field: EXAMPLES[path][0]}}))[section]


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
# A value of every field that is not its default, and what must go with it.
EXAMPLES = {
    "id": ("pol_1", {}),
    "name": ("strict", {}),
    "description": ("of it", {}),
    "metadata": ({"a": [1, None, {"b": True}]}, {}),
    "model.model": ("smollm2", {}),
    "task_profile.category": ("support", {}),
    "task_profile.description": ("answers", {}),
    "task_profile.name": ("chat", {}),
    "objective.latency_budget_ms": (1200, {}),
    "objective.maximize": (False, {}),
    "objective.name": ("speed", {}),
    "objective.token_budget": (64, {}),
    "sampling.adaptive_temperature": (True, {}),
    "sampling.adaptive_temperature_schedule": ([0.9, 0.0], {}),
    "sampling.adaptive_top_p": (True, {}),
    "sampling.adaptive_top_p_schedule": ([1.0, 0.5], {}),
    "sampling.ads_beta": (0.35, {}),
    "sampling.ads_subset_size": (16, {}),
    "sampling.beam_width": (2, {}),
    "sampling.diversity_strength": (0.7, {}),
    "sampling.draft_model": ("small", {}),
    "sampling.ensemble_models": (["a", "b"], {}),
    "sampling.epsilon_cutoff": (1e-3, {}),
    "sampling.frequency_penalty": (-0.5, {}),
    "sampling.method": ("min-p", {}),
    "sampling.min_p": (0.05, {}),
    "sampling.num_candidates": (3, {}),
    "sampling.presence_penalty": (0.5, {}),
    "sampling.repetition_penalty": (1.1, {}),
    "sampling.speculative_steps": (6, {}),
    "sampling.temperature": (0.0, {}),
    "sampling.top_k": (None, {}),
    "sampling.top_p": (None, {}),
    "sampling.typical_p": (0.95, {}),
    "sampling.voting": ("product", {}),
    "steering.enabled": (True, {"steering": {"preset": "brevity"}}),
    "steering.layer_scope": (["3", "8-10", "blocks.11.hook_resid_pre"], {}),
    "steering.method": ("few-shot", {}),
    "steering.preset": ("tone_control", {}),
    "steering.strength": (-2.0, {}),
    "steering.token_end": (7, {}),
    "steering.token_start": (3, {}),
    "steering.vector": ({"4": [1.0, 0.5]}, {}),
    "steering.vector_id": ("sv_00000000", {}),
    "constraints.forbidden_terms": (["sorry"], {}),
    "constraints.grammar": ("regex:a+", {}),
    "constraints.json_closed": (True, {}),
    "constraints.json_mode": (True, {}),
    "constraints.json_schema": (SCHEMA, {}),
    "constraints.regex_pattern": ("[0-9]+", {}),
    "constraints.required_fields": (["a"], {}),
    "constraints.stop_sequences": (["\n"], {}),
    "constraints.tool_schema": ({"name": "go", "parameters": {"type": "object"}}, {}),
    "verifiers.code_unit_tests": (["assert f(1) == 2"], {}),
    "verifiers.enabled": (["syntax", "factuality"], {}),
    "verifiers.max_retries": (0, {}),
    "verifiers.repair_on_failure": (False, {}),
    "verifiers.rerank": (False, {}),
    "verifiers.unit_test_timeout_ms": (200, {}),
    "optimization.best_of_n": (8, {}),
    "optimization.confidence_threshold": (0.9, {}),
    "optimization.confidence_triggered_regeneration": (True, {}),
    "optimization.fallback_methods": (["top-p", "greedy"], {}),
    "optimization.retry_on_failure": (0, {}),
    "optimization.self_revision_loops": (2, {}),
}
HOSTED = {"steering.file_url": "https://x", "model.base_url": "https://x", "optimization.branch_and_prune": True}
ONE_VALUE = {"verifiers.code_language"}  # has but one that is served here


def given_with(path: str) -> dict:
    value, more = EXAMPLES[path]
    policy = put(path, value)
    for section, inner in more.items():
        policy[section] = {**inner, **policy.get(section, {})}
    return policy


def test_the_examples_cover_every_field():
    assert set(EXAMPLES) | set(HOSTED) | ONE_VALUE == set(controls.fields())


@pytest.mark.parametrize("path", EXAMPLES)
def test_what_is_given_is_kept_and_survives_the_round_trip(path):
    policy = read(given_with(path))
    value = EXAMPLES[path][0]
    assert attrgetter(path)(policy) == (tuple(value) if isinstance(value, list) else value)
    assert attrgetter(path)(policy) != attrgetter(path)(Policy())
    data = to_dict(policy)
    jsonschema.validate(data, DOCUMENT)
    again = read(json.loads(json.dumps(data, allow_nan=False)))
    assert again == policy and to_dict(again) == data


@pytest.mark.parametrize("path", HOSTED)
def test_what_only_the_hosted_api_can_do_is_refused_by_name(path):
    with pytest.raises(NotLocalError, match=rf"policy\.{path}: not available locally"):
        read(put(path, HOSTED[path]))
    for unset in (attrgetter(path)(Policy()), False if path.endswith("prune") else None):
        assert read(put(path, unset)) == Policy()


OF_EVERY_TYPE = ["text", 3, -1, 2.5, True, None, [], ["x"], [1], [None], {}, {"a": 1}]


@pytest.mark.parametrize("path", controls.fields())
def test_what_has_a_wrong_type_for_the_hosted_api_is_an_error_by_its_path(path):
    check = jsonschema.Draft202012Validator((wire() | EXTENSIONS)[path])
    forms = (True,) if path.endswith("json_schema") else ()  # also a schema
    wrong = [value for value in OF_EVERY_TYPE if not check.is_valid(value) and value not in forms]
    assert len(wrong) >= 5
    for value in wrong:
        with pytest.raises(ArgumentError, match=rf"policy\.{path}(\[0\])?: got .*; expected "):
            read(put(path, value))


def test_a_section_that_is_no_mapping_is_an_error_and_none_is_one_left_out():
    sections = {path.partition(".")[0] for path in controls.fields() if "." in path}
    assert len(sections) == 8
    for section in sections:
        assert read({section: None}) == read({section: {}}) == Policy()
        for value in ("top-k", [], 3, True):
            with pytest.raises(ArgumentError, match=rf"p\.{section}: got .* a mapping of "):
                read({section: value}, name="p")
    for value in (None, [], "policy"):
        with pytest.raises(ArgumentError, match="policy: got"):
            read(value)


NAN, INFINITY = float("nan"), float("inf")
ERRORS = [
    ({"samplng": {}}, r"policy\.samplng: got an unknown field.*Did you mean 'sampling'"),
    ({"sampling": {"temprature": 1}}, r"policy\.sampling\.temprature: got an unknown field.*Did you mean 'temperature'"),
    ({"sampling": {"best_of_n": 2}}, r"best_of_n: got an unknown field.*Did you mean 'optimization\.best_of_n'"),
    ({"best_of_n": 2}, r"policy\.best_of_n: got an unknown field.*Did you mean 'optimization\.best_of_n'"),
    ({"sampling": {3: 1}}, r"policy\.sampling\.3: got an unknown field"),
    ({"given": {}}, r"policy\.given: got an unknown field"),
    ({"sampling": {"method": "top_p"}}, r"sampling\.method: got 'top_p'.*one of greedy, top-k.*'top-p'"),
    ({"sampling": {"method": ["top-p"]}}, r"sampling\.method: got"),
    ({"sampling": {"voting": "majorty"}}, r"sampling\.voting: got 'majorty'.*majority, mean, product.*'majority'"),
    ({"optimization": {"fallback_methods": ["greedy", "topk"]}}, r"fallback_methods\[1\]: got 'topk'.*'top-k'"),
    ({"verifiers": {"enabled": ["regx"]}}, r"enabled\[0\]: got 'regx'.*one of syntax.*'regex'"),
    ({"verifiers": {"enabled": "syntax"}}, r"enabled: got 'syntax'; expected a list"),
    ({"verifiers": {"code_language": "ruby"}}, r"code_language: got 'ruby'; expected one of python"),
    ({"steering": {"preset": "brevty"}}, r"preset: got 'brevty'.*'brevity'"),
    ({"steering": {"method": "caaa"}}, r"steering\.method: got 'caaa'.*'caa'"),
    ({"steering": {"enabled": True}}, r"steering\.enabled: got True.*preset, vector or vector_id"),
    ({"steering": {"vector": {}}}, r"steering\.vector: got {}.*at least one layer"),
    ({"steering": {"vector": {"1": [NAN]}}}, r"steering\.vector\.1\[0\]: got nan"),
    ({"steering": {"vector": {1: [1.0], "1": [2.0]}}}, r"steering\.vector: got '1'"),
    ({"steering": {"vector": {"1": [1.0]}, "vector_id": "sv_1"}}, r"steering: got vector and vector_id"),
    ({"steering": {"layer_scope": ["all"]}}, r"layer_scope\[0\]: got 'all'"),
    ({"steering": {"layer_scope": ["9-3"]}}, r"layer_scope\[0\]: got '9-3'"),
    ({"steering": {"token_start": -1}}, r"token_start: got -1"),
    ({"steering": {"token_start": 4, "token_end": 4}}, r"token_end: got 4; expected more than token_start, 4"),
    ({"sampling": {"adaptive_temperature_schedule": []}}, r"adaptive_temperature_schedule: got \[\]"),
    ({"sampling": {"adaptive_top_p_schedule": []}}, r"adaptive_top_p_schedule: got \[\]"),
    ({"sampling": {"adaptive_temperature_schedule": [0.5, -0.1]}}, r"temperature_schedule\[1\]: got -0\.1"),
    ({"sampling": {"adaptive_temperature_schedule": [INFINITY]}}, r"temperature_schedule\[0\]: got inf"),
    ({"sampling": {"adaptive_temperature_schedule": 0.5}}, r"temperature_schedule: got 0\.5; expected a list"),
    ({"sampling": {"adaptive_top_p_schedule": [0.5, 0.0]}}, r"top_p_schedule\[1\]: got 0\.0"),
    ({"sampling": {"adaptive_top_p_schedule": [1.1]}}, r"top_p_schedule\[0\]: got 1\.1"),
    ({"sampling": {"temperature": -0.1}}, r"sampling\.temperature: got -0\.1"),
    ({"sampling": {"temperature": NAN}}, r"sampling\.temperature: got nan"),
    ({"sampling": {"temperature": None}}, r"sampling\.temperature: got None"),
    ({"sampling": {"top_k": 0}}, r"top_k: got 0"),
    ({"sampling": {"top_p": 0}}, r"top_p: got 0"),
    ({"sampling": {"min_p": 1.5}}, r"min_p: got 1\.5"),
    ({"sampling": {"typical_p": 0}}, r"typical_p: got 0"),
    ({"sampling": {"epsilon_cutoff": 1.5}}, r"epsilon_cutoff: got 1\.5; expected a finite number, 0 or more, at most 1"),
    ({"sampling": {"ads_beta": 1.0}}, r"ads_beta: got 1\.0"),
    ({"sampling": {"ads_subset_size": 0}}, r"ads_subset_size: got 0"),
    ({"sampling": {"beam_width": 0}}, r"beam_width: got 0"),
    ({"sampling": {"num_candidates": 0}}, r"num_candidates: got 0"),
    ({"sampling": {"diversity_strength": -1}}, r"diversity_strength: got -1"),
    ({"sampling": {"repetition_penalty": 0}}, r"repetition_penalty: got 0"),
    ({"sampling": {"speculative_steps": 0}}, r"speculative_steps: got 0"),
    ({"sampling": {"speculative_steps": 9}}, r"speculative_steps: got 9; expected a whole number from 1 to 8"),
    ({"sampling": {"ensemble_models": [""]}}, r"ensemble_models\[0\]: got ''"),
    ({"objective": {"latency_budget_ms": -1}}, r"latency_budget_ms: got -1"),
    ({"objective": {"token_budget": -1}}, r"token_budget: got -1"),
    ({"optimization": {"best_of_n": 0}}, r"best_of_n: got 0"),
    ({"optimization": {"retry_on_failure": -1}}, r"retry_on_failure: got -1"),
    ({"optimization": {"self_revision_loops": -1}}, r"self_revision_loops: got -1"),
    ({"optimization": {"confidence_threshold": 1.1}}, r"confidence_threshold: got 1\.1"),
    ({"verifiers": {"max_retries": -1}}, r"max_retries: got -1"),
    ({"verifiers": {"unit_test_timeout_ms": 0}}, r"unit_test_timeout_ms: got 0"),
    ({"verifiers": {"code_unit_tests": ["assert f(1) == 1", "assert ("]}}, r"code_unit_tests\[1\]: got 'assert \('"),
    ({"verifiers": {"code_unit_tests": ["a\0"]}}, r"code_unit_tests\[0\]: got"),
    ({"verifiers": {"code_unit_tests": "assert True"}}, r"code_unit_tests: got 'assert True'; expected a list"),
    ({"verifiers": {"enabled": ["json_schema"]}}, r"verifiers\.enabled: got 'json_schema'.*json_schema, json_mode"),
    ({"verifiers": {"enabled": ["regex"]}}, r"verifiers\.enabled: got 'regex'.*constraints\.regex_pattern"),
    ({"verifiers": {"enabled": ["unit_tests"]}}, r"verifiers\.enabled: got 'unit_tests'.*code_unit_tests"),
    ({"constraints": {"regex_pattern": "("}}, r"regex_pattern: got '\('; expected a regular expression"),
    ({"constraints": {"json_schema": "{"}}, r"json_schema: got '{'; expected a JSON Schema"),
    ({"constraints": {"stop_sequences": [""]}}, r"stop_sequences\[0\]: got ''"),
    ({"constraints": {"forbidden_terms": "no"}}, r"forbidden_terms: got 'no'; expected a list"),
    ({"constraints": {"tool_schema": {}}}, r"tool_schema: got {}"),
    ({"constraints": {"tool_schema": {"tools": []}}}, r"tool_schema: got .*one tool or more"),
    ({"constraints": {"tool_schema": {"tools": [{"parameters": {}}]}}}, r"tool_schema\.tools\[0\]: got"),
    ({"constraints": {"tool_schema": {"tools": [{"name": "a"}, {"name": "a"}]}}}, r"tool_schema: got \['a', 'a'\]"),
    ({"constraints": {"tool_schema": {"name": "a"}, "json_schema": {}}}, r"tool_schema: got json_schema with it"),
    ({"constraints": {"tool_schema": {"name": "a"}, "required_fields": ["b"]}}, r"required_fields: got \['b'\]"),
    ({"metadata": {"a": {"b": object()}}}, r"metadata\.a\.b: got"),
]


@pytest.mark.parametrize(("policy", "said"), ERRORS, ids=[said[:40] for _, said in ERRORS])
def test_a_mistake_is_named_with_its_place_and_the_way_out(policy, said):
    with pytest.raises(ArgumentError, match=said):
        read(policy)


@pytest.mark.parametrize("field", ["json_schema", "json_mode", "tool_schema", "required_fields", "grammar"])
def test_two_constraints_are_an_error_that_names_both(field):
    more = {"regex_pattern": "a"} if field == "grammar" else {"grammar": "regex:a"}
    with pytest.raises(ArgumentError, match=r"2 constraints") as error:
        read({"constraints": {field: EXAMPLES[f"constraints.{field}"][0], **more}})
    assert all(f"policy.constraints.{name}" in str(error.value) for name in (field, *more))
    if field in ("json_mode", "required_fields"):  # these go with a schema
        read({"constraints": {field: EXAMPLES[f"constraints.{field}"][0], "json_schema": SCHEMA}})


@pytest.mark.parametrize(
    "array",
    [
        np.array([0.1, -2], np.float32),
        jnp.array([0.1, -2], jnp.float32),
        torch.tensor([0.1, -2], requires_grad=True),
        (0.1, -2),
    ],
)
def test_vectors_may_be_arrays_and_become_lists_of_the_same_numbers(array):
    policy = read({"steering": {"vector": {11: array}}})
    expected = array if isinstance(array, tuple) else torch.as_tensor(np.asarray(array.tolist())).tolist()
    assert policy.steering.vector == {"11": list(expected)} and policy.steering.enabled
    assert read(json.loads(json.dumps(to_dict(policy)))) == policy


def test_numbers_of_numpy_are_taken_for_numbers():
    policy = read({"sampling": {"temperature": np.float32(0.5), "top_k": np.int64(3)}})
    assert (policy.sampling.temperature, policy.sampling.top_k) == (0.5, 3)
    json.dumps(to_dict(policy))


@pytest.mark.parametrize("form", [SCHEMA, json.dumps(SCHEMA), type("M", (), {"model_json_schema": lambda: SCHEMA})])
def test_a_schema_may_have_any_form_that_generate_takes(form):
    assert read({"constraints": {"json_schema": form}}).constraints.json_schema == SCHEMA
    assert read({"constraints": {"json_schema": True}}).constraints.json_schema == {}


def test_fields_that_imply_others_set_them():
    for flag in ("adaptive_temperature", "adaptive_top_p"):
        for flags in ({}, {flag: False}):
            assert getattr(read({"sampling": {f"{flag}_schedule": [0.3], **flags}}).sampling, flag)
    for steering in ({"preset": "brevity"}, {"vector": {"1": [1.0]}}, {"vector_id": "sv_1"}):
        assert read({"steering": steering}).steering.enabled
    assert read({"verifiers": {"code_unit_tests": ["f()"], "enabled": ["code_compile"]}}).verifiers.enabled == (
        "code_compile",
        "unit_tests",
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_bring_what_they_need(preset):
    constraints = {
        "json_compliance": (True, ("syntax",), ("syntax", "json_schema"), ("syntax",)),
        "truthfulness": (False, *[("factuality",)] * 3),
        "safety_style": (False, *[("factuality",)] * 3),
        "format_rigidity": (False, (), (), ("regex",)),
    }
    json_mode, plain, with_schema, with_pattern = constraints.get(preset, (False, (), (), ()))
    alone = read({"steering": {"preset": preset}})
    assert (alone.constraints.json_mode, alone.verifiers.enabled) == (json_mode, plain)
    assert read({"steering": {"preset": preset}, "constraints": {"json_schema": SCHEMA}}).verifiers.enabled == with_schema
    pattern = read({"steering": {"preset": preset}, "constraints": {"regex_pattern": "a"}})
    assert pattern.verifiers.enabled == with_pattern and not pattern.constraints.json_mode
    assert read({"steering": {"preset": preset}, "verifiers": {"enabled": list(plain)}}).verifiers.enabled == plain


def test_what_was_given_stays_known_and_is_a_copy_and_no_part_of_equality():
    written = {"sampling": {"temperature": 0.2}, "verifiers": {"enabled": ["syntax"]}, "model": None}
    policy = read(written)
    written["verifiers"]["enabled"].append("regex")
    written["sampling"]["top_k"] = 3
    changed = dataclasses.replace(policy, name="other")
    assert changed.given == policy.given == {**written, "sampling": {"temperature": 0.2}, "verifiers": {"enabled": ["syntax"]}}
    assert read(to_dict(policy)) == policy and read(policy) is policy
    data = to_dict(policy)
    data["metadata"]["a"] = 1
    assert policy.metadata == {}


@pytest.mark.parametrize("alias", ["ads", "adaptive-determinantal-sampling", "ssd", *METHODS])
def test_methods_are_kept_under_their_own_names(alias):
    assert read({"sampling": {"method": alias}}).sampling.method in METHODS


def test_layers_of_a_scope_are_those_it_names():
    assert field_readers.layers(["3", "8-10", "blocks.11.hook_resid_pre", "blocks.12"]) == {3, 8, 9, 10, 11, 12}
    assert field_readers.layers([]) == set()
