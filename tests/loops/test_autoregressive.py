"""The decode loop on a toy model, against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from toys import log_softmax, toy, toy_logits

import mechanex_jax as mx
from mechanex_jax import rows
from mechanex_jax.loops import FinishReason, decode, decode_chunk, prefill, result, start, stop_table
from mechanex_jax.transforms import Step

MODEL = toy()
V = MODEL.spec.vocabulary
PROMPTS = np.array([[1, 2, 3, 4, 5], [6, 0, 0, 0, 0], [7, 8, 9, 0, 0], [2, 2, 0, 0, 0]], np.int32)
LENGTHS = np.array([5, 1, 3, 2], np.int32)
GREEDY = mx.transforms.chain(mx.transforms.temperature(0.0))
SAMPLED = mx.transforms.chain(mx.transforms.temperature(1.0))
KEY = jax.random.key(7)


def run(transform=GREEDY, prompts=PROMPTS, lengths=LENGTHS, **changed):
    return decode(MODEL, prompts, lengths, transform, **{"key": KEY, "max_new_tokens": 12, **changed})


def greedy_oracle(prompt, steps):
    tokens, logprobs = list(prompt), []
    for _ in range(steps):
        logits = toy_logits(MODEL, tokens)
        tokens.append(int(logits.argmax()))
        logprobs.append(log_softmax(logits).max())
    return tokens[len(prompt) :], logprobs


def same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_greedy_tokens_and_logprobs_are_the_oracles_in_a_ragged_batch():
    out = run()
    for row, length in enumerate(LENGTHS):
        tokens, logprobs = greedy_oracle(PROMPTS[row, :length], 12)
        assert out.tokens[row].tolist() == tokens
        np.testing.assert_allclose(out.logprobs[row], logprobs, atol=1e-5)
    assert (out.finish_reason == FinishReason.LENGTH).all()


def test_logprobs_are_the_models_own_before_any_transform():
    out = run(mx.transforms.chain(mx.transforms.temperature(0.3), mx.transforms.top_k(2)))
    for row, length in enumerate(LENGTHS):
        past = list(PROMPTS[row, :length])
        for token, logprob in zip(out.tokens[row], out.logprobs[row], strict=True):
            assert logprob == pytest.approx(log_softmax(toy_logits(MODEL, past))[token], abs=1e-5)
            past.append(token)


@pytest.mark.parametrize("transform", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_ragged_batch_equals_each_row_alone(transform):
    together = run(transform)
    for row, length in enumerate(LENGTHS):
        alone = run(transform, PROMPTS[row : row + 1, :length], [length], key=jax.random.fold_in(KEY, row)[None])
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])


def test_padding_of_prompts_never_counts():
    other = PROMPTS.copy()
    other[np.arange(5) >= LENGTHS[:, None]] = 9
    same(run(SAMPLED), run(SAMPLED, np.pad(other, ((0, 0), (0, 30)), constant_values=3)))


@pytest.mark.parametrize("pieces", [[1] * 12, [5, 7], [3, 3, 3, 3], [11, 1]])
def test_the_same_tokens_however_the_loop_is_cut_into_chunks(pieces):
    program, carry = start(MODEL, PROMPTS, LENGTHS, SAMPLED, key=KEY, max_new_tokens=12, eos_ids=[4], stops=None)
    for until in pieces:
        carry = decode_chunk(program, carry, np.int32(until))
    same(result(carry), run(SAMPLED, eos_ids=[4]))


def test_a_row_taken_out_goes_on_in_another_batch_as_if_nothing_had_happened():
    arguments = {"key": KEY, "max_new_tokens": 12}
    program, carry = start(MODEL, PROMPTS, LENGTHS, SAMPLED, **arguments)
    carry = decode_chunk(program, carry, np.int32(4))
    moved = jax.tree.map(lambda leaf: jnp.stack([leaf[2], leaf[0]]), carry)  # every leaf has its rows in front
    program, _ = start(MODEL, PROMPTS[:2], LENGTHS[:2], SAMPLED, **arguments)
    moved = decode_chunk(program, moved, np.int32(12))
    np.testing.assert_array_equal(result(moved).tokens, run(SAMPLED).tokens[[2, 0]])


def test_end_of_sequence_is_kept_counted_and_followed_by_padding():
    plain = run(SAMPLED, max_new_tokens=60)
    ended = run(SAMPLED, max_new_tokens=60, eos_ids=[9, 0], pad_id=99)
    for row in range(len(PROMPTS)):
        at = np.flatnonzero(np.isin(plain.tokens[row], [9, 0]))[0]
        assert ended.lengths[row] == at + 1
        assert ended.finish_reason[row] == FinishReason.EOS
        np.testing.assert_array_equal(ended.tokens[row, : at + 1], plain.tokens[row, : at + 1])
        assert (ended.tokens[row, at + 1 :] == 99).all()
        assert (ended.logprobs[row, at + 1 :] == 0).all()


def test_max_new_tokens_is_one_number_or_one_per_row():
    plain, ragged = run(SAMPLED), run(SAMPLED, max_new_tokens=[3, 12, 0, 1])
    assert ragged.lengths.tolist() == [3, 12, 0, 1]
    for row, length in enumerate(ragged.lengths):
        np.testing.assert_array_equal(ragged.tokens[row, :length], plain.tokens[row, :length])


@mx.transforms.row_tree
class Script(mx.transforms.Stateless):
    """Forces token `step.index` until `last`, then forbids everything."""

    last: object = mx.transforms.row(dtype=jnp.int32)

    def apply(self, state, logits, step):
        wanted = (jnp.arange(logits.shape[0]) == step.index) & (step.index < self.last)
        return jnp.where(wanted, logits, -jnp.inf)


def test_a_row_without_a_legal_token_is_a_dead_end_and_harms_no_other():
    out = run(mx.transforms.chain(Script(np.array([3, 100, 0, 5]))), max_new_tokens=9)
    assert out.lengths.tolist() == [3, 9, 0, 5]
    assert out.tokens[1].tolist() == list(range(9))
    dead = FinishReason.DEAD_END
    assert out.finish_reason.tolist() == [dead, FinishReason.LENGTH, dead, dead]
    assert np.isfinite(out.logprobs).all()


@mx.transforms.row_tree
class Witness:
    """Keeps, in its state, all that the loop tells it."""

    size: int = mx.transforms.static()

    def init(self, prompt, length):
        real = jnp.where(jnp.arange(len(prompt)) < length, prompt, 0)
        return {"seen": jnp.full(self.size, -1), "calls": jnp.int32(0), "prompt": jnp.sum(real)}

    def apply(self, state, logits, step):
        return logits

    def advance(self, state, token, step):
        code = token + 100 * step.remaining + 10_000 * step.index
        return {**state, "seen": state["seen"].at[state["calls"]].set(code), "calls": state["calls"] + 1}


def test_transforms_see_every_token_once_and_finished_rows_freeze():
    program, carry = start(
        MODEL, PROMPTS, LENGTHS, mx.transforms.chain(SAMPLED, Witness(16)), key=KEY, max_new_tokens=[4, 12, 0, 7]
    )
    carry = decode_chunk(program, carry, np.int32(100))
    out, state = result(carry), carry.transform_state[-1]
    assert state["calls"].tolist() == [4, 12, 0, 7]
    assert state["prompt"].tolist() == [sum(PROMPTS[r, :n]) for r, n in enumerate(LENGTHS)]
    for row, limit in enumerate([4, 12, 0, 7]):
        expected = [int(out.tokens[row, i]) + 100 * (limit - i) + 10_000 * i for i in range(limit)]
        assert state["seen"][row, :limit].tolist() == expected


def test_a_steps_key_is_the_rows_key_folded_with_its_index():
    drawn = run(SAMPLED, max_new_tokens=3).tokens
    for row, length in enumerate(LENGTHS):
        past = list(PROMPTS[row, :length])
        for index in range(3):
            key = jax.random.fold_in(jax.random.fold_in(KEY, row), index)
            logits = jnp.asarray(toy_logits(MODEL, past), jnp.float32)
            assert drawn[row, index] == mx.transforms.draw(key, logits)
            past.append(int(drawn[row, index]))


def test_the_law_of_two_sampled_tokens_is_the_models():
    rows = 4096
    prompts = np.tile(PROMPTS[:1], (rows, 1))
    out = run(SAMPLED, prompts, [5] * rows, max_new_tokens=2)
    first = np.exp(log_softmax(toy_logits(MODEL, PROMPTS[0])))
    law = np.array([f * np.exp(log_softmax(toy_logits(MODEL, [*PROMPTS[0], t]))) for t, f in enumerate(first)]).ravel()
    counts = np.bincount(out.tokens[:, 0] * V + out.tokens[:, 1], minlength=V * V)
    common = law * rows >= 5  # pool what is too rare for a chi-square
    observed = [*counts[common], counts[~common].sum()]
    wanted = [*law[common] * rows, law[~common].sum() * rows]
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


# Stop strings: a vocabulary of byte strings in which borders fall anywhere.
WORDS = [b"a", b"b", b"ab", b"ba", b"c", b"cab", b"\xc3", b"\xa9", b"", b"bcb", b"aa"]
OFFSETS = np.concatenate([[0], np.cumsum([len(w) for w in WORDS])]).astype(np.int32)
DATA = np.frombuffer(b"".join(WORDS), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_stop_strings_end_rows_exactly_where_python_finds_them(seed):
    rng = np.random.default_rng(seed)
    alphabet = ["a", "b", "c", "é"]
    stops = [
        [],
        *([["".join(rng.choice(alphabet, rng.integers(1, 6))) for _ in range(rng.integers(1, 4))] for _ in range(14)]),
        ["abab", "bab", "abc", "zzz"],
    ]
    rows = len(stops)
    prompts, lengths = np.tile(PROMPTS, (4, 1)), np.tile(LENGTHS, 4)
    arguments = {"key": jax.random.key(seed), "max_new_tokens": 60}
    plain = run(SAMPLED, prompts, lengths, **arguments)
    stopped = run(SAMPLED, prompts, lengths, stops=stop_table(stops, OFFSETS, DATA), **arguments)
    for row in range(rows):
        text, expected = b"", 60
        for index, token in enumerate(plain.tokens[row]):
            text += WORDS[token]
            if any(stop.encode() in text for stop in stops[row]):
                expected = index + 1
                break
        assert stopped.lengths[row] == expected
        assert (stopped.finish_reason[row] == FinishReason.STOP) == (
            expected < 60 or any(s.encode() in text for s in stops[row])
        )


def test_end_of_sequence_wins_over_a_stop_string_and_that_over_the_length():
    token = int(run(SAMPLED, max_new_tokens=1).tokens[0, 0])
    table = stop_table([[WORDS[token].decode("latin1") or "q"]] * 4, OFFSETS, DATA) if WORDS[token].isascii() else None
    assert table is not None
    only = {"max_new_tokens": 1, "stops": table}
    assert run(SAMPLED, **only, eos_ids=[token]).finish_reason[0] == FinishReason.EOS
    assert run(SAMPLED, **only).finish_reason[0] == FinishReason.STOP


def test_other_values_never_recompile(compilations):
    def call(index: int):
        transform = mx.transforms.chain(
            mx.transforms.penalties(V, repetition=1 + index / 50),
            mx.transforms.truncation(temperature=0.1 * index, top_k=index + 1, top_p=1 / (index + 1)),
        )
        stops = stop_table([["ab" * (index % 5 + 1)], [], ["c"], ["é", str(index)]], OFFSETS, DATA)
        key, most = jax.random.key(index), [index % 9 + 1, 3, 1, 20]
        lengths = np.minimum(LENGTHS + index % 2, 5)
        run(transform, lengths=lengths, key=key, max_new_tokens=most, eos_ids=[index % 5], stops=stops)

    call(0)
    assert compilations(lambda: [call(index) for index in range(1, 50)]) == 0


def test_a_new_prompt_bucket_compiles_its_prefill_and_nothing_else(compilations):
    program, carry = start(MODEL, PROMPTS, LENGTHS, GREEDY, key=KEY, max_new_tokens=9)
    decode_chunk(program, carry, np.int32(9))

    prompts = np.ones((4, 90), np.int32) * np.arange(1, 5, dtype=np.int32)[:, None]

    def longer():
        program, carry = start(MODEL, prompts, [90] * 4, GREEDY, key=KEY, max_new_tokens=9)
        jax.block_until_ready(decode_chunk(program, carry, np.int32(9)))

    assert compilations(longer) == 1


def test_rows_of_one_prompt_are_prefilled_once_and_decode_as_if_alone(monkeypatch):
    sources, widths, extend = [0, 0, 2, 0, 2, 0, 0, 2], [], prefill._extend
    monkeypatch.setattr(prefill, "_extend", lambda *given: (widths.append(given[3].shape), extend(*given))[1])
    keys = jax.random.split(KEY, 8)
    together = run(SAMPLED, PROMPTS[sources], LENGTHS[sources], key=keys)
    assert widths == [(2, 16)]
    for row, source in enumerate(sources):
        length = LENGTHS[source]
        alone = run(SAMPLED, PROMPTS[source : source + 1, :length], [length], key=keys[row : row + 1])
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])


def test_rows_share_a_prompt_only_under_the_same_edits_and_where_that_halves_the_rows():
    strengths = [0.5, 0.5, 1, 0.5, 1, 0.5, 1, 1]
    edits = rows.broadcast_rows(mx.edits.compose(mx.edits.add(np.ones(6), 0, strength=strengths)), 8)
    history, lengths = np.ones((8, 16), np.int32), np.full(8, 9)
    first, source = prefill._distinct(history, lengths, edits)
    assert first.tolist() == [0, 2] and source.tolist() == [0, 0, 1, 0, 1, 0, 1, 1]
    for other in (np.arange(8), [9, 9, 1, 2, 3, 9, 9, 4]):  # five kinds are padded to eight: nothing saved
        first, source = prefill._distinct(history, np.asarray(other), None)
        assert first.tolist() == source.tolist() == list(range(8))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lengths": [5, 0, 3, 2]}, "prompt_lengths"),
        ({"lengths": [6, 1, 3, 2]}, "prompt_lengths"),
        ({"prompts": PROMPTS[0]}, "two axes"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"capacity": 4}, "capacity"),
        ({"key": jax.random.split(KEY, 3)}, "one for each of the 4 rows"),
        ({"transform": mx.transforms.temperature([0.5, 1.0, 2.0])}, "4 rows"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_on_the_host(changed, words, compilations, unchecked):
    def call():
        with pytest.raises(mx.errors.ArgumentError, match=words):
            run(**changed)

    assert compilations(call) == 0


def test_step_is_exported_for_researchers():
    assert Step._fields == ("index", "remaining", "key")
