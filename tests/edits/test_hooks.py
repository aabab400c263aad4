"""Every operation inside a model, against hooks on PyTorch's modules with the same random weights."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import Any

import edit_oracles as oracle
import jax
import numpy as np
import oracles
import pytest
import torch
from edit_oracles import CASES, NEW, PROMPTS, SCOPES, D, L, vectors, weights

import mechanex_jax as mechanex
from mechanex_jax import edits

ROWS = len(CASES)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Callable[[str], tuple[Any, Any]]:
    """Our model and transformers', by family."""
    return functools.cache(lambda family: oracle.pair(family, tmp_path_factory.mktemp(family)))


def one_operation_per_row(site: str) -> tuple[Any, list[Any]]:
    """All operations in one batch, row i having the i-th alone; and per row {layer: formula of h and prompt length}.

    Vectors, layers, scope, strength and decay of every row are its own.
    """
    made, formulas = [], []
    for row, (case, part) in enumerate(zip(CASES.values(), itertools.cycle(SCOPES), strict=False)):
        values = case.draw(7 * row, 2)
        layers = np.full((ROWS, 2), -1)
        layers[row] = [(0, 1), (1, 0), (-1, 0)][row % 3]
        strength, decay = (-1) ** row * (1 + row / 4), (1.0, 0.9)[row % 2]
        scope = edits.scope(**SCOPES[part][0])
        made.append(case.make(values, layers, strength, site=site, scope=scope, decay=decay))

        def change(
            slot: int, length: int, h: np.ndarray, case=case, values=values, part=part, s=strength, d=decay
        ) -> np.ndarray:
            return case.formula(oracle.entry(values, slot), h, weights(part, length, len(h), s, d))

        formulas.append({layer: functools.partial(change, slot) for slot, layer in enumerate(layers[row]) if layer >= 0})
    return made, formulas


@pytest.mark.slow
@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_operation_equals_hooks_while_decoding(family: str, site: str, both) -> None:
    """Prompt and generated positions, over the cache."""
    model, hf = both(family)
    made, formulas = one_operation_per_row(site)
    prompts = np.random.default_rng(1).integers(0, oracles.VOCABULARY, (ROWS, 12)).astype(np.int32)
    lengths = np.array([12, 7, 5, 9, 4, 1, 11, 6], np.int32)
    key = jax.random.key(0)
    run = functools.partial(mechanex.loops.decode, model, prompts, lengths, oracle.GREEDY, key=key, max_new_tokens=NEW)
    result, plain = run(edits=made), run()
    for row, length in enumerate(lengths):
        tokens = np.concatenate([prompts[row, :length], result.tokens[row]])
        with contextlib.ExitStack() as hooks:
            for layer, change in formulas[row].items():
                hooks.enter_context(oracle.hooked(hf, site, layer, functools.partial(change, length)))
            oracle.assert_greedy(hf, tokens, length, result.logprobs[row])
        assert np.abs(result.logprobs[row] - plain.logprobs[row]).max() > 1e-3


@pytest.mark.slow
def test_forward_equals_hooks_and_captures_the_edited_activation(both) -> None:
    model, hf = both("llama")
    tokens = np.random.default_rng(2).integers(0, oracles.VOCABULARY, (ROWS, 10)).astype(np.int32)
    made, expected = [], []
    plain = oracles.activations(hf, tokens)["resid_mid"]
    for row, case in enumerate(CASES.values()):
        values, layers = case.draw(row, 1), np.full((ROWS, 1), -1)
        layers[row] = 1
        made.append(case.make(values, layers, 1.5, site="resid_mid"))
        change = functools.partial(lambda f, p, h: f(p, h, np.full((10, 1), 1.5)), case.formula, oracle.entry(values, 0))
        with oracle.hooked(hf, "resid_mid", 1, change):
            logits = oracles.logits_of(hf, tokens[row : row + 1])[0]
            after = oracles.activations(hf, tokens[row : row + 1])["resid_post"][0]
        expected.append((logits, change(plain[row, 1].astype(np.float64)), after))
    out = mechanex.forward(model, tokens, edits=made, capture=("resid_mid", "resid_post"))
    for row, (logits, edited, after) in enumerate(expected):
        np.testing.assert_allclose(out.logits[row], logits, rtol=0, atol=oracle.TOLERANCE)
        np.testing.assert_allclose(out.activations["resid_mid"][row], [plain[row, 0], edited], rtol=0, atol=1e-4)
        np.testing.assert_allclose(out.activations["resid_post"][row], after, rtol=0, atol=1e-4)
        assert np.abs(edited - plain[row, 1]).max() > 0.1


@pytest.mark.slow
def test_edits_at_one_site_apply_in_their_order(both) -> None:
    model, hf = both("gpt2")
    v, c = vectors(D), vectors(D, seed=1)
    two = edits.add(v, 1, 3.0), edits.ablate(v + c, 1)
    results = []
    for order in (two, two[::-1]):
        logits = mechanex.forward(model, PROMPTS[0], edits=order).logits
        with contextlib.ExitStack() as hooks:
            # PyTorch's hooks of one module run in the order of registration.
            for edit in order:
                case = CASES["add" if edit is two[0] else "ablate"]
                p, w = ({"v": v}, 3.0) if edit is two[0] else ({"v": v + c}, 1.0)
                change = functools.partial(lambda f, p, w, h: f(p, h, w), case.formula, p, np.full((12, 1), w))
                hooks.enter_context(oracle.hooked(hf, "resid_pre", 1, change))
            np.testing.assert_allclose(logits, oracles.logits_of(hf, PROMPTS[:1])[0], rtol=0, atol=oracle.TOLERANCE)
        results.append(np.asarray(logits))
    assert np.abs(results[0] - results[1]).max() > 0.1


@pytest.mark.slow
def test_hidden_states_of_transformers_are_our_captures(both) -> None:
    for family in ("llama", "gpt2"):
        model, hf = both(family)
        out = mechanex.forward(model, PROMPTS, capture=("resid_pre", "resid_post"))
        theirs = hf(torch.as_tensor(PROMPTS).long(), output_hidden_states=True).hidden_states
        for layer in range(L):
            np.testing.assert_allclose(out.activations["resid_pre"][:, layer], theirs[layer].detach(), rtol=0, atol=1e-4)
        for layer in range(L - 1):  # behind the last layer transformers gives what has passed the norm
            np.testing.assert_allclose(out.activations["resid_post"][:, layer], theirs[layer + 1].detach(), rtol=0, atol=1e-4)
