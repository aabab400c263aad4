"""The tables' host side: tries, distances, sharing, limits, matching, and the cache."""

from __future__ import annotations

import concurrent.futures
import os

import machines
import numpy as np
import pytest

from mechanex_jax.constraints import cache
from mechanex_jax.constraints.automata.byte_dfa import byte_mask
from mechanex_jax.constraints.automata.matcher import Matcher
from mechanex_jax.constraints.automata.pushdown_builder import Builder
from mechanex_jax.constraints.compiled import CompiledConstraint
from mechanex_jax.constraints.token_index import build as tables
from mechanex_jax.constraints.token_index import trie
from mechanex_jax.errors import ConstraintError
from mechanex_jax.tokenization.vocabulary import Vocabulary

EOS = 257
VOCABULARY = machines.byte_vocabulary(machines.JSON_TOKENS)
AUTOMATA = {
    "json": machines.json_any,
    "lists": machines.lists_with_a_fraction,
    "words": machines.words,
    "chain": lambda: machines.chain(2, 30),
}


def build(pushdown, vocabulary=VOCABULARY, eos_ids=(EOS,), **options):
    return tables.build(pushdown, vocabulary, eos_ids=eos_ids, **options)


def some_words(count: int, seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [bytes(rng.choice(list(b"abc"), rng.integers(1, 7)).tolist()) for _ in range(count)]


def test_a_trie_holds_every_string_at_the_end_of_its_path():
    words = some_words(300, 0)
    built = trie.of_strings(words)
    source = np.repeat(np.arange(built.size), np.diff(built.first_child))

    def spelled(node: int) -> bytes:
        return b"" if not node else spelled(int(source[node - 1])) + bytes([built.column[node]])

    at = {}
    for node in range(built.size):
        text = spelled(node)
        for item in built.items[built.first_item[node] : built.end_own[node]].tolist():
            at[item] = node
            assert words[item] == text
        below = {index for index, word in enumerate(words) if word.startswith(text)}
        assert set(built.items[built.first_item[node] : built.end_below[node]].tolist()) == below
    assert sorted(at) == list(range(len(words)))


@pytest.mark.parametrize("seed", range(12))
def test_distances_are_those_of_a_breadth_first_search_over_tokens(seed):
    vocabulary = machines.byte_vocabulary(some_words(8, seed), b"abc")
    pushdown = machines.random_machine(seed, states=12)
    if not pushdown.start:
        return
    built = tables.build(pushdown, vocabulary, eos_ids=[4])
    known = machines.shortest(pushdown, vocabulary)
    assert built.distance[1:].min(axis=1).tolist() == [known[state] for state in range(1, len(pushdown.label))]
    assert built.minimum == known[pushdown.start]


def test_the_random_machines_are_not_trivial():
    found = [machines.random_machine(seed, states=12) for seed in range(12)]
    assert sum(len(pushdown.label) > 6 for pushdown in found) >= 8


def test_distances_add_up_over_calls():
    singles = machines.byte_vocabulary([])
    built = build(machines.lists_with_a_fraction(), singles)
    assert built.minimum == len(b"[0.0]")
    assert build(machines.json_any(), singles).minimum == 1
    assert build(machines.chain(7, 9), singles).minimum == 9


def test_a_label_that_no_shortest_text_has_is_still_reached():
    # The inner rule's shortest text, "a", has a label that its caller can only follow by a long one.
    build_ = Builder()
    root, inner = build_.rule("root"), build_.rule("inner")
    build_.text(build_.start(inner), b"a", build_.state(inner, 0))
    build_.text(build_.start(inner), b"bc", build_.state(inner, 1))
    long, short, end = build_.state(root), build_.state(root), build_.state(root, 0)
    build_.call(build_.start(root), inner, {0: long, 1: short})
    build_.text(long, b"xxxxx", end)
    build_.text(short, b"y", end)
    assert build(build_.finish(root), machines.byte_vocabulary([])).minimum == len(b"bcy")


def test_long_counters_share_their_masks():
    built = build(machines.chain(3, 3000))
    longest = max(len(token) for token in machines.JSON_TOKENS)
    assert built.stats["states"] > 3000
    assert built.stats["blocks"] <= 4 * longest + 10
    assert built.bytes < 1 << 20


def test_what_exceeds_a_limit_is_refused_with_its_size():
    with pytest.raises(ConstraintError, match=r"306 states, at most 100"):
        build(machines.chain(0, 300), limits=tables.IndexLimits(states=100))
    with pytest.raises(ConstraintError, match=r"masks take more than 0 MB"):
        build(machines.json_any(), limits=tables.IndexLimits(bytes=100))
    with pytest.raises(ConstraintError, match=r"read more than 100 bytes of tokens"):
        build(machines.json_any(), limits=tables.IndexLimits(steps=100))


def test_a_text_that_the_vocabulary_cannot_spell_is_refused():
    with pytest.raises(ConstraintError, match="spelled with this vocabulary"):
        build(machines.chain(1, 2), machines.byte_vocabulary([], b"abc"), eos_ids=[4])


def test_end_of_sequence_ids_are_never_text_even_if_they_spell_some():
    builder = Builder()
    rule = builder.rule("root")
    builder.edge(builder.start(rule), byte_mask(b"ab"), builder.state(rule, 0))
    vocabulary = Vocabulary.from_tokens([b"a", b"b", None])
    pushdown = builder.finish(rule)
    compiled = CompiledConstraint(pushdown, vocabulary, tables.build(pushdown, vocabulary, eos_ids=[1, 2]))
    assert compiled.allowed("").tolist() == [0]
    assert compiled.allowed("a").tolist() == [1, 2]


@pytest.mark.parametrize("name", AUTOMATA)
def test_host_masks_are_those_of_the_tokens_one_by_one(name):
    pushdown = AUTOMATA[name]()
    compiled = CompiledConstraint(pushdown, VOCABULARY, build(pushdown))
    prefixes = {
        "json": ["", '{"a":', "[[1", '["a","\\', '{"a":[1.5,{"b":null}', "12", "]", '"é'],
        "lists": ["", "[1", "[1.5", "[1,[2.5]", "[[1.0],[", "[[1]"],
        "words": ["", "a", "ab c", "ab "],
        "chain": ["", '"', '"a', '"aaé', '"' + "a" * 28, '"' + "a" * 30, '"aaa"'],
    }[name]
    for prefix in prefixes:
        matcher = Matcher(pushdown)
        alive = matcher.feed(prefix.encode())
        want = machines.everything_allowed(pushdown, VOCABULARY, matcher) if alive else frozenset()
        ends = {EOS} if alive and matcher.accepts() else set()
        assert set(compiled.allowed(prefix).tolist()) == want | ends, prefix
        assert compiled.matches(prefix) == bool(ends)


def same(a: tables.Tables, b: tables.Tables) -> bool:
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, np.ndarray):
            if not (value.dtype == other.dtype and np.array_equal(value, other)):
                return False
        elif name != "stats" and value != other:
            return False
    return True


def get(folder, pushdown=None, calls=None, kind="regex", source="x", vocabulary=VOCABULARY, **options):
    def make():
        if calls is not None:
            calls.append(source)
        return pushdown or machines.json_any()

    return cache.cached(kind, source, make, vocabulary, eos_ids=[EOS], folder=folder, **options)


@pytest.fixture(autouse=True)
def empty_memory():
    cache.forget()


def test_what_the_disk_gives_back_is_what_was_built(tmp_path):
    calls = []
    first = get(tmp_path, calls=calls)
    assert get(tmp_path, calls=calls) is first
    cache.forget()
    again = get(tmp_path, calls=calls)
    assert calls == ["x"] and again is not first
    assert same(first.tables, again.tables) and dict(again.stats) == dict(first.stats)
    assert again.matches('{"a":[1]}') and not again.matches("[1")
    assert again.allowed('["').tolist() == first.allowed('["').tolist()


@pytest.mark.parametrize(
    "change",
    [{"kind": "grammar"}, {"source": "y"}, {"logits": 400}, {"vocabulary": machines.byte_vocabulary([b"zz"])}],
    ids=lambda change: next(iter(change)),
)
def test_whatever_matters_is_part_of_the_key(tmp_path, change):
    calls = []
    get(tmp_path, calls=calls)
    get(tmp_path, calls=calls, **change)
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    first = get(tmp_path)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes({"cut": bytes(data[:-100]), "flipped": bytes(data), "empty": b"", "other": b"{}" * 500}[damage])
    cache.forget()
    calls = []
    assert same(get(tmp_path, calls=calls).tables, first.tables) and calls == ["x"]
    cache.forget()
    assert same(get(tmp_path, calls=calls).tables, first.tables) and calls == ["x"]


def test_one_flipped_bit_anywhere_is_noticed():
    # In the header's length, names, types, shapes and offsets, the other fields, the checksum and every array alike.
    content = cache.to_bytes(build(machines.words()))
    assert same(cache.from_bytes(content), build(machines.words()))
    damaged = bytearray(content)
    for position in range(len(content)):
        damaged[position] ^= 1 << position % 8
        assert cache.from_bytes(bytes(damaged)) is None, position
        damaged[position] = content[position]
    assert cache.from_bytes(content + b"x") is None


@pytest.mark.parametrize(
    "part",
    [
        b"\0\0\0\0{",
        b"__metadata__",
        b"checksum",
        b'checksum":"',
        b"values",
        b"stats",
        b"target",
        b"BOOL",
        b"shape",
        b"data_offsets",
    ],
)
def test_a_damaged_header_is_made_anew(tmp_path, part):
    first = get(tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[content.index(part) + len(part)] ^= 1
    path.write_bytes(content)
    cache.forget()
    calls = []
    assert same(get(tmp_path, calls=calls).tables, first.tables) and calls == ["x"]


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(tmp_path):
    (tmp_path / "file").write_text("")
    assert get(tmp_path / "file" / "folder").matches("[]")


def test_several_writers_leave_one_whole_file(tmp_path):
    pushdowns = {source: AUTOMATA[source]() for source in ("json", "words")}

    def work(index: int) -> bool:
        source = ("json", "words")[index % 2]
        cache.forget()
        return same(get(tmp_path, pushdowns[source], source=source).tables, expected[source])

    expected = {source: build(pushdown) for source, pushdown in pushdowns.items()}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(24)))
    assert len(list(tmp_path.iterdir())) == 2


def test_the_files_used_longest_ago_go_first(tmp_path, monkeypatch):
    for age, source in enumerate(("a", "b", "c")):
        get(tmp_path, source=source)
        for path in tmp_path.iterdir():
            os.utime(path, (age, age)) if path.stat().st_mtime > 10 else None
    size = next(tmp_path.iterdir()).stat().st_size
    cache.forget()
    get(tmp_path, source="a")  # used again: "b" is now the oldest
    monkeypatch.setattr(cache, "DISK_BYTES", 3 * size + size // 2)
    get(tmp_path, source="d")
    cache.forget()
    calls = []
    for source in ("a", "c", "d", "b"):
        get(None if source == "b" else tmp_path, calls=calls, source=source)
    assert calls == ["b"]
    assert len(list(tmp_path.iterdir())) == 3


def test_the_memory_is_bounded(monkeypatch):
    calls = []
    monkeypatch.setattr(cache, "MEMORY_BYTES", 2 * get(None).tables.bytes + 1)
    for source in ("x", "y", "z", "y", "x"):
        get(None, calls=calls, source=source)
    assert calls == ["y", "z", "x"]
