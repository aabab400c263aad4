"""Adaptive determinantal sampling: against float64, against every subset there is, and on the real model."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from mechanex_jax import rows
from mechanex_jax import transforms as tx
from mechanex_jax.errors import ArgumentError
from mechanex_jax.transforms.base import apply_rows

V, D, B, EPS = 160, 24, 6, 1e-6
UNEMBEDDING = np.random.default_rng(0).normal(size=(V, D)).astype(np.float32)
ONE = [1.0] * B


def random_logits(seed: int = 0, batch: int = B, scale: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(batch, V)) * scale).astype(np.float32)


def steps(batch: int) -> tx.Step:
    return tx.Step(jnp.zeros(batch, jnp.int32), jnp.ones(batch, jnp.int32), jax.random.split(jax.random.key(0), batch))


@jax.jit
def run(transform, logits):
    state = jax.vmap(lambda _: ())(jnp.zeros(len(logits)))
    return apply_rows(transform, state, logits, steps(len(logits)))


def outputs(logits, *settings, unembedding=UNEMBEDDING, **named):
    transform = tx.determinantal(unembedding, *settings, **named)
    return np.asarray(run(rows.broadcast_rows(transform, len(logits)), logits))


def kept(logits, *settings, **named):
    return [set(np.flatnonzero(row > -np.inf).tolist()) for row in outputs(logits, *settings, **named)]


# --- The oracle: float64, determinants written out, one subset after the other --------------------------------------------


def kernel(unembedding, tokens):
    centred = unembedding[tokens] - unembedding.mean(axis=0, dtype=np.float64)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return unit @ unit.T + EPS * np.eye(len(tokens))


def worth(subset, log_p, similar, beta):
    return (1 - beta) * log_p[list(subset)].sum() + beta * np.linalg.slogdet(similar[np.ix_(subset, subset)])[1]


def candidates_of(z, top_k, temperature):
    log_p = log_softmax(z.astype(np.float64) / temperature)
    order = np.argsort(-z, kind="stable")[:top_k]
    order = order[np.isfinite(z[order])]
    return order, log_p


def size_of(z, subset_size, temperature=1.0):
    """k_t, and how near it was to another."""
    p = softmax(z.astype(np.float64) / temperature)
    effective = np.exp(-np.sum(p[p > 0] * np.log(p[p > 0])))
    return min(subset_size, int(np.ceil(effective))), abs(effective - round(effective))


def greedy_oracle(z, subset_size=8, beta=0.3, top_k=50, temperature=1.0, unembedding=UNEMBEDDING):
    """The tokens kept, and the smallest gap between a choice and its runner-up."""
    order, log_p = candidates_of(z, top_k, temperature)
    similar, chosen, margin = kernel(unembedding, order), [], np.inf
    wanted, near = size_of(z, subset_size, temperature)
    while len(chosen) < min(wanted, len(order)):
        values = [worth([*chosen, i], log_p[order], similar, beta) if i not in chosen else -np.inf for i in range(len(order))]
        best = np.sort(values)[::-1]
        margin = min(margin, best[0] - best[1]) if len(best) > 1 else margin
        chosen.append(int(np.argmax(values)))
    return {int(order[i]) for i in chosen}, min(margin, near)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_subset_is_the_greedy_maximum_in_float64_for_rows_with_settings_of_their_own(seed):
    rng = np.random.default_rng(seed)
    logits = random_logits(seed)
    logits[1, ::2] = -np.inf  # as a constraint leaves it
    logits[2] *= 4
    settings = {
        "subset_size": [2, 8, 5, 16, 3, 10],
        "beta": rng.uniform(0.05, 0.95, B).astype(np.float32).tolist(),
        "top_k": [50, 50, 10, 64, 3, 20],
        "temperature": [1.0, 0.7, 2.0, 1.5, 1.0, 0.5],
    }
    found, sizes = kept(logits, **settings), set()
    for row, z in enumerate(logits):
        wanted, margin = greedy_oracle(z, *(settings[name][row] for name in settings))
        assert margin > 1e-4
        assert found[row] == wanted
        sizes.add(len(wanted))
    assert len(sizes) > 2


def test_inside_the_subset_logits_are_log_probabilities_so_that_the_draw_is_from_p_renormalised():
    logits = random_logits()
    out = outputs(logits, temperature=0.7)
    log_p = log_softmax(logits.astype(np.float64) / 0.7, axis=-1)
    np.testing.assert_allclose(out[out > -np.inf], log_p[out > -np.inf], rtol=1e-5)


def test_a_subset_of_one_and_temperature_zero_are_greedy_with_the_lowest_id_on_a_tie():
    logits = random_logits()
    logits[0, [9, 40, 150]] = 9.0
    best = [{int(i)} for i in logits.argmax(axis=1)]
    assert best[0] == {9}
    assert kept(logits, subset_size=1) == kept(logits, temperature=0.0) == kept(logits * 1e-30, temperature=0.0) == best


def top_k_of(logits, k, **named):
    """Top-k with k = the size that the entropy allows."""
    return [set(np.argsort(-z, kind="stable")[: size_of(z, k, **named)[0]].tolist()) for z in logits]


def test_without_weight_on_diversity_it_is_top_k():
    logits = random_logits()
    assert kept(logits, subset_size=8, beta=1e-7) == top_k_of(logits, 8)
    assert kept(logits, subset_size=8, beta=0.9) != top_k_of(logits, 8)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.95])
def test_with_orthogonal_embeddings_it_is_top_k(beta):
    # Rows +e_i and -e_i: their mean is 0, and candidates are of the first kind only.
    orthogonal = np.concatenate([np.eye(V // 2), -np.eye(V // 2)]).astype(np.float32)
    logits = random_logits()
    logits[:, V // 2 :] = -np.inf
    assert kept(logits, 8, beta, unembedding=orthogonal) == top_k_of(logits, 8)


@pytest.mark.parametrize("beta", [1e-6, 0.05, 0.9])
def test_two_equal_embeddings_are_never_both_kept(beta):
    logits = random_logits()
    twins = UNEMBEDDING.copy()
    for row in logits:
        order = np.argsort(-row)
        twins[order[1]] = twins[order[0]]
    same = lambda tokens: len({twins[t].tobytes() for t in tokens}) == len(tokens)
    tokens = kept(logits, 8, beta, unembedding=twins)
    assert all(same(subset) and len(subset) == 8 for subset in tokens)
    # Where all are equal one is left, of any number allowed.
    assert kept(logits, 8, beta, unembedding=np.ones((V, D), np.float32)) == top_k_of(logits, 8)  # no direction: like no other
    copies = np.where(np.arange(V)[:, None] == 0, 1.0, UNEMBEDDING[5]).astype(np.float32)
    logits[:, 0] = -np.inf
    assert kept(logits, 8, beta, unembedding=copies) == [{int(z.argmax())} for z in logits]


@pytest.mark.slow
def test_the_greedy_maximum_is_near_the_best_of_all_subsets():
    """The objective is a sum of logarithms and may be negative, so what is compared is how much of the way from the mean
    subset to the best one the greedy subset goes."""
    logits, top_k, size = random_logits(batch=40, scale=1.0), 9, 4
    found, shares, best_found = kept(logits, size, 0.5, top_k), [], 0
    for z, tokens in zip(logits, found, strict=True):
        order, log_p = candidates_of(z, top_k, 1.0)
        similar = kernel(UNEMBEDDING, order)
        every = {
            frozenset(order[list(s)].tolist()): worth(s, log_p[order], similar, 0.5)
            for s in itertools.combinations(range(top_k), size)
        }
        mean, best = np.mean(list(every.values())), max(every.values())
        shares.append((every[frozenset(tokens)] - mean) / (best - mean))
        best_found += shares[-1] > 1 - 1e-9
    assert min(shares) > 0.6
    assert np.mean(shares) > 0.95
    assert best_found > 15


@pytest.mark.slow
def test_how_many_are_kept_follows_the_entropy():
    logits = np.full((4, V), -np.inf, np.float32)
    logits[0, 3] = 2.0  # one token possible
    logits[1, :2] = 5.0  # two, equally likely: e^H is 2, and not 2.0000001
    logits[2, :5] = 5.0
    logits[3] = 0.0
    assert [len(tokens) for tokens in kept(logits)] == [1, 2, 5, 8]
    sure = np.zeros((1, V), np.float32)
    sure[0, 7] = 30.0
    assert kept(sure) == [{7}]


def test_fewer_legal_tokens_than_candidates_or_none_at_all():
    logits = np.full((4, V), -np.inf, np.float32)
    logits[0, [4, 90]] = [-3e38, 3e38]
    logits[1, [1, 2, 3]] = [0.0, 0.1, -0.1]
    logits[2, 159] = -1e30
    out = outputs(logits)
    assert not np.isnan(out).any()
    assert [set(np.flatnonzero(row > -np.inf)) for row in out] == [{90}, {1, 2, 3}, {159}, set()]


def test_rows_of_other_methods_pass_unchanged():
    logits = random_logits()
    logits[1, 3], logits[3, :80] = 3e38, -np.inf
    out = outputs(logits, subset_size=[0, 0, 8, 0, 8, 0])
    np.testing.assert_array_equal(out[[0, 1, 3, 5]], logits[[0, 1, 3, 5]])
    assert [(row > -np.inf).sum() for row in out[[2, 4]]] == [8, 8]
    np.testing.assert_array_equal(outputs(logits, subset_size=0), logits)


@pytest.mark.slow
def test_jit_is_eager_and_a_batch_is_each_row_alone_also_under_a_second_vmap():
    logits = random_logits()
    transform = tx.determinantal(UNEMBEDDING, [2, 8, 5, 0, 3, 10], [0.1, 0.3, 0.5, 0.7, 0.9, 0.2], [50, 9, 20, 50, 64, 50])
    together = np.asarray(run(rows.broadcast_rows(transform, B), logits))
    for row in range(B):
        alone = rows.broadcast_rows(rows.take_rows(transform, [row], B), 1)
        alone = jax.tree.map(lambda leaf, axis: leaf if axis is None else leaf[0], alone, rows.row_axes(alone))
        step = jax.tree.map(lambda leaf: leaf[0], steps(1))
        eager = alone.apply((), jnp.asarray(logits[row]), step)
        np.testing.assert_allclose(eager, together[row], rtol=1e-5)
    twice = jax.vmap(run, in_axes=(None, 0))(rows.broadcast_rows(transform, B), np.stack([logits, logits[::-1]]))
    np.testing.assert_allclose(twice[0], together, rtol=1e-5)


def test_other_values_never_recompile(compilations):
    def call(index: int):
        many = np.arange(B) + index
        outputs(random_logits(index), many, 0.1 + 0.01 * many, 1 + many * 4, many / 3, unembedding=TABLE)

    call(0)
    assert compilations(lambda: [call(index) for index in range(1, 9)]) == 0


TABLE = tx.directions(UNEMBEDDING)


@pytest.mark.slow
def test_what_directions_made_is_used_as_it_is_and_half_precision_changes_little():
    logits = random_logits()
    assert tx.determinantal(TABLE).directions is TABLE
    np.testing.assert_array_equal(outputs(logits, unembedding=TABLE), outputs(logits))
    half = tx.directions(UNEMBEDDING.astype(np.float16))
    assert half.rows.dtype == jnp.float16
    assert sum(a != b for a, b in zip(kept(logits, unembedding=half), kept(logits), strict=True)) <= 1


@pytest.mark.parametrize("size", [5, 64, 100, 160, 4096])
def test_the_largest_of_a_row_are_those_of_a_stable_sort(size):
    from mechanex_jax.transforms.determinantal import top_rows

    z = np.random.default_rng(size).integers(0, 40, (5, size)).astype(np.float32)  # full of ties
    z[1] = -np.inf
    z[2, ::3] = -np.inf
    count = min(64, size)
    values, ids = jax.jit(top_rows, static_argnums=1)(z, count)
    order = np.argsort(-z, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(values, np.take_along_axis(z, order, axis=1))


@pytest.mark.slow
def test_in_a_chain_it_sees_what_earlier_transforms_left_and_temperature_zero_there_is_greedy():
    logits = random_logits()
    chained = tx.chain(tx.temperature([0.0, 0.7] * 3), tx.determinantal(TABLE))
    out = np.asarray(
        jax.jit(lambda t, z: apply_rows(t, tuple(() for _ in t.parts), z, steps(B)))(rows.broadcast_rows(chained, B), logits)
    )
    alone = kept(logits, temperature=[0.0, 0.7] * 3)
    assert [set(np.flatnonzero(row > -np.inf).tolist()) for row in out] == alone
    assert [len(tokens) > 1 for tokens in alone] == [False, True] * 3


def test_subsets_of_the_real_model_spread_wider_than_as_many_likeliest_tokens(mx, loaded):
    prompts = ["My favourite thing about winter is", "The old man opened the door and", "Scientists have discovered that"]
    ids = [loaded.tokenizer.encode(prompt) for prompt in prompts]
    logits = np.concatenate([np.asarray(mx.forward(loaded.model, np.array(each, np.int32)).logits)[1:] for each in ids])
    table = np.asarray(loaded.model.unembedding().T)
    volume = lambda tokens: np.linalg.slogdet(kernel(table, tokens))[1]
    gains = []
    for z, tokens in zip(logits, kept(logits, 8, 0.3, unembedding=table), strict=True):
        if len(tokens) > 2:
            gains.append(volume(sorted(tokens)) - volume(np.argsort(-z)[: len(tokens)]))
    assert len(gains) > 8
    assert min(gains) > -1e-3
    assert np.median(gains) > 0.1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        *((lambda x=x: tx.determinantal(TABLE, subset_size=x), "subset_size") for x in (-1, 2.5, None)),
        *((lambda x=x: tx.determinantal(TABLE, beta=x), "beta") for x in (0, 1, -0.1, np.nan, [0.5, 1.0])),
        *((lambda x=x: tx.determinantal(TABLE, top_k=x), "top_k") for x in (0, 1025, 1.5)),
        *((lambda x=x: tx.determinantal(TABLE, temperature=x), "temperature") for x in (-1, np.nan)),
        *((lambda x=x: tx.determinantal(x), "unembedding") for x in (np.ones(3), np.ones((3, 2), int), np.ones((0, 3)))),
        (lambda: outputs(random_logits()[:, :50]), "160 rows; expected 50"),
    ],
)
def test_values_out_of_range_raise_on_the_host(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()
