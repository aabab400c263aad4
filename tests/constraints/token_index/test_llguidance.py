"""Masks over the real vocabulary against llguidance, an engine that shares no code with this one.

llguidance reads the tokenizer's own file. It is told to write compact JSON, and not to put one token for bytes that are
forced (`no_forcing`), which is a choice and not a question of what is allowed.

Over JSON the languages differ only as `beyond_llguidance` says, and only in what is allowed here and not there. In strings
llguidance refuses DEL, and the escapes of a slash and of whatever but control characters and quotes; it spells integers
without a fraction that is zero, and them and numbers with bounds without an exponent. A token that makes such a text is left
out of the comparison, and never followed. Over expressions and grammars nothing is left out.
"""

from __future__ import annotations

import functools
import json
import random
import re

import llguidance.numpy
import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from mechanex_jax.checkpoints import Tokenizer
from mechanex_jax.constraints.compiled import CompiledConstraint
from mechanex_jax.constraints.compiler import FRONT_ENDS
from mechanex_jax.constraints.sources import JsonOptions
from mechanex_jax.constraints.token_index import build

WALKS, STEPS = 2, 16


def closed(properties: dict, **more) -> dict:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


NODE = closed({"v": {"type": "boolean"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}})
OPTIONAL = {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": {"enum": ["x", "y"]}}

# Each schema with the text of an instance, compared at random token boundaries up to its end.
SCHEMAS = {
    "boolean": ({"type": "boolean"}, "false"),
    "null": ({"type": "null"}, "null"),
    "enum": ({"enum": ["red", "green", None, True, [False, "x"]]}, '[false,"x"]'),
    "const": ({"const": {"kind": "circle", "r": 12}}, '{"kind":"circle","r":12}'),
    "closed object": (closed({"name": {"type": "string"}, "age": {"type": "integer"}}), '{"name":"Zoë \\"Z\\"","age":-30}'),
    "some required": (
        {"type": "object", "properties": OPTIONAL, "required": ["b"], "additionalProperties": False},
        '{"a":true,"b":null,"c":"y"}',
    ),
    "none required": ({"type": "object", "properties": OPTIONAL, "additionalProperties": False}, '{"a":false,"c":"x"}'),
    "bounded array": ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4}, "[true,false,true,true]"),
    "array of strings": ({"type": "array", "items": {"type": "string"}}, '["","a\\u001Fb","日本"]'),
    "tuple": (
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "minItems": 2},
        '["x y",7]',
    ),
    "nested": (
        closed({"p": closed({"x": {"type": "number"}}), "tags": {"type": "array", "items": {"enum": ["a", "ab", "abc"]}}}),
        '{"p":{"x":-1.5e+3},"tags":["ab","abc","a"]}',
    ),
    "list by recursion": (
        closed({"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}),
        '{"value":1,"next":{"value":20,"next":{"value":-3,"next":null}}}',
    ),
    "tree by recursion": (
        {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
        '{"v":true,"kids":[{"v":false,"kids":[]},{"v":true,"kids":[{"v":true,"kids":[]}]}]}',
    ),
    "anyOf": (
        {"anyOf": [{"type": "integer"}, closed({"k": {"const": "a"}, "v": {"type": "boolean"}}), {"enum": ["one", "two"]}]},
        '{"k":"a","v":true}',
    ),
    "integer bounds": ({"type": "integer", "minimum": -17, "maximum": 1234}, "1199"),
    "number": ({"type": "number"}, "-0.25E-7"),
    "number bounds": ({"type": "number", "minimum": 0.5, "maximum": 99}, "98.5"),
    "string length": ({"type": "string", "minLength": 2, "maxLength": 5}, '"\\n日x👍z"'),
    "pattern": ({"type": "string", "pattern": "^[a-z]{2,4}-[0-9]{3}$"}, '"abc-123"'),
    "date": ({"type": "string", "format": "date"}, '"2024-02-29"'),
    "uuid": ({"type": "string", "format": "uuid"}, '"a9ffedb9-0123-4567-89ab-cdef01234567"'),
    "map": ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"one":1,"t\\t":22}'),
    "keys by pattern": (
        {"type": "object", "patternProperties": {"^[a-z]+$": {"type": "boolean"}}, "additionalProperties": False},
        '{"abc":true,"z":false}',
    ),
    "types": ({"type": ["string", "null", "boolean"]}, '"t/\\t"'),
    "open object": (
        {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
        '{"a":true,"more":[1,{"x":null}],"b":"c"}',
    ),
    "anything": ({}, '{"a":[1.5,null,{"b":"c"}],"":false}'),
}
EXPRESSIONS = {
    r"(a|ab)(c|bcd)": "abcd",
    r"[A-Z][a-z]{2,9}(, [A-Z][a-z]+)*!": "Compare, Contrast!",
    r"[0-9]{3}-[0-9]{4}": "684-3414",
    r"(foo|foobar|bar)+": "barfoobarfoobar",
    r"[^a]{2,5}": "x👍\né",
    r"[à-ÿ一-龥]+ ?[0-9]*": "日本à 42",
    r".*x": "a text in läx",
    r"(?i:strasse|hello)": "HelLo",
    r"a?b*c+": "abbcc",
}
GRAMMARS = {
    'start: expr\nexpr: term (("+" | "-") term)*\nterm: NUMBER | "(" expr ")"\nNUMBER: /[0-9]+/\n': "((12)+3)-(4-56)",
    'start: "[" (pair ("," pair)*)? "]"\npair: /[a-zé]+/ "=" (start | "true" | "nil")\n': "[a=true,né=[b=nil,c=[]]]",
}
# Where integers or bounded numbers are, and their spelling makes a difference.
SPELLED_PLAINLY = (
    *("const", "closed object", "tuple", "list by recursion"),
    *("anyOf", "integer bounds", "number bounds", "map"),
)
_ESCAPE = re.compile(rb'\\(?:["\\bfnrt]|u00[01][0-9A-Fa-f]|(?:u0{0,2}|u00[01])$)|\\$')
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?$)', re.DOTALL)


def nothing(text: bytes) -> bool:
    """For the constraints that both take for the same language."""
    return False


def beyond_llguidance(text: bytes, plain_numbers: bool) -> bool:
    """Whether a text, or the beginning of one, is JSON that only this library writes; see the module."""
    other_escape = b"\\" in _ESCAPE.sub(b"", text)
    other_number = plain_numbers and re.search(rb"[0-9][.eE]", _STRING.sub(b"", text))
    return other_escape or b"\x7f" in text or bool(other_number)


@pytest.fixture(scope="module")
def ours(smollm2_folder) -> Tokenizer:
    return Tokenizer.from_folder(smollm2_folder)


@pytest.fixture(scope="module")
def theirs(smollm2_folder, ours) -> LLTokenizer:
    return LLTokenizer(str(smollm2_folder / "tokenizer.json"), eos_token=list(ours.eos_ids), slices=[])


@pytest.fixture(scope="module")
def token_bytes(ours) -> list[bytes]:
    return [ours.vocabulary.bytes_of(token) for token in range(ours.vocabulary.size)]


def compiled(tokenizer: Tokenizer, kind: str, source) -> CompiledConstraint:
    pushdown = FRONT_ENDS[kind](source, JsonOptions(numbers="any")).compile()
    return CompiledConstraint(
        pushdown, tokenizer.vocabulary, build.build(pushdown, tokenizer.vocabulary, eos_ids=tokenizer.eos_ids)
    )


def matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    found = LLMatcher(tokenizer, '%llguidance {"no_forcing": true}\n' + grammar)
    assert not found.is_error(), found.get_error()
    return found


def mask(found: LLMatcher, size: int) -> np.ndarray:
    words = llguidance.numpy.allocate_token_bitmask(1, size)
    llguidance.numpy.fill_next_token_bitmask(found, words)
    assert not found.is_error(), found.get_error()
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")[:size])


def check(constraint: CompiledConstraint, start, token_bytes: list[bytes], example: str, left_out, seed: int) -> None:
    """Compare at the prefixes of an accepted text and of random ones.

    Args:
      constraint: this library's.
      start: makes llguidance's matcher, at the beginning.
      token_bytes: of all ids.
      example: an accepted text.
      left_out: whether a text is left out of the comparison.
      seed: of the boundaries and the walks.
    """
    draw = random.Random(seed)
    ends = set(constraint.tables.eos_ids.tolist())

    def compared(other: LLMatcher, text: bytes) -> list[int]:
        here, there = constraint.allowed(text), mask(other, len(token_bytes))
        only_here = [token_bytes[token] for token in np.setdiff1d(here, there)]
        only_here = [token for token in only_here if not left_out(text + token)]
        only_there = [token_bytes[token] for token in np.setdiff1d(there, here)]
        if constraint.pushdown.distinct_ends.any():
            # A key that must be new has one spelling, without \\u, and ends with the first byte of a token, never behind others
            # (see `automata.pushdown`).
            escaped = [b"\\u" in text[-1:] + token for token in only_there]
            only_there = [token for token, has in zip(only_there, escaped, strict=True) if not has and b'"' not in token[1:]]
        assert (only_here[:5], only_there[:5]) == ([], []), text
        assert ends.isdisjoint(here) == ends.isdisjoint(there), text
        return np.intersect1d(here, there).tolist()

    def follow(choose) -> bytes:
        other, text = start(), b""
        while (token := choose(text, compared(other, text))) is not None:
            assert other.consume_token(token), text
            text += token_bytes[token]
        return text

    def along(text: bytes, tokens: list[int]) -> int | None:
        rest = example.encode()[len(text) :]
        if not rest:
            assert not ends.isdisjoint(tokens), text
            return None
        return draw.choice([token for token in tokens if token_bytes[token] and rest.startswith(token_bytes[token])])

    assert follow(along) == example.encode()
    for _ in range(WALKS):
        steps = iter(range(STEPS))

        def at_random(text: bytes, tokens: list[int], steps=steps) -> int | None:
            tokens = [token for token in tokens if token not in ends]
            marks = [token for token in tokens if token_bytes[token].strip(b'\\"{}[],:()=') == b""]
            if next(steps, None) is None or not tokens:
                return None
            return draw.choice(marks if marks and draw.random() < 0.4 else tokens)

        follow(at_random)


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_masks_equal_llguidances(ours, theirs, token_bytes, name):
    schema, example = SCHEMAS[name]
    compact = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
    grammar = "start: %json " + json.dumps({**schema, "x-guidance": compact})
    start = functools.partial(matcher, theirs, grammar)
    left_out = functools.partial(beyond_llguidance, plain_numbers=name in SPELLED_PLAINLY)
    check(compiled(ours, "json_schema", schema), start, token_bytes, example, left_out, seed=len(example))


@pytest.mark.parametrize("pattern", EXPRESSIONS)
def test_regex_masks_equal_llguidances(ours, theirs, token_bytes, pattern):
    start = functools.partial(matcher, theirs, f"start: /{pattern}/")
    check(compiled(ours, "regex", pattern), start, token_bytes, EXPRESSIONS[pattern], nothing, seed=1)


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_grammar_masks_equal_llguidances(ours, theirs, token_bytes, grammar):
    start = functools.partial(matcher, theirs, grammar)
    check(compiled(ours, "grammar", grammar), start, token_bytes, GRAMMARS[grammar], nothing, seed=2)
