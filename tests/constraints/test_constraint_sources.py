"""Constraints as users have them: each form is the constraint that it stands for."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import warnings
from pathlib import Path

import machines
import pydantic
import pytest
from schema_tools import accepts
from typing_extensions import TypedDict

import mechanex_jax as mx
from mechanex_jax.constraints import sources
from mechanex_jax.constraints.compiler import FRONT_ENDS
from mechanex_jax.constraints.json_schema import misspelt
from mechanex_jax.constraints.sources import JsonOptions
from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.errors import ArgumentError, ConstraintError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Model(pydantic.BaseModel):
    colour: Colour
    size: int = 0


@dataclasses.dataclass
class Data:
    colour: Colour
    size: int = 0


class Typed(TypedDict, total=False):
    colour: Colour
    size: int


SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}, "size": {"type": "integer"}}}
TOOL = {"name": "paint", "description": "Paint it.", "parameters": SCHEMA}
FORMAT = {"name": "paint", "schema": SCHEMA}
FORMS = {  # (source, whether it is closed)
    "dict": (SCHEMA, False),
    "text": (json.dumps(SCHEMA), False),
    "bytes": (json.dumps(SCHEMA).encode(), False),
    "pydantic model": (Model, True),
    "adapter": (pydantic.TypeAdapter(Data), True),
    "dataclass": (Data, True),
    "TypedDict": (Typed, True),
    "tool": ({"type": "function", "function": TOOL}, False),
    "strict tool": ({"type": "function", "function": {**TOOL, "strict": True}}, True),
    "flat tool": ({"type": "function", "strict": True, **TOOL}, True),
    "old function": (TOOL, False),
    "input_schema": ({"name": "paint", "input_schema": SCHEMA}, False),
    "response_format": ({"type": "json_schema", "json_schema": FORMAT}, False),
    "strict response_format": ({"type": "json_schema", "json_schema": {**FORMAT, "strict": True}}, True),
    "text format": ({"type": "json_schema", "strict": True, **FORMAT}, True),
}


def automaton(kind: str, source, **options):
    return FRONT_ENDS[kind](source, JsonOptions(**options)).compile()


@pytest.mark.parametrize(("source", "closed"), FORMS.values(), ids=FORMS)
def test_every_form_of_a_schema_is_that_schema(source, closed, tmp_path):
    GenerationConfig(json_schema=source if not isinstance(source, bytes) else None)
    pushdown = automaton("json_schema", source)
    assert accepts(pushdown, '{"colour":"red","size":3}') and not accepts(pushdown, '{"colour":"green"}')
    assert accepts(pushdown, '{"colour":"red","x":1}') != closed
    assert accepts(automaton("json_schema", source, closed=not closed), '{"colour":"red","x":1}') == closed


def test_a_path_is_read_and_a_string_is_never_one(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"const": 1}))
    assert accepts(automaton("json_schema", path), "1") and not accepts(automaton("json_schema", path), "2")
    with pytest.raises(ConstraintError, match="not JSON"):
        automaton("json_schema", str(path))
    grammar = tmp_path / "sum.gbnf"
    grammar.write_text('root ::= "a"+')
    assert accepts(automaton("grammar", grammar), "aa")
    for kind, wrong in (("json_schema", tmp_path / "none.json"), ("grammar", tmp_path / "none"), ("grammar", path)):
        with pytest.raises(ConstraintError, match=kind):
            automaton(kind, wrong)


def test_other_types_and_tools_without_arguments():
    assert accepts(automaton("json_schema", list[Model]), '[{"colour":"red"}]')
    assert accepts(automaton("json_schema", Colour), '"red"') and not accepts(automaton("json_schema", Colour), '"RED"')
    assert accepts(automaton("json_schema", {"type": "json_object"}), '{"a":1}')
    nothing = automaton("json_schema", {"type": "function", "function": {"name": "go"}})
    assert accepts(nothing, "{}") and not accepts(nothing, '{"a":1}')
    # A schema is no tool because it speaks of names and parameters.
    schema = {"properties": {"name": {"type": "string"}, "parameters": {"type": "null"}}}
    assert sources.read_schema(schema).schema == schema


@pytest.mark.parametrize("flags", [0, re.IGNORECASE, re.DOTALL, re.VERBOSE | re.MULTILINE, re.ASCII | re.IGNORECASE])
@pytest.mark.parametrize("text", ["a . b", "(?i)k+", r"\w\d", "(?s).|ß"])
def test_a_compiled_pattern_keeps_its_flags(text, flags):
    pattern = re.compile(text, flags)
    pushdown = automaton("regex", pattern)
    for sample in ("a . b", "axb", "a\nb", "A x B", "a x b", "K", "kK", "é1", "a1", "a٣", "\n", "ß", "SS", "ẞ"):
        assert accepts(pushdown, sample) == bool(pattern.fullmatch(sample)), sample


@pytest.mark.parametrize("choices", [["yes", "no", "yes sir"], Colour, ("", "a.b"), ["é", "日本"]])
def test_choices_are_exactly_these_texts(choices):
    texts = [member.value for member in choices] if isinstance(choices, type) else choices
    pushdown = automaton("choices", choices)
    assert all(accepts(pushdown, text) for text in texts)
    assert not any(accepts(pushdown, text) for text in ("ye", "a-b", "yesno", '"yes"', "RED", "x"))
    compiled = mx.constraints.compile(choices=choices, tokenizer=machines.byte_vocabulary([]))
    assert all(compiled.matches(text) for text in texts) and not compiled.matches("x")


REFUSED = [
    ({"json_schema": ["a", "b"]}, "json_schema"),
    ({"json_schema": 3}, "json_schema: got 3; expected a JSON Schema"),
    ({"json_schema": int}, "json_schema"),
    ({"regex_pattern": re.compile(b"a")}, "regex_pattern"),
    ({"regex_pattern": Path("a")}, "regex_pattern"),
    ({"grammar": re.compile("a")}, "grammar"),
    ({"choices": "yes"}, "choices: got 'yes'; expected a list of strings"),
    ({"choices": []}, "choices"),
    ({"choices": [1, 2]}, "Give JSON values as json_schema"),
    ({"choices": ["a"], "json_schema": True}, "json_schema and choices: got 2 constraints"),
    ({"json_numbers": "long"}, "json_numbers: got 'long'"),
    ({"json_closed": "yes"}, "json_closed"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_is_none_of_the_forms_is_refused_before_anything_compiles(arguments, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        GenerationConfig(**arguments)


MISSPELT = {
    "propertes": "properties",
    "requierd": "required",
    "minlength": "minLength",
    "addtionalProperties": "additionalProperties",
    "enums": "enum",
    "uniqueItem": "uniqueItems",
    "$refs": "$ref",
    "patern": "pattern",
}


@pytest.mark.parametrize(("word", "keyword"), MISSPELT.items())
def test_a_misspelt_keyword_is_named_with_the_one_that_was_probably_meant(word, keyword):
    schema = {"properties": {"a": {"items": [{word: []}]}}}
    assert list(misspelt(schema)) == [("#/properties/a/items/0", word, keyword)]
    with pytest.warns(UserWarning, match=rf"'{re.escape(word)}' at #/properties/a/items/0 .*'{re.escape(keyword)}'") as caught:
        FRONT_ENDS["json_schema"](schema, JsonOptions())
    assert len(caught) == 1


def test_words_that_only_name_things_are_not_taken_for_keywords():
    names = dict.fromkeys(MISSPELT, True)
    schemas = [
        {"properties": names},
        {"default": names},
        {"enum": [names]},
        {"$defs": names},
        {"x-item": names},
        {"markdown": 1},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for schema in [*schemas, {"nullable": True, "example": 1, "discriminator": {}}, *(s for s, _ in FORMS.values())]:
            FRONT_ENDS["json_schema"](schema, JsonOptions())
