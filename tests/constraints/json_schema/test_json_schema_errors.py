"""Refusals, and that the error says where and why."""

from __future__ import annotations

import pytest
from schema_tools import accepts

from mechanex_jax.constraints import json_schema
from mechanex_jax.constraints.automata.dfa import CompileLimits
from mechanex_jax.errors import ConstraintError

_ITEMS = {"properties": {"tags": {"type": "array", "items": {"type": "string", "maxLength": 9}, "uniqueItems": True}}}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, ["'strin' is not valid", "#/type"]),
        ({"properties": {"a": {"minLength": -1}}}, ["-1 is less than the minimum", "#/properties/a/minLength"]),
        (3, ["json_schema", "got 3", "a dict"]),
        (None, ["a dict", "None"]),
        ("{", ["JSON text"]),
        ({"enum": [{1, 2}]}, ["written as JSON"]),
        ({"const": float("nan")}, ["written as JSON"]),
        (_ITEMS, ["uniqueItems", "#/properties/tags", "length is limited"]),
        ({"type": "array", "uniqueItems": True}, ["uniqueItems", "at #", "need not be strings"]),
        ({"not": {"uniqueItems": True, "items": {"type": "string"}}}, ["uniqueItems", "not, oneOf"]),
        ({"items": {"pattern": "(a)\\1"}}, ["pattern", "#/items", "position"]),
        ({"properties": {"x": {"pattern": "a(?=b)c"}}}, ["pattern", "#/properties/x", "lookahead"]),
        ({"pattern": "^(?!a)b(?=c)d"}, ["'^(?!a)b(?=c)d'", "lookahead at position 7"]),
        ({"pattern": "a("}, ["pattern", "#"]),
        ({"patternProperties": {"[": {}}}, ["patternProperties"]),
        ({"$ref": "#/$defs/none"}, ["$ref at #", "#/$defs/none"]),
        ({"properties": {"a": {"$ref": "http://elsewhere.test/x.json"}}}, ["$ref", "#/properties/a", "elsewhere"]),
        ({"$ref": "#none"}, ["$ref", "#none"]),
        ({"$ref": "#"}, ["refers to itself"]),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}, ["refers to itself"]),
        ({"$ref": "#/x", "x": {"$ref": {"type": "string"}}}, ["$ref at #", "#/x", "not a schema", "at #/$ref in it"]),
        ({"items": {"$ref": "#/x"}, "x": {"pattern": {}}}, ["$ref at #/items", "#/x", "at #/pattern in it"]),
        ({"$ref": "#/properties", "properties": {"type": {"type": "null"}}}, ["$ref at #", "#/properties", "at #/type in it"]),
        ({"$ref": "#/x/0/y", "x": [{"y": {"allOf": {}}}]}, ["$ref at #", "#/x/0/y", "at #/allOf in it"]),
        ({"multipleOf": 0.123456789}, ["multipleOf at #"]),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, ["draft-03"]),
    ],
)
def test_refusals_say_what_and_where(schema, words):
    with pytest.raises(ConstraintError) as caught:
        json_schema.pushdown_automaton(schema)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "string", "minLength": 3, "pattern": "^a?$"},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "array", "items": False, "minItems": 1},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"not": {}},
        {"enum": ["a"], "const": "b"},
    ],
)
def test_schemas_that_nothing_satisfies_are_refused(schema):
    with pytest.raises(ConstraintError, match="No value satisfies"):
        json_schema.pushdown_automaton(schema)


def test_limits_on_states_hold():
    schema = {"type": "array", "maxItems": 5000, "items": {"type": "integer"}}
    with pytest.raises(ConstraintError, match="too large"):
        json_schema.pushdown_automaton(schema, limits=CompileLimits(states=1000))
    assert accepts(json_schema.pushdown_automaton({**schema, "maxItems": 50}), "[1,2]")


def test_annotations_are_ignored():
    schema = {
        "title": "x",
        "default": 3,
        "examples": [1],
        "x-own": {"type": "null"},
        "contentEncoding": "base64",
        "$comment": "c",
    }
    pushdown = json_schema.pushdown_automaton({**schema, "format": "unheard-of", "type": "string"})
    assert accepts(pushdown, '"anything"') and not accepts(pushdown, "3")
