# ruff: noqa: RUF001
"""Regular expressions against Python's `re`, `outlines-core`'s automata and the words of ECMA-262."""

from __future__ import annotations

import random
import re
import warnings

import numpy as np
import outlines_core
import pytest

from mechanex_jax.constraints import regex
from mechanex_jax.constraints.automata import charset
from mechanex_jax.constraints.automata.matcher import Matcher
from mechanex_jax.errors import ConstraintError

ATOMS = [
    r"a",
    r"b",
    r"ß",
    r"s",
    r"S",
    r"K",
    r"\u212a",
    r"é",
    r"1",
    r"٣",
    r"_",
    r"\n",
    r".",
    r"\d",
    r"\w",
    r"\s",
    r"\W",
    r"\D",
    r"\S",
    r"[ab]",
    r"[^a]",
    r"[a-c1]",
    r"[^\w]",
    r"[\W_]",
    r"\b",
    r"\B",
    r"^",
    r"$",
    r"\A",
    r"\Z",
    r"😀",
    r"ſ",
    r"İ",
    r"[A-Z]",
    r"[^S]",
    r"\x41",
    r"\101",
    r"[]a]",
    r"[^\n]",
    r"[a\-b]",
    r"\N{BULLET}",
]
LETTERS = "ab ßsSK\u212aé1٣_\nſİAi😀cẞkı•-]"


def pattern(rng: random.Random, depth: int) -> str:
    kind = rng.random()
    if depth == 0 or kind < 0.35:
        return rng.choice(ATOMS)
    if kind < 0.6:
        return "".join(pattern(rng, depth - 1) for _ in range(rng.randint(1, 3)))
    if kind < 0.75:
        parts = [pattern(rng, depth - 1) if rng.random() < 0.9 else "" for _ in range(rng.randint(2, 3))]
        return f"(?:{'|'.join(parts)})"
    if kind < 0.95:
        times = rng.choice(["*", "+", "?", "{2}", "{1,2}", "{0,3}", "*?", "{2,}", "+?", "??"])
        return f"({pattern(rng, depth - 1)}){times}"
    return f"(?{rng.choice(['i', 's', 'm', 'a', 'im', '-i'])}:{pattern(rng, depth - 1)})"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_patterns_accept_what_fullmatch_accepts(seed):
    rng, accepted = random.Random(seed), 0
    for _ in range(400):
        text = rng.choice(["", "", "", "(?i)", "(?m)", "(?s)", "(?a)", "(?im)", "(?x)"]) + pattern(rng, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer = re.compile(text)
        machine = regex.char_dfa(text)
        tries = ["", "\n", "a", "a\n", *("".join(rng.choices(LETTERS, k=rng.randint(1, 6))) for _ in range(12))]
        shortest = machine.shortest()
        if shortest is not None:
            tries += [shortest, shortest + rng.choice(LETTERS), shortest[:-1], rng.choice(LETTERS) + shortest, shortest + "\n"]
        for word in tries:
            matches = peer.fullmatch(word) is not None
            accepted += matches
            assert machine.accepts(word) == matches, (text, word)
    assert accepted > 600  # otherwise the words are too far off to say anything


CLASSES = [
    *[
        r"\w",
        r"\W",
        r"\d",
        r"\D",
        r"\s",
        r"\S",
        r".",
        r"(?s:.)",
        r"(?a)\w",
        r"(?a)\S",
        r"(?i:[^k])",
        r"(?i:[a-z])",
        r"(?i:[\w])",
        r"(?i:[^\W])",
        r"(?i:[\Wa])",
        r"(?i:ß)",
        r"(?i:[^ß])",
    ],
    *["(?i:ͅ)", "(?i:[ͅ\\W])", "(?ia:[k-m])", "(?i:[𐐨-𐐪])", "(?i:𐐀)", "(?i:[Ā-ɏ])", "(?i:[ᲀ-ᲈ])", "(?i:[ﬅ])"],
]


@pytest.mark.slow
@pytest.mark.parametrize("text", [*CLASSES, *(f"(?i:{c})" for c in "iIİıſKÅµμςΣßẞθϑǅǆᾳⅷⓐꙋ𐐀")])
def test_a_class_holds_every_code_point_that_it_holds_in_python(text):
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    machine = regex.char_dfa(text)
    column = machine.classes[np.searchsorted(machine.bounds, np.arange(0x110000), side="right") - 1]
    own = np.flatnonzero(machine.label[machine.next[machine.start]][column] >= 0)
    assert own.tolist() == [ord(c) for c in re.findall(text, everything)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a|ab", ["a", "ab", "abb", ""]),
        ("(a|ab)(c|bcd)", ["ac", "abcd", "abc", "abbcd", "ab"]),
        (".", ["\n", "a", "😀", "\r"]),
        ("(?i)straße", ["STRASSE", "STRAẞE", "straße"]),
        ("", ["", "a"]),
        ("a$", ["a", "a\n"]),
        ("a$\n", ["a", "a\n", "a\n\n"]),
        ("(?m)a$\n^b", ["a\nb", "ab"]),
        (r"\bfoo\b.*", ["foo", "foobar", "foo bar"]),
        (r"\B", ["", "a"]),
        (r"(?:\b|-)+a", ["a", "-a", "--a"]),
        ("[a-z]{0,500}", ["", "a" * 500, "a" * 501]),
        ("(?:a?){2,40}", ["", "a" * 40, "a" * 41]),
        ("(?:(?:ab){1,3}){2}", ["ab", "abab", "ab" * 6, "ab" * 7]),
        ("(?x) a b # comment\n c", ["abc", "a b c"]),
        ("(?P<name>a)|b", ["a", "b"]),
    ],
)
def test_patterns_that_go_wrong_easily(text, words):
    for word in words:
        assert regex.char_dfa(text).accepts(word) == (re.fullmatch(text, word) is not None), word


@pytest.mark.parametrize(
    "text", ["a|ab", "[^a]*é", "(?:ab|ba){1,3}c?", "[0-9]+\\.[0-9]{2}", "[à-ÿ]|😀+", "[a-zA-Z_]\\d*", "\\w{2}"]
)
def test_bytes_agree_with_outlines_core(text):
    # A byte that ends the text: that engine stops at the first alternative that matches.
    vocabulary = outlines_core.Vocabulary(999, {bytes([b]): [b] for b in range(256)})
    peer, pushdown, rng = outlines_core.Index(f"(?:{text})#", vocabulary), regex.pushdown_automaton(text), random.Random(0)
    alphabet = "ab0.9cé😀ÿ_Zà".encode()
    words = [bytes(rng.choices(alphabet, k=rng.randint(0, 5))) for _ in range(1500)]
    words += ["".join(rng.choices("ab0.9cé😀ÿ_Zà", k=rng.randint(0, 4))).encode() for _ in range(1500)]
    for word in words:
        state: int | None = peer.get_initial_state()
        for byte in word + b"#":
            state = None if state is None else peer.get_next_state(state, byte)
        matcher = Matcher(pushdown)
        matcher.feed(word)
        assert matcher.accepts() == (state is not None and peer.is_final_state(state)), word


@pytest.mark.parametrize(
    ("text", "name", "position"),
    [
        ("ab(?=c)", "lookaround", 2),
        ("a[(?=](?!b)", "negative lookaround", 6),
        (r"(?<=a)b", "lookaround", 0),
        (r"(a)\\\1", "back-reference", 5),
        (r"(?P<x>a)(?P=x)", "back-reference", 8),
        (r"(a)?(?(1)b|c)", "conditional", 4),
        ("(?>ab)", "atomic", 0),
        ("ab*+", "possessive", 2),
        ("x[", "position", 1),
        ("a**", "multiple repeat", 2),
        ("(?x)a #(?=\n(?=b)", "lookaround", 11),
    ],
)
def test_what_is_not_held_is_named_with_its_position(text, name, position):
    with pytest.raises(ConstraintError, match=rf"(?s){name}.*") as error:
        regex.pushdown_automaton(text)
    assert f"position {position}" in str(error.value)


@pytest.mark.parametrize("text", ["[^\\s\\S]", "a\\bb", "$a", "[\ud800]"])
def test_a_pattern_without_texts_is_refused(text):
    with pytest.raises(ConstraintError, match="No text matches"):
        regex.pushdown_automaton(text)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["(a|b)*a(a|b){20}", "(?:a{0,900}){900}", ".*a.{25}x.*"])
def test_explosion_is_refused(text):
    with pytest.raises(ConstraintError, match="too large"):
        regex.pushdown_automaton(text)


def test_a_bounded_gap_in_a_search_needs_no_more_states_than_its_length():
    machine = regex.char_dfa("a.{0,200}b", search=True, dialect="ecma")
    assert len(machine.next) < 210
    assert machine.accepts("xa" + "c" * 200 + "bx") and not machine.accepts("a" + "c" * 201 + "b")


ECMA = [
    # pattern, accepted, rejected: what JSON Schema's own tests ask of ECMA-262
    (r"^foo$", ["foo"], ["foo\n", "afoo"]),
    (r"^\t$", ["\t"], ["\\t"]),
    (r"^\cC$", ["\x03"], ["\\cC", "C"]),
    (r"^\cc$", ["\x03"], ["\\cc"]),
    (r"^\d$", ["0"], ["߀", "a"]),
    (r"^\D$", ["߀", "a"], ["0"]),
    (r"^\w$", ["a", "_"], ["é"]),
    (r"^\W$", ["é"], ["a"]),
    (r"^\s$", [" ", "\t", "\v", "\f", "\u00a0", "\ufeff", "\n", "\u2029", "\u2003"], ["\x01", "\u2013"]),
    (r"^\S$", ["\x01", "\u2013"], [" ", "\u00a0", "\ufeff"]),
    (r"\p{Letter}cole", ["Les hivers de mon enfance étaient école"], ["123"]),
    (r"^\p{digit}+$", ["42", "৪২"], ["-%#"]),
    (r"^\p{Lu}\P{L}$", ["É1"], ["é1", "ÉÉ"]),
    (r"^🐲*$", ["", "🐲🐲"], ["D"]),
    (r"^\ud83d\udc32$", ["🐲"], ["D"]),
    (r"^\u{1F432}$", ["🐲"], ["u{1F432}"]),
    (r"a+", ["xxaayy"], ["xyz", ""]),
    (r"^\/\-\.\$$", ["/-.$"], ["x"]),
    (r"^[^]$", ["\n", "a"], ["", "ab"]),
    (r"^[]|x$", ["x"], ["]", "xy"]),
    (r"^(?<year>\d{4})$", ["1999"], ["99"]),
    (r"^[\w.-]+$", ["a.b-c"], ["é"]),
    (r"^[\b]\0$", ["\b\0"], ["b0"]),
    (r"^a{,2}$", ["a{,2}"], ["aa"]),
    (r"^{x}]$", ["{x}]"], ["x"]),
    (r"\bcat\b", ["a cat!"], ["concat"]),
    (r"^.$", ["a", "\x85"], ["\n", "\u2028"]),
    (r"^(?:a|ab)(?:c|bcd)?$", ["abcd"], ["abd"]),
    (r"^\Z\a$", ["Za"], [""]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "accepted", "rejected"), ECMA)
def test_ecma_dialect(text, accepted, rejected):
    machine = regex.char_dfa(text, search=True, dialect="ecma")
    assert [w for w in accepted if not machine.accepts(w)] == []
    assert [w for w in rejected if machine.accepts(w)] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (r"a(?=b)", "lookahead at position 1"),
        (r"(?<!a)b", "negative lookbehind at position 0"),
        (r"(a)\1", "back-reference at position 3"),
        (r"(?<n>a)\k<n>", "back-reference at position 7"),
        ("a)", r"\) at position 1"),
        ("(a", r"position 0"),
        ("a**", "position 2"),
        ("[a", "position 0"),
        ("[b-a]", "position 2"),
        ("a{3,2}", "position 1"),
        ("\\", "position 0"),
        (r"\p{Script=Greek}", "'Script=Greek' at position 0"),
        ("(?i:a)", "position 0"),
    ],
)
def test_ecma_errors_name_the_construct_and_position(text, said):
    with pytest.raises(ConstraintError, match=said):
        regex.parse(text, dialect="ecma")


def test_ecma_categories_partition_the_code_points():
    from mechanex_jax.constraints.regex.ecma import property_chars

    parts = [property_chars(name) for name in ["L", "M", "N", "P", "S", "Z", "C"]]
    assert all(parts) and charset.union(*(p for p in parts if p)) == charset.ANY
    assert sum(high - low + 1 for p in parts if p for low, high in p) == 0x110000 - 0x800
