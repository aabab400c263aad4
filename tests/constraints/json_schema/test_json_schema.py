"""JSON Schema, keyword by keyword, and the cases that a simple engine gets wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal

import jsonschema
import pytest
import schema_cases
from jsonschema.validators import validator_for
from schema_tools import ANY, Repeated, Walker, accepts, read, reorder, written

from mechanex_jax.constraints import json_schema
from mechanex_jax.constraints.sources import JsonOptions

# Where jsonschema computes in binary floating point, reads patterns as Python does, or was not asked to check formats.
_OTHERWISE = (
    "multipleOf 0.01",
    "pattern",
    "ASCII digits",
    "lookaround at the ends",
    "a letter by property",
    "draft 7 tuple without $schema",
)


def _cases() -> list:
    return [pytest.param(*case[1:], id=case[0]) for case in schema_cases.CASES]


@pytest.mark.slow
@pytest.mark.parametrize(("schema", "valid", "invalid"), _cases())
def test_keyword_accepts_the_valid_and_rejects_the_invalid(schema, valid, invalid):
    pushdown = json_schema.pushdown_automaton(schema, options=ANY)
    for value in valid:
        for ascii_only in (True, False):
            assert accepts(pushdown, written(reorder(schema, value), ascii_only)), value
    for value in invalid:
        assert not accepts(pushdown, written(reorder(schema, value))), value


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"), [case for case in _cases() if case.id not in _OTHERWISE and "format" not in case.id]
)
def test_verdicts_of_the_table_are_those_of_jsonschema(schema, valid, invalid):
    validator = validator_for(schema, default=jsonschema.Draft202012Validator)(schema)
    assert all(map(validator.is_valid, valid))
    assert not any(map(validator.is_valid, invalid))


@pytest.mark.slow
@pytest.mark.parametrize(("schema", "valid", "invalid"), [case for case in _cases() if case.id not in _OTHERWISE])
def test_random_walks_are_valid(schema, valid, invalid):
    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    checker = kind(exact, format_checker=kind.FORMAT_CHECKER)
    pushdown = json_schema.pushdown_automaton(schema, options=ANY)
    walker = Walker(pushdown, seed=0)
    for steps in (0, 3, 10, 30):
        try:
            value = read(text := walker.text(steps))
        except Repeated:
            continue
        assert checker.is_valid(value), text


def test_an_escaped_alias_of_a_listed_key_is_no_way_around_it():
    pushdown = json_schema.pushdown_automaton({"properties": {"a": {"type": "integer"}}})
    assert accepts(pushdown, '{"a":1}')
    for key in (r"\u0061", r"\u0061\u0062"):
        assert not accepts(pushdown, f'{{"{key}":"x"}}')
    # A key without a name has one spelling, so that it can be told from those before it.
    assert not accepts(pushdown, r'{"\u00e9":"x"}') and accepts(pushdown, '{"é":"x"}')


def test_escapes_of_free_strings_are_all_of_jsons():
    pushdown = json_schema.pushdown_automaton({"type": "string", "maxLength": 2})
    for text in (r'"\/\u0061"', r'"\ud83d\ude00\b"', '"é\u007f"'):
        assert accepts(pushdown, text) and len(json.loads(text)) == 2
    for text in (r'"\ud83d"', r'"\ude00"', r'"\x"', '"\n"', '"abc"', r'"\ud83d\u0061"', '"a', "a"):
        assert not accepts(pushdown, text)


def test_listed_keys_come_in_order_once_and_before_others():
    pushdown = json_schema.pushdown_automaton({"properties": {"b": {}, "a": True, "c": {"type": "null"}}})
    assert accepts(pushdown, '{"b":1,"a":1,"c":null,"x":1,"y":2}') and accepts(pushdown, '{"b":1,"c":null}')
    for text in ('{"a":1,"b":1}', '{"b":1,"b":1}', '{"x":1,"a":1}', '{"c":null,"x":1,"c":1}'):
        assert not accepts(pushdown, text)


def test_parts_of_an_all_of_may_be_mixed_but_names_come_once():
    parts = [
        {"properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]},
        {"properties": {"c": {}, "a": {"minimum": 3}}},
    ]
    pushdown = json_schema.pushdown_automaton({"allOf": parts})
    assert all(accepts(pushdown, text) for text in ('{"a":3,"b":1,"c":2}', '{"c":2,"a":3}', '{"a":3,"c":1,"b":0,"z":0}'))
    assert not any(accepts(pushdown, text) for text in ('{"a":3,"a":3}', '{"a":2,"c":1}', '{"c":1}', '{"a":3,"c":1,"c":1}'))


def test_whitespace_is_bounded_and_optional():
    schema = {"properties": {"a": {"items": {"type": "integer"}}}, "additionalProperties": False, "type": "object"}
    plain, spaced = (
        json_schema.pushdown_automaton(schema),
        json_schema.pushdown_automaton(schema, options=JsonOptions(whitespace=True)),
    )
    value = {"a": [1, 2, {}][:2]}
    for text in (json.dumps(value), json.dumps(value, indent=4), "{ }", '{"a": []}', '{ "a" :[1 ,2 ] }'):
        assert accepts(spaced, text) == (" :" not in text) and not accepts(plain, text)
    assert accepts(spaced, written(value)) and accepts(plain, written(value))
    assert not accepts(spaced, "{" + " " * 40 + "}") and not accepts(spaced, "{\n\n}")


def test_numbers_are_compared_as_decimals():
    pushdown = json_schema.pushdown_automaton({"maximum": 1.5, "exclusiveMinimum": -0.1}, options=ANY)
    for text in ("1.50", "1.5000", "-0", "0.0", "-0.0999", "1.5e0", "1e-07", "-9.99e-2"):
        assert accepts(pushdown, text)
    for text in ("1.5000001", "-0.1", "-0.10", "15", "1.6e0", "1e1", "-1e-1", "01", "1.", ".5", "+1"):
        assert not accepts(pushdown, text)


@pytest.mark.parametrize("schema", [{"type": "object", "properties": {"n": {"type": "integer"}}}, True])
def test_schemas_may_be_text_or_models(schema):
    class Model:
        @staticmethod
        def model_json_schema():
            return schema

    for other in (json.dumps(schema), Model):
        pushdown = json_schema.pushdown_automaton(other, options=JsonOptions(closed=False))
        assert pushdown.target.shape == json_schema.pushdown_automaton(schema).target.shape


@pytest.mark.slow
def test_a_schema_gives_the_same_automaton_in_every_process():
    patterns = [{"patternProperties": {"^a": {"type": "integer"}}}, {"patternProperties": {"z$": {}}, "required": ["k"]}]
    listed = {"properties": {"foo": {"type": "string"}, "bar": {}}, "required": ["bar", "baz"]}
    schema = {"items": {"anyOf": patterns, "unevaluatedProperties": {"const": 0}}, "contains": listed}
    code = (
        "import hashlib; from mechanex_jax.constraints import json_schema; "
        f"p = json_schema.pushdown_automaton({schema!r}); "
        "print(hashlib.sha256(b''.join(a.tobytes() for a in (p.classes, p.target, p.push, p.label, p.returns))).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


@pytest.mark.slow
def test_a_bound_of_100_000_characters_holds():
    pushdown = json_schema.pushdown_automaton({"type": "string", "maxLength": 100_000})
    for text, inside in (("é" * 100_000, True), ("é" * 100_001, False), ("a" * 100_000, True)):
        assert accepts(pushdown, json.dumps(text, ensure_ascii=False)) == inside
