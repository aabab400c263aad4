"""One table of all transforms against one list of properties; then the contracts of those that follow what was said."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from mechanex_jax import rows
from mechanex_jax import transforms as tx
from mechanex_jax.errors import ArgumentError
from mechanex_jax.transforms.base import advance_rows, apply_rows, init_rows

V, B, EOS = 160, 4, 7
BIAS = np.linspace(-2, 2, V, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table: `make(*neutral)` is the identity, `make(*values[i])` are two settings of one program."""

    make: Callable[..., Any]
    neutral: tuple[Any, ...]
    values: tuple[tuple[Any, ...], tuple[Any, ...]]
    shift_invariant: bool = True


TABLE = {
    "temperature": Case(tx.temperature, (1,), ((0.7,), (0.0,))),
    "top_k": Case(tx.top_k, (V,), ((5,), (100,))),
    "top_p": Case(tx.top_p, (1,), ((0.9,), (0.2,))),
    "min_p": Case(tx.min_p, (0,), ((0.1,), (1.0,))),
    "typical_p": Case(tx.typical_p, (1,), ((0.9,), (0.2,))),
    "epsilon_cutoff": Case(tx.epsilon_cutoff, (0,), ((0.01,), (1.0,))),
    "truncation": Case(
        tx.truncation, (1, 2**31 - 1, 1, 0, 1, 0), ((0.7, 70, 0.9, 0.01, 0.9, 0.005), (0, 3, 0.5, 0.5, 0.5, 0.5))
    ),
    "determinantal": Case(
        functools.partial(tx.determinantal, tx.directions(np.random.default_rng(5).normal(size=(V, 24)).astype(np.float32))),
        (0, 0.5, 50, 1.0),
        ((8, 0.3, 50, 0.7), (3, 0.6, 20, 0.0)),
    ),
    "penalties": Case(
        functools.partial(tx.penalties, V), (1, 0, 0), ((1.3, 0.5, 0.2), (0.8, -1.0, 0.0)), shift_invariant=False
    ),
    "repetition_penalty": Case(functools.partial(tx.repetition_penalty, V), (1,), ((1.5,), (0.5,)), shift_invariant=False),
    "presence_penalty": Case(functools.partial(tx.presence_penalty, V), (0,), ((0.5,), (-0.5,))),
    "frequency_penalty": Case(functools.partial(tx.frequency_penalty, V), (0,), ((0.5,), (-0.5,))),
    "logit_bias": Case(tx.logit_bias, (np.zeros(V),), ((BIAS,), (-BIAS,))),
    "min_new_tokens": Case(lambda n: tx.min_new_tokens(n, [EOS, -1]), (0,), ((9,), (2,))),
}
PROMPTS = np.array([[3, 4, 4, 9], [150, 3, 0, 0], [EOS, 0, 0, 0], [1, 2, 3, 4]], np.int32)
LENGTHS = np.array([4, 2, 1, 4], np.int32)


def steps(batch: int = B) -> tx.Step:
    return tx.Step(jnp.arange(batch), 5 - jnp.arange(batch), jax.random.split(jax.random.key(1), batch))


STEP = jax.tree.map(lambda leaf: leaf[0], steps())


def random_logits(seed: int = 0, batch: int = B, size: int = V, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(batch, size)) * scale).astype(np.float32)


@jax.jit
def run(transform: Any, prompts: Any, lengths: Any, logits: Any) -> tuple[Any, jax.Array]:
    """Two tokens are chosen, then logits are transformed."""
    step = steps(logits.shape[0])
    state = init_rows(transform, prompts, lengths)
    for token in (11, 3):
        state = advance_rows(transform, state, jnp.full(logits.shape[0], token), step)
    return state, apply_rows(transform, state, logits, step)


def outputs(transform: Any, logits: Any) -> np.ndarray:
    return np.asarray(run(rows.broadcast_rows(transform, B), PROMPTS, LENGTHS, logits)[1])


def one_row(transform: Any, prompt: Any, length: Any, logits: Any, step: Any) -> jax.Array:
    return transform.apply(transform.init(prompt, length), logits, step)


def jitted_is_eager(case: Case) -> None:
    transform = rows.broadcast_rows(case.make(*case.values[0]), 1)
    transform = jax.tree.map(lambda leaf, axis: leaf if axis is None else leaf[0], transform, rows.row_axes(transform))
    arguments = (transform, PROMPTS[0], LENGTHS[0], random_logits()[0], jax.tree.map(lambda x: x[0], steps()))
    eager = one_row(*jax.tree.map(jnp.asarray, arguments))
    # Fusion may turn a division into a product with the reciprocal: a unit in the last place.
    np.testing.assert_allclose(jax.jit(one_row)(*arguments), eager, rtol=3e-7)


def rows_are_independent(case: Case) -> None:
    logits = random_logits()
    mixed = case.make(*(np.stack([one, other] * (B // 2)) for one, other in zip(*case.values, strict=True)))
    together = outputs(mixed, logits)
    for i in range(B):
        alone = rows.broadcast_rows(case.make(*case.values[i % 2]), B)
        repeated = [np.repeat(x[i : i + 1], B, axis=0) for x in (PROMPTS, LENGTHS, logits)]
        np.testing.assert_array_equal(run(alone, *repeated)[1][i], together[i])


def state_and_output_are_stable(case: Case) -> None:
    transform = rows.broadcast_rows(case.make(*case.values[0]), B)
    before = init_rows(transform, jnp.asarray(PROMPTS), jnp.asarray(LENGTHS))
    after, output = run(transform, PROMPTS, LENGTHS, random_logits())
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    chex.assert_shape(output, (B, V))
    assert output.dtype == jnp.float32


def neutral_is_the_identity(case: Case) -> None:
    logits = random_logits()
    logits[0, ::3] = -np.inf
    logits[1] *= 1e37
    np.testing.assert_array_equal(outputs(case.make(*case.neutral), logits), logits)


def support_is_never_empty(case: Case) -> None:
    logits = np.full((B, V), -np.inf, np.float32)
    # The only token left: one that ends the text, one repeated, one out of the blue, one far below zero.
    logits[range(B), [EOS, 3, 80, V - 1]] = [1.0, -2.0, 30.0, -3e38]
    for values in case.values:
        np.testing.assert_array_equal(np.isfinite(outputs(case.make(*values), logits)), np.isfinite(logits))


def masked_stays_masked(case: Case) -> None:
    logits = random_logits()
    logits[:, 1::2] = -np.inf
    logits[2] = -np.inf
    for values in case.values:
        output = outputs(case.make(*values), logits)
        assert not np.isnan(output).any()
        assert (output[~np.isfinite(logits)] == -np.inf).all()


def values_never_recompile(case: Case) -> None:
    traces = []

    @jax.jit
    def count(transform: Any, logits: Any) -> jax.Array:
        traces.append(1)
        state = init_rows(transform, jnp.asarray(PROMPTS), jnp.asarray(LENGTHS))
        return apply_rows(transform, state, logits, steps())

    for values in (case.neutral, *case.values, *([tuple(np.stack([v] * B) for v in case.values[0])])):
        count(rows.broadcast_rows(case.make(*values), B), random_logits())
    assert len(traces) == 1


def one_value_is_one_per_row(case: Case) -> None:
    per_row = tuple(np.stack([value] * B) for value in case.values[0])
    np.testing.assert_array_equal(
        outputs(case.make(*case.values[0]), random_logits()), outputs(case.make(*per_row), random_logits())
    )


def shift_changes_no_distribution(case: Case) -> None:
    # On a grid of 1/64 a shift by 256 is exact: the same floats must come out, up to the shift.
    logits = np.round(random_logits() * 64) / 64
    for values in case.values if case.shift_invariant else ():
        here, there = (outputs(case.make(*values), x) for x in (logits, logits - 256))
        np.testing.assert_array_equal(np.isfinite(here), np.isfinite(there))
        np.testing.assert_allclose(jax.nn.softmax(here), jax.nn.softmax(there), rtol=1e-4, atol=1e-7)


PROPERTIES = [
    jitted_is_eager,
    rows_are_independent,
    state_and_output_are_stable,
    neutral_is_the_identity,
    support_is_never_empty,
    masked_stays_masked,
    values_never_recompile,
    one_value_is_one_per_row,
    shift_changes_no_distribution,
]


@pytest.mark.slow
@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", TABLE)
def test_property(name: str, holds: Callable[[Case], None]) -> None:
    holds(TABLE[name])


def test_table_has_every_factory() -> None:
    others = {
        "argmax_rows",
        "chain",
        "directions",
        "draw",
        "draw_rows",
        "nested",
        "row",
        "row_tree",
        "shared",
        "stateless",
        "static",
    }
    assert {name for name in tx.__all__ if name[0].islower()} - others == set(TABLE)


# The contracts of the rest.


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    prompts = np.random.default_rng(0).integers(0, V, size=(B, 6)).astype(np.int32)
    said = np.concatenate([prompts, np.full((B, 1), 11), np.full((B, 1), 3)], axis=1)
    theirs = hf.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(said), torch.tensor(random_logits()))
    transform = rows.broadcast_rows(tx.repetition_penalty(V, penalty), B)
    mine = run(transform, prompts, np.full(B, 6, np.int32), random_logits())[1]
    np.testing.assert_allclose(mine, theirs.numpy(), rtol=3e-7)


def test_presence_and_frequency_count_the_answer_and_repetition_the_prompt_without_its_padding() -> None:
    transform = tx.penalties(V, repetition=2.0, presence=0.25, frequency=0.5)
    # -1 and V are no tokens; 0 is padding in rows 1 and 2.
    state = transform.init(jnp.asarray([5, -1, V, 0, 0]), jnp.asarray(3))
    for token in (9, 9, -1, V):
        state = transform.advance(state, jnp.asarray(token), STEP)
    expected = np.ones(V)
    expected[5] = 0.5
    expected[9] = 0.5 - 0.25 - 2 * 0.5
    np.testing.assert_allclose(transform.apply(state, jnp.ones(V), STEP), expected)
    with pytest.raises(ArgumentError, match="vocab_size"):
        transform.apply(state, jnp.ones(V + 1), STEP)


def test_min_new_tokens_bans_until_the_minimum_but_never_everything() -> None:
    transform = tx.min_new_tokens([2, 2, 2, 3], [EOS, 12, -1])
    banned = ~np.isfinite(outputs(transform, random_logits()))  # the rows are at steps 0, 1, 2 and 3
    assert [list(np.flatnonzero(row)) for row in banned] == [[EOS, 12], [EOS, 12], [], []]
    only_ends = np.full((B, V), -np.inf, np.float32)
    only_ends[:, [EOS, 12]] = 0.5
    np.testing.assert_array_equal(outputs(transform, only_ends), only_ends)


def test_a_bias_is_one_for_all_rows_or_one_per_row() -> None:
    logits, biases = random_logits(), np.stack([BIAS * i for i in range(B)])
    np.testing.assert_array_equal(outputs(tx.logit_bias(biases), logits), logits + biases)
    assert outputs(tx.logit_bias(np.where(np.arange(V) == 3, -np.inf, 0)), logits)[2, 3] == -np.inf


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        *(lambda x=x: tx.temperature(x) for x in (-0.1, np.nan, "hot", [1.0, -1.0], [[1.0]])),
        *(lambda x=x: tx.top_k(x) for x in (0, -3, 2.5, [1, 0], jnp.asarray(0))),
        *(lambda x=x: tx.top_p(x) for x in (0, 1.1, -0.1, np.nan, jnp.asarray([0.5, 2.0]))),
        *(lambda x=x: tx.min_p(x) for x in (-0.1, 1.1, np.nan)),
        *(lambda x=x: tx.typical_p(x) for x in (0, 1.1)),
        *(lambda x=x: tx.epsilon_cutoff(x) for x in (-0.1, 1.1, np.nan, "small", [0.5, 2.0])),
        *(lambda x=x: tx.repetition_penalty(V, x) for x in (0, -1, np.inf, np.nan)),
        *(lambda x=x: tx.presence_penalty(V, x) for x in (np.inf, None)),
        *(lambda x=x: tx.penalties(x) for x in (0, -5)),
        *(lambda x=x: tx.logit_bias(x) for x in (1.0, [np.nan], [np.inf], [[[0.0]]])),
        *(lambda x=x: tx.min_new_tokens(x, EOS) for x in (-1, 0.5)),
        *(lambda x=x: tx.min_new_tokens(1, x) for x in (0.5, [[1]], "eos")),
    ],
)
def test_values_out_of_range_raise_on_the_host(make: Callable[[], Any]) -> None:
    with pytest.raises(ArgumentError, match=r"got .* expected"):
        make()
