"""Speculative decoding with real transformers: small random ones, and the default model with its own first layers as draft."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from positional_toy import automaton

import mechanex_jax as mx
from mechanex_jax.architectures.model import Model, parameter_shapes
from mechanex_jax.loops import (
    Proposal,
    decode,
    forward,
    model_drafter,
    prompt_lookup,
    speculative_chunk,
    speculative_decode,
    speculative_start,
)
from mechanex_jax.rows import row_tree

GREEDY = mx.transforms.chain(mx.transforms.temperature(0.0))
MIXED = mx.transforms.chain(mx.transforms.truncation(temperature=[0.0, 0.8, 0.0, 0.8], top_k=20))
V = oracles.VOCABULARY


def first_layers(model: Model, layers: int) -> Model:
    """The same model, cut off behind its first layers."""
    config: Any = model.spec
    static = dataclasses.replace(model.static, config=dataclasses.replace(config, layers=layers))
    weights = dict(zip(parameter_shapes(model.static), model.params, strict=True))
    return Model(tuple(weights[path] for path in parameter_shapes(static)), static)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A random model of two layers, and two drafts: the first layer of it, and another random model."""
    folder = tmp_path_factory.mktemp("llama")
    config = oracles.llama()
    model = oracles.ours(oracles.saved(config, folder / "model"))
    other = oracles.ours(oracles.saved(config, folder / "other", seed=5))
    return model, first_layers(model, 1), other


RNG = np.random.default_rng(0)
PROMPTS = np.tile(RNG.integers(0, V, (4, 10)), (1, 3)).astype(np.int32)  # repetitive, so that lookup finds something
LENGTHS = np.array([30, 3, 17, 1], np.int32)


def compare(model, transform, drafter, **arguments):
    arguments = {"key": jax.random.key(1), "max_new_tokens": 40, "eos_ids": [7]} | arguments
    expected = decode(model, PROMPTS, LENGTHS, transform, **arguments)
    out, counts = speculative_decode(model, PROMPTS, LENGTHS, transform, drafter=drafter, adaptive=False, **arguments)
    for row, length in enumerate(expected.lengths):
        differ = np.flatnonzero(out.tokens[row] != expected.tokens[row])
        prompt = PROMPTS[row, : LENGTHS[row]]
        assert not len(differ) or close_call(model, prompt, expected.tokens[row], differ[0]), (row, differ)
        if not len(differ):
            assert out.lengths[row] == length and out.finish_reason[row] == expected.finish_reason[row]
            np.testing.assert_allclose(out.logprobs[row], expected.logprobs[row], atol=2e-3)
    return counts


def close_call(model, prompt, tokens, at) -> bool:
    """Whether the two best logits for token `at` are so close that float noise decides."""
    text = np.concatenate([prompt, tokens[:at]])
    best = np.sort(np.asarray(forward(model, text).logits)[-1])[-2:]
    return bool(best[1] - best[0] < 1e-4)


@pytest.mark.slow
def test_tokens_are_those_of_plain_decoding_whether_greedy_or_sampled(small):
    model, part, other = small
    for drafter in (prompt_lookup(), model_drafter(part, shared_noise=True), model_drafter(other, shared_noise=True)):
        counts = compare(model, MIXED, drafter)
        assert (counts.tested > 0).any()
    assert (compare(model, MIXED, model_drafter(model, shared_noise=True)).acceptance_rate == 1).all()


@pytest.mark.slow
def test_steering_and_constraint_together_leave_the_tokens_of_plain_decoding(small):
    model, part, _ = small
    vector = np.random.default_rng(3).standard_normal(64).astype(np.float32)
    chain = mx.transforms.chain(automaton(V, first=[0, 1, 2, 3]), mx.transforms.penalties(V, repetition=1.1), *MIXED.parts)
    edit = mx.edits.add(vector, layer=1, strength=[0.0, 1.0, -2.0, 4.0])
    for drafter in (prompt_lookup(), model_drafter(part, mx.edits.add(vector, layer=0), shared_noise=True)):
        compare(model, chain, drafter, edits=edit)


@row_tree
class Reader:
    """Keeps what it is handed of the target's activations, and proposes token 1."""

    always = True
    capture = ("resid_post",)

    def init(self, carry):
        return jnp.zeros((len(carry.finish), 3, 64)), jnp.zeros(len(carry.finish), jnp.int32)

    def follow(self, state, carry):
        return state

    def propose(self, state, program, carry, steps):
        return state, Proposal(jnp.full((len(carry.finish), steps), 1, jnp.int32), None)

    def commit(self, state, carry, kept, captured):
        return captured["resid_post"][:, -1], kept


@pytest.mark.slow
def test_a_drafter_is_handed_the_activations_of_the_positions_that_were_read(small):
    model = small[0]
    program, carry = speculative_start(
        model, PROMPTS[:, :9], 9, GREEDY, drafter=Reader(), key=jax.random.key(0), max_new_tokens=20
    )
    carry = speculative_chunk(program, carry, np.int32(3), 2)
    seen, kept = carry.draft
    for row in range(4):
        text = np.asarray(carry.base.tokens)[row, : int(carry.base.cache.lengths[row])]
        expected = forward(model, text, capture="resid_post").activations["resid_post"][-1]
        np.testing.assert_allclose(seen[row, : kept[row]], expected[len(text) - int(kept[row]) :], atol=1e-3)


TEXTS = [
    "Repeat this list: apple, banana, cherry, apple, banana, cherry, apple, banana,",
    '{"name": "Ann", "age": 31, "city": "Oslo"}\n{"name": "Bob", "age": 45, "city": "Rome"}\n{"name":',
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef mul(a, b):\n",
    "The capital of France is",
]


@pytest.mark.parametrize("layers", [None, 4], ids=["lookup", "truncated"])
def test_the_default_model_says_the_same_greedily(loaded, layers):
    texts = [loaded.tokenizer.encode(text) for text in TEXTS]
    lengths = np.array([len(text) for text in texts], np.int32)
    prompts = np.zeros((len(texts), lengths.max()), np.int32)
    for row, text in enumerate(texts):
        prompts[row, : len(text)] = text
    drafter = prompt_lookup() if layers is None else model_drafter(first_layers(loaded.model, layers))
    arguments = {"key": jax.random.key(0), "max_new_tokens": 24}
    expected = decode(loaded.model, prompts, lengths, GREEDY, **arguments)
    out, counts = speculative_decode(loaded.model, prompts, lengths, GREEDY, drafter=drafter, adaptive=False, **arguments)
    for row in range(len(texts)):
        differ = np.flatnonzero(out.tokens[row] != expected.tokens[row])
        assert not len(differ) or close_call(loaded.model, texts[row], expected.tokens[row], differ[0])
    assert (counts.tested > 0).any()
    assert counts.tokens_per_round[0] > 2 or layers is not None
