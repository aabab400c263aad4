"""The law of the draw, and what a row's draw depends on: its key and its logits, hardly on their noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mechanex_jax import transforms as tx


def keys_of(seed: int, count: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed, impl="threefry2x32"), count)


@jax.jit
def draw_many(keys: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.lax.map(lambda key: tx.draw(key, logits), keys, batch_size=512)


def laws() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    usual = rng.normal(size=1000) * 2
    return {
        "two tokens": np.array([0.0, -1.0]),
        "five tokens": rng.normal(size=5),
        "one block": rng.normal(size=256),
        "a block and one token": rng.normal(size=257),
        "blocks and a rest": usual,
        "truncated": np.where(usual > 2, usual, -np.inf),
        "few tokens far apart": np.where(np.isin(np.arange(3000), [0, 255, 256, 1300, 2999]), 1.0, -np.inf),
        "shifted far up": usual + 3e4,
        "flat": np.zeros(700),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", laws())
def test_law_is_softmax(name: str) -> None:
    logits = laws()[name].astype(np.float32)
    draws = np.asarray(draw_many(keys_of(3, 1 << 15), jnp.asarray(logits)))
    exact = np.exp(logits.astype(np.float64) - logits.max())
    exact *= len(draws) / exact.sum()
    seen = np.bincount(draws, minlength=len(logits)).astype(float)
    assert len(seen) == len(logits)
    assert seen[exact == 0].sum() == 0
    # Rare tokens are counted as one, as chi-square wants some five expected each.
    rare = exact < 5
    pooled = [np.append(x[~rare], x[rare].sum()) for x in (seen, exact)] if exact[rare].sum() >= 5 else None
    seen, exact = pooled or (seen[~rare], exact[~rare] * seen[~rare].sum() / exact[~rare].sum())
    assert stats.chisquare(seen, exact).pvalue > 1e-3


def test_blocks_and_tokens_are_independent() -> None:
    # Were the noise of a block's tokens tied to that of the blocks, the halves of a block would not be even.
    draws = np.asarray(draw_many(keys_of(5, 1 << 15), jnp.zeros(1024)))
    table = np.zeros((4, 2))
    np.add.at(table, (draws // 256, draws % 256 // 128), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("size", [5, 300, 4096])
def test_rows_are_independent(size: int) -> None:
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(6, size)), jnp.float32)
    keys = keys_of(0, 6)
    one, many = jax.jit(tx.draw), jax.jit(tx.draw_rows)
    together = many(keys, logits)
    assert together.dtype == jnp.int32
    np.testing.assert_array_equal(together, [one(key, row) for key, row in zip(keys, logits, strict=True)])
    np.testing.assert_array_equal(together[::-1], many(keys[::-1], logits[::-1]))
    # One law, six keys: a batch with one key for all its rows would say the same six times.
    same = np.asarray(many(keys, jnp.zeros((6, size))))
    assert len(set(same.tolist())) > 2


@pytest.mark.slow
def test_noise_of_another_batch_size_changes_hardly_a_draw() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=5000) * 3
    keys = keys_of(7, 1 << 16)
    draws = [draw_many(keys, jnp.asarray(x, jnp.float32)) for x in (logits, logits + 2e-4 * rng.normal(size=5000))]
    changed = float(np.mean(np.asarray(draws[0]) != np.asarray(draws[1])))
    # An inverse CDF changes some 1e-3 of them.
    assert changed < 3e-4, changed


def test_a_mask_does_not_move_the_noise_of_other_tokens() -> None:
    logits = jnp.zeros(1024)
    keys = keys_of(9, 4096)
    free, masked = (np.asarray(draw_many(keys, x)) for x in (logits, logits.at[3].set(-jnp.inf)))
    assert (masked != 3).all()
    assert np.mean(free[free != 3] == masked[free != 3]) > 0.99


@pytest.mark.parametrize("value", [0.0, -3e38, 3e38, 1e-30])
def test_one_finite_logit_is_drawn_for_sure(value: float) -> None:
    for size, at in ((5, 4), (256, 0), (300, 299), (1000, 700)):
        draws = draw_many(keys_of(0, 512), jnp.full(size, -jnp.inf).at[at].set(value))
        assert (np.asarray(draws) == at).all()


def test_no_finite_logit_gives_token_0() -> None:
    for size in (5, 300):
        assert (np.asarray(draw_many(keys_of(0, 64), jnp.full(size, -jnp.inf))) == 0).all()


def test_argmax_rows_is_argmax_with_the_first_of_ties() -> None:
    rng = np.random.default_rng(4)
    for size in (3, 256, 257, 2048):
        logits = rng.integers(0, 3, size=(8, size)).astype(np.float32)
        logits[3] = -np.inf
        logits[4, : size // 2] = -np.inf
        np.testing.assert_array_equal(tx.argmax_rows(jnp.asarray(logits)), logits.argmax(-1))
