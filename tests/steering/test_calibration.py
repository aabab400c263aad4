"""Strength 1 is what the model bears: the loss on neutral text by PyTorch with hooks, for every method."""

from __future__ import annotations

import dataclasses

import numpy as np
import oracles
import pytest
import torch

import mechanex_jax as mechanex
from mechanex_jax.steering import METHODS, Steering, Store, calibration
from mechanex_jax.steering.reference_texts import TEXTS

PROMPTS = ["the future of art is", "hands of the users in", "artificial intelligence"]
POSITIVE = [" the future of the users", " in the hands", " is art"]
NEGATIVE = [" x9 zz!", " q", " 00 77 00 qq"]
LAYERS = (1, 2)
CHEAP = {"few-shot": {"steps": 2, "max_norm": 4.0}, "steering-perceptrons": {"steps": 20}}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(a session with a small Llama, four layers; transformers' of the same weights in float64)."""
    folder = oracles.saved(oracles.llama(vocab_size=320, num_hidden_layers=4), tmp_path_factory.mktemp("small"))
    oracles.save_tokenizer(folder)
    session = mechanex.Mechanex().session
    session.set_execution_mode("local")
    session.load(folder)
    return session, oracles.theirs(folder).double()


@pytest.fixture
def steering(small, tmp_path):
    return Steering(small[0], Store(tmp_path))


def loss_rise(hf, tokenizer, by_layer, strength: float) -> float:
    """By PyTorch, over the first 32 tokens of eight texts."""

    def loss() -> float:
        losses = []
        for text in TEXTS[:8]:
            tokens = tokenizer.encode(text)[:32]
            logp = torch.log_softmax(torch.as_tensor(oracles.logits_of(hf, [tokens])[0]).double(), -1)
            losses += [-logp[i - 1, tokens[i]].item() for i in range(1, len(tokens))]
        return float(np.mean(losses))

    plain = loss()
    first, second = (strength * torch.tensor(np.asarray(by_layer[layer], np.float64)) for layer in LAYERS)
    with (
        oracles.edited(hf, "resid_pre", LAYERS[0], lambda x: x + first),
        oracles.edited(hf, "resid_pre", LAYERS[1], lambda x: x + second),
    ):
        return loss() / plain - 1


@pytest.mark.parametrize("method", METHODS)
def test_at_strength_1_neutral_loss_has_risen_to_the_limit_and_no_further(small, steering, method):
    session, hf = small
    id = steering.generate_vectors(PROMPTS, NEGATIVE, POSITIVE, LAYERS, method, **CHEAP.get(method, {}))
    metrics, vectors = steering.describe(id)["metrics"], steering.get_vectors(id)
    rises = [loss_rise(hf, session.local_model().tokenizer, vectors, strength) for strength in (1, 2)]
    share = max(rise / most for rise, (_, most) in zip(rises, calibration.MOST_LOSS, strict=True))
    assert 0.9 < share < 1.02 and metrics["calibration_cap"] == [0]
    measured = dict(zip(np.round(metrics["calibration_strengths"], 4), metrics["calibration_loss"], strict=True))
    assert min(measured) < -1 and max(measured) >= 2
    for strength in (min(measured), min(measured, key=lambda s: abs(s - 1))):
        assert measured[strength] == pytest.approx(
            loss_rise(hf, session.local_model().tokenizer, vectors, strength), rel=1e-2, abs=1e-4
        )


def test_the_length_of_what_a_method_gives_decides_nothing(small, steering):
    """Nor does it for norms: they are those of the vectors that are kept."""
    loaded = small[0].local_model()
    id = steering.generate_vectors(PROMPTS, NEGATIVE, POSITIVE, LAYERS, "caa")
    vector = np.stack([*steering.get_vectors(id).values()])
    made = mechanex.steering.SteeringVector(vector, LAYERS, "resid_pre", "caa", loaded.name, loaded.fingerprint)
    kept = []
    for factor in (1.0, 3000.0, 1e-3):
        norms = factor * np.linalg.norm(vector, axis=-1)
        scaled = dataclasses.replace(made, vectors=np.float32(factor) * vector, metrics={"norm": norms.tolist()})
        kept.append(calibration.calibrated(loaded, scaled))
        np.testing.assert_allclose(kept[-1].metrics["norm"], np.linalg.norm(kept[-1].vectors, axis=-1), rtol=1e-4)
    np.testing.assert_allclose(kept[1].vectors, kept[0].vectors, rtol=0.03)
    tiny = kept[2].metrics
    assert tiny["calibration_cap"] == [1] and max(tiny["calibration_strengths"]) == 2 and tiny["scale"] == [4]
    assert max(tiny["calibration_loss"]) < 0.12


def test_a_vector_of_zeros_and_a_users_own_vectors_stay_as_they_are(small, steering):
    loaded = small[0].local_model()
    zeros = mechanex.steering.SteeringVector(np.zeros((2, 64), np.float32), LAYERS, "resid_pre", "caa", "", "")
    assert calibration.calibrated(loaded, zeros) is zeros
    own = {1: np.full(64, 7.0, np.float32)}
    np.testing.assert_array_equal(steering.get_vectors(steering.add(own))[1], own[1])
    np.testing.assert_array_equal(steering.resolve(own).additions["resid_pre"][1], own[1])


@pytest.mark.parametrize(
    ("rise", "expected"),
    [
        (lambda s: 0.03 * s**2, 1.0),  # both limits at once
        (lambda s: 0.03 * (s / 4) ** 2, 4.0),
        (lambda s: 0.01 * s if s <= 1 else 0.01 + (s - 1), 0.555),  # the limit of strength 2: 0.12 at 1.11
        (lambda s: -0.05 * s + 0.04 * s**2, 1.45),  # falls before it rises: 0.12 at 2.9 is 0.19, at 2 * 1.2 0.11
        (lambda s: 0.0, np.inf),
    ],
)
def test_the_largest_strength_is_where_the_curve_meets_its_limits(rise, expected):
    strengths = np.arange(1, 2000) / 100
    strength = calibration.largest_strength(strengths, [rise(s) for s in strengths])
    both = [s for s in np.arange(1, 2000) / 1000 * 5 if rise(s) <= 0.03 and rise(2 * s) <= 0.12]
    if np.isfinite(expected):
        assert strength == pytest.approx(max(both), abs=0.01)
    else:
        assert strength == np.inf
