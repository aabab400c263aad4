"""Schemas that no metaschema reaches, found by `make fuzz`: they are refused, whatever is wrong with them."""

from __future__ import annotations

import pytest

from mechanex_jax.constraints import json_schema
from mechanex_jax.errors import ConstraintError


def nested(levels: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "null"}
    for _ in range(levels):
        schema = {"allOf": [schema]}
    return schema


REFUSED = {
    "a type without hash, behind a reference": (
        {"$defs": {"n": {"type": [[], "x"]}}, "$ref": "#/$defs/n"},
        "which is not a schema",
    ),
    "no type, beside the keywords": ({"x": {"type": "aarry"}, "$ref": "#/x"}, "which is not a schema"),
    "a reference that is a number": ({"$ref": 3}, r"\$ref at # is 3"),
    "a length beyond memory": ({"type": "string", "minLength": 10**30}, "minLength at # cannot be held exactly"),
    "a hundred levels": (nested(100), "nested too deeply"),
    "four hundred levels": (nested(400), "nested too deeply"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_that_is_none_is_refused(name: str):
    schema, words = REFUSED[name]
    with pytest.raises(ConstraintError, match=words):
        json_schema.pushdown_automaton(schema)
