"""Arguments of `generate` that no model is needed to refuse."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from mechanex_jax import transforms
from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.engine.seeds import row_seeds
from mechanex_jax.errors import ArgumentError

HALF = "\ud800"  # of a surrogate pair
UTF8 = "UTF-8"

REFUSED = [
    ({"logit_bias": {-1: 5.0}}, "token ids, 0 or more"),
    ({"logit_bias": {"-1": 5.0}}, "token ids, 0 or more"),
    ({"logit_bias": {"²": 5.0}}, "token ids, 0 or more"),
    ({"logit_bias": {True: 5.0}}, "token ids, 0 or more"),
    ({"logit_bias": {5: 1.0, "5": 2.0}}, "each token once"),
    ({"logit_bias": {5: 1e39}}, "float32"),
    ({"logit_bias": {5: -1e39}}, "float32"),
    ({"logit_bias": {5: 10**400}}, "finite"),
    ({"logit_bias": {5: float("inf")}}, "finite"),
    ({"logit_bias": {5: float("nan")}}, "finite"),
    ({"presence_penalty": 1e39}, "float32"),
    ({"frequency_penalty": -1e39}, "float32"),
    ({"repetition_penalty": 1e39}, "float32"),
    ({"repetition_penalty": 1e-46}, "above 0"),
    ({"temperature": 1e39}, "float32"),
    ({"length_penalty": 1e39}, "float32"),
    ({"steering_strength": 1e39}, "float32"),
    ({"stop": HALF}, UTF8),
    ({"stop": ["a", HALF]}, UTF8),
    ({"stop": "\ufffd"}, "U+FFFD"),
    ({"stop": ["a", "b\ufffd"]}, "U+FFFD"),
    ({"forbidden_terms": [HALF]}, UTF8),
    ({"forbidden_terms": ["\ufffd"]}, "U+FFFD"),
    ({"regex_pattern": HALF}, UTF8),
    ({"grammar": f'root ::= "{HALF}"'}, UTF8),
    ({"code_unit_tests": [f"x = '{HALF}'"]}, UTF8),
    ({"draft_model": HALF}, UTF8),
    ({"ensemble_models": [HALF], "sampling_method": "ensemble-sampling"}, UTF8),
    ({"policy_id": HALF}, UTF8),
    ({"max_tokens": np.bool_(True)}, "whole number"),
    ({"speculative_steps": True}, "1 to 8"),
    ({"steering_scope": slice(0, True)}, "positions from 0 on"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[ascii(a)[:60] for a, _ in REFUSED])
def test_what_would_act_otherwise_than_it_says_is_refused(arguments, words):
    with pytest.raises(ArgumentError) as caught:
        GenerationConfig(**arguments)
    assert words in str(caught.value)
    assert next(iter(arguments)) in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"logit_bias": {5: 3e38, "6": -np.inf, np.int64(7): np.float32(1)}},
        {"temperature": 1e-46},
        {"stop": ["é", "\U0001f600"]},
        {"max_tokens": np.int64(5)},
        {"speculative_steps": np.int32(3), "sampling_method": "ssd"},
        {"steering_scope": slice(np.int64(0), np.int64(4))},
    ],
    ids=str,
)
def test_what_can_be_used_passes(arguments):
    GenerationConfig(**arguments)


@pytest.mark.parametrize("kind", [int, np.int64, np.uint32, np.int8, jnp.int32], ids=lambda kind: kind.__name__)
def test_a_seed_of_any_integer_type_is_the_same_seed(kind):
    pairs = row_seeds(kind(5), 2)
    assert pairs == [(5, 0), (5, 1)] and all(type(seed) is int for seed, _ in pairs)
    pairs = row_seeds([kind(5), 6], 2)
    assert pairs == [(5, 0), (6, 0)] and all(type(seed) is int for seed, _ in pairs)


@pytest.mark.parametrize("seed", [True, np.bool_(True), 5.0, np.float32(5), "5", np.int64(-1), 2**32])
def test_what_is_no_seed_is_refused_alone_and_in_a_list(seed):
    for value in (seed, [seed]):
        with pytest.raises(ArgumentError, match=r"seed: got .* 4294967295"):
            row_seeds(value, 1)


@pytest.mark.parametrize("make", [transforms.presence_penalty, transforms.temperature, transforms.logit_bias])
def test_a_transform_refuses_finite_numbers_that_are_infinite_in_float32(make):
    values = [0.0, 1e39] if make is transforms.logit_bias else 1e39
    arguments = () if make is not transforms.presence_penalty else (7,)
    with pytest.raises(ArgumentError, match="float32"):
        make(*arguments, values)
