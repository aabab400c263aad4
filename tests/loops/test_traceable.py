"""`traceable_decode` under the transformations of JAX, and what `decode` accepts and refuses."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import toy

import mechanex_jax as mx
from mechanex_jax.errors import ArgumentError
from mechanex_jax.loops import decode, traceable_decode

MODEL = toy()
PROMPTS = jnp.array([[1, 2, 3, 4], [6, 0, 0, 0]])
LENGTHS = jnp.array([4, 1])
KEY = jax.random.key(7)


def test_the_twin_gives_the_tokens_of_decode_under_jit():
    transform = mx.transforms.chain(mx.transforms.temperature([0.9, 1.3]), mx.transforms.top_k(5))
    arguments = {"key": KEY, "max_new_tokens": 9, "eos_ids": (4,)}
    expected = decode(MODEL, PROMPTS, LENGTHS, transform, **arguments)
    run = jax.jit(
        lambda model, tokens, lengths, key: traceable_decode(model, tokens, lengths, transform, **{**arguments, "key": key})
    )
    for one, other in zip(run(MODEL, PROMPTS, LENGTHS, KEY), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_twin_maps_over_keys_and_temperatures():
    keys, heats = jax.random.split(KEY, 3), jnp.array([0.5, 1.0, 2.0])

    def run(decoder, key, heat):
        return decoder(MODEL, PROMPTS, LENGTHS, mx.transforms.temperature(heat), key=key, max_new_tokens=5).tokens

    mapped = jax.vmap(lambda key, heat: run(traceable_decode, key, heat))(keys, heats)
    for index in range(3):
        np.testing.assert_array_equal(mapped[index], run(decode, keys[index], heats[index]))


def test_decode_under_jit_names_its_twin():
    with pytest.raises(ArgumentError, match="traceable_decode"):
        jax.jit(lambda key: decode(MODEL, PROMPTS, LENGTHS, None, key=key, max_new_tokens=2).tokens)(KEY)


def test_ragged_lists_a_handle_and_old_keys_are_accepted():
    expected = decode(MODEL, PROMPTS, LENGTHS, None, key=jax.random.key(3), max_new_tokens=4)
    for key in (jax.random.PRNGKey(3), np.asarray(jax.random.PRNGKey(3))):
        result = decode(SimpleNamespace(model=MODEL), [[1, 2, 3, 4], [6]], None, None, key=key, max_new_tokens=4)
        np.testing.assert_array_equal(result.tokens, expected.tokens)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt_tokens": [[1, 11]]}, "ids from 0 to 10"),
        ({"prompt_tokens": [[-1, 1]]}, "ids from 0 to 10"),
        ({"prompt_tokens": [1, 2]}, "Put a single prompt into a list"),
        ({"prompt_tokens": [[1.5, 2.0]]}, "whole numbers"),
        ({"prompt_tokens": [[1, 2], [3]], "prompt_lengths": 2}, "at most"),
        ({"key": 3}, "jax.random.key"),
    ],
)
def test_other_arguments_are_refused_with_what_to_do(changed, message):
    arguments = {"prompt_tokens": [[1, 2]], "prompt_lengths": None, "transform": None, "key": KEY, "max_new_tokens": 1}
    with pytest.raises(ArgumentError, match=message):
        decode(MODEL, **{**arguments, **changed})


@dataclasses.dataclass(frozen=True)
class Plain:
    """Makes the last token less likely."""

    penalty: float
    name: str = "plain"

    def init(self, prompt, length):
        return jnp.int32(-1)

    def apply(self, state, logits, step):
        return jnp.where(jnp.arange(logits.shape[0]) == state, logits - self.penalty, logits)

    def advance(self, state, token, step):
        return token


def test_a_plain_frozen_dataclass_is_a_transform_whose_values_are_traced(compilations):
    run = lambda transform: decode(MODEL, [[1, 2], [3, 4]], 2, transform, key=KEY, max_new_tokens=8).tokens
    strong = run(mx.transforms.chain(Plain(1e6), mx.transforms.temperature(1.0)))
    assert (strong[:, 1:] != strong[:, :-1]).all()
    np.testing.assert_array_equal(run(Plain(0.0)), run(None))
    assert compilations(lambda: run(Plain(1.0))) == 0


@pytest.mark.usefixtures("unchecked")
def test_a_class_that_is_no_frozen_dataclass_is_refused_with_what_to_write():
    transform = type("Loose", (), dict(vars(mx.transforms.Stateless)) | {"apply": lambda self, state, logits, step: logits})()
    with pytest.raises(ArgumentError, match="@row_tree"):
        decode(MODEL, [[1]], 1, transform, key=KEY, max_new_tokens=1)
