"""Edits inside a model: every site, edits of one's own, rows of a batch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import edit_oracles as oracle
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import torch
from edit_oracles import LENGTHS, NEW, PROMPTS, TOLERANCE, D, L, decode, text_of, vectors

import mechanex_jax as mechanex
from mechanex_jax import edits, rows
from mechanex_jax.edits import SITES, TextPositions


@rows.row_tree
class Scale:
    """factor * h at one layer: unlike an addition, it tells `resid_mid` from `attn_out`."""

    site: str = rows.static()
    at: Any = rows.row(0, jnp.int32)
    factor: Any = rows.row()

    def apply(self, x: jax.Array, layer: jax.Array, where: TextPositions) -> jax.Array:
        return jnp.where(layer == self.at, self.factor * x, x)


@rows.row_tree
class AfterPrompt:
    """h + vector where tokens have been generated, in all layers."""

    site: str = rows.static()
    vector: Any = rows.row(1)

    def apply(self, x: jax.Array, layer: jax.Array, where: TextPositions) -> jax.Array:
        return x + jnp.where(where.positions >= where.prompt_length, 1.0, 0.0)[:, None] * self.vector


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Callable[[str], tuple[Any, Any]]:
    """Our model and transformers', by family."""
    return functools.cache(lambda family: oracle.pair(family, tmp_path_factory.mktemp(family)))


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_site_equals_a_hook(family: str, site: str, both) -> None:
    """Two edits in their order, at one layer of two; captures come after the edits."""
    model, hf = both(family)
    vector = vectors(D)
    two = (edits.add(vector, 1, 1.5, site=site), Scale(site, np.int32(1), np.float32(0.5)))
    out = mechanex.forward(model, PROMPTS, edits=two, capture=site)

    def change(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x + 1.5 * torch.tensor(vector))

    plain = oracles.activations(hf, PROMPTS)[site]
    with oracles.edited(hf, site, 1, change):
        expected = oracles.logits_of(hf, PROMPTS)
    np.testing.assert_allclose(out.logits, expected, rtol=0, atol=TOLERANCE)
    assert np.abs(expected - oracles.logits_of(hf, PROMPTS)).max() > 0.1
    np.testing.assert_allclose(out.activations[site][:, 0], plain[:, 0], rtol=0, atol=TOLERANCE)
    edited = 0.5 * (plain[:, 1] + 1.5 * vector)
    np.testing.assert_allclose(out.activations[site][:, 1], edited, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
def test_an_edit_of_ones_own_sees_where_each_prompt_ends(both) -> None:
    model, hf = both("llama")
    vector = vectors(D)
    result = decode(model, AfterPrompt("resid_post", vector))
    for row, length in enumerate(LENGTHS):
        mask = torch.arange(length + NEW)[:, None] >= length
        with contextlib.ExitStack() as hooks:
            for layer in range(L):
                shift = mask * torch.tensor(vector)
                hooks.enter_context(oracles.edited(hf, "resid_post", layer, lambda x, v=shift: x + v))
            oracle.assert_greedy(hf, text_of(result, row), length, result.logprobs[row])


@pytest.mark.slow
def test_a_steered_row_changes_no_other(both) -> None:
    """Bit for bit, in one executable; and an unsteered row is what it is without any edit, up to float noise."""
    model, _ = both("llama")
    vector = vectors(D)
    calm, steered = (decode(model, edits.add(vector, 1, strength)) for strength in ([0, 0, 0], [0, 9, 0]))
    without = decode(model, None)
    for row in (0, 2):
        np.testing.assert_array_equal(steered.tokens[row], calm.tokens[row])
        np.testing.assert_array_equal(steered.logprobs[row], calm.logprobs[row])
    assert (steered.tokens[1] != calm.tokens[1]).any()
    np.testing.assert_array_equal(calm.tokens, without.tokens)
    np.testing.assert_allclose(calm.logprobs, without.logprobs, rtol=0, atol=1e-5)

    logits = [mechanex.forward(model, PROMPTS, edits=edits.add(vector, 1, s)).logits for s in ([0, 0, 0], [0, 9, 0])]
    np.testing.assert_array_equal(logits[0][::2], logits[1][::2])
    assert np.abs(logits[0][1] - logits[1][1]).max() > 0.1


@pytest.mark.parametrize(
    "noop",
    [
        edits.add(vectors(D), -1),
        edits.add(vectors(D), 1, strength=0),
        edits.add(np.zeros(D), 1),
    ],
    ids=["layer -1", "strength 0", "zero vector"],
)
def test_no_ops(noop: Any, both) -> None:
    model, _ = both("llama")
    reference = mechanex.forward(model, PROMPTS, edits=edits.add(np.zeros((3, 1, D)), [[-1]] * 3, np.zeros(3))).logits
    np.testing.assert_array_equal(mechanex.forward(model, PROMPTS, edits=noop).logits, reference)
    np.testing.assert_allclose(mechanex.forward(model, PROMPTS).logits, reference, rtol=0, atol=1e-5)


def test_values_never_recompile(both, compilations) -> None:
    model, _ = both("llama")

    def run(edit: Any) -> None:
        mechanex.forward(model, PROMPTS, edits=edit)
        decode(model, edit)

    changed = [
        edits.add(vectors(D, seed=1), 0),
        edits.add(vectors(D, seed=2), 1, 3),
        edits.add(vectors(1, D), [-1], [1.0, 0.0, -2.5]),
        edits.add(vectors(3, 1, D), [[0], [1], [-1]], np.float64(0.1)),
        edits.add(torch.ones(D), np.int64(1), torch.tensor(2.0)),
        edits.add(jnp.ones(D, jnp.bfloat16), 1, jnp.float32(2)),
    ]
    run(edits.add(vectors(D), 1))
    assert compilations(lambda: [run(edit) for edit in changed]) == 0
