"""Truncations are those of `transformers` and of a float64 oracle, on random and on adversarial logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from mechanex_jax import rows
from mechanex_jax import transforms as tx
from mechanex_jax.transforms.base import apply_rows
from mechanex_jax.transforms.truncation import truncation_rows

V = 160
STEP = tx.Step(jnp.int32(0), jnp.int32(1), jax.random.key(0))


def random_logits(batch: int = 4) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(batch, V)) * 3).astype(np.float32)


@jax.jit
def truncate(transform: Any, logits: Any) -> jax.Array:
    batch = logits.shape[0]
    step = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch,)), STEP)
    state = tuple(() for _ in transform.parts) if hasattr(transform, "parts") else ()
    return apply_rows(transform, state, logits, step)


def kept(transform: Any, logits: np.ndarray) -> np.ndarray:
    return np.isfinite(np.asarray(truncate(rows.broadcast_rows(transform, len(logits)), logits)))


# The float64 oracle. `margin` is how near a decision was to going the other way: float32 sums are good to 1e-6.


def oracle(
    z: np.ndarray, heat: float = 1, k: int = 2**31, p: float = 1, m: float = 0, tau: float = 1, eps: float = 0
) -> tuple[np.ndarray, float]:
    z, margin = z.astype(np.float64), np.inf
    if heat == 0:
        return np.arange(len(z)) == np.argmax(z), margin
    x = (z - z.max()) / heat
    keep = np.isfinite(x)
    if k < len(z):
        keep &= x >= np.sort(x)[-k]

    def probabilities() -> np.ndarray:
        e = np.where(keep, np.exp(np.where(keep, x, 0)), 0)
        return e / e.sum()

    def smallest_set(score: np.ndarray, mass: float) -> np.ndarray:
        """Tokens in rising order of score until they sum to `mass`; ties with the last one are kept."""
        nonlocal margin
        q = probabilities()
        levels = np.unique(score[keep])
        sums = np.cumsum([q[keep & (score == level)].sum() for level in levels]) if len(levels) < 500 else None
        if sums is None:
            order = np.argsort(score, kind="stable")
            running = np.cumsum(q[order])
            last = np.searchsorted(score[order], levels, side="right") - 1
            sums = running[last]
        at = min(int(np.argmax(sums >= mass)) if (sums >= mass).any() else len(levels) - 1, len(levels) - 1)
        margin = min(margin, float(np.abs(sums - mass).min()))
        return keep & (score <= levels[at])

    if p < 1:
        keep = smallest_set(np.where(keep, -x, np.inf), p)
    if m > 0:
        with np.errstate(over="ignore"):
            margin = min(margin, float(np.abs(np.exp(x[keep]) / m - 1).min()) if m < 1 else np.inf)
        keep = keep & (np.exp(x) >= m)
    if tau < 1:
        q = probabilities()
        mean = (q[q > 0] * x[q > 0]).sum()
        deviation = np.where(keep, np.abs(x - mean), np.inf)
        before = keep
        keep = smallest_set(deviation, tau)
        if (before & ~keep).any():
            # Two tokens at either side of the mean: which is nearer is float32's to say below this gap.
            margin = min(margin, 0.1 * float(deviation[before & ~keep].min() - deviation[keep].max()))
    if eps > 0:
        q = probabilities()
        likeliest = keep & (x == x[keep].max(initial=-np.inf))
        margin = min(margin, float(np.abs(q[keep & ~likeliest] / eps - 1).min(initial=np.inf)))
        keep = likeliest | (keep & (q >= eps))
    return keep, margin


ADVERSARIAL: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "flat": lambda r, n: r.normal(size=n),
    "usual": lambda r, n: r.normal(size=n) * 3,
    "sharp": lambda r, n: r.normal(size=n) * 10,
    "zipf": lambda r, n: -1.2 * np.log(r.permutation(n) + 1.5),
    "all equal": lambda r, n: np.full(n, -3.25),
    "few levels": lambda r, n: r.integers(0, 4, size=n).astype(float),
    "bfloat16": lambda r, n: np.asarray(jnp.asarray(r.normal(size=n) * 3, jnp.bfloat16), np.float64),
    "half masked": lambda r, n: np.where(np.arange(n) % 2, -np.inf, r.normal(size=n)),
    "one left": lambda r, n: np.where(np.arange(n) == n // 2, -5.0, -np.inf),
    "huge": lambda r, n: r.normal(size=n) * 1e30,
    "tiny": lambda r, n: r.normal(size=n) * 1e-30,
    "signed zeros": lambda r, n: np.where(r.random(n) < 0.5, 0.0, -0.0),
    "far apart": lambda r, n: np.where(np.arange(n) < 3, 3e38, r.normal(size=n) - 3e38),
}


def adversarial(size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([make(rng, size) for make in ADVERSARIAL.values()]).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 160, 1000, 49_152])
@pytest.mark.parametrize("name", ["k", "p", "m", "tau", "eps"])
def test_is_the_float64_oracle_on_adversarial_logits(name: str, size: int) -> None:
    settings_of: dict[str, list[float]] = {
        "k": [1, 3, 64, 65, 900],
        "p": [1e-6, 0.3, 0.9, 0.999],
        "m": [1e-4, 0.05, 1],
        "tau": [1e-6, 0.2, 0.95],
        "eps": [1e-6, 3e-4, 0.05, 1],
    }
    factory: Any = {"k": tx.top_k, "p": tx.top_p, "m": tx.min_p, "tau": tx.typical_p, "eps": tx.epsilon_cutoff}[name]
    logits = adversarial(size)
    certain = 0
    for value in settings_of[name]:
        ours = kept(factory(value), logits)
        for kind, mine, row in zip(ADVERSARIAL, ours, logits, strict=True):
            right, margin = oracle(row, **{name: value if name == "k" else float(np.float32(value))})  # type: ignore[arg-type]
            assert mine.any(), (kind, value)
            assert not (mine & ~np.isfinite(row)).any(), (kind, value)
            # The probabilities of "tiny" differ by less than float32 can say: they may count as ties.
            if margin > 1e-6 and (kind != "tiny" or name == "k"):
                certain += 1
                np.testing.assert_array_equal(mine, right, err_msg=f"{kind}, {name} = {value}")
    assert certain > 0.6 * len(settings_of[name]) * len(logits)


unit = st.floats(1 / 64, 63 / 64, width=32)
one_setting = st.tuples(
    st.one_of(st.just(0.0), st.just(1.0), st.floats(0.25, 4, width=32)),
    st.one_of(st.just(2**31 - 1), st.integers(1, 97)),
    st.one_of(st.just(1.0), unit),
    st.one_of(st.just(0.0), unit),
    st.one_of(st.just(1.0), unit),
    st.one_of(st.just(0.0), unit),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    values=st.lists(one_setting, min_size=8, max_size=8),
    seed=st.integers(0, 2**16),
    grid=st.sampled_from([None, 0.25, 1.0]),
    masked=st.sampled_from([0.0, 0.5, 0.95]),
)
def test_all_stages_at_once_are_the_oracle(values: list[Any], seed: int, grid: float | None, masked: float) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(8, 97)) * 3).astype(np.float32)
    if grid:
        logits = np.round(logits / grid) * np.float32(grid)
    logits[:, 1:][rng.random((8, 96)) < masked] = -np.inf
    ours = kept(tx.truncation(*(list(column) for column in zip(*values, strict=True))), logits)
    for mine, row, setting in zip(ours, logits, values, strict=True):
        right, margin = oracle(row, *setting)
        if margin > 1e-6:
            np.testing.assert_array_equal(mine, right, err_msg=str(setting))


# Equality with `transformers`.

WARPERS: dict[str, tuple[Any, Any, list[Any]]] = {
    "temperature": (tx.temperature, hf.TemperatureLogitsWarper, [0.3, 1.7]),
    "top_k": (tx.top_k, hf.TopKLogitsWarper, [1, 50, 300]),
    "top_p": (tx.top_p, hf.TopPLogitsWarper, [0.2, 0.9]),
    "min_p": (tx.min_p, hf.MinPLogitsWarper, [0.05, 0.5]),
    "typical_p": (tx.typical_p, hf.TypicalLogitsWarper, [0.2, 0.95]),
    "epsilon_cutoff": (tx.epsilon_cutoff, hf.EpsilonLogitsWarper, [3e-4, 0.05]),
}


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 1000, 262_144])
@pytest.mark.parametrize("name", WARPERS)
def test_is_the_warper_of_transformers(name: str, size: int) -> None:
    """Same kept set and distribution, but for ties with the last token kept, of which HF's unstable sort keeps some.

    Where HF and we still differ, HF's float32 running sum over V terms is off, and float64 has to be on our side.
    """
    ours, theirs, values = WARPERS[name]
    kinds = ("flat", "usual", "sharp", "bfloat16", "few levels", "half masked")
    logits = adversarial(size, seed=1)[[list(ADVERSARIAL).index(kind) for kind in kinds]]
    equal = 0
    for value in values:
        mine = np.asarray(truncate(rows.broadcast_rows(ours(value), len(logits)), logits))
        other = theirs(value)(None, torch.tensor(logits)).numpy()
        for kind, a, b, row in zip(kinds, mine, other, logits, strict=True):
            have, has = np.isfinite(a), np.isfinite(b)
            if name == "top_p":
                has = row >= row[has].min()
            if (have == has).all():
                equal += 1
                b = np.where(has, row if name == "top_p" else b, -np.inf)
                np.testing.assert_allclose(jax.nn.softmax(a), jax.nn.softmax(b), rtol=2e-5, atol=1e-9)
            else:
                right, margin = oracle(
                    row, **{{"top_p": "p", "typical_p": "tau", "epsilon_cutoff": "eps"}[name]: float(np.float32(value))}
                )
                assert margin < 1e-6 or (have == right).all(), (kind, value)
    assert equal >= 0.7 * len(values) * len(kinds)


# Known mistakes elsewhere, and the rest of each contract.


def test_min_p_looks_at_probabilities_not_at_logits() -> None:
    # m * max(logits) would keep everything here, and nothing once shifted up.
    np.testing.assert_array_equal(kept(tx.min_p(0.5), np.float32([[-10, -10.5, -12]])), [[True, True, False]])


@pytest.mark.slow
def test_min_p_holds_where_its_threshold_is_near_zero() -> None:
    # Here top + heat * ln m rounds to a z that is just cut, and floats near 0 are too dense for the next one to differ.
    logits = np.float32([[1.0696275, 0.45645356, -1.1417497, 3.8064458, -2.215242, 1.5938172]])
    np.testing.assert_array_equal(kept(tx.truncation(1.875, min_p=0.125), logits)[0], [True, True, False, True, False, True])
    rng = np.random.default_rng(0)
    logits, heats = rng.normal(size=(4096, 16)).astype(np.float32) * 3, rng.uniform(0.3, 3, 4096)
    # A threshold of each row near 0: m = exp(-top / heat).
    shares = np.exp(-logits.max(-1) / heats) * rng.uniform(0.97, 1.03, 4096)
    ours = kept(tx.truncation(heats, min_p=np.minimum(shares, 1)), logits)
    for mine, row, heat, share in zip(ours, logits, heats, np.minimum(shares, 1), strict=True):
        right, margin = oracle(row, heat=float(np.float32(heat)), m=float(np.float32(share)))
        if margin > 1e-5:
            np.testing.assert_array_equal(mine, right)


@pytest.mark.slow
def test_nucleus_comes_after_temperature() -> None:
    logits = random_logits(batch=1)
    for chained in (
        tx.chain(tx.temperature(2.0), tx.top_p(0.8)),
        tx.chain(tx.temperature(2.0), tx.chain(tx.top_p(0.8))),
    ):
        assert len(chained.parts) == 1
        mine = kept(tx.truncation(2.0, top_p=0.8), logits)[0]
        np.testing.assert_array_equal(mine, oracle(logits[0], heat=2, p=0.8)[0])
        assert mine.sum() > oracle(logits[0], p=0.8)[0].sum()
    swapped = tx.chain(tx.top_p(0.8), tx.temperature(2.0))
    assert len(swapped.parts) == 2
    np.testing.assert_array_equal(kept(swapped, logits)[0], oracle(logits[0], p=0.8)[0])


def test_nothing_is_kept_beyond_equality() -> None:
    # Probabilities 1/2, 1/4, 1/8, 1/8, whose sums are exact in float32: at P = 1/2 one token is enough.
    logits = np.float32(np.log([[0.5, 0.25, 0.125, 0.125]]))
    counts = [kept(tx.top_p(p), logits).sum() for p in (0.4999, 0.5001, 0.7499, 0.7501)]
    assert counts == [1, 2, 2, 4]
    halves = np.float32([[0, -np.inf, 0, -200]])
    assert kept(tx.top_p(1 - 1e-7), halves).sum() == 2


def test_ties_at_a_cut_are_kept_and_greedy_takes_the_first() -> None:
    tied = np.float32([[1, 3, 3, 3, 2, 3]])
    assert kept(tx.top_k(2), tied).sum() == 4
    assert kept(tx.top_p(0.3), tied).sum() == 4
    assert kept(tx.temperature(0), tied).nonzero()[1].tolist() == [1]


@pytest.mark.slow
def test_epsilon_looks_at_what_is_left_and_keeps_all_of_the_likeliest() -> None:
    logits = np.float32(np.log([[0.4, 0.3, 0.2, 0.1]]))
    assert kept(tx.epsilon_cutoff(0.35), logits)[0].tolist() == [True, False, False, False]
    assert kept(tx.truncation(top_k=2, epsilon_cutoff=0.35), logits)[0].tolist() == [True, True, False, False]  # 4/7 and 3/7
    # Typical sampling has cut the likeliest token: of those left, 0.3 is.
    assert kept(tx.truncation(typical_p=0.25, epsilon_cutoff=1), logits)[0].tolist() == [False, True, False, False]
    assert kept(tx.epsilon_cutoff(1), np.float32([[2, 2, 1]]))[0].tolist() == [True, True, False]


@pytest.mark.slow
def test_a_later_stage_is_in_the_program_of_a_batch_only_if_a_row_uses_it() -> None:
    usual = truncation_rows([{"temperature": 0.7, "top_p": 0.9}, {"top_k": 5}, {"epsilon_cutoff": 0.0}])
    assert usual.epsilon_cutoff is None
    np.testing.assert_array_equal(usual.top_k, [2**31 - 1, 5, 2**31 - 1])
    mixed = truncation_rows([{"temperature": 0.7, "top_p": 0.9}, {"epsilon_cutoff": 0.25}])
    np.testing.assert_array_equal(mixed.epsilon_cutoff, np.float32([0, 0.25]))
    logits = random_logits(batch=2)
    np.testing.assert_array_equal(kept(mixed, logits)[0], kept(tx.truncation(0.7, top_p=0.9), logits[:1])[0])


@pytest.mark.parametrize("heat", [1e-38, 1e-30, 1e30, 3e38])
def test_no_temperature_overflows(heat: float) -> None:
    logits = np.float32([[3e38, 2e38, -3e38, -np.inf], [5, 4, -4, -np.inf], [-3e38, -2e38, -np.inf, -3e38]])
    output = np.asarray(truncate(rows.broadcast_rows(tx.temperature(heat), 3), logits))
    assert not np.isnan(output).any()
    assert (output < np.inf).all()
    np.testing.assert_array_equal(output.argmax(-1), [0, 0, 1])


@pytest.mark.slow
def test_vmap_of_vmap_and_a_vmap_over_values_only() -> None:
    logits = jnp.asarray(random_logits(batch=6).reshape(2, 3, V))
    transform = tx.truncation(0.7, 50, 0.9, 0.01, 0.9, 0.03)

    @jax.jit
    def one(x: jax.Array) -> jax.Array:
        return transform.apply((), x, STEP)

    np.testing.assert_array_equal(jax.vmap(jax.vmap(one))(logits), [[one(x) for x in pair] for pair in logits])
    each = jax.vmap(lambda p: tx.top_p(p).apply((), logits[0, 0], STEP))(jnp.asarray([0.2, 0.9]))
    for p, mine in zip((0.2, 0.9), each, strict=True):
        np.testing.assert_array_equal(mine, tx.top_p(p).apply((), logits[0, 0], STEP))
