"""Small automata, vocabularies, and the slow, plain way to say which tokens a constraint allows."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from mechanex_jax.constraints.automata.byte_dfa import byte_mask
from mechanex_jax.constraints.automata.matcher import Matcher
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.automata.pushdown_builder import Builder
from mechanex_jax.tokenization.vocabulary import Vocabulary

DIGITS, LOWER = byte_mask(b"0123456789"), byte_mask(range(97, 123))
PLAIN = byte_mask(set(range(32, 128)) - set(b'"\\'))
REST = byte_mask(range(128, 192))


def _string(build: Builder) -> int:
    """A quoted string with escapes and UTF-8 of two or three bytes (roughly)."""
    rule = build.rule("string")
    inside, escape, end = build.state(rule), build.state(rule), build.state(rule, 0)
    build.edge(build.start(rule), byte_mask(b'"'), inside)
    build.edge(inside, PLAIN, inside)
    build.edge(inside, byte_mask(b"\\"), escape)
    build.edge(escape, byte_mask(b'"\\n'), inside)
    one, two = build.state(rule), build.state(rule)
    build.edge(inside, byte_mask(range(0xC2, 0xE0)), one)
    build.edge(inside, byte_mask(range(0xE1, 0xED)), two)
    build.edge(two, REST, one)
    build.edge(one, REST, inside)
    build.edge(inside, byte_mask(b'"'), end)
    return rule


def _number(build: Builder) -> int:
    """Digits, perhaps with a fraction: label 1 with one, else 0. Where it ends shows only in what follows."""
    rule = build.rule("number")
    whole, dot, fraction = build.state(rule, 0), build.state(rule), build.state(rule, 1)
    build.edge(build.start(rule), DIGITS, whole)
    build.edge(whole, DIGITS, whole)
    build.edge(whole, byte_mask(b"."), dot)
    build.edge(dot, DIGITS, fraction)
    build.edge(fraction, DIGITS, fraction)
    return rule


def json_any() -> PushdownAutomaton:
    """Any JSON value, nested without bound: objects, arrays, strings, numbers, null."""
    build = Builder()
    value, item, member = build.rule("value"), build.rule("array"), build.rule("object")
    string, number = _string(build), _number(build)
    end = build.state(value, 0)
    for rule in (item, member, string):
        build.call(build.start(value), rule, {0: end})
    build.call(build.start(value), number, {0: end, 1: end})
    build.text(build.start(value), b"null", end)

    done, open_, after, comma = build.state(item, 0), build.state(item), build.state(item), build.state(item)
    build.edge(build.start(item), byte_mask(b"["), open_)
    build.edge(open_, byte_mask(b"]"), done)
    build.call(open_, value, {0: after})
    build.edge(after, byte_mask(b"]"), done)
    build.edge(after, byte_mask(b","), comma)
    build.call(comma, value, {0: after})

    done, open_, key, colon = (build.state(member, label) for label in (0, -1, -1, -1))
    after, comma = build.state(member), build.state(member)
    build.edge(build.start(member), byte_mask(b"{"), open_)
    build.edge(open_, byte_mask(b"}"), done)
    build.call(open_, string, {0: key})
    build.edge(key, byte_mask(b":"), colon)
    build.call(colon, value, {0: after})
    build.edge(after, byte_mask(b"}"), done)
    build.edge(after, byte_mask(b","), comma)
    build.call(comma, string, {0: key})
    return build.finish(value)


def lists_with_a_fraction() -> PushdownAutomaton:
    """Nested lists of numbers in which every list has a number with a fraction: labels decide, two levels of returns."""
    build = Builder()
    root, item = build.rule("root"), build.rule("list")
    number = _number(build)
    end = build.state(root, 0)
    build.call(build.start(root), item, {1: end})  # 1: has one, 0: has none
    first, none, some, comma_none, comma_some = (build.state(item) for _ in range(5))
    done_none, done_some = build.state(item, 0), build.state(item, 1)
    build.edge(build.start(item), byte_mask(b"["), first)
    for source, before in ((first, False), (comma_none, False), (comma_some, True)):
        build.call(source, number, {0: some if before else none, 1: some})
        build.call(source, item, {1: some if before else none})
    build.edge(none, byte_mask(b","), comma_none)
    build.edge(some, byte_mask(b","), comma_some)
    build.edge(none, byte_mask(b"]"), done_none)
    build.edge(some, byte_mask(b"]"), done_some)
    return build.finish(root)


def words() -> PushdownAutomaton:
    """Lower-case words with single spaces between: each word is a called rule whose end shows only in what follows."""
    build = Builder()
    root, word = build.rule("root"), build.rule("word")
    inside, after, gap = build.state(word, 0), build.state(root, 0), build.state(root)
    build.edge(build.start(word), LOWER, inside)
    build.edge(inside, LOWER, inside)
    build.call(build.start(root), word, {0: after})
    build.edge(after, byte_mask(b" "), gap)
    build.call(gap, word, {0: after})
    return build.finish(root)


def chain(least: int, most: int) -> PushdownAutomaton:
    """`least` to `most` characters in quotes; one of more bytes is a call of a shared rule that returns to the next count."""
    build = Builder()
    root, rest = build.rule("root"), build.rule("rest")
    build.edge(build.start(rest), byte_mask(range(0xC2, 0xE0)), middle := build.state(rest))
    build.edge(middle, REST, build.state(rest, 0))
    states = [build.state(root) for _ in range(most + 1)]
    end = build.state(root, 0)
    build.edge(build.start(root), byte_mask(b'"'), states[0])
    for count, state in enumerate(states):
        if count < most:
            build.edge(state, PLAIN, states[count + 1])
            build.call(state, rest, {0: states[count + 1]})
        if count >= least:
            build.edge(state, byte_mask(b'"'), end)
    return build.finish(root)


def random_machine(seed: int, states: int = 8, alphabet: bytes = b"abc") -> PushdownAutomaton:
    """One rule without calls, drawn at random; some states end the text."""
    rng = np.random.default_rng(seed)
    build = Builder()
    rule = build.rule("random")
    all_ = [build.start(rule), *(build.state(rule) for _ in range(states - 1))]
    for state in all_:
        for byte in alphabet:
            if rng.random() < 0.8:
                build.edge(state, 1 << byte, all_[rng.integers(states)])
    build.label(all_[rng.integers(1, states)], 0)
    return build.finish(rule)


def random_pushdown(seed: int, rules: int = 3, states: int = 4) -> PushdownAutomaton:
    """Rules that call each other, begun and ended by brackets of their own so that nothing is ambiguous."""
    rng = np.random.default_rng(seed)
    while True:
        pushdown = _random_pushdown(rng, rules, states)
        if len(pushdown.label) > 3 * rules and len(pushdown.returns) > rules and pushdown.returns.shape[1] > 1:
            return pushdown


def _random_pushdown(rng: np.random.Generator, rules: int, states: int) -> PushdownAutomaton:
    build = Builder()
    pairs = [b"()", b"[]", b"{}"][:rules]
    made = [build.rule(f"r{index}") for index in range(rules)]
    inner = [[build.state(rule) for _ in range(states)] for rule in made]
    for index, rule in enumerate(made):
        ends = [build.state(rule, label) for label in range(2)]
        build.edge(build.start(rule), 1 << pairs[index][0], inner[index][0])
        for state in inner[index]:
            for byte in b"ab":
                if rng.random() < 0.5:
                    build.edge(state, 1 << byte, inner[index][rng.integers(states)])
            if rng.random() < 0.4:
                build.edge(state, 1 << pairs[index][1], ends[rng.integers(2)])
            for other in rng.permutation(rules)[: rng.integers(0, 3)]:
                targets = {label: inner[index][rng.integers(states)] for label in range(2) if rng.random() < 0.8}
                if targets:
                    build.call(state, made[other], targets)
    return build.finish(made[0], labels=(0, 1))


def byte_vocabulary(extra: Sequence[bytes], alphabet: Sequence[int] = range(256)) -> Vocabulary:
    """A control token, the single bytes of `alphabet`, an end-of-sequence token, `extra`, and an empty token."""
    singles = [bytes([byte]) for byte in alphabet]
    return Vocabulary.from_tokens([None, *singles, None, *extra, b""])


JSON_TOKENS = [
    b'"},{"',
    b'",',
    b'":',
    b'"}',
    b'"]',
    b"],",
    b"]]",
    b"[[",
    b'[["',
    b'{"',
    b'{"a":',
    b'":"',
    b"null",
    b"nu",
    b"ll,",
]
JSON_TOKENS += [b"1,", b"12", b"3.", b".5", b".5]", b"1}", b"}}", b"},", b"1]]", b'"a"', b"ab", b'b"', "é".encode(), b"\xa9a"]
JSON_TOKENS += [b"(a", b"ab)", b"[(", b")]", b"b]a", b"])", b"}a(", b"{a", b"a}b", b"){", b"(["]
JSON_TOKENS += [
    b'\\"',
    b'\\n"',
    b'\\n","',
    b"n,",
    b'n","b',
    b"]}",
    b"}]",
    b'a":[1,',
    b"5],[2.",
    b"[1.5]",
    b"],[",
    b"a b",
    b"b c d",
]


def everything_allowed(pushdown: PushdownAutomaton, vocabulary: Vocabulary, matcher: Matcher) -> frozenset[int]:
    """The tokens after which `matcher` can still get to an end, one by one."""
    found = []
    for token in range(vocabulary.size):
        text = vocabulary.bytes_of(token)
        if text and matcher.copy().feed(text):
            found.append(token)
    return frozenset(found)


def normal(matcher: Matcher) -> tuple[int, tuple[int, ...]]:
    """The configuration of a matcher, once frames that can only end have ended."""
    copy = matcher.copy()
    while copy.stack and copy.state and not (copy.pushdown.target[copy.state] > 0).any():
        copy._pop()
    return copy.state, copy.stack


def shortest(pushdown: PushdownAutomaton, vocabulary: Vocabulary, most: int = 40) -> dict[int, int]:
    """For each state of an automaton without calls, the least number of tokens to an end, by breadth first search."""
    texts = [vocabulary.bytes_of(token) for token in range(vocabulary.size)]

    @functools.cache
    def after(state: int) -> frozenset[int]:
        found = set()
        for text in texts:
            matcher = Matcher(pushdown)
            matcher.state = state
            if text and matcher.feed(text):
                found.add(matcher.state)
        return frozenset(found)

    known = {state: 0 for state in range(1, len(pushdown.label)) if pushdown.label[state] >= 0}
    for step in range(1, most):
        for state in range(1, len(pushdown.label)):
            if state not in known and any(known.get(target, most) < step for target in after(state)):
                known[state] = step
    return known
