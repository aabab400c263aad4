"""Measuring vectors, presets, written pairs, and the command line."""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
import oracles
import pytest
import torch
from typer.testing import CliRunner

import mechanex_jax as mechanex
from mechanex_jax import cli
from mechanex_jax.errors import ArgumentError, MechanexError
from mechanex_jax.session import Session
from mechanex_jax.steering import PRESETS, Steering, Store, presets
from mechanex_jax.steering import pairs as pair_writer

PROMPTS = ["the future of art is", "hands of the users in"]
POSITIVE = [" the future of the users", " in the hands"]
NEGATIVE = [" x9 zz!", " q"]
UNRELATED = ["the users of art", "intelligence is in the future"]
EIGHT = {
    "brevity",
    "truthfulness",
    "json_compliance",
    "format_rigidity",
    "refusal_strength",
    "safety_style",
    "domain_specific",
    "tone_control",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = oracles.llama(vocab_size=320, num_hidden_layers=4, max_position_embeddings=4096)
    made = oracles.saved(config, tmp_path_factory.mktemp("tiny"))
    oracles.save_tokenizer(made)
    return made


@pytest.fixture(scope="module")
def instance(folder):
    instance = mechanex.Mechanex()
    instance.set_execution_mode("local")
    instance.load(folder)
    return instance


@pytest.fixture(scope="module")
def session(instance):
    return instance.session


@pytest.fixture
def steering(session, tmp_path):
    return Steering(session, Store(tmp_path / "store"))


# --- evaluate --------------------------------------------------------------------------------------------------------


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_every_number_equals_pytorchs_with_hooks(session, steering, folder):
    hf = oracles.theirs(folder)
    tokenizer = session.local_model().tokenizer
    vector = np.random.default_rng(0).normal(size=64).astype(np.float32)
    strengths, layer = (-1.5, 0.0, 2.0), 2

    def laws(tokens, strength):
        shift = strength * torch.tensor(vector)
        with oracles.edited(hf, "resid_pre", layer, lambda x: x + shift):
            return log_softmax(oracles.logits_of(hf, [tokens])[0])

    def mean(answers, strength):
        found = []
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            start, tokens = len(tokenizer.encode(prompt)), tokenizer.encode(prompt + answer)
            law = laws(tokens, strength)
            found.append(np.mean([law[i - 1, tokens[i]] for i in range(start, len(tokens))]))
        return np.mean(found)

    measured = steering.evaluate({layer: vector}, POSITIVE, NEGATIVE, prompts=PROMPTS, strengths=strengths, unrelated=UNRELATED)
    expected = [mean(POSITIVE, s) - mean(NEGATIVE, s) for s in strengths]
    np.testing.assert_allclose(measured.logit_difference, expected, rtol=0, atol=1e-4)
    losses, divergences = [], []
    for strength in strengths:
        loss, kl, count = 0.0, 0.0, 0
        for text in UNRELATED:
            tokens = tokenizer.encode(text)
            law, plain = laws(tokens, strength), laws(tokens, 0.0)
            loss -= sum(law[i - 1, tokens[i]] for i in range(1, len(tokens)))
            kl += (np.exp(law) * (law - plain)).sum(-1)[1:].sum()
            count += len(tokens) - 1
        losses.append(loss / count)
        divergences.append(kl / count)
    np.testing.assert_allclose(measured.loss, losses, rtol=0, atol=1e-4)
    np.testing.assert_allclose(measured.kl, divergences, rtol=0, atol=1e-4)
    np.testing.assert_allclose(measured.projection, np.array(strengths) * np.linalg.norm(vector), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_texts_side_by_side_are_those_of_generate(instance, steering):
    vector = 3 * np.random.default_rng(1).normal(size=64).astype(np.float32)
    measured = steering.evaluate({1: vector}, test_prompts=PROMPTS, strengths=[2, 0], unrelated=UNRELATED, max_tokens=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # strength 0 steers nothing
        each = instance.generation.generate_batch(
            [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]],
            steering_vector={1: vector},
            steering_strength=[0, 2, 0, 2],
            sampling_method="greedy",
            max_tokens=8,
        )
    assert measured.texts == ((each[0], each[1]), (each[2], each[3])) and each[0] != each[1]
    assert measured.logit_difference is None and measured.strengths == (0.0, 2.0)
    assert json.loads(json.dumps(measured.to_dict()))["strengths"] == [0.0, 2.0]
    assert all(f"> {prompt}" in measured.table() for prompt in PROMPTS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strengths": []}, "strengths"),
        ({"strengths": [1, 1]}, "each once"),
        ({"strengths": ["a"]}, "strengths"),
        ({"strength": float("nan")}, "strengths"),
        ({"positive_texts": POSITIVE}, "negative_texts: got None"),
        ({"positive_texts": POSITIVE, "negative_texts": []}, "negative_texts"),
        ({"positive_texts": POSITIVE, "negative_texts": NEGATIVE, "chat": True}, "prompts: got None"),
        ({"layer_idxs": [3]}, "some of the vector's layers, \\[1\\]"),
        ({"unrelated": []}, "unrelated"),
        ({"persona_description": "kind"}, "no judge here"),
    ],
)
def test_evaluate_refuses_wrong_input(steering, change, words):
    with pytest.raises(MechanexError, match=words):
        steering.evaluate({1: np.ones(64)}, **change)


def test_plot_draws_every_layer_and_says_what_it_lacks(steering, tmp_path, monkeypatch):
    id = steering.add({1: np.ones(64), 3: np.ones(64)})
    options = {"strengths": [0, 1], "unrelated": UNRELATED}
    found = steering.plot(id, tmp_path / "plot.png", **options)
    assert list(found) == ["all layers", "layer 1", "layer 3"]
    assert (tmp_path / "plot.png").read_bytes()[1:4] == b"PNG"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MechanexError, match="pip install 'mechanex_jax\\[plot\\]'"):
        steering.plot(id, tmp_path / "again.png", **options)


def test_a_name_finds_its_vector_and_two_of_a_name_are_told_apart(steering):
    first = steering.add({1: np.ones(64)}, "joy")
    other = steering.add({1: np.ones(64)}, first)  # an id goes before a name
    assert steering.find("joy") == steering.find(first) == first and steering.find(other) == other
    again = steering.add({1: np.ones(64)}, "joy")
    for name, words in (("joy", (first, again)), ("sad", (first, other))):
        with pytest.raises(ArgumentError) as caught:
            steering.find(name)
        assert all(word in str(caught.value) for word in words)


def test_a_budget_ends_the_measuring_with_a_warning_and_otherwise_changes_nothing(steering):
    options = {"strengths": [0, 1], "unrelated": UNRELATED * 4}
    answers = ({1: np.ones(64)}, POSITIVE * 4, NEGATIVE * 4)
    whole = steering.evaluate(*answers, **options)
    with pytest.warns(UserWarning, match=r"budget_s: \d+ of 24 texts are measured, all of them would take about"):
        cut = steering.evaluate(*answers, **options, budget_s=1e-6)
    ample = steering.evaluate(*answers, **options, budget_s=600)
    for name in ("logit_difference", "projection", "kl", "loss"):
        np.testing.assert_allclose(getattr(ample, name), getattr(whole, name), rtol=0, atol=1e-4)
    assert cut.strengths == whole.strengths and np.isfinite(cut.logit_difference).all() and np.isfinite(cut.loss).all()
    for budget in (0, -1, float("nan"), "soon"):
        with pytest.raises(ArgumentError, match="budget_s"):
            steering.evaluate(*answers, budget_s=budget)


def test_a_plot_measures_every_layer_as_evaluate_does(steering, tmp_path):
    id = steering.add({1: np.ones(64), 3: 0.5 * np.arange(64)})
    options = {"strengths": [-1, 0, 1], "unrelated": UNRELATED}
    drawn = steering.plot(id, tmp_path / "x.png", POSITIVE, NEGATIVE, **options)
    for name, layers in (("all layers", None), ("layer 1", [1]), ("layer 3", [3])):
        alone = steering.evaluate(id, POSITIVE, NEGATIVE, layer_idxs=layers, **options)
        for column in ("logit_difference", "projection", "kl", "loss"):
            np.testing.assert_allclose(getattr(drawn[name], column), getattr(alone, column), rtol=1e-4, atol=1e-4)


# --- presets ---------------------------------------------------------------------------------------------------------


def test_all_eight_presets_have_their_pairs():
    assert set(PRESETS) == EIGHT
    for preset in PRESETS.values():
        data = preset.data()
        assert len(data.prompts) == len(data.positives) == len(data.negatives) >= 60
        assert len(set(data.prompts)) == len(data.prompts)
        layers = preset.layers(30)
        assert layers and 10 <= layers[0] <= layers[-1] < 25
        assert preset.layers(1) == (0,)


def test_an_unknown_preset_lists_the_eight(steering):
    with pytest.raises(ArgumentError) as caught:
        steering.preset("brevty")
    assert all(name in str(caught.value) for name in EIGHT) and "Did you mean 'brevity'" in str(caught.value)


@pytest.mark.slow
def test_a_preset_is_made_by_its_own_method_where_none_is_named(steering, monkeypatch):
    names = []
    monkeypatch.setattr(
        presets.methods,
        "make",
        lambda name, *given, make=presets.methods.make, **more: (names.append(name), make(name, *given, **more))[1],
    )
    first, named = steering.preset("json_compliance"), steering.preset("json_compliance", method="few-shot")
    other = steering.preset("json_compliance", method="caa")
    steering.preset("brevity")
    assert names == ["few-shot", "caa", "caa"]
    (layer,) = first.additions["resid_pre"]
    np.testing.assert_array_equal(first.additions["resid_pre"][layer], named.additions["resid_pre"][layer])
    assert np.abs(first.additions["resid_pre"][layer] - other.additions["resid_pre"][layer]).max() > 1e-3


def test_a_preset_is_computed_once_and_kept_apart(steering, monkeypatch):
    first = steering.preset("tone_control")
    (path,) = (steering.store.folder / "presets").iterdir()
    assert steering.list() == [] and first.additions["resid_pre"].keys() == {2}
    monkeypatch.setattr(presets.methods, "make", None)  # a second computation would fail
    half = steering.preset("tone_control", 0.5)
    np.testing.assert_allclose(
        half.additions["resid_pre"][2], 0.5 / PRESETS["tone_control"].strength * first.additions["resid_pre"][2], rtol=1e-5
    )
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:-9])
    np.testing.assert_array_equal(steering.preset("tone_control").additions["resid_pre"][2], first.additions["resid_pre"][2])


# --- pairs -----------------------------------------------------------------------------------------------------------


class Writer:
    """Answers from a list; remembers what it was asked."""

    def __init__(self, answers):
        self.answers, self.calls = iter(answers), []

    def __call__(self, prompts, config, seeds):
        self.calls.append((prompts, config, seeds))
        return [next(self.answers) for _ in prompts]


def write_pairs(writer, *, persona_name="kind", persona_description="", num_pairs=50, batch_size=5, seed=0):
    return pair_writer.generate_pairs(writer, persona_name, persona_description, num_pairs, batch_size, seed=seed)


def pair(prompt="why?", positive="yes", negative="no") -> str:
    return json.dumps({"prompt": prompt, "positive": positive, "negative": negative})


def test_bad_and_repeated_pairs_are_dropped_and_made_up_for():
    bad = ["{", '"text"', '{"prompt": "a"}', pair(positive=" "), pair("a", "B c", "b  C"), pair("q1"), pair(" Q1 ")]
    writer = Writer([*bad, pair("q2"), pair(" q3\n"), pair("q4")])
    found = write_pairs(writer, persona_description="warm and patient.", num_pairs=3)
    assert [row["prompt"] for row in found["pairs"]] == ["q1", "q2", "q3"]
    assert found["total_pairs"] == 3 and found["persona"] == "kind" and sum(found["dropped"].values()) == 6
    prompts, config, _ = writer.calls[0]
    assert len(prompts) == len(set(prompts)) == 5 and "kind (warm and patient)" in prompts[0]
    assert config.json_schema == pair_writer.SCHEMA and config.chat is True
    seeds = [seed for _, _, seeds in writer.calls for seed in seeds]
    assert len(set(seeds)) == 10


def test_too_few_pairs_warn_and_none_raises():
    with pytest.warns(UserWarning, match="1 of 2 pairs after 8 generations"):
        assert write_pairs(Writer([pair("x")] * 8), num_pairs=2)["total_pairs"] == 1
    with pytest.raises(MechanexError, match="none of 8 generations"):
        write_pairs(Writer(["{"] * 8), num_pairs=2)


@pytest.mark.parametrize(
    "arguments", [{"persona_name": " "}, {"persona_description": None}, {"num_pairs": 0}, {"batch_size": True}, {"seed": -1}]
)
def test_generate_pairs_refuses_wrong_input(arguments):
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        Steering(Session()).generate_pairs(**({"persona_name": "kind"} | arguments))


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHANEX_DATA", str(tmp_path))

    def run(*arguments, code=0):
        result = CliRunner().invoke(cli.app, ["steer", *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result.stderr if code else result.stdout

    return run


@pytest.mark.slow
def test_the_commands_make_list_show_try_plot_and_delete(command, folder, tmp_path):
    source = tmp_path / "data.jsonl"
    rows = zip(PROMPTS, POSITIVE, NEGATIVE, strict=True)
    source.write_text("\n".join(json.dumps({"prompt": p, "positive": a, "negative": b}) for p, a, b in rows))
    options = ("--model", folder)
    id = command("make", source, "--method", "caa", "--name", "[honesty]", "--layers", "1-2", *options).strip()
    assert "[honesty]" in command("list") and [row["id"] for row in json.loads(command("list", "--json"))] == [id]
    assert json.loads(command("show", id, "--json"))["layers"] == [1, 2] and "relative_norm" in command("show", id)
    assert json.loads(command("show", "[honesty]", "--json"))["id"] == id and "caa" in command("show", "[honesty]")
    tried = ("try", id, "--strength", "-2,0,2", PROMPTS[0], "--max-tokens", 4, *options)
    shown = json.loads(command(*tried, "--json"))
    assert [item["strength"] for item in shown["texts"]] == [-2, 0, 2] and "+2" in command(*tried)
    assert "KL" in command("plot", id, tmp_path / "x.png", "--data", source, "--strength", "0,1", *options)
    assert (tmp_path / "x.png").stat().st_size > 1000
    command("delete", "[honesty]")
    assert json.loads(command("list", "--json")) == []


def test_the_commands_refuse_before_a_model_is_loaded(command, tmp_path):
    source = tmp_path / "data.jsonl"
    source.write_text('{"prompt": "a"}')
    assert "line 1" in str(command("make", source, "--model", "absent", code=2))
    source.write_text('{"prompt": "a", "positive": "b"}')
    assert "negative" in str(command("make", source, "--method", "caa", "--model", "absent", code=2))
    assert "holds none" in str(command("try", "sv_00000000", "text", code=2))
    assert "such as -2,0,2" in str(command("try", "sv_00000000", "text", "--strength", "a", code=2))
    assert "10-14" in str(command("make", source, "--layers", "-3", code=2))
