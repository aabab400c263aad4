"""Speculative decoding on toy models: its law by enumeration, and its tokens against plain decoding."""

from __future__ import annotations

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from positional_toy import Witness, automaton, positional
from scipy import stats
from toys import toy_logits

import mechanex_jax as mx
from mechanex_jax.loops import (
    FinishReason,
    decode,
    decode_chunk,
    model_drafter,
    prompt_lookup,
    result,
    speculative,
    speculative_chunk,
    speculative_decode,
    speculative_start,
    speculative_stats,
    start,
    stop_table,
)

MODEL, OTHER = positional(), positional(seed=1)
V = MODEL.spec.vocabulary
PROMPTS = np.array([[1, 2, 3, 4, 5], [6, 0, 0, 0, 0], [7, 8, 9, 0, 0], [2, 2, 0, 0, 0]], np.int32)
LENGTHS = np.array([5, 1, 3, 2], np.int32)
GREEDY = mx.transforms.chain(mx.transforms.temperature(0.0))
SAMPLED = mx.transforms.chain(mx.transforms.temperature(1.0))
SHARP = mx.transforms.chain(mx.transforms.truncation(temperature=0.7, top_k=6, top_p=0.95))
KEY = jax.random.key(7)
COMMON: dict[str, Any] = {"key": KEY, "max_new_tokens": 40}
# Those that promise the tokens of plain decoding at any temperature.
SAME = {
    "lookup": prompt_lookup(),
    "other": model_drafter(OTHER, shared_noise=True),
    "itself": model_drafter(MODEL, shared_noise=True),
}


def plain(transform, **changed):
    return decode(MODEL, PROMPTS, LENGTHS, transform, **(COMMON | changed))


def run(transform, drafter, prompts=PROMPTS, lengths: Any = LENGTHS, **changed: Any):
    arguments: dict[str, Any] = {"adaptive": False} | COMMON | changed
    return speculative_decode(MODEL, prompts, lengths, transform, drafter=drafter, **arguments)


def same(one, other):
    for name in ("tokens", "lengths", "finish_reason"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "drafter", [prompt_lookup(), model_drafter(OTHER), model_drafter(MODEL)], ids=["lookup", "other", "itself"]
)
@pytest.mark.parametrize("steps", [1, 4])
def test_greedy_tokens_are_those_of_plain_decoding(drafter, steps):
    out, counts = run(GREEDY, drafter, steps=steps)
    same(out, plain(GREEDY))
    assert (counts.tokens == out.lengths).all()
    assert (counts.rounds <= counts.tokens).all()


@pytest.mark.slow
@pytest.mark.parametrize("drafter", SAME.values(), ids=SAME)
def test_sampled_tokens_are_those_of_plain_decoding_if_the_draft_has_no_noise_of_its_own(drafter):
    chain = mx.transforms.chain(mx.transforms.penalties(V, repetition=1.2, frequency=0.1), *SHARP.parts)
    out, counts = run(chain, drafter, steps=2)
    same(out, plain(chain))
    assert counts.accepted.sum() > 0


def law(model: Any, past, keep: int) -> np.ndarray:
    """The processed distribution, in NumPy: top-k at temperature 2."""
    logits = toy_logits(model, past) / 2
    p = np.exp(logits - logits.max())
    p[np.argsort(logits)[: len(p) - keep]] = 0
    return p / p.sum()


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities / probabilities.sum() * counts.sum()
    assert counts[expected == 0].sum() == 0
    common = expected >= 5  # pool what is too rare
    pooled = [*expected[common], expected[~common].sum()]
    observed = [*counts[common], counts[~common].sum()]
    cells = np.array([(o, w) for o, w in zip(observed, pooled, strict=True) if w > 0])
    return stats.chisquare(cells[:, 0], cells[:, 1]).pvalue


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "seed"), [(5, 7), (3, 6)])
def test_the_law_of_one_round_and_of_the_text_is_the_one_enumerated(keep, seed):
    size, rows, steps = 5, 16_384, 2
    target, draft = positional(size, seed=seed), positional(size, seed=seed + 50)
    transform = mx.transforms.chain(mx.transforms.truncation(temperature=2.0, top_k=keep))
    prompt = [1, 3, 0]
    arguments = {"key": jax.random.key(seed), "max_new_tokens": 3, "drafter": model_drafter(draft)}
    program, carry = speculative_start(target, np.tile(prompt, (rows, 1)), 3, transform, **arguments)
    carry = speculative_chunk(program, carry, np.int32(1), steps)
    first = np.array(carry.base.tokens)[:, 3:6]
    said = np.asarray(carry.base.generated)

    # One round says the tokens accepted and one more: min(p, q) for each of the former, then max(0, p - q), or p after all.
    one_round = np.zeros((3, size, size, size))
    text = np.zeros((size, size, size))
    for x, y, z in product(range(size), repeat=3):
        places = [(past[-1], [*prompt, *past[:-1]]) for past in ([x], [x, y], [x, y, z])]
        p = [law(target, past, keep)[token] for token, past in places]
        q = [law(draft, past, keep)[token] for token, past in places]
        text[x, y, z] = np.prod(p)
        one_round[0, x, 0, 0] = max(0, p[0] - q[0])
        one_round[1, x, y, 0] = min(p[0], q[0]) * max(0, p[1] - q[1])
        one_round[2, x, y, z] = min(p[0], q[0]) * min(p[1], q[1]) * p[2]
    assert one_round.sum() == pytest.approx(1)

    observed = np.zeros_like(one_round)
    first[np.arange(3) >= said[:, None]] = 0
    np.add.at(observed, (said - 1, *first.T), 1)
    assert chi_square(observed.ravel(), one_round.ravel()) > 1e-3
    counted = speculative_stats(carry)
    np.testing.assert_array_equal(counted.accepted, said - 1)

    alpha = np.minimum(law(target, prompt, keep), law(draft, prompt, keep)).sum()
    assert 0.1 < alpha < 0.9
    assert stats.binomtest(int(np.sum(said > 1)), rows, alpha).pvalue > 1e-3

    carry = speculative_chunk(program, carry, np.int32(3), 1)  # the rest, drafted another way
    done = np.zeros_like(text)
    np.add.at(done, tuple(np.asarray(carry.base.tokens)[:, 3:6].T), 1)
    assert chi_square(done.ravel(), text.ravel()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("shared_noise", [False, True])
def test_a_draft_by_the_target_itself_is_always_accepted(shared_noise):
    _, counts = run(SAMPLED, model_drafter(MODEL, shared_noise=shared_noise))
    assert (counts.tested > 0).all()
    assert (counts.acceptance_rate == 1).all()
    assert (counts.rounds == 8).all()  # 40 tokens, five in each
    assert (counts.tokens_per_round == 5).all()


@pytest.mark.slow
def test_a_draft_whose_support_is_disjoint_is_never_accepted():
    backwards = type(MODEL)(MODEL.embedding, -MODEL.kernel)  # its two likeliest tokens are the two least likely
    _, counts = run(mx.transforms.chain(mx.transforms.truncation(temperature=1.0, top_k=2)), model_drafter(backwards))
    assert (counts.acceptance_rate == 0).all()
    assert (counts.rounds == 40).all()


@pytest.mark.slow
def test_rows_of_one_batch_accept_as_much_as_they_would_alone():
    push = np.eye(6, dtype=np.float32)[0]
    strengths = np.array([0.0, 1.0, 0.0, 50.0], np.float32)
    edit = lambda strength: mx.edits.add(push, layer=0, strength=strength, site="resid_post")
    out, counts = run(SAMPLED, model_drafter(MODEL, edit(strengths)))
    rates = counts.acceptance_rate
    assert rates[0] == rates[2] == 1 > rates[1] > rates[3]
    for row, length in enumerate(LENGTHS):
        key = jax.random.fold_in(KEY, row)[None]
        drafter = model_drafter(MODEL, edit(strengths[row]))
        alone, alone_counts = run(SAMPLED, drafter, PROMPTS[row : row + 1, :length], [length], key=key)
        np.testing.assert_array_equal(out.tokens[row], alone.tokens[0])
        assert [c[row] for c in counts] == [c[0] for c in alone_counts]


CONSTRAINED = mx.transforms.chain(
    automaton(V, first=np.array([0, 1, 2, 3])), Witness(64), mx.transforms.penalties(V, 1.3), *SHARP.parts
)
STEERED = mx.edits.add(np.ones(6, np.float32), layer=0, strength=[0.0, 0.5, -0.5, 2.0], site="resid_post")


@pytest.mark.slow
@pytest.mark.parametrize("transform", [SHARP, CONSTRAINED], ids=["free", "constrained"])
@pytest.mark.parametrize("edits", [None, STEERED], ids=["unsteered", "steered"])
@pytest.mark.parametrize("drafter", SAME.values(), ids=SAME)
def test_constraint_and_steering_hold_and_states_roll_back_exactly(transform, edits, drafter):
    program, carry = start(MODEL, PROMPTS, LENGTHS, transform, edits=edits, **COMMON)
    expected = decode_chunk(program, carry, np.int32(99))
    program, carry = speculative_start(MODEL, PROMPTS, LENGTHS, transform, drafter=drafter, edits=edits, **COMMON)
    carry = speculative_chunk(program, carry, np.int32(99), 4)
    same(result(carry.base), result(expected))
    jax.tree.map(np.testing.assert_array_equal, carry.base.transform_state, expected.transform_state)
    np.testing.assert_array_equal(carry.base.cache.lengths, expected.cache.lengths)
    counted = speculative_stats(carry)
    assert (counted.accepted > 0).any()
    assert drafter is SAME["itself"] or (counted.accepted < counted.tested).any()


@pytest.mark.slow
def test_a_drawn_draft_never_leaves_the_constraint_and_keeps_its_law():
    rows, machine = 8192, automaton(5, states=3, seed=2)
    target: Any = positional(5, seed=6)
    draft = positional(5, seed=7)
    out, counts = speculative_decode(
        target,
        np.full((rows, 1), 2),
        1,
        mx.transforms.chain(machine, mx.transforms.temperature(1.0)),
        drafter=model_drafter(draft),
        steps=2,
        adaptive=False,
        key=KEY,
        max_new_tokens=3,
    )
    probabilities = np.zeros((5, 5, 5))
    for text in product(range(5), repeat=3):
        state, share, past = 0, 1.0, [2]
        for token in text:
            legal = machine.table[state] >= 0
            weights = np.where(legal, np.exp(toy_logits(target, past)), 0)
            share *= weights[token] / weights.sum()
            state, past = machine.table[state, token], [*past, token]
        probabilities[text] = share
    observed = np.zeros_like(probabilities)
    np.add.at(observed, tuple(out.tokens.T), 1)
    assert 0.05 < np.nanmean(counts.acceptance_rate) < 0.95
    assert chi_square(observed.ravel(), probabilities.ravel()) > 1e-3


WORDS = [b"a", b"b", b"ab", b"ba", b"c", b"cab", b"\xc3", b"\xa9", b"", b"bcb", b"aa"]
OFFSETS = np.concatenate([[0], np.cumsum([len(w) for w in WORDS])]).astype(np.int32)
STOPS = stop_table([["abab", "bc"], [], ["c"], ["aab", "ba"]], OFFSETS, np.frombuffer(b"".join(WORDS), np.uint8))


@mx.transforms.row_tree
class Wall(mx.transforms.Stateless):
    """Forbids everything from a step on."""

    last: object = mx.transforms.row(dtype=jnp.int32)

    def apply(self, state, logits, step):
        return jnp.where(step.index < self.last, logits, -jnp.inf)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"eos_ids": [9, 0]}, FinishReason.EOS),
        ({"stops": STOPS}, FinishReason.STOP),
        ({"max_new_tokens": [3, 12, 0, 1]}, FinishReason.LENGTH),
        ({"transform": mx.transforms.chain(Wall(np.array([3, 7, 0, 13])))}, FinishReason.DEAD_END),
        ({"eos_ids": [9], "stops": STOPS, "max_new_tokens": [7, 30, 2, 23], "pad_id": 99}, FinishReason.EOS),
    ],
)
@pytest.mark.parametrize("drafter", SAME.values(), ids=SAME)
def test_rows_end_in_the_middle_of_an_accepted_run_as_in_plain_decoding(arguments, reason, drafter):
    arguments = dict(arguments)
    transform = arguments.pop("transform", SAMPLED)
    expected = plain(transform, **arguments)
    assert (expected.finish_reason == reason).any()
    for steps in (4, 8):
        same(run(transform, drafter, steps=steps, **arguments)[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("drafter", SAME.values(), ids=SAME)
def test_the_same_tokens_however_rounds_and_plain_steps_are_mixed(drafter):
    expected = plain(SAMPLED)
    program, carry = speculative_start(MODEL, PROMPTS, LENGTHS, SAMPLED, drafter=drafter, **COMMON)
    for steps, until in [(1, 3), (4, 1), (2, 1), (1, 99)]:
        carry = speculative_chunk(program, carry, np.int32(until), steps)
    same(result(carry.base), expected)
    out, _ = run(SAMPLED, drafter, adaptive=True)
    same(out, expected)


@pytest.mark.slow
@pytest.mark.parametrize("plain_tokens", [1, 2, 150])
def test_a_draft_model_catches_up_on_plain_steps(plain_tokens):
    long = COMMON | {"max_new_tokens": 200}
    program, carry = speculative_start(MODEL, PROMPTS, LENGTHS, SAMPLED, drafter=model_drafter(MODEL), **long)
    carry = speculative_chunk(program, carry, np.int32(1), 2)
    carry = speculative._chunk(program, carry, plain_tokens, 0)
    carry = speculative_chunk(program, carry, np.int32(99), 2)
    counted = speculative_stats(carry)
    assert (counted.acceptance_rate == 1).all()
    spoken = 200 - plain_tokens
    np.testing.assert_array_equal(counted.rounds, plain_tokens + -(-spoken // 3))


@pytest.mark.slow
def test_the_smallest_capacity_is_enough():
    drafter = model_drafter(OTHER)
    smallest = 5 + 40 + 1 + 8
    same(run(GREEDY, drafter, steps=8, capacity=smallest)[0], plain(GREEDY))
    with pytest.raises(mx.errors.ArgumentError, match="capacity"):
        run(GREEDY, drafter, capacity=smallest - 1)


@pytest.mark.slow
@pytest.mark.parametrize("drafters", [[prompt_lookup()], [model_drafter(MODEL), model_drafter(OTHER)]], ids=["lookup", "model"])
def test_other_values_never_recompile_and_plain_steps_may_come_in_between(drafters, compilations):
    def call(index: int):
        cut = mx.transforms.truncation(temperature=0.1 * index, top_k=index + 1, top_p=1 / (index + 1))
        edit = mx.edits.add(np.ones(6, np.float32), layer=0, strength=float(index), site="resid_post")
        arguments = {"key": jax.random.key(index), "max_new_tokens": [index % 9 + 5, 3, 1, 20], "eos_ids": [index % 5]}
        chain = mx.transforms.chain(automaton(V, seed=index), cut)
        drafter = drafters[index % len(drafters)]
        program, carry = speculative_start(MODEL, PROMPTS, LENGTHS, chain, drafter=drafter, edits=edit, **arguments)
        for steps in (2, 0, 2):
            carry = speculative._chunk(program, carry, 2, steps)

    call(0)
    assert compilations(lambda: [call(index) for index in range(1, 12)]) == 0


@pytest.mark.slow
def test_what_does_not_fit_is_refused_on_the_host(compilations, unchecked):
    stranger = model_drafter(positional(12))

    def call():
        for changed, words in [
            ({"drafter": stranger}, "vocabulary of 12"),
            ({"drafter": MODEL}, "a Drafter"),
            ({"steps": 9}, "0 to 8"),
            ({"max_new_tokens": -1}, "max_new_tokens"),
        ]:
            with pytest.raises(mx.errors.ArgumentError, match=words):
                run(SAMPLED, **({"drafter": prompt_lookup()} | changed))
        for sizes in [(0, 0), (2, 3), (3, 0)]:
            with pytest.raises(mx.errors.ArgumentError, match="prompt_lookup"):
                prompt_lookup(*sizes)

    assert compilations(call) == 0
