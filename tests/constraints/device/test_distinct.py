"""Keys of one object, and items of an array with `uniqueItems`, never repeat: masks against the matcher, token by token."""

from __future__ import annotations

import functools
import json

import jax.numpy as jnp
import machines
import numpy as np
import pytest
from test_token_mask import advance, allowed, begin, one_row

from mechanex_jax.constraints import json_schema
from mechanex_jax.constraints.automata.matcher import Matcher
from mechanex_jax.constraints.device.token_mask import pack_constraints
from mechanex_jax.constraints.token_index import build

EOS = 257
TOKENS = [
    b'""',
    b'"a',
    b'"a"',
    b'","',
    b'","a',
    b'{"a',
    b'":"',
    b'a":',
    b"ab",
    b'"]',
    b'"}',
    b'":{"',
    b'\\"',
    b"a\\",
    b'",',
    b'b"]',
]
VOCABULARY = machines.byte_vocabulary(
    TOKENS + [b'{"', b'["', b":1", b',"', b'":1,"', b'":1}', b"}}", b"name", b"na", b"x-", "é".encode()]
)
QUOTE = ord('"')
_ONE = {"const": 1}
_STRINGS = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
SCHEMAS = {
    "open": {"type": "object", "additionalProperties": {"type": "integer"}},
    "listed": {"type": "object", "properties": {"name": _ONE, "na": _ONE}, "additionalProperties": _ONE},
    "nested": {"type": "object", "additionalProperties": {"anyOf": [{"const": 1}, {"$ref": "#"}]}},
    "patterns": {"type": "object", "patternProperties": {"^x-": _ONE}, "additionalProperties": False, "minProperties": 2},
    "items": _STRINGS,
    "three items": {**_STRINGS, "minItems": 3},
    "a pattern": {**_STRINGS, "items": {"type": "string", "pattern": "^[a-z]+$"}, "minItems": 2},
    "both": {"type": "object", "additionalProperties": _STRINGS},
    "arrays in an array": {"type": "array", "items": _STRINGS},
}  # fmt: skip


@functools.cache
def compiled(name: str):
    pushdown = json_schema.pushdown_automaton(SCHEMAS[name])
    tables = build.build(pushdown, VOCABULARY, eos_ids=[EOS])
    return pushdown, tables, one_row(pack_constraints([tables], VOCABULARY))


def fed(matcher: Matcher, token: int) -> Matcher | None:
    """The matcher behind a token; None if it may not come, or closes a distinct string that it has read a part of."""
    after = matcher.copy()
    text = VOCABULARY.bytes_of(token)
    for position in range(len(text)):
        closes = text[position] == QUOTE and after.ends[after.state] and not after.escaped
        if (position and closes) or not after.feed(text[position : position + 1]):
            return None
    return after if text else None


def likely(tokens, rng) -> int:
    """One of some tokens, mostly one of few letters or one that ends a part, so that strings are often equal."""
    texts = {token: VOCABULARY.bytes_of(token) for token in sorted(tokens)}
    few = [token for token, text in texts.items() if set(text) <= set(b'a"{}[],:1x-')]
    ending = [token for token in few if texts[token] in (b'"', b",", b"1", b":", b"[", b"a", b"{")]
    for pool, share in ((ending, 0.7), (few, 0.8)):
        if pool and rng.random() < share:
            return pool[rng.integers(len(pool))]
    return sorted(texts)[rng.integers(len(texts))]


def distinct(pairs):
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


def check_text(name: str, text: bytes) -> None:
    """By Python's own reader: no key repeats, nor an item of an array of strings."""
    value = json.loads(text, object_pairs_hook=distinct)
    arrays = [value]
    while arrays:
        inner = arrays.pop()
        parts = list(inner.values()) if isinstance(inner, dict) else inner if isinstance(inner, list) else []
        strings = [part for part in parts if isinstance(part, str)]
        if isinstance(inner, list):
            assert len(set(strings)) == len(strings), text
        arrays += parts


def walk(name: str, seed: int, remaining: int, steps: int):
    """A random text of at most `remaining` tokens, from few letters so that strings are often equal."""
    _, _, automaton = compiled(name)
    rng, state, text = np.random.default_rng(seed), begin(automaton), b""
    for step in range(steps):
        choice = allowed(automaton, state, remaining - step)
        assert choice, (name, text, remaining - step)
        if choice == {EOS} or (EOS in choice and rng.random() < 0.05):
            return text, True
        token = likely(choice - {EOS}, rng)
        state, text = advance(automaton, state, token), text + VOCABULARY.bytes_of(token)
    return text, EOS in allowed(automaton, state, remaining - steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_masks_are_those_of_the_matcher_that_remembers_all_strings(name):
    pushdown, _, automaton = compiled(name)
    rng, repeated = np.random.default_rng(1), 0
    for walked in range(60):
        if walked >= 6 and repeated >= 2:
            break
        matcher, state = Matcher(pushdown), begin(automaton)
        for _ in range(32):
            after = {token: copy for token in range(VOCABULARY.size) if (copy := fed(matcher, token))}
            want = set(after) | ({EOS} if matcher.accepts() else set())
            assert allowed(automaton, state) == want, (name, matcher.string)
            repeated += matcher.repeats()
            if not after:
                break
            token = likely(after, rng)
            matcher, state = after[token], advance(automaton, state, token)
    assert repeated, "no string was ever about to repeat"


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_texts_are_complete_and_without_repetition_however_few_tokens_there_are(name):
    least = compiled(name)[1].minimum
    assert not allowed(compiled(name)[2], begin(compiled(name)[2]), least - 1)
    for seed in range(24):
        budget = least + seed % 7
        text, complete = walk(name, seed, budget, budget)
        assert complete, (name, text, budget)
        check_text(name, text)


def test_a_repeated_string_may_go_on_but_not_end():
    _, _, automaton = compiled("items")
    state = begin(automaton)
    for byte in b'["ab","ab':
        assert 1 + byte in allowed(automaton, state)
        state = advance(automaton, state, 1 + byte)
    choice = allowed(automaton, state)
    assert not any(VOCABULARY.bytes_of(t)[:1] == b'"' for t in choice) and 1 + ord("c") in choice
    assert int(advance(automaton, advance(automaton, state, 1 + ord("c")), 1 + QUOTE).state) != 0


def test_rows_without_distinct_strings_carry_nothing_of_them():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
    automaton = one_row(
        pack_constraints([build.build(json_schema.pushdown_automaton(schema), VOCABULARY, eos_ids=[EOS])], VOCABULARY)
    )
    assert not automaton.distinct and begin(automaton).strings is None and len(automaton.boundary) == 0
    assert compiled("items")[2].distinct and jnp.asarray(begin(compiled("items")[2]).strings.seen).sum() == 0
