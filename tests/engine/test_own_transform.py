"""A researcher's own transform in `generate`: where it runs, and what is said where it goes wrong."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from mechanex_jax.errors import ArgumentError


def _soft_cap(logits):
    return 30 * jnp.tanh(logits / 30)


def _nan(logits):
    return logits.at[3].set(jnp.nan)


def _nothing(logits):
    return jnp.full_like(logits, -jnp.inf)


def _short(logits):
    return logits[:5]


def bias_of(loaded, token, value):
    return np.where(np.arange(loaded.model.spec.vocabulary) == token, value, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["greedy", "top-k"])
def test_a_bias_of_ones_own_decides_because_it_comes_before_truncation(mx, loaded, method):
    bias = mx.transforms.logit_bias(bias_of(loaded, 42, 1000.0))
    text = mx.generation.generate("The sea is", 3, method, transform=bias, details=True)
    assert text.tokens == (42, 42, 42)


@pytest.mark.slow
def test_what_is_forbidden_before_ones_own_transform_stays_forbidden(mx):
    cap = mx.transforms.stateless(_soft_cap)
    text = mx.generation.generate("Call ", 8, "top-k", temperature=5.0, regex_pattern="[0-9]{4}", transform=cap, seed=1)
    assert len(text) == 4 and text.isdigit()


@pytest.mark.slow
@pytest.mark.parametrize("function", [_nan, _nothing])
def test_a_row_without_a_token_warns_and_names_its_transform(mx, function):
    transform = mx.transforms.stateless(function)
    with pytest.warns(RuntimeWarning, match=rf"dead_end.*the transform {function.__name__}"):
        text = mx.generation.generate("The sea is", 3, "greedy", transform=transform, details=True)
    assert (text.finish_reason, text.tokens) == ("dead_end", ())
    with pytest.warns(RuntimeWarning, match="dead_end"):
        assert list(mx.generation.stream("The sea is", 3, "greedy", transform=transform)) == []


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_logits_of_another_shape_are_an_error_that_names_the_transform(mx):
    with pytest.raises(ArgumentError, match=r"_short.*got float32\[5\].*expected float32\[49152\]"):
        mx.generation.generate("The sea is", 3, "greedy", transform=mx.transforms.stateless(_short))
