"""Ensembles on toy models, against float64; candidates scored by several models, against `transformers`."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import stats
from toys import Toy, log_softmax, toy, toy_logits

import mechanex_jax as mx
from mechanex_jax.loops import (
    FinishReason,
    decode,
    ensemble,
    ensemble_decode,
    ensemble_model,
    result,
    score,
    select,
    start,
    stop_table,
)
from mechanex_jax.loops.voting import VOTING as COMBINATIONS
from mechanex_jax.loops.voting import vote

MODELS = [toy(seed=seed, width=width) for seed, width in ((0, 6), (1, 6), (2, 9))]
V = MODELS[0].spec.vocabulary
PROMPTS = np.array([[1, 2, 3, 4, 5], [6, 0, 0, 0, 0], [7, 8, 9, 0, 0], [2, 2, 0, 0, 0]], np.int32)
LENGTHS = np.array([5, 1, 3, 2], np.int32)
B, KEY = len(PROMPTS), jax.random.key(7)
GREEDY = mx.transforms.chain(mx.transforms.truncation(0.0, min_p=0.0))  # of one structure with SAMPLED: one compilation
SAMPLED = mx.transforms.chain(mx.transforms.truncation(0.8, min_p=0.02))
VOTING = ["majority", "mean", "product"]
WEIGHTS = np.array([0.5, 2.0, 1.0])


def run(voting, transform=GREEDY, models=MODELS, prompts=PROMPTS, lengths=LENGTHS, **changed):
    return ensemble_decode(models, prompts, lengths, transform, voting=voting, **{"key": KEY, "max_new_tokens": 12, **changed})


def same(first, second, logprobs=0.0):
    for name in ("tokens", "lengths", "finish_reason"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_allclose(first.logprobs, second.logprobs, atol=logprobs)


# --- The oracle: one text, float64, one step after the other --------------------------------------------------------------


def combined(voting, logits, weights):
    """ln of the ensemble's own distribution; [M, V] -> [V]."""
    p = np.exp([log_softmax(z) for z in logits])
    shares = np.asarray(weights) / np.sum(weights)
    return log_softmax(shares @ np.log(p)) if voting == "product" else np.log(shares @ p)


def greedy_oracle(voting, prompt, steps, weights=(1, 1, 1)):
    """Tokens, their log-probabilities, and how near any choice was to another."""
    tokens, logprobs, margin = list(prompt), [], np.inf
    for _ in range(steps):
        logits = np.array([toy_logits(model, tokens) for model in MODELS])
        law = combined(voting, logits, weights)
        order = np.sort(law)
        if voting == "majority":
            ballots = dict.fromkeys(logits.argmax(axis=1).tolist(), 0.0)
            for token, weight in zip(logits.argmax(axis=1).tolist(), weights, strict=True):
                ballots[token] += weight
            most = [token for token, votes in ballots.items() if votes == max(ballots.values())]
            token = max(most, key=lambda t: law[t])
            margin = min(margin, *(np.sort(z)[-1] - np.sort(z)[-2] for z in logits))
        else:
            token = int(law.argmax())
            margin = min(margin, order[-1] - order[-2])
        tokens.append(token)
        logprobs.append(law[token])
    return tokens[len(prompt) :], logprobs, margin


@pytest.mark.slow
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), tuple(WEIGHTS)], ids=["equal", "weighted"])
@pytest.mark.parametrize("voting", VOTING)
def test_greedy_tokens_and_logprobs_are_the_oracles_in_a_ragged_batch(voting, weights):
    out = run(voting, weights=weights)
    for row, length in enumerate(LENGTHS):
        tokens, logprobs, margin = greedy_oracle(voting, PROMPTS[row, :length], 12, weights)
        assert margin > 1e-5
        assert out.tokens[row].tolist() == tokens
        np.testing.assert_allclose(out.logprobs[row], logprobs, atol=1e-5)
    assert (out.finish_reason == FinishReason.LENGTH).all()


@pytest.mark.slow
def test_the_three_rules_differ_and_so_does_each_from_every_member():
    outs = [run(voting, max_new_tokens=40).tokens for voting in VOTING]
    outs += [decode(model, PROMPTS, LENGTHS, GREEDY, key=KEY, max_new_tokens=40).tokens for model in MODELS]
    assert len({out.tobytes() for out in outs}) == len(outs)


def chi_square(counts, law):
    common = law * counts.sum() >= 5  # pool what is too rare for a chi-square
    observed = [*counts[common], counts[~common].sum()]
    expected = [*law[common] * counts.sum(), law[~common].sum() * counts.sum()]
    keep = np.array(expected) > 0
    return stats.chisquare(np.array(observed)[keep], np.array(expected)[keep]).pvalue


@pytest.mark.slow
@pytest.mark.parametrize("voting", ["mean", "product"])
def test_sampled_tokens_follow_the_combined_law_after_one_chain(voting):
    count = 4096
    transform = mx.transforms.chain(mx.transforms.temperature(0.8), mx.transforms.top_k(6))
    prompts = np.tile(PROMPTS[:1], (count, 1))
    out = run(voting, transform, prompts=prompts, lengths=[5] * count, max_new_tokens=1, weights=WEIGHTS)
    law = combined(voting, np.array([toy_logits(model, PROMPTS[0]) for model in MODELS]), WEIGHTS) / 0.8
    law[law < np.sort(law)[-6]] = -np.inf
    assert chi_square(np.bincount(out.tokens[:, 0], minlength=V), np.exp(log_softmax(law))) > 1e-3


@pytest.mark.slow
def test_a_majority_is_of_draws_that_share_their_noise_and_go_through_the_chain():
    """Each member's draw is the draw it makes alone with the row's key; the vote is counted here in plain Python."""
    count, transform = 512, mx.transforms.chain(mx.transforms.temperature(4.0))
    arguments = {"prompts": np.tile(PROMPTS, (count // B, 1)), "lengths": np.tile(LENGTHS, count // B), "max_new_tokens": 1}
    out = run("majority", transform, **arguments)
    alone = [run("mean", transform, [model], **arguments).tokens[:, 0].tolist() for model in MODELS]
    kinds = set()
    for row, (token, *draws) in enumerate(zip(out.tokens[:, 0].tolist(), *alone, strict=True)):
        prompt = PROMPTS[row % B, : LENGTHS[row % B]]
        law = combined("majority", np.array([toy_logits(model, prompt) for model in MODELS]), (1, 1, 1))
        most = [t for t in draws if draws.count(t) == max(draws.count(d) for d in draws)]
        assert token == max(most, key=lambda t: law[t])
        kinds.add(len(set(draws)))
    assert kinds == {1, 2, 3}  # all agree, two against one, no majority


@pytest.mark.slow
@pytest.mark.parametrize("voting", VOTING)
def test_one_member_or_equal_members_decode_as_the_model_alone(voting):
    # Two rows are greedy, two are sampled; a repetition penalty sees the scale of logits.
    transform = mx.transforms.chain(mx.transforms.repetition_penalty(V, 1.5), mx.transforms.temperature([0, 0.8, 0, 0.8]))
    arguments = {"key": KEY, "max_new_tokens": 20, "eos_ids": [4]}
    plain = decode(MODELS[0], PROMPTS, LENGTHS, transform, **arguments)
    for models, weights in (([MODELS[0]], None), ([MODELS[0]] * 2, [1, 3]), (MODELS, [1, 0, 0])):
        same(run(voting, transform, models, weights=weights, **arguments), plain, logprobs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("voting", VOTING)
def test_a_ragged_batch_with_weights_of_its_own_equals_each_row_alone(voting):
    weights = np.random.default_rng(3).uniform(size=(B, 3))
    together = run(voting, SAMPLED, weights=weights)
    for row, length in enumerate(LENGTHS):
        rest = {"prompts": PROMPTS[row : row + 1, :length], "lengths": [length], "key": jax.random.fold_in(KEY, row)[None]}
        alone = run(voting, SAMPLED, weights=weights[row] * 7, **rest)
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])


@pytest.mark.slow
@pytest.mark.parametrize("voting", VOTING)
def test_the_same_tokens_however_the_loop_is_cut_into_chunks(voting):
    arguments = {"key": KEY, "max_new_tokens": 12, "eos_ids": [4]}
    joined = ensemble_model(MODELS, B, voting=voting, weights=WEIGHTS)
    program, carry = start(joined, PROMPTS, LENGTHS, SAMPLED, **arguments)
    kinds = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(carry)]
    for until in (5, 1, 6):
        carry = ensemble.chunk_of(voting)(program, carry, np.int32(until))
        assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(carry)] == kinds
    same(result(carry), run(voting, SAMPLED, weights=WEIGHTS, eos_ids=[4]))


@mx.transforms.row_tree
class Cycle:
    """A small automaton: in state s only tokens = s modulo 3 are legal, and the token leads to state (s + token) modulo 3."""

    begin: object = mx.transforms.row(dtype=jnp.int32)

    def init(self, prompt, length):
        return self.begin

    def apply(self, state, logits, step):
        return jnp.where(jnp.arange(logits.shape[0]) % 3 == state, logits, -jnp.inf)

    def advance(self, state, token, step):
        return (state + token + 1) % 3


@pytest.mark.slow
@pytest.mark.parametrize("voting", VOTING)
def test_all_members_share_the_state_of_a_constraint_and_never_break_it(voting):
    begin = [0, 1, 2, 1]
    out = run(voting, mx.transforms.chain(Cycle(np.array(begin)), SAMPLED), max_new_tokens=30)
    for row, state in enumerate(begin):
        for token in out.tokens[row]:
            assert token % 3 == state
            state = (state + int(token) + 1) % 3
    assert (out.lengths == 30).all()


@pytest.mark.parametrize("voting", VOTING)
def test_a_row_without_a_legal_token_is_a_dead_end_and_harms_no_other(voting):
    """State 3 allows nothing."""
    out = run(voting, mx.transforms.chain(Cycle(np.array([0, 3, 1, 3])), SAMPLED), max_new_tokens=5)
    assert out.lengths.tolist() == [5, 0, 5, 0]
    dead, length = FinishReason.DEAD_END, FinishReason.LENGTH
    assert out.finish_reason.tolist() == [length, dead, length, dead]
    assert np.isfinite(out.logprobs).all()


LOGITS = np.array([[1.0, -np.inf, 0.5, -np.inf], [-np.inf, 0.3, 2.0, -np.inf]], np.float32)


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.9, 0.1], [1.0, 0.0]])
@pytest.mark.parametrize("rule", ["mean", "product"])
def test_impossible_tokens_stay_so_for_all_members_under_mean_and_for_one_under_product(rule, weights):
    members = [jnp.asarray(z)[None] for z in LOGITS]
    out = np.asarray(COMBINATIONS[rule](members, jnp.asarray([weights], jnp.float32)))[0]
    heard = [z for z, w in zip(np.isfinite(LOGITS), weights, strict=True) if w > 0]
    expected = np.any(heard, axis=0) if rule == "mean" else np.all(heard, axis=0)
    np.testing.assert_array_equal(np.isfinite(out), expected)
    assert not np.isnan(out).any()


@pytest.mark.parametrize("rule", ["mean", "product"])
def test_members_with_very_large_or_very_unlikely_logits_combine_in_float32(rule):
    members = np.array([[3e4, 0, -3e4], [-1e4, 2e4, 1e4]])
    log_p = np.array([log_softmax(z) for z in members])
    law = log_p.mean(axis=0) if rule == "product" else np.logaddexp.reduce(log_p)
    out = np.asarray(COMBINATIONS[rule]([jnp.asarray(z, jnp.float32)[None] for z in members], jnp.full((1, 2), 0.5)))[0]
    np.testing.assert_allclose(out - out.max(), law - law.max(), rtol=1e-5, atol=1e-2)


def test_votes_are_counted_by_weight_then_by_liking_then_by_id():
    tokens = lambda *ids: jnp.asarray(ids, jnp.int32)[:, None]
    column = lambda *values: jnp.asarray(values, jnp.float32)[:, None]
    count = lambda ids, votes, liking: int(vote(tokens(*ids), column(*votes), column(*liking))[0])
    third = 1 / 3
    assert count((5, 5, 2), (third, third, third), (-9.0, -9.0, -1.0)) == 5  # a majority, though unlikely
    assert count((5, 7, 2), (third, third, third), (-3.0, -1.0, -2.0)) == 7  # a tie: the likeliest
    assert count((5, 7, 2), (third, third, third), (-1.0, -3.0, -1.0)) == 2  # as likely: the lowest id
    assert count((5, 5, 2), (0.2, 0.2, 0.6), (-1.0, -1.0, -9.0)) == 2  # weights are votes
    assert count((0, 7, 7), (0.0, 0.5, 0.0), (0.0, -1.0, -1.0)) == 7
    assert count((1,) * 3 + (2,) * 3, (0.1, 0.2, 0.3) * 2, (-2.0,) * 3 + (-1.0,) * 3) == 2  # sums differ by rounding only


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Silent(Toy):
    """A member that holds every token impossible."""

    def extend(self, *args, **kwargs):
        out = super().extend(*args, **kwargs)
        return dataclasses.replace(out, logits=None if out.logits is None else jnp.full_like(out.logits, -jnp.inf))


@pytest.mark.slow
def test_a_member_without_a_possible_token_has_no_say_but_in_a_product():
    silent = Silent(MODELS[0].embedding, MODELS[0].kernel)
    alone = run("mean", SAMPLED, MODELS[1:2])
    for voting in ("majority", "mean"):
        np.testing.assert_array_equal(run(voting, SAMPLED, [silent, MODELS[1]], weights=[9, 1]).tokens, alone.tokens)
    assert (run("product", SAMPLED, [silent, MODELS[1]]).finish_reason == FinishReason.DEAD_END).all()


WORDS = [b"a", b"b", b"ab", b"ba", b"c", b"cab", b"\xc3", b"\xa9", b"", b"bcb", b"aa"]
OFFSETS = np.concatenate([[0], np.cumsum([len(w) for w in WORDS])]).astype(np.int32)
DATA = np.frombuffer(b"".join(WORDS), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("voting", VOTING)
def test_rows_end_by_eos_by_stop_strings_and_by_lengths_of_their_own(voting):
    most = [60, 60, 0, 7]
    plain = run(voting, SAMPLED, max_new_tokens=60).tokens
    stops = stop_table([["bab"], [], ["c"], []], OFFSETS, DATA)
    out = run(voting, SAMPLED, max_new_tokens=most, eos_ids=[9], stops=stops, pad_id=99)
    for row in range(B):
        text, expected = b"", (most[row], FinishReason.LENGTH)
        for index, token in enumerate(plain[row, : most[row]].tolist()):
            text += WORDS[token]
            if token == 9 or (row == 0 and b"bab" in text):
                expected = index + 1, FinishReason.EOS if token == 9 else FinishReason.STOP
                break
        assert (out.lengths[row], out.finish_reason[row]) == expected
        np.testing.assert_array_equal(out.tokens[row, : expected[0]], plain[row, : expected[0]])
        assert (out.tokens[row, expected[0] :] == 99).all()


@pytest.mark.parametrize("voting", VOTING)
def test_other_values_never_recompile(voting, compilations):
    def call(index):
        transform = mx.transforms.chain(mx.transforms.truncation(index / 10, min_p=1 / (index + 1)))
        weights = [None, [1, 2, index + 1], np.full((B, 3), index + 1.0)][index % 3]
        run(voting, transform, weights=weights, key=jax.random.key(index), max_new_tokens=[1 + index, 2, 3, 4])

    call(0)
    assert compilations(lambda: [call(index) for index in range(1, 7)]) == 0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"models": []}, "at least one model"),
        ({"models": [MODELS[0], toy(vocabulary=13)]}, "vocabularies of 11, 13"),
        ({"voting": "plurality"}, "majority, mean, product"),
        ({"weights": [1, 2]}, "3 numbers"),
        ({"weights": np.ones((2, 3))}, "3 numbers"),
        ({"weights": [1, 1, -1]}, "3 numbers"),
        ({"weights": [0, 0, 0]}, "3 numbers"),
        ({"weights": [1, np.nan, 1]}, "3 numbers"),
        ({"weights": "equal"}, "3 numbers"),
        ({"member_edits": [None]}, "each of the 3 models"),
        ({"lengths": [5, 0, 3, 2]}, "prompt_lengths"),
    ],
)
def test_members_and_weights_that_do_not_fit_are_refused_on_the_host(changed, words, compilations, unchecked):
    def call():
        with pytest.raises(mx.errors.ArgumentError, match=words):
            run(**{"voting": "mean", **changed})

    assert compilations(call) == 0


# --- Candidates ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Two models over different vocabularies: (ours, theirs) each."""
    pairs = []
    for name, config in (("llama", oracles.llama()), ("gpt2", oracles.gpt2(vocab_size=53))):
        folder = oracles.saved(config, tmp_path_factory.mktemp(name), seed=len(pairs))
        pairs.append((oracles.ours(folder), oracles.theirs(folder)))
    return pairs


@pytest.mark.slow
def test_scores_are_those_of_transformers_however_many_chunks_they_take(members, monkeypatch):
    rng, lengths, prompts = np.random.default_rng(1), np.array([30, 17, 30]), np.array([4, 16, 29])
    for ours, hf in members:
        tokens = rng.integers(0, ours.spec.vocabulary, (3, 30)).astype(np.int32)
        log_p = jax.nn.log_softmax(oracles.logits_of(hf, tokens))
        expected = [sum(log_p[r, at - 1, tokens[r, at]] for at in range(prompts[r], lengths[r])) for r in range(3)]
        for affordable in (2**25, 1):
            monkeypatch.setattr(mx.loops.scoring, "_LOGITS", affordable)
            np.testing.assert_allclose(score(ours, tokens, lengths, prompts), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_models_with_different_tokenisers_select_among_candidates_that_all_of_them_score(members):
    """One spells with 97 symbols of one byte, the other with 53 of two bytes: likelihoods per byte are what compares."""
    models = [ours for ours, _ in members]
    spell = [
        lambda text: [b % 97 for b in text],
        lambda text: [(a * 7 + b) % 53 for a, b in zip(text[::2], text[1::2], strict=True)],
    ]
    prompt, candidates = b"abcd", [b"efghij", b"zy", b"hello wo", b"qqqq"]
    sizes = [len(c) for c in candidates]
    scores, peers = np.zeros((2, 2, 4)), [hf for _, hf in members]
    for m, model in enumerate(models):
        prompt_size = len(spell[m](prompt))
        for c, candidate in enumerate(candidates):
            tokens = np.array([spell[m](prompt + candidate)], np.int32)
            scores[0, m, c] = score(model, tokens, [tokens.shape[1]], [prompt_size])[0]
            log_p = np.asarray(jax.nn.log_softmax(oracles.logits_of(peers[m], tokens)))[0]
            scores[1, m, c] = sum(log_p[at - 1, tokens[0, at]] for at in range(prompt_size, tokens.shape[1]))
    per_byte = scores[1] / sizes
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)
    for weights in ([1, 1], [3, 1], [1, 9]):
        shares = np.array(weights) / np.sum(weights)
        assert select(scores[0], sizes, voting="mean", weights=weights) == (shares @ np.exp(per_byte)).argmax()
        assert select(scores[0], sizes, voting="product", weights=weights) == (shares @ per_byte).argmax()
        votes = np.bincount(per_byte.argmax(axis=1), shares, minlength=4)
        liked = np.where(votes == votes.max(), shares @ np.exp(per_byte), -1)
        assert select(scores[0], sizes, weights=weights) == liked.argmax()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (([[-10.0, -10.0]], [10, 5]), 0),  # per byte, not in all
        (([[-1.0, -9, -9], [-1, -9, -9], [-9, -0.1, -9]], [1, 1, 1]), 0),  # two votes against one
        (([[-1.0, -2, -9], [-2, -0.5, -9]], [1, 1, 1]), 1),  # a tie
        (([[-1.0, -1.0]], [1, 1]), 0),  # the first of equals
        (([[-np.inf, -3.0]], [1, 1]), 1),
        (([[-1e5, -9e4]], [1, 1]), 1),  # e^-90000 is 0 in any float
        (([[-1.0, -2.0]], [0, 1]), 0),
    ],
)
def test_select_by_hand(arguments, expected):
    assert select(*arguments) == expected
    assert len(arguments[0]) > 1 or select(*arguments, voting="mean") == select(*arguments, voting="product") == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: select([[]], []), "loglikelihoods"),
        (lambda: select([[np.nan]], [1]), "loglikelihoods"),
        (lambda: select([[-1.0]], [1, 2]), "byte_lengths"),
        (lambda: select([[-1.0]], [1], voting="best"), "voting"),
        (lambda: select([[-1.0]], [1], weights=[1, 1]), "weights"),
        (lambda: score(MODELS[0], PROMPTS[0], 5, 1), "tokens"),
        (lambda: score(MODELS[0], PROMPTS, 6, 1), "lengths"),
        (lambda: score(MODELS[0], PROMPTS, 4, 5), "prompt_lengths"),
        (lambda: score(MODELS[0], PROMPTS, 4, 0), "prompt_lengths"),
    ],
)
def test_what_cannot_be_scored_or_selected_is_refused(call, words, unchecked):
    with pytest.raises(mx.errors.ArgumentError, match=words):
        call()
