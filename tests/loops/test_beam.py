"""Beam search: against `transformers`, against every sequence there is, and against a search written out with lists."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import torch
from toys import log_softmax, toy, toy_logits

import mechanex_jax as mx
from mechanex_jax.loops import FinishReason, advance, beam, beam_decode, decode, stop_table

MODEL = toy()
V = MODEL.spec.vocabulary
PROMPTS = np.array([[1, 2, 3, 4, 5], [6, 0, 0, 0, 0], [7, 8, 9, 0, 0], [2, 2, 0, 0, 0]], np.int32)
LENGTHS = np.array([5, 1, 3, 2], np.int32)
KEY = jax.random.key(7)
NOTHING = mx.transforms.chain()


def run(transform: Any = NOTHING, prompts: Any = PROMPTS, lengths: Any = LENGTHS, model: Any = MODEL, **changed: Any):
    return beam_decode(model, prompts, lengths, transform, **{"max_new_tokens": 9, "pad_id": 1, **changed})


def said(out: Any, row: int) -> list[list[int]]:
    """The hypotheses of a prompt without padding; free places are left out."""
    live = out.scores[row] > -np.inf
    return [tokens[:n].tolist() for tokens, n in zip(out.tokens[row][live], out.lengths[row][live], strict=True)]


# --- transformers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request, tmp_path_factory):
    folder = oracles.saved(getattr(oracles, request.param)(), tmp_path_factory.mktemp(request.param))
    return oracles.ours(folder), oracles.theirs(folder)


@pytest.mark.slow
@pytest.mark.parametrize("eos", [[], [5], [5, 9, 33, 34, 35, 36, 37]], ids=["no_eos", "one_eos", "seven_eos"])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_tokens_and_scores_are_those_of_transformers_in_a_ragged_batch(early_stopping, eos, pair):
    model, hf = pair
    width, steps, size = 4, 12, 12
    lengths = np.array([7, 3, size, 1])
    prompts = np.random.default_rng(0).integers(0, oracles.VOCABULARY, (4, size)).astype(np.int32)
    real = np.arange(size) >= size - lengths[:, None]  # there, padding is on the left
    left = np.zeros_like(prompts)
    left[real] = np.concatenate([row[:n] for row, n in zip(prompts, lengths, strict=True)])
    for penalty in (1.0, 0.0, 2.0, -1.0):
        same = {"length_penalty": penalty, "early_stopping": early_stopping, "max_new_tokens": steps}
        search_with = {"num_beams": width, "num_return_sequences": width, "do_sample": False, **same}
        report = {"return_dict_in_generate": True, "output_scores": True}
        ids, mask = (torch.as_tensor(a, dtype=torch.long) for a in (left, real))
        with torch.inference_mode():
            theirs = hf.generate(ids, attention_mask=mask, eos_token_id=eos or None, pad_token_id=1, **search_with, **report)
        ours = run(prompts=prompts, lengths=lengths, model=model, beam_width=width, eos_ids=eos, **same)
        tokens = theirs.sequences[:, size:].reshape(4, width, -1).numpy()
        np.testing.assert_array_equal(ours.tokens[:, :, : tokens.shape[2]], tokens)
        assert ours.lengths.max() <= tokens.shape[2]
        np.testing.assert_allclose(ours.scores, theirs.sequences_scores.reshape(4, width).numpy(), rtol=2e-5)
        ended = np.isin(np.take_along_axis(ours.tokens, ours.lengths[:, :, None] - 1, axis=2)[:, :, 0], eos)
        np.testing.assert_array_equal(ours.finish_reason, np.where(ended, FinishReason.EOS, FinishReason.LENGTH))


# --- every sequence there is --------------------------------------------------------------------------------------------

SMALL = toy(vocabulary=4, seed=3)
LAST = 3  # ends a sequence of SMALL


@mx.transforms.row_tree
class Machine:
    """A table automaton that ends in accepting states and always in time: the shape of every constraint."""

    next_state: Any = mx.transforms.row(2, jnp.int32)  # [S, V]; state 0 is dead
    distance: Any = mx.transforms.row(1, jnp.int32)  # [S], tokens to the nearest accepting state

    def init(self, prompt, length):
        return jnp.int32(1)

    def apply(self, state, logits, step):
        token = jnp.arange(logits.shape[0])
        following = self.next_state[state]
        fits = (following > 0) & (self.distance[following] < step.remaining)
        return jnp.where(jnp.where(token == LAST, self.distance[state] == 0, fits), logits, -jnp.inf)

    def advance(self, state, token, step):
        return jnp.where(token == LAST, state, self.next_state[state, token])


# (ab)*c over 0 = a, 1 = b, 2 = c: state 1 the start, 2 after a, 3 after c, which accepts.
TABLE = np.array([[0] * 4, [2, 0, 3, 0], [0, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4])
DISTANCE = np.array([99, 1, 2, 0, 99, 99])
# Two letters that differ, then any number of a: states 2, 3 and 4 know the first letter.
LOOSE = np.array([[0] * 4, [2, 3, 4, 0], [0, 5, 5, 0], [5, 0, 5, 0], [5, 5, 0, 0], [5, 0, 0, 0]])
LOOSE_DISTANCE = np.array([99, 2, 1, 1, 1, 0])


def accepted(word: tuple[int, ...], table: np.ndarray, distance: np.ndarray) -> bool:
    state = 1
    for token in word:
        state = table[state][token]
    return bool(distance[state] == 0)


def everything(prompt: list[int], steps: int, penalty: float, legal: Any = None) -> list[tuple[float, list[int]]]:
    """Each sequence that ends with LAST or at the length, by score."""
    found = []
    for length in range(1, steps + 1):
        for word in itertools.product(range(4), repeat=length):
            if LAST in word[:-1] or (word[-1] != LAST and length < steps):
                continue
            if legal is not None and not legal(word[:-1] if word[-1] == LAST else word):
                continue
            total = sum(log_softmax(toy_logits(SMALL, [*prompt, *word[:i]]))[word[i]] for i in range(length))
            found.append((total / length**penalty, list(word)))
    return sorted(found, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [0.0, 1.0, 1.7])
def test_a_width_that_holds_everything_finds_every_sequence_in_order(penalty):
    out = run(
        prompts=[[1, 2]], lengths=[2], model=SMALL, beam_width=128, length_penalty=penalty, max_new_tokens=4, eos_ids=[LAST]
    )
    expected = everything([1, 2], 4, penalty)
    assert said(out, 0) == [word for _, word in expected]
    np.testing.assert_allclose(out.scores[0, : len(expected)], [score for score, _ in expected], rtol=1e-5, atol=1e-6)
    assert (out.finish_reason[0, len(expected) :] == FinishReason.DEAD_END).all()
    assert (out.lengths[0, len(expected) :] == 0).all() and (out.tokens[0, len(expected) :] == 1).all()


@pytest.mark.slow
@pytest.mark.parametrize(("table", "distance"), [(TABLE, DISTANCE), (LOOSE, LOOSE_DISTANCE)], ids=["ab_star_c", "loose"])
def test_an_automatons_state_travels_with_its_beam(table, distance):
    machine = mx.transforms.chain(Machine(table, distance))
    legal = lambda word: accepted(word, table, distance)
    expected = everything([1, 2], 6, 1.0, legal)
    # Wide: all that the automaton accepts, and nothing else.
    out = run(machine, [[1, 2]], [2], SMALL, beam_width=64, max_new_tokens=6, eos_ids=[LAST], early_stopping="never")
    assert said(out, 0) == [word for _, word in expected]
    # Narrow: whatever is found is one of them, with its score.
    scores = {tuple(word): score for score, word in expected}
    narrow = run(machine, [[1, 2]], [2], SMALL, beam_width=3, max_new_tokens=6, eos_ids=[LAST])
    assert said(narrow, 0)
    for word, score in zip(said(narrow, 0), narrow.scores[0], strict=False):
        assert score == pytest.approx(scores[tuple(word)], rel=1e-5)


# --- a search written out with lists ------------------------------------------------------------------------------------

WORDS = [b"a", b"b", b"ab", b"ba", b"c", b"cab", b"\xc3", b"\xa9", b"", b"bcb", b"aa"]
OFFSETS = np.concatenate([[0], np.cumsum([len(w) for w in WORDS])]).astype(np.int32)
DATA = np.frombuffer(b"".join(WORDS), np.uint8)


def search(prompt, width, steps, penalty, early, eos=(), stops=(), ban=None):
    """Beam search over Python lists, in float64. `ban(word) -> ids` that may not follow."""

    def over(word):
        text = b"".join(WORDS[t] for t in word)
        return len(word) == steps or word[-1] in eos or any(s.encode() in text for s in stops)

    going, ended = [(0.0, [])], []
    for length in range(1, steps + 1):
        children = []
        for total, word in going:
            logprobs = log_softmax(toy_logits(MODEL, [*prompt, *word]))
            barred = ban(word) if ban else ()
            children += [(total + logprobs[t], [*word, t]) for t in range(V) if t not in barred]
        children.sort(reverse=True)
        ended += [(total / length**penalty, word) for total, word in children[:width] if over(word)]
        ended = sorted(ended, reverse=True)[:width]
        going = [child for child in children if not over(child[1])][:width]
        reckoned = steps if early == "never" and penalty > 0 else length
        if not going or (len(ended) == width and (early is True or going[0][0] / reckoned**penalty <= ended[-1][0])):
            break
    return ended


def agrees(out, row, expected):
    assert said(out, row) == [word for _, word in expected]
    np.testing.assert_allclose(out.scores[row, : len(expected)], [score for score, _ in expected], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("width", [2, 5])
def test_every_row_has_its_own_length_penalty_and_stop_strings(width, early):
    strings = [["ab"], [], ["cc", "ba"], ["aba", "b"]]
    steps, penalties = [3, 7, 10, 6], [0.0, 1.0, 2.0, 0.5]
    out = run(
        beam_width=width,
        early_stopping=early,
        length_penalty=penalties,
        max_new_tokens=steps,
        eos_ids=[4, 10],
        stops=stop_table(strings, OFFSETS, DATA),
    )
    reasons = set()
    for row, length in enumerate(LENGTHS):
        expected = search(PROMPTS[row, :length], width, steps[row], penalties[row], early, (4, 10), strings[row])
        agrees(out, row, expected)
        for (_, word), reason in zip(expected, out.finish_reason[row], strict=True):
            stopped = any(s.encode() in b"".join(WORDS[t] for t in word) for s in strings[row])
            assert reason == (
                FinishReason.EOS if word[-1] in (4, 10) else FinishReason.STOP if stopped else FinishReason.LENGTH
            )
            reasons.add(int(reason))
    assert reasons == {FinishReason.EOS, FinishReason.STOP} | (set() if early is True else {FinishReason.LENGTH})


@mx.transforms.row_tree
class Fresh:
    """Bans what was said within this row's answer, and every token >= 5 + index: a state and a step that both matter."""

    def init(self, prompt, length):
        return jnp.zeros(V, jnp.bool_)

    def apply(self, state, logits, step):
        return jnp.where(state | (jnp.arange(V) >= 5 + step.index), -jnp.inf, logits)

    def advance(self, state, token, step):
        return state.at[token].set(True)


@pytest.mark.slow
def test_state_and_step_of_a_transform_are_its_beams_own():
    out = run(mx.transforms.chain(Fresh()), max_new_tokens=[4, 9, 7, 0])
    for row, length in enumerate(LENGTHS[:3]):
        ban = lambda word: {*word, *range(5 + len(word), V)}
        agrees(out, row, search(PROMPTS[row, :length], 4, [4, 9, 7][row], 1.0, False, ban=ban))


@pytest.mark.slow
def test_logprobs_are_the_models_own_and_zero_in_the_padding():
    out = run(mx.transforms.chain(Fresh(), mx.transforms.logit_bias(np.linspace(-1, 1, V))), eos_ids=[4])
    for row, length in enumerate(LENGTHS):
        for place, word in enumerate(said(out, row)):
            past = list(PROMPTS[row, :length])
            for index, token in enumerate(word):
                own = log_softmax(toy_logits(MODEL, past))[token]
                assert out.logprobs[row, place, index] == pytest.approx(own, abs=1e-5)
                past.append(token)
            assert (out.logprobs[row, place, len(word) :] == 0).all() and (out.tokens[row, place, len(word) :] == 1).all()


# --- how it fits with the other loop ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_width_one_is_greedy_decoding():
    greedy = mx.transforms.temperature(0.0)
    plain = decode(MODEL, PROMPTS, LENGTHS, greedy, key=KEY, max_new_tokens=[9, 4, 0, 9], eos_ids=[3], pad_id=1)
    out = run(beam_width=1, max_new_tokens=[9, 4, 0, 9], eos_ids=[3], early_stopping=True)
    ends = plain.finish_reason == FinishReason.EOS
    # A beam goes on where greedy decoding ends only if its best token was no end: so they are equal as they stand.
    np.testing.assert_array_equal(out.tokens[:, 0], plain.tokens)
    np.testing.assert_array_equal(out.lengths[:, 0], plain.lengths)
    np.testing.assert_array_equal(out.finish_reason[:, 0], plain.finish_reason)
    np.testing.assert_allclose(out.logprobs[:, 0], plain.logprobs, atol=1e-5)
    assert ends.any() and not ends.all()


@pytest.mark.slow
def test_a_ragged_batch_equals_each_row_alone_whatever_the_padding():
    dirty = PROMPTS.copy()
    dirty[np.arange(5) >= LENGTHS[:, None]] = 9
    together = run(prompts=np.pad(dirty, ((0, 0), (0, 20)), constant_values=3), max_new_tokens=[9, 3, 6, 9], eos_ids=[4])
    for row, length in enumerate(LENGTHS):
        steps = [9, 3, 6, 9][row]
        alone = run(prompts=PROMPTS[row : row + 1, :length], lengths=[length], max_new_tokens=steps, eos_ids=[4])
        np.testing.assert_array_equal(together.tokens[row, :, :steps], alone.tokens[0])
        np.testing.assert_allclose(together.scores[row], alone.scores[0], rtol=1e-5)


@mx.transforms.row_tree
class Script(mx.transforms.Stateless):
    """Leaves tokens 0 and 1 until `last`, then nothing."""

    last: Any = mx.transforms.row(dtype=jnp.int32)

    def apply(self, state, logits, step):
        return jnp.where((jnp.arange(V) < 2) & (step.index < self.last), logits, -jnp.inf)


@pytest.mark.slow
def test_dead_ends_never_win_and_harm_no_other_row():
    out = run(mx.transforms.chain(Script([3, 100, 0, 2])), max_new_tokens=5, eos_ids=[0])
    assert (out.finish_reason[2] == FinishReason.DEAD_END).all()
    assert (out.scores[2] == -np.inf).all() and (out.lengths[2] == 0).all()
    for row, last in enumerate([3, 5, 0, 2]):
        ban = lambda word, last=last: range(2 if len(word) < last else 0, V)
        agrees(out, row, search(PROMPTS[row, : LENGTHS[row]], 4, 5, 1.0, False, eos=(0,), ban=ban))
    assert (out.finish_reason[0] == FinishReason.EOS).sum() == 3  # 0, 10, 110; the fourth, 111, has no way on


def test_no_room_to_say_anything_leaves_one_empty_hypothesis():
    out = run(max_new_tokens=0)
    assert out.tokens.shape == (4, 4, 0)
    assert (out.finish_reason == [FinishReason.LENGTH] + 3 * [FinishReason.DEAD_END]).all()
    assert (out.scores == [0.0] + 3 * [-np.inf]).all()


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["llama"], indirect=True)
def test_edits_and_transforms_hold_one_value_per_prompt(pair):
    model, _ = pair
    vector = np.random.default_rng(1).normal(size=(4, 1, model.spec.width))
    prompts, bias = np.full((4, 3), 8, np.int32), np.zeros((4, oracles.VOCABULARY))
    bias[[0, 1, 2, 3], [50, 60, 70, 80]] = 30.0  # each prompt is made to say another token
    transform = mx.transforms.logit_bias(bias)
    edit = mx.edits.add(vector, [1], [0.0, 3.0, 3.0, 3.0])
    out = run(transform, prompts, [3] * 4, model, edits=edit, beam_width=3)
    assert out.tokens[:, 0, 0].tolist() == [50, 60, 70, 80]
    for row in range(4):  # one value for all prompts: that of this row
        one = mx.edits.add(vector[row], [1], 3.0 * (row > 0))
        only = run(mx.transforms.logit_bias(bias[row]), prompts, [3] * 4, model, edits=one, beam_width=3)
        np.testing.assert_array_equal(out.tokens[row], only.tokens[row])
    assert (out.tokens[0] != run(transform, prompts, [3] * 4, model, edits=one, beam_width=3).tokens[0]).any()


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [[1] * 9, [4, 5], [2, 7]], ids=str)
def test_the_same_hypotheses_however_the_loop_is_cut_into_chunks(pieces, monkeypatch):
    def cut(program, carry, chunk):
        for until in pieces:
            carry = chunk(program, carry, np.int32(until))
            yield carry

    whole = run(eos_ids=[4])
    monkeypatch.setattr(beam, "advance", cut)
    for one, other in zip(run(eos_ids=[4]), whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_host_has_a_say_between_chunks(monkeypatch):
    looks, caches = [], []

    def watched(program, carry, chunk):
        for latest in advance(program, carry, seconds=0.0, chunk=chunk):
            looks.append(int(latest.beams.generated.max()))
            caches.append(np.asarray(latest.beams.cache.lengths).reshape(4, 4))
            yield latest

    monkeypatch.setattr(beam, "advance", watched)
    run(max_new_tokens=[12, 3, 0, 12])
    # A prompt that is done reads no more tokens.
    assert (caches[-1][1] == LENGTHS[1] - 1 + 3).all() and (caches[-1][2] == LENGTHS[2] - 1).all()
    assert looks == [4, 6, 7, 8, 9, 10, 11, 11]  # what ends with the twelfth token is no beam any more


@pytest.mark.slow
def test_other_values_never_recompile(compilations):
    def call(index: int) -> None:
        run(
            mx.transforms.chain(mx.transforms.repetition_penalty(V, 1 + index / 50)),
            lengths=np.minimum(LENGTHS + index % 2, 5),
            length_penalty=index / 5 if index % 2 else [0.0, 1.0, index, -1.0],
            early_stopping=[False, True, "never"][index % 3],
            max_new_tokens=[index % 9 + 1, 3, 1, 20],
            eos_ids=[index % 5],
            stops=stop_table([["ab" * (index % 5 + 1)], [], ["c"], [str(index)]], OFFSETS, DATA),
            key=jax.random.key(index),
        )

    call(0)
    assert compilations(lambda: [call(index) for index in range(1, 20)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"beam_width": 0}, "beam_width: got 0"),
        ({"beam_width": True}, "beam_width: got True"),
        ({"early_stopping": "always"}, "early_stopping: got 'always'"),
        ({"early_stopping": 1}, "early_stopping: got 1"),
        ({"length_penalty": float("nan")}, "length_penalty: got nan"),
        ({"length_penalty": "long"}, "length_penalty: got 'long'"),
        ({"length_penalty": [1.0, 2.0]}, "each of the 4 prompts"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"lengths": [5, 0, 3, 2]}, "prompt_lengths"),
        ({"prompts": PROMPTS[0]}, "two axes"),
        ({"transform": mx.transforms.temperature([0.5] * 16)}, "4 rows"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_on_the_host(changed, words, compilations, unchecked):
    def call() -> None:
        with pytest.raises(mx.errors.ArgumentError, match=words):
            run(**changed)

    assert compilations(call) == 0
