"""`json_closed` and `json_numbers`: closed texts and short numbers are texts of the schema as it stands, without the rest."""

from __future__ import annotations

import json

import jsonschema
import pytest
from schema_tools import ANY, Walker, accepts, read

from mechanex_jax.constraints import json_schema
from mechanex_jax.constraints.sources import JsonOptions
from mechanex_jax.errors import ConstraintError

_DRAFT_7 = "http://json-schema.org/draft-07/schema#"
CLOSED = JsonOptions(closed=True)
_A, _B = {"type": "object", "properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "null"}}}

# (schema, texts that stay, texts that the schema allows and that are closed out)
CLOSINGS = {
    "an object": (_A, ['{"a":1}', "{}"], ['{"x":1}', '{"a":1,"x":1}']),
    "inside others": (
        {"properties": {"o": _A}, "items": _A},
        ['{"o":{"a":1}}', '[{"a":1}]'],
        ['{"o":{"x":1}}', '[{"x":1}]'],
    ),
    "parts of an allOf": ({"allOf": [_A, _B], "required": ["c"]}, ['{"a":1,"b":null,"c":0}'], ['{"c":0,"x":1}']),
    "a reference": ({"items": {"$ref": "#/$defs/a"}, "$defs": {"a": _A}}, ['[{"a":1}]'], ['[{"x":1}]']),
    "an older reference": (
        {"$schema": _DRAFT_7, "items": [{"$ref": "#/definitions/a"}], "definitions": {"a": _A}},
        ['[{"a":1},{"x":1}]'],
        ['[{"x":1}]'],
    ),
    "a recursion": (
        {"type": "object", "properties": {"v": {}, "next": {"$ref": "#"}}},
        ['{"v":{"x":1},"next":{"v":2}}'],
        ['{"next":{"next":{"x":1}}}'],
    ),
    "alternatives": (
        {"anyOf": [{**_A, "required": ["a"]}, {**_B, "type": "object", "required": ["b"]}]},
        ['{"a":1}', '{"b":null}', '{"a":1,"b":null}'],
        ['{"a":1,"x":1}', '{"a":1,"b":0}'],
    ),
    "a condition": (
        {"properties": {"k": {"type": "integer"}}, "if": {"required": ["k"]}, "then": _B},
        ['{"k":1,"b":null}', "{}"],
        ['{"b":null}', '{"k":1,"x":0}'],
    ),
    "patterns": ({"patternProperties": {"^x": _A}}, ['{"x":{"a":1}}'], ['{"y":1}', '{"x":{"y":1}}']),
    "what a negation says is not closed": (
        {"properties": {"o": {"not": _A}}},
        ['{"o":{"a":"x"}}', '{"o":[]}'],
        ['{"p":1}'],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "kept", "out"), CLOSINGS.values(), ids=CLOSINGS)
def test_closed_objects_have_listed_keys_only(schema, kept, out):
    pushdown, open_ = json_schema.pushdown_automaton(schema, options=CLOSED), json_schema.pushdown_automaton(schema)
    assert all(accepts(pushdown, text) and accepts(open_, text) for text in kept)
    assert all(accepts(open_, text) and not accepts(pushdown, text) for text in out)
    validator, walker = (
        jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema),
        Walker(pushdown, 0),
    )
    for steps in (0, 5, 20):
        assert validator.is_valid(json.loads(walker.text(steps)))


OPEN = {
    "a map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "any object": {"type": "object"},
    "said to be open": {**_A, "additionalProperties": True},
    "names that are limited": {**_A, "propertyNames": {"pattern": "^[ax]$"}},
    "said beside": {"allOf": [_A, {"additionalProperties": {"type": "integer"}}]},
    "unevaluated": {**_A, "unevaluatedProperties": {"type": "integer"}},
}


@pytest.mark.parametrize("schema", OPEN.values(), ids=OPEN)
def test_objects_whose_schema_says_something_about_other_keys_stay_open(schema):
    assert accepts(json_schema.pushdown_automaton(schema, options=CLOSED), '{"a":1,"x":1}')


def test_a_schema_that_closing_contradicts_is_refused():
    schema = {"allOf": [{"properties": {"o": {**_A, "required": ["a"]}}}, {"properties": {"o": {**_B, "required": ["b"]}}}]}
    schema = {"type": "object", "required": ["o"], **schema}
    assert accepts(json_schema.pushdown_automaton(schema), '{"o":{"a":1,"b":null}}')
    with pytest.raises(ConstraintError, match="json_closed"):
        json_schema.pushdown_automaton(schema, options=CLOSED)


# (schema, numbers that are written, numbers that only "any" writes)
NUMBERS = {
    "any number": (
        {"type": "number"},
        ["0", "-1.5", "999999999999999", "0.12345678901234", "12345678.9012345", "1.5e+20", "-1E-7", "1e123", "0e0"],
        ["1" * 16, "0." + "1" * 16, "1234567890.123456", "1e1234", "0.0000000000000001", "1" * 128],
    ),
    "an integer": ({"type": "integer"}, ["0", "-12", "9" * 15], ["1.0", "1e2", "-0.0", "1" * 16]),
    "a bounded integer": ({"type": "integer", "minimum": 3, "maximum": 200}, ["3", "200"], ["3.0", "2e+02"]),
    "an integer or a string": ({"type": ["integer", "string"]}, ["12", '"x"'], ["1.0"]),
    "a share": ({"minimum": 0, "maximum": 1, "type": "number"}, ["0.5", "1", "1.0", "1e-3"], ["0." + "3" * 17]),
    "large bounds": (
        {"type": "integer", "minimum": -(2**63), "maximum": 2**64},
        [str(2**64), str(-(2**63)), str(2**64 - 1)],
        ["1.0"],
    ),
    "beyond": ({"type": "number", "exclusiveMinimum": 1e20}, ["2e+20", "1.5e100"], ["1" * 23]),
    "a large integer": ({"type": "integer", "minimum": 10**20}, [str(10**20), str(10**20 + 7)], ["1e+20"]),
    "a multiple": ({"multipleOf": 0.01, "type": "number"}, ["0.05", "12.34"], ["0." + "0" * 17]),
    "constants": ({"enum": [9007199254740993, 1e300, 0.1234567890123456789]}, ["9007199254740993", "1e300"], ["1e+0300"][:0]),
    "an item that is one": ({"contains": {"type": "integer"}}, ["[1]", '["x",2]'], ["[1.0]"]),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "short", "longer"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_are_as_long_as_a_user_would_write_them(schema, short, longer):
    pushdown, any_ = json_schema.pushdown_automaton(schema), json_schema.pushdown_automaton(schema, options=ANY)
    for text in short:
        assert accepts(pushdown, text) and accepts(any_, text), text
    for text in longer:
        assert accepts(any_, text) and not accepts(pushdown, text), text


def test_numbers_that_are_no_integers_are_not_told_by_their_spelling():
    pushdown = json_schema.pushdown_automaton({"type": "number", "not": {"type": "integer"}})
    assert accepts(pushdown, "1.5")
    assert not any(accepts(pushdown, text) for text in ("1.0", "1", "1e2"))


@pytest.mark.parametrize("schema", [NUMBERS["any number"][0], NUMBERS["a share"][0], NUMBERS["an integer"][0]])
def test_random_walks_of_short_numbers_are_valid_and_short(schema):
    walker, validator = Walker(json_schema.pushdown_automaton(schema), 1), jsonschema.Draft202012Validator(schema)
    for _ in range(10):
        text = walker.text(30)
        assert validator.is_valid(read(text)) and sum(map(str.isdigit, text.decode().lower().partition("e")[0])) <= 16
