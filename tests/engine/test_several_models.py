"""Drafts, ensembles and determinantal sampling from `generate` on the real model, alone and in company."""

from __future__ import annotations

import dataclasses
import json

import jsonschema
import numpy as np
import pytest

from mechanex_jax.errors import ArgumentError
from mechanex_jax.steering import activations

PROMPT = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, Monday, Tuesday,"
SCHEMA = {
    "type": "object",
    "properties": {"days": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3}},
    "required": ["days"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def small(mx, loaded):
    """A second model with the same tokenizer: the last layers of the default one, under a name of its own."""
    session = mx.runtime.default.session
    other = dataclasses.replace(loaded, name="small", model=activations.tail(loaded.model, 24), fingerprint="small")
    session._models = {"small": other, **session._models}
    yield other
    session._models.pop("small")


@pytest.mark.parametrize("draft", [None, "small", "default"])
def test_a_draft_changes_no_token_whatever_it_proposes(mx, small, draft):
    plain = {"max_tokens": 20, "seed": 3, "temperature": 0.8, "top_k": 20}
    expected = mx.generation.generate(PROMPT, sampling_method="top-k", **plain)
    assert mx.generation.generate(PROMPT, sampling_method="ssd", draft_model=draft, include_trace=True, **plain) == expected
    trace = mx.generation.last_trace
    assert trace["draft_model"] == ("small" if draft == "small" else "prompt lookup") and trace["rounds"] > 0
    assert "".join(mx.generation.stream(PROMPT, sampling_method="ssd", draft_model=draft, **plain)) == expected


def test_prompt_lookup_takes_several_tokens_a_round_on_text_that_repeats(mx):
    greedy = mx.generation.generate(PROMPT, sampling_method="greedy", max_tokens=40)
    arguments = {"temperature": 0.0, "max_tokens": 40, "speculative_steps": 6, "include_trace": True}
    text = mx.generation.generate(PROMPT, sampling_method="ssd", **arguments)
    assert text == greedy
    assert mx.generation.last_trace["tokens_per_round"] > 1.2


def test_a_draft_goes_with_a_schema_and_with_steering(mx, small):
    vector = {26: [(-1) ** i for i in range(576)]}
    arguments = {"max_tokens": 40, "seed": 2, "json_schema": SCHEMA, "steering_vector": vector, "steering_strength": 0.5}
    plain = mx.generation.generate("Days as JSON: ", sampling_method="top-p", **arguments)
    assert mx.generation.generate("Days as JSON: ", sampling_method="top-p", draft_model="small", **arguments) == plain
    jsonschema.validate(json.loads(plain), SCHEMA)


@pytest.mark.parametrize("voting", ["majority", "mean", "product"])
def test_an_ensemble_that_gives_the_other_member_no_weight_is_the_loaded_model(mx, small, voting):
    arguments = {"max_tokens": 10, "seed": 1, "temperature": 0.0}
    alone = mx.generation.generate(PROMPT, sampling_method="top-p", **arguments)
    ensemble = {"sampling_method": "ensemble-sampling", "ensemble_models": ["small"], "voting": voting}
    assert mx.generation.generate(PROMPT, ensemble_weights=[1, 0], **ensemble, **arguments) == alone
    other = mx.generation.generate(PROMPT, ensemble_weights=[0, 1], include_trace=True, **ensemble, **arguments)
    assert other == mx.generation.generate(PROMPT, sampling_method="top-p", model="small", **arguments) != alone
    assert mx.generation.last_trace["members"] == ["smollm2-135m-instruct", "small"]


def test_ensembles_and_determinantal_sampling_go_with_a_schema_in_a_mixed_batch(mx, small):
    methods = ["ensemble-sampling", "ads", "top-k", "ads"]
    members = [["small"], None, None, None]
    schemas = [SCHEMA, SCHEMA, None, None]
    common = {"max_tokens": 40, "temperature": 1.0}
    texts = mx.generation.generate_batch(
        ["Days as JSON: "] * 4,
        sampling_method=methods,
        ensemble_models=members,
        json_schema=schemas,
        seed=[1, 2, 3, 4],
        **common,
    )
    for text in texts[:2]:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert texts[2] == mx.generation.generate("Days as JSON: ", sampling_method="top-k", seed=3, **common)
    assert texts[3] == mx.generation.generate("Days as JSON: ", sampling_method="ads", seed=4, **common)


def test_a_subset_of_one_is_greedy_and_a_larger_one_is_not(mx):
    arguments = {"max_tokens": 12, "temperature": 1.0}
    greedy = mx.generation.generate(PROMPT[:20], sampling_method="greedy", **arguments)
    assert mx.generation.generate(PROMPT[:20], sampling_method="ads", ads_subset_size=1, seed=5, **arguments) == greedy
    texts = {mx.generation.generate(PROMPT[:20], sampling_method="ads", seed=seed, **arguments) for seed in range(3)}
    assert len(texts) > 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sampling_method": "ads", "ads_subset_size": 0}, "ads_subset_size"),
        ({"sampling_method": "ads", "ads_beta": 1.0}, "below 1"),
        ({"sampling_method": "ads", "ads_beta": 0.0}, "above 0"),
        ({"sampling_method": "ads", "top_k": 2000}, "1024"),
        ({"sampling_method": "ensemble-sampling"}, "ensemble_models"),
        ({"sampling_method": "ensemble-sampling", "ensemble_models": []}, "ensemble_models"),
        ({"sampling_method": "ensemble-sampling", "ensemble_models": ["small"], "ensemble_weights": [1.0]}, "2 numbers"),
        ({"sampling_method": "ensemble-sampling", "ensemble_models": ["small"], "voting": "loudest"}, "majority"),
        ({"sampling_method": "ensemble-sampling", "ensemble_models": ["no such model"]}, "no such model"),
        ({"sampling_method": "constrained-beam-search", "draft_model": "small"}, "draft_model"),
        ({"draft_model": "no such model"}, "no such model"),
        ({"draft_model": "other words"}, "tokenizer"),
        ({"speculative_steps": 9, "sampling_method": "ssd"}, "1 to 8"),
        ({"speculative_steps": 2.5, "sampling_method": "ssd"}, "1 to 8"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_bad_input_is_refused_before_anything_compiles(mx, small, loaded, compilations, arguments, words):
    class Other:
        vocabulary = type("Vocabulary", (), {"fingerprint": "another", "size": 3})

    session = mx.runtime.default.session
    session._models = {"other words": dataclasses.replace(loaded, tokenizer=Other, name="other words"), **session._models}

    def ask():
        with pytest.raises((ArgumentError, LookupError), match=words):
            mx.generation.generate("Hello", max_tokens=4, **arguments)

    try:
        assert compilations(ask) == 0
    finally:
        session._models.pop("other words")


@pytest.fixture
def short(mx, small):
    """The second model with a context of 24 tokens."""
    session = mx.runtime.default.session
    static = dataclasses.replace(small.model.static, config=dataclasses.replace(small.model.spec, context=24))
    other = dataclasses.replace(small, name="short", model=dataclasses.replace(small.model, static=static), fingerprint="short")
    session._models = {"short": other, **session._models}
    yield other
    session._models.pop("short")


@pytest.mark.parametrize(("max_tokens", "fits"), [(16, False), (128, False), (15, True)])
def test_an_ensembles_member_is_never_run_past_its_context(mx, short, compilations, max_tokens, fits):
    prompt = "one two three four five six seven eight nine"
    assert len(short.tokenizer.encode(prompt)) == 9
    arguments = {"sampling_method": "ensemble-sampling", "ensemble_models": ["short"], "max_tokens": max_tokens}

    def ask():
        with pytest.raises(ArgumentError, match="at most 24 in all, the context of the ensemble's member short"):
            mx.generation.generate(prompt, **arguments)

    if fits:
        mx.generation.generate(prompt, **arguments)
    else:
        assert compilations(ask) == 0


def test_a_draft_with_a_shorter_context_is_warned_of_and_changes_no_token(mx, short):
    arguments = {"max_tokens": 30, "sampling_method": "top-k", "seed": 1}
    with pytest.warns(UserWarning, match="short has a context of 24 tokens"):
        text = mx.generation.generate("Hello", draft_model="short", **arguments)
    assert text == mx.generation.generate("Hello", **arguments)


def test_a_larger_draft_is_warned_of(mx, small, loaded):
    with pytest.warns(UserWarning, match="larger"):
        mx.generation.generate("Hello", model="small", draft_model=loaded.name, max_tokens=2, seed=1)
    assert np.isfinite(mx.generation.generate("Hello", max_tokens=2, details=True).logprobs).all()
