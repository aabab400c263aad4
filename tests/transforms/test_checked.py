"""The output of a transform is checked when it is traced."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import toy

import mechanex_jax as mx
from mechanex_jax.errors import ArgumentError
from mechanex_jax.loops import FinishReason

MODEL = toy()


def run(transform):
    return mx.loops.decode(MODEL, [[1, 2]], 2, transform, key=jax.random.key(0), max_new_tokens=3)


def _half_precision(logits):
    return logits.astype(jnp.bfloat16)


def _short(logits):
    return logits[:5]


def _none(logits):
    return None


@mx.transforms.row_tree
class Growing(mx.transforms.Stateless):
    def init(self, prompt, length):
        return jnp.zeros(1)

    def apply(self, state, logits, step):
        return logits

    def advance(self, state, token, step):
        return jnp.zeros(2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("function", [_half_precision, _short, _none])
@pytest.mark.parametrize("chained", [False, True])
def test_an_output_of_another_shape_or_dtype_is_an_error_that_names_the_transform(function, chained):
    transform = mx.transforms.stateless(function)
    pattern = rf"transform {function.__name__}\.apply: got .*expected float32\[11\]"
    with pytest.raises(ArgumentError, match=pattern):
        run(mx.transforms.chain(transform) if chained else transform)


def test_a_state_that_changes_its_shape_is_an_error():
    with pytest.raises(ArgumentError, match=r"transform Growing\.advance: got float32\[2\].*float32\[1\]"):
        run(Growing())


def test_nan_is_a_dead_end_and_warns():
    nan = mx.transforms.logit_bias(np.zeros(11)), mx.transforms.stateless(_nan)
    with pytest.warns(RuntimeWarning, match=r"dead_end.*LogitBias, _nan"):
        result = run(mx.transforms.chain(*nan))
    assert result.finish_reason.tolist() == [FinishReason.DEAD_END] and result.lengths.tolist() == [0]


def _nan(logits):
    return logits.at[3].set(jnp.nan)
