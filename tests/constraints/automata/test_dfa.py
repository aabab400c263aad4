"""Automata over code points and their spelling in bytes, against sets, Python's own decoders and brute force."""

from __future__ import annotations

import functools
import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanex_jax.constraints import regex
from mechanex_jax.constraints.automata import charset
from mechanex_jax.constraints.automata import dfa as dfas
from mechanex_jax.constraints.automata.byte_dfa import ByteDfa
from mechanex_jax.constraints.automata.encoding import to_bytes
from mechanex_jax.constraints.automata.expression import CharClass, Repeat
from mechanex_jax.constraints.automata.nfa import determinize
from mechanex_jax.errors import ConstraintError

POINTS = [*range(0x20), *map(ord, '"\\/az~'), 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x1F600, 0x10FFFF]
intervals = st.lists(st.tuples(st.sampled_from(POINTS), st.sampled_from(POINTS)).map(sorted).map(tuple), max_size=4)
texts = st.text(st.sampled_from([chr(p) for p in POINTS]), max_size=4)
quick = settings(max_examples=200, deadline=None, derandomize=True)


def step(dfa: ByteDfa, state: int | None, byte: int) -> int | None:
    edges = dfa.edges[state] if state is not None else ()
    return next((target for mask, target in edges if mask >> byte & 1), None)


def label(dfa: ByteDfa, data: bytes) -> int:
    state = functools.reduce(functools.partial(step, dfa), data, dfa.start)
    return -1 if state is None else dfa.labels[state]


def walk(dfa: ByteDfa, rng: random.Random, most: int = 60) -> bytes | None:
    """A random accepted text, None if the walk got too long."""
    out, state = bytearray(), dfa.start
    for _ in range(most):
        moves = {byte: target for byte in range(256) if (target := step(dfa, state, byte)) is not None}
        if dfa.labels[state] >= 0 and (not moves or rng.random() < 0.3):
            return bytes(out)
        out.append(rng.choice(list(moves)))
        state = moves[out[-1]]
    return None


@pytest.mark.slow
@quick
@given(intervals, intervals)
def test_sets_of_code_points_behave_like_sets(a, b):
    def members(chars):
        return {p for p in POINTS if charset.contains(chars, p)}

    a, b = (charset.intersection(charset.union(x), charset.ANY) for x in (a, b))
    assert members(charset.union(a, b)) == members(a) | members(b)
    assert members(charset.intersection(a, b)) == members(a) & members(b)
    assert members(charset.difference(a, b)) == members(a) - members(b)
    assert members(charset.complement(a)) == set(POINTS) - members(a)
    assert charset.complement(charset.complement(a)) == a


def test_surrogates_are_in_no_complement():
    assert charset.complement(()) == charset.ANY == charset.complement(charset.SURROGATES)


PATTERNS = ["a*", "[ab]*b", "(?:ab|ba)*", "", "a{2,3}|b", "[^a]*", "b+", "é|😀a?", "[ab]{0,2}"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("other", PATTERNS)
def test_boolean_operations_agree_with_membership(pattern, other):
    a, b = regex.char_dfa(pattern), regex.char_dfa(other)
    both, either, neither = dfas.intersection(a, b), dfas.union(a, b), dfas.complement(dfas.union(a, b))
    for size in range(5):
        for letters in itertools.product("abé😀" if size < 3 else "ab", repeat=size):
            text = "".join(letters)
            x, y = a.accepts(text), b.accepts(text)
            assert (both.accepts(text), either.accepts(text), neither.accepts(text)) == (x and y, x or y, not (x or y))


def test_a_complement_has_no_text_with_surrogates():
    assert not dfas.complement(dfas.nothing()).accepts("\ud800")
    assert dfas.complement(dfas.everything()).is_empty()


def test_product_labels_say_which_languages_hold():
    machine = dfas.product([regex.char_dfa("a+"), regex.char_dfa("[ab]{2}")], lambda x: 2 * (x[1] >= 0) + (x[0] >= 0) - 1)
    assert [machine.label_of(t) for t in ("", "a", "ab", "aa", "b")] == [-1, 0, 1, 2, -1]
    assert machine.labels() == {0, 1, 2}
    assert [machine.label_of(machine.shortest(x) or "") for x in range(3)] == [0, 1, 2] and machine.shortest(3) is None


@quick
@given(st.dictionaries(texts, st.integers(0, 5), max_size=6), texts)
def test_literals_are_exactly_their_texts(words, other):
    machine = dfas.literals(words)
    assert {w: machine.label_of(w) for w in words} == words
    assert machine.label_of(other) == words.get(other, -1)
    assert machine.is_empty() == (not words)
    if words:
        assert len(machine.shortest() or "") == min(map(len, words))


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 3), (2, 2), (3, None), (0, None), (2, 1)])
def test_length_counts_code_points(low, high):
    machine = dfas.length(low, high)
    for text in ("", "a", "😀é", "a\nb", "aaaa", "😀" * 9):
        assert machine.accepts(text) == (low <= len(text) <= (99 if high is None else high))
    assert machine.is_empty() == (high is not None and high < low)


def test_minimal_automata_of_one_language_have_one_size():
    for same in (
        ["(?:a|b)*", "[ab]*", "(?:a*b*)*"],
        ["a?" * 20, "a{0,20}"],
        ["a{40}b|a{41}b", "a{40}a?b"],
        ["[^\\Wa]|a", "\\w"],
    ):
        assert len({regex.char_dfa(pattern).next.shape for pattern in same}) == 1, same
    # Long enough that whole-array rounds don't settle it.
    chain = dfas.union(dfas.length(0, 300), dfas.length(100, 200), dfas.intersection(dfas.length(5, 400), dfas.length(0, 300)))
    assert chain.next.shape == (302, 2)


def test_minimal_automata_tell_every_pair_of_states_apart():
    machine = regex.char_dfa("(?:a|ba?){3,20}|[bc]{17}")
    split = machine.label.copy().astype(int)
    while True:  # Moore's algorithm, state by state
        keys = [(split[s], *(split[t] for t in machine.next[s])) for s in range(len(split))]
        names = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        finer = np.array([names[key] for key in keys])
        if finer.max() == split.max() and len(set(finer)) == len(set(split)):
            break
        split = finer
    assert len(set(split)) == len(machine.next)


@quick
@given(intervals, st.binary(max_size=5), texts)
def test_utf8_bytes_are_accepted_exactly_when_their_text_is(chars, data, text):
    wanted = charset.union(chars)
    machine = determinize(Repeat(CharClass(charset.intersection(wanted, charset.ANY)), 0, None))
    spelt = to_bytes(machine)
    assert label(spelt, text.encode()) == machine.label_of(text)
    try:
        decoded = data.decode()
    except UnicodeDecodeError:
        assert label(spelt, data) == -1
    else:
        assert label(spelt, data) == machine.label_of(decoded)


def test_every_utf8_sequence_of_two_bytes_and_every_boundary_is_judged_as_python_does():
    spelt = to_bytes(dfas.everything())
    edges = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF]
    cases = [bytes(x) for x in itertools.product(range(256), repeat=2)]
    cases += [bytes(x) for n in (3, 4) for x in itertools.product(edges, repeat=n)]
    for data in cases:
        try:
            data.decode()
            valid = True
        except UnicodeDecodeError:
            valid = False
        assert (label(spelt, data) >= 0) == valid, data


def spellings(text: str, rng: random.Random) -> bytes:
    """The inside of a JSON string, each character spelt in a random legal way."""
    short = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    out = ""
    for char in text:
        units = char.encode("utf-16-be")
        escaped = "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))
        mixed = "".join(c.upper() if i % 6 > 1 and rng.random() < 0.5 else c for i, c in enumerate(escaped))
        raw = [] if char in '"\\' or char < " " else [char]
        ways: list[str] = [*raw, mixed, *([short[char]] if char in short else [])]
        out += rng.choice(ways)
    return out.encode()


@pytest.mark.slow
@quick
@given(st.lists(texts, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_every_json_spelling_of_an_accepted_text_is_accepted_and_of_no_other(words, rng):
    machine = dfas.literals({word: i for i, word in enumerate(dict.fromkeys(words[:-1]))})
    spelt = to_bytes(machine, "json", b'"')
    for word in words:
        inside = spellings(word, rng)
        assert json.loads(b'"' + inside + b'"') == word
        assert label(spelt, inside + b'"') == machine.label_of(word)
        assert label(spelt, inside) == -1


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern", ["[^a]{0,3}", "\\w+", '["\\\\/\\n]*', "[😀-😅é]{1,2}", "(?s:.){0,4}", "a[\\u0080-\\u07ff]?"]
)
def test_every_json_walk_is_a_string_that_is_accepted(pattern):
    machine, rng = regex.char_dfa(pattern), random.Random(0)
    spelt = to_bytes(machine, "json", b'"')
    found = [data for _ in range(150) if (data := walk(spelt, rng))]
    assert len(found) > 40
    for data in found:
        assert machine.accepts(json.loads(b'"' + data)), data


@pytest.mark.parametrize(
    "data", [rb"\ud800", rb"\udc00", rb"\ud800\u0041", rb"\u12g4", b"\n", b"\x1f", b"\\", b"\\x", b'"', b"\x80"]
)
def test_what_is_no_json_string_is_refused(data):
    assert label(to_bytes(dfas.everything(), "json"), data) == -1


def test_spelling_keeps_the_numbers_of_states():
    machine = regex.char_dfa("aé|b")
    spelt = to_bytes(machine)
    assert spelt.start == machine.start
    assert spelt.labels[: len(machine.label)] == machine.label.tolist()


def test_long_counters_share_what_is_inside_a_character():
    states = [len(to_bytes(dfas.length(0, n), "json", b'"').edges) for n in (100, 200)]
    assert states[1] - states[0] == 100 * 20  # linear, and few for each count


def test_a_product_beyond_the_limits_is_refused():
    primes = [regex.char_dfa(f"(?:a{{{p}}})*") for p in (2, 3, 5, 7, 11, 13, 17, 19)]
    with pytest.raises(ConstraintError, match="too large"):
        dfas.product(primes, min, dfas.CompileLimits(states=20_000))
