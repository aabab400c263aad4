"""The device side: masks and moves against the automaton's own matcher, token by token."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import machines
import numpy as np
import pytest
import toys

from mechanex_jax import constraints, loops, rows, transforms
from mechanex_jax.constraints.automata.byte_dfa import byte_mask
from mechanex_jax.constraints.automata.matcher import Matcher
from mechanex_jax.constraints.automata.pushdown_builder import Builder
from mechanex_jax.constraints.device.token_mask import pack_constraints
from mechanex_jax.constraints.token_index import build
from mechanex_jax.tokenization.vocabulary import Vocabulary
from mechanex_jax.transforms.base import Step, advance_rows, apply_rows, init_rows

EOS, PLENTY = 257, 1_000_000
VOCABULARY = machines.byte_vocabulary(machines.JSON_TOKENS)
V = VOCABULARY.size
AUTOMATA = {
    "json": (machines.json_any, 4),
    "lists": (machines.lists_with_a_fraction, 4),
    "words": (machines.words, 2),
    "chain": (lambda: machines.chain(2, 30), 2),
    "one rule": (lambda: machines.random_machine(3), 0),
    "calls 1": (lambda: machines.random_pushdown(2), 3),
    "calls 2": (lambda: machines.random_pushdown(4), 3),
    "calls 3": (lambda: machines.random_pushdown(5), 3),
}


@functools.cache
def pushdown(name: str):
    return AUTOMATA[name][0]()


@functools.cache
def built(name: str, depth: int = 128):
    return build.build(pushdown(name), VOCABULARY, eos_ids=[EOS], limits=build.IndexLimits(depth=depth))


def one_row(automaton):
    """The automaton of a single row, as a transform sees it inside `vmap`."""
    return jax.device_put(rows.only_row(automaton))


@jax.jit
def _words(automaton, state, remaining):
    return automaton.allowed_words(state, remaining)


@jax.jit
def _advance(automaton, state, token):
    return automaton.advance(state, token, None)


def allowed(automaton, state, remaining: int = PLENTY) -> frozenset[int]:
    words = np.asarray(_words(automaton, state, jnp.int32(remaining)))
    return frozenset(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


def advance(automaton, state, token: int):
    return _advance(automaton, state, jnp.int32(token))


def begin(automaton):
    return automaton.init(None, None)


def where(automaton, state) -> tuple[int, tuple[int, ...]]:
    """State and stack as a matcher of the same automaton has them: one machine's states are moved by 1, its sites by 0."""
    return int(state.state) - 1, tuple(np.asarray(state.stack)[: int(state.height)].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("name", AUTOMATA)
def test_masks_are_those_of_the_tokens_one_by_one_wherever_one_can_get(name):
    net, automaton, depth = pushdown(name), one_row(pack_constraints([built(name)], VOCABULARY)), AUTOMATA[name][1]
    seen, todo = set(), [(Matcher(net), begin(automaton))]
    while todo and len(seen) < 160:
        matcher, state = todo.pop(0)
        key = machines.normal(matcher)
        if key in seen or len(key[1]) > depth:
            continue
        seen.add(key)
        want = machines.everything_allowed(net, VOCABULARY, matcher)
        assert allowed(automaton, state) == want | ({EOS} if matcher.accepts() else set()), key
        for token in sorted(want):
            after = matcher.copy()
            after.feed(VOCABULARY.bytes_of(token))
            if machines.normal(after) not in seen:
                moved = advance(automaton, state, token)
                assert where(automaton, moved) == machines.normal(after)
                todo.append((after, moved))
    assert len(seen) >= (3 if name == "words" else 7)


@pytest.mark.slow
def test_a_token_that_was_not_allowed_is_the_end_of_it():
    automaton = one_row(pack_constraints([built("json")], VOCABULARY))
    inside = advance(automaton, begin(automaton), 1 + ord("["))
    for wrong in (1 + ord("}"), 0, EOS, V - 1, V + 5, -1):
        dead = advance(automaton, inside, wrong)
        assert int(dead.state) == 0 and allowed(automaton, dead) == frozenset()
        assert int(advance(automaton, dead, 1 + ord("1")).state) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["json", "lists", "chain", "calls 1", "calls 2", "calls 3", "words"])
def test_whatever_is_chosen_the_text_is_complete_when_its_tokens_are_spent(name):
    net, automaton, rng = pushdown(name), one_row(pack_constraints([built(name)], VOCABULARY)), np.random.default_rng(5)
    least = built(name).minimum
    assert allowed(automaton, begin(automaton), least - 1) == frozenset()
    for walk in range(24):
        remaining = least + walk % 6
        matcher, state = Matcher(net), begin(automaton)
        while remaining:
            choice = allowed(automaton, state, remaining)
            assert choice, (name, where(automaton, state), remaining)
            text = sorted(choice - {EOS})
            if not text or (EOS in choice and rng.random() < 0.1):
                break
            token = text[rng.integers(len(text))]
            assert matcher.feed(VOCABULARY.bytes_of(token))
            state, remaining = advance(automaton, state, token), remaining - 1
        assert matcher.accepts()


def test_a_compiled_constraint_is_applied_to_one_row_without_vmap_and_to_rows_with_it():
    constraint = constraints.compile(regex="ab?", tokenizer=Vocabulary.from_tokens([b"a", b"b", b"ab"]))
    step = Step(jnp.int32(0), jnp.int32(5), jax.random.key(0))
    state, seen = constraint.init(jnp.zeros(1, jnp.int32), jnp.int32(1)), []
    for token in (0, 1):
        seen.append(np.flatnonzero(np.isfinite(constraint.apply(state, jnp.zeros(3), step))).tolist())
        state = constraint.advance(state, jnp.int32(token), step)
    assert seen == [constraint.allowed(prefix).tolist() for prefix in ("", "a")] == [[0, 2], [1]]
    batch = rows.broadcast_rows(constraint, 2)
    states = init_rows(batch, jnp.zeros((2, 1), jnp.int32), jnp.ones(2, jnp.int32))
    steps = Step(jnp.zeros(2, jnp.int32), jnp.full(2, 5, jnp.int32), jax.random.split(jax.random.key(0)))
    assert np.isfinite(apply_rows(batch, states, jnp.zeros((2, 3)), steps)).tolist() == [[True, False, True]] * 2


def test_a_budget_forbids_exactly_what_it_has_to():
    # Without calls, the least number of tokens from each state is known exactly.
    net = pushdown("one rule")
    known = machines.shortest(net, VOCABULARY)
    automaton = one_row(pack_constraints([built("one rule")], VOCABULARY))
    states = {(net.start): begin(automaton)}
    todo = [net.start]
    while todo:
        number = todo.pop()
        matcher = Matcher(net)
        matcher.state = number
        every = machines.everything_allowed(net, VOCABULARY, matcher)
        behind = {}
        for token in every:
            after = matcher.copy()
            after.feed(VOCABULARY.bytes_of(token))
            behind[token] = after.state
            if after.state not in states:
                states[after.state] = advance(automaton, states[number], token)
                todo.append(after.state)
        for remaining in range(6):
            want = {token for token in every if known[behind[token]] <= remaining - 1}
            assert allowed(automaton, states[number], remaining) - {EOS} == want
    assert len(states) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["json", "lists", "calls 1", "calls 2", "calls 3"])
def test_at_the_full_stack_there_is_always_a_way_back(name):
    tight = built(name, 3)
    automaton, net, rng = one_row(pack_constraints([tight], VOCABULARY)), pushdown(name), np.random.default_rng(2)
    highest = 0
    for _ in range(6):
        matcher, state = Matcher(net), begin(automaton)
        for step in range(60):
            choice = sorted(allowed(automaton, state) - {EOS})
            if not choice:
                break
            # Whatever opens most, until nothing can be opened any more.
            opening = [token for token in choice if any(byte in VOCABULARY.bytes_of(token) for byte in b"[{(")]
            if step < 40 and opening:
                choice = opening
            token = choice[rng.integers(len(choice))]
            assert matcher.feed(VOCABULARY.bytes_of(token))
            state = advance(automaton, state, token)
            assert where(automaton, state) == machines.normal(matcher)
            highest = max(highest, int(state.height))
        else:
            for _ in range(200):  # and from there on the shortest way to the end
                cost = int(jnp.min(automaton.distance[state.state] + state.ahead[state.height]))
                choice = sorted(allowed(automaton, state, cost) - {EOS})
                if not choice:
                    break
                assert matcher.feed(VOCABULARY.bytes_of(choice[0]))
                state = advance(automaton, state, choice[0])
        assert matcher.accepts()
    assert 3 < highest <= tight.max_depth


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_random_automata_with_random_tokens_agree_with_the_matcher(seed):
    rng = np.random.default_rng(seed)
    for _ in range(2):
        net = machines.random_pushdown(int(rng.integers(1 << 30)), states=int(rng.integers(2, 6)))
        tokens = [bytes(rng.choice(list(b"ab()[]{}"), rng.integers(2, 6)).tolist()) for _ in range(len(machines.JSON_TOKENS))]
        vocabulary = machines.byte_vocabulary(tokens)
        automaton = one_row(pack_constraints([build.build(net, vocabulary, eos_ids=[EOS])], vocabulary))
        for _ in range(5):
            matcher, state = Matcher(net), begin(automaton)
            for _ in range(10):
                want = machines.everything_allowed(net, vocabulary, matcher)
                assert allowed(automaton, state) == want | ({EOS} if matcher.accepts() else set())
                if not want:
                    break
                token = sorted(want)[rng.integers(len(want))]
                matcher.feed(vocabulary.bytes_of(token))
                state = advance(automaton, state, token)
                assert where(automaton, state) == machines.normal(matcher)


@pytest.mark.slow
def test_rules_of_one_shape_share_no_walk_where_only_one_of_them_is_called():
    # "x" ends the text in the root rule, and a call in the inner one; only there may a token go on behind it.
    builder = Builder()
    root, inner = builder.rule("root"), builder.rule("inner")
    first, second, third = builder.state(root), builder.state(root), builder.state(root)
    builder.edge(builder.start(root), byte_mask(b"r"), first)
    builder.edge(first, byte_mask(b"x"), builder.state(root, 0))
    builder.edge(builder.start(root), byte_mask(b"s"), second)
    inside = builder.state(inner)
    builder.edge(builder.start(inner), byte_mask(b"("), inside)
    builder.edge(inside, byte_mask(b"x"), builder.state(inner, 0))
    builder.call(second, inner, {0: third})
    builder.edge(third, byte_mask(b"y"), builder.state(root, 0))
    net, vocabulary = builder.finish(root), machines.byte_vocabulary([b"xy"])
    automaton = one_row(pack_constraints([build.build(net, vocabulary, eos_ids=[EOS])], vocabulary))
    state = begin(automaton)
    for byte in b"s(":
        state = advance(automaton, state, 1 + byte)
    assert allowed(automaton, state) == {1 + ord("x"), vocabulary.size - 2}
    assert allowed(automaton, advance(automaton, begin(automaton), 1 + ord("r"))) == {1 + ord("x")}


def test_nesting_64_deep_is_held():
    automaton, net = one_row(pack_constraints([built("json")], VOCABULARY)), pushdown("json")
    text = '{"a":[' * 32 + '"x",1.5' + "]}" * 32
    state, matcher = begin(automaton), Matcher(net)
    for byte in text.encode():
        assert 1 + byte in allowed(automaton, state)
        state = advance(automaton, state, 1 + byte)
        matcher.feed(bytes([byte]))
        assert where(automaton, state) == machines.normal(matcher)
    assert allowed(automaton, state) == {EOS}


@pytest.mark.slow
def test_every_end_of_sequence_id_counts_where_the_text_is_complete_and_only_there():
    ends = [0, EOS, V - 1]
    automaton = one_row(pack_constraints([build.build(pushdown("json"), VOCABULARY, eos_ids=ends, logits=V + 40)], VOCABULARY))
    state = begin(automaton)
    assert not allowed(automaton, state) & {*ends}
    state = advance(automaton, state, VOCABULARY.size - 1)
    assert int(state.state) == 0  # one of them has been read
    state = advance(automaton, begin(automaton), 1 + ord("1"))
    assert allowed(automaton, state) >= {*ends}
    assert allowed(automaton, state, 0) == {*ends}
    assert max(allowed(automaton, state)) < V


@jax.jit
def _row_step(automaton, state, logits, index, steps):
    batch = len(logits)
    step = Step(jnp.full(batch, index), jnp.full(batch, steps - index), jax.random.split(jax.random.key(0), batch))
    found = apply_rows(automaton, state, jnp.roll(logits, 17 * index, axis=1), step)
    token = jnp.argmax(found, axis=1).astype(jnp.int32)
    return token, found, advance_rows(automaton, state, token, step)


def run_rows(automaton, batch: int, steps: int, key_of=lambda row: row):
    """Tokens [steps, batch] that rows draw from what they are allowed, each by random numbers of its own; and all masks."""
    automaton = rows.broadcast_rows(automaton, batch)
    state = init_rows(automaton, jnp.zeros((batch, 1), jnp.int32), jnp.ones(batch, jnp.int32))
    logits = jnp.stack([jax.random.normal(jax.random.key(100 + key_of(row)), (V,)) for row in range(batch)])
    tokens, masks = [], []
    for index in range(steps):
        token, found, state = _row_step(automaton, state, logits, jnp.int32(index), jnp.int32(steps))
        tokens.append(np.asarray(token))
        masks.append(np.asarray(found))
    return np.stack(tokens), np.stack(masks)


@pytest.mark.slow
def test_a_mixed_batch_equals_each_row_alone_and_leaves_free_rows_as_they_are():
    machines_ = [built("json"), None, built("lists"), built("chain"), built("json"), built("one rule"), built("words")]
    tokens, masks = run_rows(pack_constraints(machines_, VOCABULARY), len(machines_), 12)
    for row, machine in enumerate(machines_):
        alone, mask = run_rows(pack_constraints([machine], VOCABULARY), 1, 12, lambda _, row=row: row)
        assert np.array_equal(tokens[:, row], alone[:, 0])
        assert np.array_equal(masks[:, row], mask[:, 0])
        assert np.isfinite(masks[:, row]).all() == (machine is None)
    logits = np.asarray(jax.random.normal(jax.random.key(101), (V,)))
    assert np.array_equal(masks[3, 1], np.roll(logits, 51))


@pytest.mark.slow
def test_one_legal_token_in_bfloat16_survives_truncation():
    builder = Builder()
    rule = builder.rule("root")
    builder.edge(builder.start(rule), byte_mask(b"a"), builder.state(rule, 0))
    machine = build.build(builder.finish(rule), VOCABULARY, eos_ids=[EOS])
    chain = transforms.chain(
        one_row(pack_constraints([machine], VOCABULARY)), transforms.top_p(0.9), transforms.temperature(0.7)
    )
    logits = (100 * jax.random.normal(jax.random.key(0), (V,))).astype(jnp.bfloat16).astype(jnp.float32)
    state = chain.init(jnp.zeros(1, jnp.int32), jnp.int32(1))
    out = np.asarray(chain.apply(state, logits, Step(jnp.int32(0), jnp.int32(5), jax.random.key(0))))
    assert not np.isnan(out).any()
    assert np.flatnonzero(np.isfinite(out)).tolist() == [1 + ord("a")]


@pytest.mark.slow
def test_a_decoding_loop_ends_with_complete_texts_and_other_machines_compile_nothing(compilations):
    model = toys.toy(V)
    prompt = np.array([[5, 6, 7]] * 3, np.int32)

    def decode(names, seed, most):
        transform = pack_constraints([built(name) for name in names], VOCABULARY)
        result = loops.decode(
            model, prompt, 3, transform, key=jax.random.key(seed), max_new_tokens=most, eos_ids=[EOS], capacity=64
        )
        for name, tokens, length, reason in zip(names, result.tokens, result.lengths, result.finish_reason, strict=True):
            text = [token for token in tokens[:length].tolist() if token != EOS]
            matcher = Matcher(pushdown(name))
            assert matcher.feed(VOCABULARY.join(text)) and matcher.accepts()
            assert reason in (loops.FinishReason.EOS, loops.FinishReason.LENGTH)

    decode(["json", "lists", "json"], 0, 20)
    assert compilations(lambda: decode(["lists", "json", "lists"], 1, 12)) == 0
    # Other labels or no calls at all are other shapes; the very same names again are not.
    decode(["chain", "words", "chain"], 2, 9)
    assert compilations(lambda: decode(["words", "words", "chain"], 3, 7)) == 0


def test_random_walks_over_the_real_vocabulary_agree_with_the_matcher(loaded):
    vocabulary, eos = loaded.tokenizer.vocabulary, 2
    net = machines.json_any()
    automaton = one_row(pack_constraints([build.build(net, vocabulary, eos_ids=[eos])], vocabulary))
    rng = np.random.default_rng(11)
    for _ in range(6):
        matcher, state, remaining = Matcher(net), begin(automaton), 40
        while remaining:
            choice = allowed(automaton, state, remaining)
            for token in rng.integers(vocabulary.size, size=60).tolist():  # what is forbidden dies or needs too much
                text = vocabulary.bytes_of(token)
                if text and token not in choice and matcher.copy().feed(text):
                    moved = advance(automaton, state, token)
                    assert int(jnp.min(automaton.distance[moved.state] + moved.ahead[moved.height])) > remaining - 1
            lengths = np.diff(vocabulary.offsets)[sorted(choice)]
            weight = np.where(lengths > 1, 3.0, 1.0)  # tokens of several bytes cross more borders
            token = int(rng.choice(sorted(choice), p=weight / weight.sum()))
            if token == eos:
                break
            assert matcher.feed(vocabulary.bytes_of(token))
            state, remaining = advance(automaton, state, token), remaining - 1
            assert where(automaton, state) == machines.normal(matcher)
        assert matcher.accepts()
