"""Half of a surrogate pair in a schema is an error of the argument, wherever it stands."""

from __future__ import annotations

import json

import pytest

from mechanex_jax.constraints.compiler import FRONT_ENDS
from mechanex_jax.constraints.sources import JsonOptions
from mechanex_jax.errors import ArgumentError

HALF = "a\ud800"
SCHEMAS = {
    "const": {"const": HALF},
    "enum": {"enum": ["x", HALF]},
    "a key": {"type": "object", "properties": {HALF: {}}},
    "required": {"required": [HALF]},
    "pattern": {"type": "string", "pattern": HALF},
    "description": {"type": "string", "description": HALF},
}


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("name", SCHEMAS)
def test_half_of_a_surrogate_pair_is_refused(name: str, as_text: bool) -> None:
    schema = json.dumps(SCHEMAS[name]) if as_text else SCHEMAS[name]
    with pytest.raises(ArgumentError, match=r"json_schema: got .*half of a surrogate pair"):
        FRONT_ENDS["json_schema"](schema, JsonOptions())
    FRONT_ENDS["json_schema"](json.dumps(SCHEMAS[name]).replace("\\ud800", ""), JsonOptions())
