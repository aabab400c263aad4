"""Constraints from `generate` on the real model: what the text must be, it is, with every method and in every company."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from mechanex_jax.errors import ArgumentError

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    "required": ["value", "next"],
    "additionalProperties": False,
}
LIST = 'root ::= item ("," item){0,3}\nitem ::= "(" (item | [a-z]+) ")"\n'
LISTED = re.compile(r"\(+[a-z]+\)+(,\(+[a-z]+\)+){0,3}")
METHODS = ("greedy", "top-k", "top-p", "min-p", "typical", "guided-generation")


def holds(schema, text: str) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


def balanced(text: str) -> bool:
    return bool(LISTED.fullmatch(text)) and all(part.count("(") == part.count(")") for part in text.split(","))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_obeys_a_schema_an_expression_and_a_grammar(mx, method):
    common = {"sampling_method": method, "max_tokens": 60, "temperature": 1.5, "seed": 3}
    kinds = {
        "json_schema": [PERSON, None, None],
        "regex_pattern": [None, r"[A-Z][a-z]{2,9}!", None],
        "grammar": [None, None, LIST],
    }
    schema, pattern, grammar = mx.generation.generate_batch(["A person: "] * 3, **kinds, **common)
    assert holds(PERSON, schema)
    assert re.fullmatch(r"[A-Z][a-z]{2,9}!", pattern)
    assert balanced(grammar)


def test_a_mixed_batch_equals_each_row_alone_and_a_free_row_is_untouched(mx):
    prompts = ["A person: ", "The sea is", "Numbers: ", "A tree: "]
    rows = [{"json_schema": PERSON}, {}, {"regex_pattern": r"[0-9]+(, [0-9]+){3}"}, {"json_schema": TREE}]
    names = ("json_schema", "regex_pattern")
    columns = {name: [row.get(name) for row in rows] for name in names}
    common = {"max_tokens": 40, "temperature": 0.9, "sampling_method": "top-p"}
    together = mx.generation.generate_batch(prompts, seed=[5, 6, 7, 8], **columns, **common)
    alone = [
        mx.generation.generate(p, seed=5 + i, **row, **common) for i, (p, row) in enumerate(zip(prompts, rows, strict=True))
    ]
    assert together == alone
    assert together[1] == mx.generation.generate(prompts[1], seed=6, **common)
    assert holds(PERSON, together[0]) and holds(TREE, together[3])


def test_a_stream_under_a_constraint_is_the_generated_text(mx):
    arguments = {"json_schema": PERSON, "max_tokens": 50, "seed": 11, "temperature": 1.0}
    text = mx.generation.generate("A person: ", **arguments)
    assert "".join(mx.generation.stream("A person: ", **arguments)) == text
    assert holds(PERSON, text)


def test_a_schema_goes_with_steering_penalties_and_a_bias(mx):
    vector = [(-1) ** i for i in range(576)]
    text = mx.generation.generate(
        "A person: ",
        json_schema=PERSON,
        max_tokens=50,
        seed=1,
        steering_vector={12: vector},
        steering_strength=2.0,
        repetition_penalty=1.3,
        logit_bias={0: 5.0},
        min_tokens=3,
    )
    assert holds(PERSON, text)


def test_recursion_and_open_objects_are_complete_however_little_room_there_is(mx):
    for schema in (TREE, {"type": "object"}, {"type": "array", "items": {"type": "array"}}, {}):
        shortest = mx.constraints.compile(json_schema=schema, tokenizer=mx.runtime.default.local_model()).minimum
        texts = mx.generation.generate_batch(
            ["Some JSON: "] * 6,
            json_schema=schema,
            temperature=2.0,
            max_tokens=[shortest + i for i in (0, 1, 2, 5, 9, 30)],
            seed=4,
        )
        assert all(holds(schema, text) for text in texts)


def test_max_tokens_below_the_shortest_text_is_an_error_that_says_how_many_it_takes(mx, compilations):
    shortest = mx.constraints.compile(json_schema=PERSON, tokenizer=mx.runtime.default.local_model()).minimum

    def ask():
        with pytest.raises(ArgumentError, match=f"at least {shortest}\\b"):
            mx.generation.generate("A person: ", json_schema=PERSON, max_tokens=shortest - 1)

    assert compilations(ask) == 0
    assert holds(PERSON, mx.generation.generate("A person: ", json_schema=PERSON, max_tokens=shortest, seed=1))


def test_another_schema_of_like_size_compiles_nothing(mx, compilations):
    def ask(name):
        schema = {"type": "object", "properties": {name: {"type": "string"}}, "required": [name], "additionalProperties": False}
        mx.generation.generate("JSON: ", json_schema=schema, max_tokens=30, seed=1)

    ask("first")
    assert compilations(lambda: ask("second")) == 0


def test_beam_search_alone_and_under_a_constraint_with_its_other_hypotheses(mx):
    plain = mx.generation.generate("The capital of France is", sampling_method="constrained-beam-search", max_tokens=8)
    assert "Paris" in plain
    arguments = {"sampling_method": "constrained-beam-search", "max_tokens": 40, "json_schema": PERSON, "include_trace": True}
    text = mx.generation.generate("A person as JSON: ", beam_width=3, length_penalty=0.5, **arguments)
    assert holds(PERSON, text)
    trace = mx.generation.last_trace
    scores = [hypothesis["score"] for hypothesis in trace["hypotheses"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True) and trace["hypotheses"][0]["text"] == text
    assert all(holds(PERSON, hypothesis["text"]) for hypothesis in trace["hypotheses"])
    assert list(mx.generation.stream("A person as JSON: ", beam_width=3, length_penalty=0.5, **arguments)) == [text]


def test_methods_and_beam_widths_may_differ_within_a_batch(mx):
    methods = ["greedy", "constrained-beam-search", "constrained-beam-search", "top-p"]
    widths = [4, 2, 3, 4]
    texts = mx.generation.generate_batch(["The sea is"] * 4, sampling_method=methods, beam_width=widths, max_tokens=6, seed=1)
    for method, width, text, seed in zip(methods, widths, texts, range(4), strict=True):
        if method != "top-p":
            assert text == mx.generation.generate(
                "The sea is", sampling_method=method, beam_width=width, max_tokens=6, seed=seed
            )


def test_a_compiled_constraint_is_reused_and_tells_what_it_allows(mx, loaded):
    compiled = mx.constraints.compile(regex=r"(yes|no)\.", tokenizer=loaded)
    assert compiled.matches("yes.") and not compiled.matches("yes")
    allowed = {loaded.tokenizer.vocabulary.bytes_of(token) for token in compiled.allowed("ye")}
    assert allowed == {b"s", b"s."} & {loaded.tokenizer.vocabulary.bytes_of(t) for t in range(loaded.tokenizer.size)}
    assert compiled.stats["states"] > 0
    assert mx.generation.generate("Is it? ", constraint=compiled, max_tokens=8, seed=1) in ("yes.", "no.")


WRONG = [
    ({"json_schema": {"type": "strin"}}, ("strin", "type")),
    ({"json_schema": {"type": "object", "properties": {"a": {"minimum": "3"}}}}, ("minimum", "3")),
    (
        {"json_schema": {"properties": {"a": {"uniqueItems": True, "type": "array"}}, "required": ["a"]}},
        ("uniqueItems", "properties/a"),
    ),
    ({"json_schema": False}, ("json_schema",)),
    ({"json_schema": {"type": "integer", "minimum": 3, "maximum": 2}}, ("No ",)),
    ({"json_schema": {"const": {1, 2}}}, ("JSON",)),
    ({"regex_pattern": "a(b"}, ("position",)),
    ({"regex_pattern": r"(a)\1"}, ("position",)),
    ({"regex_pattern": r"a(?=b)b"}, ("position",)),
    ({"regex_pattern": r"(a|b)*a(a|b){20}"}, ("states",)),
    ({"regex_pattern": r"[^\s\S]"}, ("No ",)),
    ({"grammar": 'root ::= "a" |\n  ) "b"'}, ("line", "column")),
    ({"grammar": 'root ::= a "x"'}, ("'a'",)),
    ({"grammar": "root ::= root"}, ("root",)),
    ({"json_schema": {}, "regex_pattern": "a"}, ("json_schema and regex_pattern",)),
    ({"sampling_method": "guided-generation"}, ("json_schema, regex_pattern, grammar or choices",)),
    ({"json_schema": 3}, ("json_schema",)),
    ({"regex_pattern": 3}, ("regex_pattern",)),
    ({"sampling_method": "constrained-beam-search", "beam_width": 0}, ("beam_width",)),
    ({"sampling_method": "constrained-beam-search", "early_stopping": "soon"}, ("never",)),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda value: str(value)[:60])
def test_bad_constraints_are_refused_before_anything_compiles(mx, compilations, arguments, words):
    def ask():
        with pytest.raises(ArgumentError) as caught:
            mx.generation.generate("Hello", max_tokens=20, **arguments)
        for word in words:
            assert word in str(caught.value), str(caught.value)

    assert compilations(ask) == 0


def test_a_constraint_of_another_tokenizer_is_refused_by_name(mx, loaded):
    from mechanex_jax.tokenization.vocabulary import Vocabulary

    other = Vocabulary.from_tokens([None, *(bytes([b]) for b in range(256))])
    compiled = mx.constraints.compile(regex="a+", tokenizer=other)
    with pytest.raises(ArgumentError, match="another tokenizer"):
        mx.generation.generate("Hello", constraint=compiled)
    assert mx.generation.generate("The capital of France is", sampling_method="greedy", max_tokens=3)
