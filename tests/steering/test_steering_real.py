"""Steering of the real default model: gates open where they should, written pairs are usable, presets are made quickly."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mechanex_jax import edits
from mechanex_jax.loops import forward
from mechanex_jax.steering import PRESETS, Steering, Store
from mechanex_jax.steering import pairs as pair_writer
from mechanex_jax.steering.batches import pad
from mechanex_jax.steering.examples import check_data, tokenize_data

LAYER = 15


@pytest.fixture(scope="module")
def steering(mx, tmp_path_factory):
    return Steering(mx.runtime.default.session, Store(tmp_path_factory.mktemp("store")))


def test_a_gate_opens_on_held_out_positives_and_stays_shut_on_negatives(steering, loaded):
    data = PRESETS["tone_control"].data()
    columns = (data.prompts, data.positives, data.negatives)
    made = steering.generate_vectors(*(c[:32] for c in columns), [LAYER], "steering-perceptrons", chat=True, steps=100)
    (auc,) = steering.describe(made)["metrics"]["auc"]
    assert auc > 0.9
    rows = tokenize_data(loaded, check_data(*(c[40:52] for c in columns)), chat=True)
    batch = pad(rows, np.arange(len(rows)), len(rows), max(len(row.tokens) for row in rows))
    gated = edits.steering([steering.resolve(made)] * len(rows), loaded.model.spec.width)
    options = {"lengths": batch.lengths, "capture": ("resid_pre",)}
    plain, moved = (forward(loaded, batch.tokens, edits=e, **options).activations["resid_pre"][:, LAYER] for e in ((), gated))
    opening = np.linalg.norm(np.asarray(moved) - np.asarray(plain), axis=-1) / np.linalg.norm(steering.get_vectors(made)[LAYER])
    means = np.array([opening[i, row.start : len(row.tokens)].mean() for i, row in enumerate(rows)])
    kinds = np.array([row.positive for row in rows])
    assert means[kinds].mean() > 0.6 and means[~kinds].mean() < 0.3


def test_the_chat_model_writes_pairs_that_a_vector_can_be_made_from(steering, monkeypatch):
    monkeypatch.setattr(pair_writer, "_MAX_TOKENS", 120)
    found = steering.generate_pairs("polite", "friendly and warm", num_pairs=2, batch_size=4)
    assert 1 <= found["total_pairs"] <= 2 and found["total_pairs"] == len(found["pairs"])
    for pair in found["pairs"]:
        assert pair == pair_writer.parse(json.dumps(pair)) and max(map(len, pair.values())) <= 400
    id = steering.generate_from_jsonl(found["pairs"], [LAYER], "caa", chat=True)
    assert np.linalg.norm(steering.get_vectors(id)[LAYER]) > 0.1
