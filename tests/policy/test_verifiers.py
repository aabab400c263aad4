"""Verifiers say of a text what independent readers of JSON, patterns and Python say, and take off what is documented."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from types import SimpleNamespace

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schema_tools import accepts

from mechanex_jax.constraints.json_schema import pushdown_automaton
from mechanex_jax.errors import ArgumentError
from mechanex_jax.policy.controls import effective_schema
from mechanex_jax.policy.criteria import criteria_for
from mechanex_jax.policy.tool_schema import tools
from mechanex_jax.policy.validate import read
from mechanex_jax.policy.verifiers import VERIFIERS, Criteria, agreement, broken_constraint, verify

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}}, "required": ["a"]}
REFERS = {"$ref": "#/$defs/P", "$defs": {"P": {"type": "object", "properties": {"p": {"type": "integer"}}, "required": ["p"]}}}
TOOLS = {
    "tools": [{"name": "go", "parameters": REFERS}, {"type": "function", "function": {"name": "stop", "parameters": SCHEMA}}]
}
PENALTIES = {
    "syntax": 0.7,
    "json_schema": 0.7,
    "tool_args": 0.7,
    "regex": 0.4,
    "code_compile": 0.8,
    "unit_tests": 0.9,
    "factuality": 0.0,
}


def passes(code, tests, timeout_ms):
    """A runner that passes code with the word "right" in it."""
    assert tests == ("assert f() == 1",) and timeout_ms == 700
    right = "right" in code
    return SimpleNamespace(passed=right, reason="" if right else f"wrong: {code}", timed_out=False, uncontained=())


def criteria(enabled, run_tests=passes, **constraints) -> Criteria:
    verifiers = {"enabled": enabled, "unit_test_timeout_ms": 700}
    if "unit_tests" in enabled:
        verifiers["code_unit_tests"] = ["assert f() == 1"]
    return criteria_for(read({"verifiers": verifiers, "constraints": constraints}), run_tests)


PATTERN = {"regex_pattern": "[a-z]+"}
CALL = '{"tool_name": "%s", "arguments": %s}'
# (verifier, constraints, text, words of the complaint; None for none)
TEXTS = [
    ("syntax", {}, '{"a": 1}', None),
    ("syntax", {}, "\n [1, 2] ", None),
    ("syntax", {}, '"text"', None),
    ("syntax", {}, "", "not JSON"),
    ("syntax", {}, "{'a': 1}", "not JSON"),
    ("syntax", {}, '{"a": 1} and more', "not JSON"),
    ("syntax", {}, '```json\n{"a": 1}\n```', "not JSON"),
    ("syntax", {}, "NaN", "NaN is not JSON"),
    ("syntax", {}, "[" * 100_000, "nested too deeply"),
    ("syntax", {"json_mode": True}, '{"a": 1}', None),
    ("syntax", {"json_mode": True}, "[1]", "not an object"),
    ("json_schema", {"json_schema": SCHEMA}, '{"a": 1}', None),
    ("json_schema", {"json_schema": SCHEMA}, '{"a": -1}', r"at \$\.a: -1 is less than"),
    ("json_schema", {"json_schema": SCHEMA}, '{"b": 1}', "'a' is a required property"),
    ("json_schema", {"json_schema": SCHEMA}, '{"a": ', "not JSON"),
    ("json_schema", {"json_schema": {"type": "string", "format": "date"}}, '"2024-02-29"', None),
    ("json_schema", {"json_schema": {"type": "string", "format": "date"}}, '"2023-02-29"', "is not a 'date'"),
    ("json_schema", {"required_fields": ["a", "b"]}, '{"a": 1, "b": 2}', None),
    ("json_schema", {"required_fields": ["a", "b"]}, '{"a": 1}', "'b' is a required property"),
    ("regex", PATTERN, "abc", None),
    ("regex", PATTERN, "abc1", "does not match"),
    ("regex", PATTERN, "abc\n", "does not match"),
    ("regex", {"regex_pattern": "a.b"}, "a\nb", "does not match"),
    ("code_compile", {}, "def f(): return 1", None),
    ("code_compile", {}, "Sure:\n```python\ndef f():\n    return 1\n```\nDone!", None),
    ("code_compile", {}, "```python\ndef f(:\n```", r"SyntaxError in line 1"),
    ("code_compile", {}, "  \n", "there is no code"),
    ("code_compile", {}, "a\0", "null bytes|source code"),
    ("code_compile", {}, "(" * 10_000, "Error"),
    ("unit_tests", {}, "```python\nright\n```", None),
    ("unit_tests", {}, "left", "wrong: left"),
    ("tool_args", {}, CALL % ("go", "{}"), None),
    ("tool_args", {}, CALL % ("go", "[]"), "arguments is not an object"),
    ("tool_args", {}, '{"arguments": {}}', "not a call"),
    ("tool_args", {}, "[]", "not a call"),
    ("tool_args", {}, "go()", "not JSON"),
    ("tool_args", {"tool_schema": TOOLS}, CALL % ("go", '{"p": 1}'), None),
    ("tool_args", {"tool_schema": TOOLS}, CALL % ("stop", '{"a": 1}'), None),
    ("tool_args", {"tool_schema": TOOLS}, CALL % ("go", '{"a": 1}'), "at "),
    ("tool_args", {"tool_schema": TOOLS}, CALL % ("run", "{}"), "at "),
    ("tool_args", {"tool_schema": TOOLS}, '{"tool_name": "go", "arguments": {"p": 1}, "x": 1}', "at "),
    ("factuality", {}, "The moon is made of cheese.", None),
]


@pytest.mark.parametrize(("name", "constraints", "text", "said"), TEXTS, ids=[f"{t[0]}-{t[2][:24]!r}" for t in TEXTS])
def test_a_verifier_complains_where_it_should_and_takes_off_what_is_documented(name, constraints, text, said):
    verdict = verify(text, criteria([name], **constraints))
    assert verdict.ok == (said is None) == (not verdict.reasons)
    assert verdict.penalty == (0.0 if said is None else PENALTIES[name])
    for reason in verdict.reasons:
        assert re.search(f"^{name}: .*(?:{said})", reason, re.DOTALL) and len(reason) < 400


def test_the_verifiers_are_those_of_the_documentation_and_complaints_add_up():
    assert {name: found.penalty for name, found in VERIFIERS.items()} == PENALTIES
    assert {name for name, *_, said in TEXTS if said} == set(VERIFIERS) - {"factuality"}
    verdict = verify("1 +", criteria(["code_compile", "syntax", "factuality"]))
    assert verdict.penalty == pytest.approx(1.5) and [r.split(":")[0] for r in verdict.reasons] == ["code_compile", "syntax"]


def test_only_enabled_verifiers_are_asked():
    assert verify("1 +", criteria([])).ok
    with pytest.raises(ZeroDivisionError):
        verify("x", criteria(["unit_tests"], lambda *_: 1 / 0))


def test_without_a_runner_tests_run_in_the_sandbox():
    policy = read({"verifiers": {"code_unit_tests": ["assert f(2) == 4"], "unit_test_timeout_ms": 20_000}})
    assert verify("```python\ndef f(x):\n    return 2 * x\n```", criteria_for(policy)).ok
    verdict = verify("def f(x): return x", criteria_for(policy))
    assert verdict.penalty == 0.9 and "unit_tests: " in verdict.reasons[0]


def test_generated_code_is_compiled_and_never_run(tmp_path):
    target = tmp_path / "made"
    assert verify(f"open({str(target)!r}, 'w')", criteria(["code_compile"])).ok
    assert not target.exists()


ANSWERS = ["42", " 42.", "42!\n", "The  Answer", "the answer", "43", "4 2"]


def test_agreement_is_the_share_of_equal_answers():
    assert agreement(ANSWERS) == [3 / 7, 3 / 7, 3 / 7, 2 / 7, 2 / 7, 1 / 7, 1 / 7]
    assert agreement(["a"]) == [1.0] and agreement([]) == []
    order = list(range(len(ANSWERS)))
    random.Random(0).shuffle(order)
    assert agreement([ANSWERS[i] for i in order]) == [agreement(ANSWERS)[i] for i in order]


# --- the schema that constraints amount to ---


def meant(value, constraints) -> bool:
    """What the fields say one by one, without a schema made of them."""
    if "tool_schema" in constraints:
        if not isinstance(value, dict) or set(value) != {"tool_name", "arguments"} or not isinstance(value["tool_name"], str):
            return False
        parameters = {"go": REFERS, "stop": SCHEMA}.get(value["tool_name"])
        return parameters is not None and jsonschema.Draft202012Validator(parameters).is_valid(value["arguments"])
    if (constraints.get("json_mode") or constraints.get("required_fields")) and not isinstance(value, dict):
        return False
    if not all(field in value for field in constraints.get("required_fields", ())):
        return False
    return jsonschema.Draft202012Validator(constraints.get("json_schema", {})).is_valid(value)


CONSTRAINTS = [
    {"json_mode": True},
    {"required_fields": ["a", "p"]},
    {"json_schema": SCHEMA},
    {"json_schema": SCHEMA, "json_mode": True, "required_fields": ["p"]},
    {"json_schema": {"properties": SCHEMA["properties"]}, "required_fields": ["a"]},
    {"json_schema": {"properties": SCHEMA["properties"]}, "json_mode": True},
    {"json_schema": REFERS, "required_fields": ["a"]},
    {"json_schema": {**REFERS, "allOf": [SCHEMA]}, "json_mode": True},
    {"json_schema": {"allOf": [SCHEMA]}, "required_fields": ["p"]},
    {"json_schema": {"anyOf": [SCHEMA, {"type": "integer"}]}, "json_mode": True},
    {"json_schema": {}, "json_mode": True},
    {"json_schema": {}},
    {"tool_schema": TOOLS},
    {"tool_schema": {"go": REFERS, "stop": SCHEMA}, "json_mode": True, "required_fields": ["tool_name", "arguments"]},
]
LEAVES = st.one_of(st.integers(-2, 2), st.sampled_from(["go", "stop", "x"]), st.none(), st.just(True))
OBJECTS = st.dictionaries(st.sampled_from(["a", "p", "b"]), LEAVES, max_size=3)
CALLS = st.fixed_dictionaries(
    {"tool_name": st.sampled_from(["go", "stop", "run", 3]), "arguments": OBJECTS | LEAVES}, optional={"x": LEAVES}
)
VALUES = st.one_of(OBJECTS, CALLS, LEAVES, st.lists(LEAVES, max_size=2))


@pytest.mark.slow
@pytest.mark.parametrize("constraints", CONSTRAINTS, ids=json.dumps)
def test_the_effective_schema_means_what_the_fields_say(constraints):
    schema = effective_schema(read({"constraints": constraints}).constraints)
    assert schema is not None
    jsonschema.Draft202012Validator.check_schema(schema)
    validator, seen = jsonschema.Draft202012Validator(schema), set()

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(VALUES)
    def agrees(value):
        assert validator.is_valid(value) == meant(value, constraints), value
        seen.add(validator.is_valid(value))

    agrees()
    assert seen == ({True} if constraints == {"json_schema": {}} else {True, False})


@pytest.mark.parametrize("constraints", CONSTRAINTS[:10] + CONSTRAINTS[12:], ids=json.dumps)
def test_the_effective_schema_can_be_held_while_decoding(constraints):
    found = pushdown_automaton(effective_schema(read({"constraints": constraints}).constraints))
    texts = [{"a": 1, "p": 2}, {"p": 2}, {"a": 1}, {"a": -1}, [], 3]
    texts += [{"tool_name": "go", "arguments": {"p": 1}}, {"tool_name": "stop", "arguments": {"p": 1}}, {"tool_name": "go"}]
    said = [accepts(found, json.dumps(value, separators=(",", ":"))) for value in texts]
    assert said == [meant(value, constraints) for value in texts] and True in said and False in said


def test_no_constraint_on_json_means_no_schema():
    for constraints in ({}, PATTERN, {"grammar": "regex:a"}, {"stop_sequences": ["a"], "forbidden_terms": ["b"]}):
        assert effective_schema(read({"constraints": constraints}).constraints) is None


def test_tools_may_be_written_in_every_usual_form():
    one = {"name": "go", "parameters": SCHEMA, "description": "goes"}
    wrapped = {"type": "function", "function": one}
    for form in (one, wrapped, {"tools": [one]}, {"tools": [wrapped]}, {"go": SCHEMA}, {"name": "go", "input_schema": SCHEMA}):
        assert tools(form) == {"go": SCHEMA}
    assert tools({"name": "go"}) == {"go": {"type": "object"}}
    assert list(tools({"name": {"type": "object"}, "tools": {"type": "object"}})) == ["name", "tools"]
    for wrong in ({"tools": ["go"]}, {"go": 3}, {"": SCHEMA}, {"name": "go", "parameters": []}, {"type": "function"}):
        with pytest.raises(ArgumentError, match="tool_schema"):
            tools(wrong)


# --- constraints, checked again on the text ---

BROKEN = [
    ({"json_schema": SCHEMA}, '{"a": 1}', None),
    ({"json_schema": SCHEMA}, '{"a": 1', "not JSON"),
    ({"json_mode": True}, "[1]", "not of type 'object'"),
    ({"tool_schema": TOOLS}, CALL % ("run", "{}"), "at "),
    (PATTERN, "abc", None),
    (PATTERN, "abc\n", "does not match"),
    ({"grammar": "regex:[ab]+"}, "abba", None),
    ({"grammar": "regex:[ab]+"}, "abbc", "does not match"),
    ({"grammar": 'root ::= "a"'}, "anything: masks held it", None),
    ({"forbidden_terms": ["sorry", "As an AI"]}, "I am SORRY", "forbidden 'sorry'"),
    ({"forbidden_terms": ["sorry", "As an AI"]}, "so, as an ai, ...", "forbidden 'As an AI'"),
    ({"forbidden_terms": ["sorry"]}, "so rry", None),
    ({"stop_sequences": ["\n\n"]}, "a\n\nb", "stop sequence"),
    ({"stop_sequences": ["END"]}, "the end", None),
    ({}, "", None),
]


@pytest.mark.parametrize(("constraints", "text", "said"), BROKEN, ids=[f"{b[0]}-{b[1]!r}"[:60] for b in BROKEN])
def test_a_broken_constraint_is_found_on_the_text_and_said(constraints, text, said):
    found = broken_constraint(text, criteria_for(read({"constraints": constraints})))
    assert (found is None) == (said is None)
    assert said is None or re.match(f"constraint: .*{re.escape(said)}", found or "")


def test_every_broken_constraint_is_said():
    policy = read({"constraints": {"forbidden_terms": ["sorry"], "stop_sequences": ["END"], **PATTERN}})
    found = broken_constraint("Sorry END", criteria_for(policy))
    assert found is not None and found.count("constraint: ") == 3


@pytest.mark.slow
def test_importing_the_policies_does_not_import_what_is_heavy():
    modules = ("mechanex_jax.policy.controls", "mechanex_jax.storage.json_store", "mechanex_jax.policy.presets")
    code = f"import {', '.join(modules)}, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "mechanex_jax.policy.verifiers" in loaded and not {"jsonschema", "lark", "rich", "optax"} & set(loaded)
