"""Making steering vectors: against PyTorch with hooks in float64, and properties of what is trained."""

from __future__ import annotations

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import torch

import mechanex_jax as mechanex
from mechanex_jax.errors import ArgumentError, MechanexError
from mechanex_jax.loops import forward
from mechanex_jax.session import Session
from mechanex_jax.steering import Steering, Store, activations, few_shot, methods, perceptron
from mechanex_jax.steering.batches import batches, pad, padded_length
from mechanex_jax.steering.examples import check_data, read_rows, tokenize_data
from mechanex_jax.steering.methods import choose_layers

PROMPTS = ["the future of art is", "hands of the users in", "artificial intelligence"]
POSITIVE = [" the future of the users", " in the hands", " is art"]
NEGATIVE = [" x9 zz!", " q", " 00 77 00 qq"]
DATA = check_data(PROMPTS, POSITIVE, NEGATIVE)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def tiny(request, tmp_path_factory):
    """(loaded model, transformers' in float64), four layers."""
    config = {
        "llama": lambda: oracles.llama(vocab_size=320, num_hidden_layers=4),
        "gpt2": lambda: oracles.gpt2(vocab_size=320, n_layer=4),
    }[request.param]()
    folder = oracles.saved(config, tmp_path_factory.mktemp(request.param))
    oracles.save_tokenizer(folder)
    return mechanex.Mechanex().load(folder), oracles.theirs(folder).double()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A session with a small Llama, four layers."""
    folder = oracles.saved(oracles.llama(vocab_size=320, num_hidden_layers=4), tmp_path_factory.mktemp("small"))
    oracles.save_tokenizer(folder)
    session = mechanex.Mechanex().session
    session.set_execution_mode("local")
    session.load(folder)
    return session


@pytest.fixture
def steering(small, tmp_path):
    return Steering(small, Store(tmp_path))


def activations64(hf, tokens) -> dict[str, np.ndarray]:
    """site -> [L, S, D] by hooks, in float64."""
    states = {"resid_pre": [], "resid_post": []}

    def enter(module, args):
        states["resid_pre"].append(args[0][0].numpy())

    def leave(module, args, output):
        states["resid_post"].append((output[0] if isinstance(output, tuple) else output).reshape(len(tokens), -1).numpy())

    handles = [part.block.register_forward_pre_hook(enter) for part in oracles.parts(hf)]
    handles += [part.block.register_forward_hook(leave) for part in oracles.parts(hf)]
    with torch.inference_mode():
        hf(torch.as_tensor([tokens]))
    for handle in handles:
        handle.remove()
    return {site: np.stack(values) for site, values in states.items()}


def answer_mean(loaded, hf, prompt: str, answer: str, site: str) -> np.ndarray:
    """[L, D] over the tokens of the answer."""
    start = len(loaded.tokenizer.encode(prompt))
    tokens = loaded.tokenizer.encode(prompt + answer)
    assert tokens[:start] == loaded.tokenizer.encode(prompt)
    return activations64(hf, tokens)[site][:, start:].mean(1)


@pytest.mark.slow
@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_caa_is_the_difference_of_means_over_the_answers_tokens(tiny, site):
    loaded, hf = tiny
    vector = methods.make("caa", loaded, tokenize_data(loaded, DATA), (0, 1, 3), site)
    sides = [
        np.mean([answer_mean(loaded, hf, p, a, site) for p, a in zip(PROMPTS, answers, strict=True)], axis=0)
        for answers in (POSITIVE, NEGATIVE)
    ]
    expected = (sides[0] - sides[1])[[0, 1, 3]]
    np.testing.assert_allclose(vector.vectors, expected, rtol=0, atol=2e-5)
    assert np.abs(expected).max() > 0.1


@pytest.mark.slow
def test_another_number_of_answers_goes_with_every_prompt(tiny):
    loaded, hf = tiny
    data = check_data(PROMPTS[:2], POSITIVE, NEGATIVE[:1])
    vector = methods.make("caa", loaded, tokenize_data(loaded, data), (2,))
    sides = [
        np.mean([answer_mean(loaded, hf, p, a, "resid_pre")[2] for p in PROMPTS[:2] for a in answers], axis=0)
        for answers in (POSITIVE, NEGATIVE[:1])
    ]
    np.testing.assert_allclose(vector.vectors[0], sides[0] - sides[1], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_beginning_that_all_share_is_run_once_and_changes_nothing(tiny):
    loaded, hf = tiny
    prompts = [f"the users of the art of intelligence in the hands of the future {end}" for end in ("is", "of", "in", "art")]
    data = check_data(prompts, POSITIVE * 2 + NEGATIVE[:1], NEGATIVE)
    rows = tokenize_data(loaded, data)
    shared = activations.SharedPrefix(loaded, rows, 2, "resid_pre")
    assert shared.length >= 8 and len(rows) >= 8
    assert all(whole.tokens[shared.length :] == rest.tokens for whole, rest in zip(rows, shared.examples, strict=True))
    answers = activations.read_answers(loaded, rows, (0, 2), "resid_pre")
    states = activations.head_states(loaded, rows, 2, 64)
    for row, states_of, example in zip(answers, states, rows, strict=True):
        want = activations64(hf, list(example.tokens))["resid_pre"]
        np.testing.assert_allclose(row, want[[0, 2], example.start :].mean(1), rtol=0, atol=2e-5)
        np.testing.assert_allclose(states_of[: len(example.tokens)], want[2], rtol=0, atol=2e-5)
        assert not states_of[len(example.tokens) :].any()


@pytest.mark.slow
def test_the_loss_of_few_shot_is_that_of_the_whole_models_logits(tiny):
    loaded, _ = tiny
    rows = tokenize_data(loaded, DATA)
    batch = pad(rows, np.arange(len(rows)), 8, 48)
    hidden, model = activations.run_head(loaded, batch, 1), activations.tail(loaded.model, 1)
    fields = jax.tree.map(jnp.asarray, few_shot.training_batch(batch, rows))
    got, norms = few_shot.loss(jnp.zeros((2, 64)), model, hidden, fields, "resid_pre", (0, 2))
    out = forward(loaded, batch.tokens, lengths=batch.lengths, capture=("resid_pre",))
    each, entering = [], []
    for index, row in enumerate(rows):
        logits = np.asarray(out.logits[index], np.float64)
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        chosen = np.array([logp[i - 1, row.tokens[i]] for i in range(row.start, len(row.tokens))])
        each.append(np.mean(-chosen if row.positive else -np.log1p(-np.exp(np.minimum(chosen, -1e-3)))))
        entering.append(np.linalg.norm(out.activations["resid_pre"][index, [1, 3], : len(row.tokens)], axis=-1))
    np.testing.assert_allclose(got, np.mean(each), rtol=1e-5)
    np.testing.assert_allclose(norms, np.median(np.concatenate(entering, axis=-1), axis=-1), rtol=1e-5)


@pytest.mark.slow
def test_a_tail_behind_its_head_is_the_whole_model(tiny):
    loaded, _ = tiny
    batch = next(batches(tokenize_data(loaded, DATA)))
    hidden, model = activations.run_head(loaded, batch, 2), activations.tail(loaded.model, 2)
    tokens, lengths = jnp.asarray(batch.tokens), jnp.asarray(batch.lengths)
    cache = model.init_cache(*tokens.shape)
    out = model.extend(cache, tokens, lengths, (activations.resume(hidden),), logits="all")
    whole = forward(loaded, batch.tokens, lengths=batch.lengths).logits
    for row, length in enumerate(batch.lengths):
        np.testing.assert_allclose(out.logits[row, :length], whole[row, :length], rtol=0, atol=2e-5)
    assert model.spec.layers == 2


def test_batches_hold_every_example_once_in_few_shapes():
    class Row:
        def __init__(self, length):
            self.tokens, self.start = (1,) * length, 1

    rows = [Row(int(length)) for length in np.random.default_rng(0).integers(2, 300, 200)]
    made_batches = list(batches(rows))
    assert sorted(i for batch in made_batches for i in batch.indices) == list(range(200))
    assert all(batch.tokens.size <= 2048 for batch in made_batches)
    assert len({batch.tokens.shape for batch in made_batches}) <= 9
    assert all(n <= padded_length(n) <= max(16, 1.5 * n) for n in range(1, 500))


@pytest.mark.slow
@pytest.mark.parametrize("negatives", [NEGATIVE, None])
def test_few_shot_lowers_its_loss_within_its_bound(small, negatives):
    loaded = small.local_model()
    rows = tokenize_data(loaded, check_data(PROMPTS, POSITIVE, negatives))
    vector = methods.make("few-shot", loaded, rows, (1, 2), steps=12, max_norm=0.5, learning_rate=0.5)
    assert vector.metrics["loss"][-1] < 0.9 * vector.metrics["loss"][0]
    assert max(vector.metrics["relative_norm"]) <= 0.25 * (1 + 1e-5)
    np.testing.assert_allclose(vector.metrics["norm"], np.linalg.norm(vector.vectors, axis=-1), rtol=1e-5)
    again = methods.make("few-shot", loaded, rows, (1, 2), steps=12, max_norm=0.5, learning_rate=0.5)
    np.testing.assert_array_equal(again.vectors, vector.vectors)
    other = methods.make("few-shot", loaded, rows, (1, 2), steps=2, seed=1)
    assert np.abs(other.vectors).max() > 0 and other.vectors.shape == (2, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "own"), [("caa", None), ("few-shot", 16)])
def test_methods_see_the_first_tokens_of_each_answer(small, method, own):
    """As many as are asked for, else the method's own number; by data that is cut beforehand."""
    loaded, long = small.local_model(), dataclasses.replace(DATA, positives=tuple(text * 4 for text in DATA.positives))
    rows = tokenize_data(loaded, long)
    settings = {"steps": 2} if method == "few-shot" else {}
    assert max(len(row.tokens) - row.start for row in rows) > 16
    for tokens, cut in ((5, 5), (None, own)):
        want = methods.make(
            method, loaded, rows if cut is None else [row.cut(cut) for row in rows], (1,), tokens=999, **settings
        )
        got = methods.make(method, loaded, rows, (1,), tokens=tokens, **settings)
        np.testing.assert_array_equal(got.vectors, want.vectors)


@pytest.mark.slow
def test_ended_answers_close_with_the_token_that_generation_stops_at(small, steering, monkeypatch):
    loaded = small.local_model()
    plain, ended = tokenize_data(loaded, DATA), tokenize_data(loaded, DATA, ended=True)
    for a, b in zip(plain, ended, strict=True):
        assert b.tokens == (*a.tokens, loaded.tokenizer.eos_ids[0]) and b.start == a.start
    ids = [
        steering.generate_vectors(**GOOD, ended=flag, answer_tokens=n) for flag, n in ((False, None), (True, None), (True, 1))
    ]
    vectors = [steering.get_vectors(id)[2] for id in ids]
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3 and np.abs(vectors[1] - vectors[2]).max() > 1e-3
    begun = methods.make("caa", loaded, plain, (2,), tokens=1)
    (scale,) = steering.describe(ids[2])["metrics"]["scale"]
    np.testing.assert_array_equal(vectors[2], begun.vectors[0] * np.float32(scale))
    monkeypatch.setattr(loaded.tokenizer, "eos_ids", ())
    with pytest.raises(ArgumentError, match=r"no token of .* ends a text"):
        tokenize_data(loaded, DATA, ended=True)


@pytest.mark.slow
def test_strength_makes_positive_answers_likelier_than_negative_ones(small, steering):
    id = steering.generate_vectors(PROMPTS, POSITIVE, NEGATIVE, [2])
    measured = steering.evaluate(id, POSITIVE, NEGATIVE, prompts=PROMPTS, strengths=[-1, 0, 1], unrelated=["the users"])
    low, middle, high = measured.logit_difference
    assert low < middle < high


@pytest.mark.slow
def test_few_shot_stops_early_where_nothing_is_gained(small):
    """At a vanishing rate no step lowers the loss."""
    loaded = small.local_model()
    vector = methods.make("few-shot", loaded, tokenize_data(loaded, DATA), (3,), steps=50, learning_rate=1e-6)
    assert len(vector.metrics["loss"]) < 10


def toy(separation: float, layers: int = 2, rows: int = 240):
    """Activations with an outlier dimension as real ones have: [N, R, D], labels, held out."""
    rng = np.random.default_rng(0)
    y = np.arange(rows) % 2 == 0
    x = rng.normal(size=(layers, rows, 20)) + separation * np.outer(y, np.ones(20))[None]
    x[..., 3] = 500 + 100 * rng.normal(size=(layers, rows))
    return x, y, rng.random(rows) < 0.25


def fit(x, y, held):
    return perceptron.train(x, y, held, hidden=4, steps=200, learning_rate=0.02, seed=0, report=lambda *_: None)[0]


def held_out_auc(x, y, held):
    scores = perceptron.gate_logits(fit(x, y, held), x)
    return [perceptron.auc(row[held & y], row[held & ~y]) for row in scores]


def test_a_gate_separates_what_can_be_separated_and_nothing_else():
    assert min(held_out_auc(*toy(1.5))) > 0.97
    x, y, held = toy(0.0)
    assert 0.25 < np.mean(held_out_auc(x, y, held)) < 0.75


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 40), rng.integers(0, 5, 30)
    pairs = [(x > y) + 0.5 * (x == y) for x in a for y in b]
    assert perceptron.auc(a, b) == pytest.approx(np.mean(pairs))


def test_the_gate_of_edits_opens_as_the_trained_one():
    x, y, held = toy(1.0)
    gate = fit(x, y, held)
    opening = 1 / (1 + np.exp(-perceptron.gate_logits(gate, x)))
    vector = np.ones((2, 20), np.float32)
    edit = mechanex.edits.gate(vector, [0, 1], perceptron=gate)
    where = mechanex.edits.TextPositions(jnp.arange(240, dtype=jnp.int32), jnp.int32(5))
    for layer in (0, 1):
        h = jnp.asarray(x[layer], jnp.float32)
        moved = edit.apply(h, jnp.int32(layer), where)
        np.testing.assert_allclose((moved - h)[:, 0], opening[layer], rtol=0, atol=2e-4)
    assert opening[:, held & y].mean() > 0.8 and opening[:, held & ~y].mean() < 0.2


@pytest.mark.slow
def test_perceptrons_report_held_out_auc_for_each_layer(steering):
    prompts = [f"{a} {b}" for a in ("art", "the users", "hands") for b in ("of", "in", "is", "the")]
    positive = [" the future of the users"] * 6 + [" in the hands of art"] * 6
    data = (prompts, positive, [" 00 77 q"] * 12, [1, 3])
    id = steering.generate_vectors(*data, "steering-perceptrons", steps=60)
    metrics = steering.describe(id)["metrics"]
    assert len(metrics["auc"]) == len(metrics["token_auc"]) == 2 and min(metrics["auc"]) > 0.9
    gates = steering.resolve(id).gates
    # They read the first 16 tokens of an answer.
    caa = steering.get_vectors(steering.generate_vectors(*data, "caa", answer_tokens=16))
    for gated in gates:  # in one proportion at all layers: calibration scales both
        np.testing.assert_allclose(gated.vector, caa[gated.layer] * gates[0].vector[0] / caa[1][0], rtol=1e-3, atol=1e-5)
    assert [gated.layer for gated in gates] == [1, 3] and gates[0].perceptron[0].shape == (64, 16)


GOOD = {"prompts": PROMPTS, "positive_answers": POSITIVE, "negative_answers": NEGATIVE, "method": "caa"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": []}, "prompts: got \\[\\]"),
        ({"prompts": "one"}, "expected a list of strings"),
        ({"positive_answers": []}, "positive_answers: got"),
        ({"negative_answers": []}, "negative_answers: got"),
        ({"positive_answers": ["a", 3]}, "positive_answers\\[1\\]"),
        ({"prompts": ["a", "  "]}, "prompts\\[1\\]"),
        ({"prompts": ["\ud800"]}, "Unicode"),
        ({"negative_answers": None}, "negative_answers: got None"),
        ({"negative_answers": None, "method": "steering-perceptrons"}, "negative_answers: got None"),
        ({"method": "ca"}, "Did you mean 'caa'"),
        ({"method": None}, "one of few-shot, caa, steering-perceptrons"),
        ({"layer_idxs": []}, "layer_idxs"),
        ({"layer_idxs": [4]}, "0 to 3"),
        ({"layer_idxs": [-1]}, "0 to 3"),
        ({"layer_idxs": [1, 1]}, "each once"),
        ({"layer_idxs": [True]}, "layer_idxs"),
        ({"layer_idxs": "12"}, "layer_idxs"),
        ({"site": "resid"}, "site: got 'resid'"),
        ({"seed": -1}, "seed"),
        ({"name": 3}, "name: got 3"),
        ({"steps": 3}, "caa does not use it"),
        ({"method": "few-shot", "max_norm": -1.0}, "max_norm: got -1"),
        ({"method": "few-shot", "steps": 1.5}, "steps: got 1.5"),
        ({"method": "few-shot", "hidden": 3}, "few-shot does not use it"),
        ({"answer_tokens": 0}, "answer_tokens: got 0"),
        ({"ended": "yes"}, "ended: got 'yes'"),
        ({"prompts": ["x"], "positive_answers": ["the users " * 400]}, "positive_answers\\[0\\].*at most 512"),
        (
            {"prompts": ["x"], "positive_answers": ["a"], "negative_answers": ["b"], "method": "steering-perceptrons"},
            "at least 2",
        ),
        ({"chat": True}, "chat template"),
        ({"model": "absent"}, "absent"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(steering, change, words, compilations):
    def call():
        with pytest.raises(MechanexError, match=words):
            steering.generate_vectors(**(GOOD | change))

    assert compilations(call) == 0
    assert steering.list() == []


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{"], "line 1: got no JSON"),
        (['{"prompt": "a", "positive": "b", "negative": "c"}', "", "[1]"], "line 3: row: got \\[1\\]"),
        (['{"prompt": "a", "negative": "c"}'], "positive_answer or positive: got None"),
        (['{"prompt": "a", "positive": "b"}'], "negative_answer or negative: got None"),
        (['{"prompt": "a", "positive": "b", "positive_answer": "b", "negative": "c"}'], "both positive_answer and positive"),
        (['{"prompt": 3, "positive": "b", "negative": "c"}'], "prompt: got 3"),
        (["\xff"], "line 1"),
        ([], "no rows"),
    ],
)
def test_bad_lines_are_named_by_number(steering, tmp_path, lines, words):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines), encoding="latin-1")
    with pytest.raises(ArgumentError, match=words):
        steering.generate_from_jsonl(path, method="caa")


def test_rows_may_spell_their_answers_either_way(steering, tmp_path):
    rows = [{"prompt": p, "positive_answer": a, "negative": b} for p, a, b in zip(PROMPTS, POSITIVE, NEGATIVE, strict=True)]
    assert read_rows(rows) == DATA
    one, other = steering.generate_from_jsonl(rows, [1], "caa"), steering.generate_vectors(**GOOD, layer_idxs=[1])
    np.testing.assert_array_equal(steering.get_vectors(one)[1], steering.get_vectors(other)[1])
    assert steering.describe(one)["data"] == steering.describe(other)["data"]


def test_default_layers_are_eight_from_two_thirds_on():
    assert choose_layers(None, 30) == tuple(range(20, 28))
    assert choose_layers(None, 4) == (2, 3)
    assert choose_layers(None, 1) == (0,)


def test_documented_signatures():
    names = list(inspect.signature(Steering(Session()).generate_vectors).parameters.values())
    assert [(p.name, p.default) for p in names[:7]] == [
        ("prompts", inspect.Parameter.empty),
        ("positive_answers", inspect.Parameter.empty),
        ("negative_answers", None),
        ("layer_idxs", None),
        ("method", "few-shot"),
        ("name", None),
        ("label", None),
    ]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in names[7:])
    positional = {
        "generate_from_jsonl": ["dataset_path", "layer_idxs", "method"],
        "generate_pairs": ["persona_name", "persona_description", "num_pairs", "batch_size"],
        "save_vectors": ["vectors_or_id", "path"],
        "load_vectors": ["path"],
        "get_vectors": ["vector_id"],
        "evaluate": [
            "steering_vector_id",
            "positive_texts",
            "negative_texts",
            "test_prompts",
            "persona_description",
            "strength",
        ],
    }
    for name, expected in positional.items():
        assert list(inspect.signature(getattr(Steering(Session()), name)).parameters)[: len(expected)] == expected
