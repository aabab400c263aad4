"""Targets that read what a user writes to constrain a text: JSON Schemas, regular expressions, grammars."""

from __future__ import annotations

import functools
import json
from random import Random
from typing import Any

from mechanex_jax import constraints
from mechanex_jax.constraints.device.token_mask import Constraint

from .files import family
from .target import Target
from .values import TEXTS, foreign, mutated, spliced, wild

SECONDS = 90.0  # the library's own bound is a minute, per step of compiling

SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"a": {"type": "integer", "minimum": -3, "maximum": 70}, "b": {"type": "string"}}},
    {"type": "object", "required": ["x"], "additionalProperties": {"type": "number"}, "propertyNames": {"pattern": "^x"}},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3, "uniqueItems": False},
    {"prefixItems": [{"const": 1}, {"enum": ["a", None, 2.5]}], "items": False, "contains": {"type": "null"}},
    {"type": "string", "minLength": 2, "maxLength": 9, "pattern": "^[a-c]+x?$"},
    {"type": "string", "format": "date-time"},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1.5, "multipleOf": 0.25},
    {"$defs": {"n": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/n"}}]}}, "$ref": "#/$defs/n"},
    {"oneOf": [{"type": "integer"}, {"type": "string"}], "not": {"const": 3}},
    {
        "allOf": [{"type": "object", "properties": {"k": {"type": "integer"}}}, {"required": ["k"]}],
        "unevaluatedProperties": False,
    },
    {"if": {"type": "integer"}, "then": {"minimum": 3}, "else": {"type": "string"}},
    {"$id": "http://a/b", "$anchor": "c", "$dynamicRef": "#c", "patternProperties": {"^a": True}, "minProperties": 1},
    {"dependentRequired": {"a": ["b"]}, "dependentSchemas": {"a": {"required": ["c"]}}, "type": ["object", "null"]},
]
KEYWORDS = sorted(
    {key for schema in SCHEMAS for key in schema} | {"$schema", "title", "default", "contentEncoding", "$comment"}
)

ATOMS = [
    "a",
    "b",
    ".",
    "\\d",
    "\\w",
    "\\s",
    "[a-c]",
    "[^a]",
    "(?:ab)",
    "(a|b)",
    "(?P<n>a)",
    "\\b",
    "^",
    "$",
    "é",
    "🙂",
    "\\p{L}",
    "[[:x:]]",
]
ATOMS += [
    "(?=a)",
    "(?!b)",
    "(?<=a)",
    "(?<!b)",
    "(?i)",
    "(?i:a)",
    "\\1",
    "(?P=n)",
    "(?#c)",
    "(?>a)",
    "\\x41",
    "\\u0041",
    "\\N{DIGIT ONE}",
]
ATOMS += [
    "[",
    "]",
    "(",
    ")",
    "{",
    "\\",
    "|",
    "[z-a]",
    "[\\d-z]",
    "(?(1)a|b)",
    "\\Z",
    "\\A",
    "\\0",
    "\ud800",
    "\0",
    "[^\\W]",
    "(?s:.)",
]
REPEATS = [
    "",
    "",
    "",
    "*",
    "+",
    "?",
    "{2}",
    "{1,3}",
    "{,2}",
    "{3,}",
    "*?",
    "++",
    "{2,1}",
    "{1000}",
    "{0}",
    "{99999999999}",
    "{0,5000}",
]

GRAMMARS = [
    'root ::= "a" | "(" root ")"', 'root ::= item+\nitem ::= [a-z]{2,3} | #"x" ws\nws ::= " "*', 'root ::= root "a" | "b"',
    'root ::= "\\x41" [^"\\n]* "\\"" # end', 'start: "a" start "b" | NAME\nNAME: /[a-z]+/i\n%ignore " "',
    'start: (item ","?)~1..3\nitem: INT | STRING -> text\n%import common.INT\n%import common.ESCAPED_STRING -> STRING',
    "regex:a+b", 'root ::= a\na ::= b\nb ::= a', 'start: expr\n?expr: expr "+" term | term\nterm: "x" | "(" expr ")"',
    'start{x}: x\n%declare Z', 'root ::= ("a" | "b")? ("c" (root)?)',
]  # fmt: skip
PIECES = ["root ::= ", "start: ", '"a"', "[a-z]", "(", ")", "*", "+", "?", "{2}", "{1,99999999}", "|", "\n", "/a/", "/[/",
          "~3", "%ignore", "%import common.WORD", "root", "x", "::=", ":", "#", '"\\', "'b'", "~1..9999", "regex:", "é",
          "\0", "->", "!", "\ud800"]  # fmt: skip


def _schema(rng: Random) -> Any:
    schema = rng.choice(SCHEMAS)
    if rng.random() < 0.3:
        schema = {**schema, **rng.choice(SCHEMAS)}
    if rng.random() < 0.3:
        schema = {**schema, rng.choice(KEYWORDS): rng.choice([wild, mutated_schema])(rng)}
    schema = mutated(rng, schema) if rng.random() < 0.8 else schema
    kind = rng.randrange(8)
    if kind == 0:
        return foreign(rng)
    return spliced(rng, json.dumps(schema)) if kind == 1 and depth_is_small(schema) else schema


def depth_is_small(value: object) -> bool:
    """Whether `json` can write it."""
    try:
        json.dumps(value)
    except RecursionError:
        return False
    return True


def mutated_schema(rng: Random) -> Any:
    """One of the schemas, changed."""
    return mutated(rng, rng.choice(SCHEMAS))


def _regex(rng: Random) -> Any:
    if rng.random() < 0.05:
        return rng.choice([*TEXTS, foreign(rng)])
    pattern = "".join(rng.choice(ATOMS) + rng.choice(REPEATS) for _ in range(rng.choice([1, 2, 3, 5, 8, 60])))
    if rng.random() < 0.2:
        pattern = f"({pattern}){rng.choice(REPEATS)}"
    return spliced(rng, pattern) if rng.random() < 0.3 else pattern


def _grammar(rng: Random) -> Any:
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice([*TEXTS, foreign(rng)])
    if kind < 3:
        return rng.choice(["root ::= ", "start: "]) + " ".join(rng.choice(PIECES) for _ in range(rng.choice([1, 3, 8])))
    text = rng.choice(GRAMMARS)
    for _ in range(rng.choice([1, 1, 2, 4])):
        text = spliced(rng, text) if rng.random() < 0.6 else text.replace(rng.choice(PIECES), rng.choice(PIECES), 1)
    return text


@functools.cache
def tokenizer() -> object:
    """A small tokenizer with an end of sequence."""
    from mechanex_jax.tokenization.tokenizer import Tokenizer

    return Tokenizer.from_folder(family("llama"))


def _compile(kind: str, source: Any) -> None:
    constraint: Constraint = constraints.compile(**{kind: source}, tokenizer=tokenizer())  # type: ignore[arg-type]
    assert constraint.minimum >= 0
    assert len(constraint.allowed("")), "a constraint that accepts some text allows no first token"
    for text in ("", "a", "{}", "[1]", '"é"'):
        assert constraint.matches(text) in (True, False)


TARGETS = {
    "json_schema": Target(_schema, lambda source: _compile("json_schema", source), seconds=SECONDS),
    "regex": Target(_regex, lambda source: _compile("regex", source), seconds=SECONDS),
    "grammar": Target(_grammar, lambda source: _compile("grammar", source), seconds=SECONDS),
}
