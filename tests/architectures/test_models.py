"""One table of configurations, one list of properties. The truth is `transformers` on PyTorch, with the same random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import torch
from model_table import TABLE, TOLERANCE, Pair, extend, whole
from oracles import VOCABULARY, gpt2

import mechanex_jax as mechanex


def equals_transformers(p: Pair) -> None:
    out = whole(p.model, p.tokens, p.lengths)
    np.testing.assert_allclose(out.logits[p.real], p.truth[p.real], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(out.cache.lengths, p.lengths)


def grows_by_pieces_and_by_tokens(p: Pair) -> None:
    """In the cache. Each row takes another share of each piece, sometimes nothing; at the end come single tokens."""
    rows, length = np.arange(3), p.tokens.shape[1]
    cache, seen = p.model.init_cache(3, 2 * length), np.zeros(3, np.int32)
    third = length // 3
    steps = [(third, (third, 5, 1)), (1, (1, 0, 0)), (third, (0, third // 2, 0)), (third, (third, 0, 0))]
    for size, share in steps + [(1, (1, 1, 1))] * third:
        valid = np.minimum(share, p.lengths - seen).astype(np.int32)
        spots = np.minimum(seen[:, None] + np.arange(size), length - 1)
        out = extend(p.model, cache, jnp.asarray(p.tokens[rows[:, None], spots]), jnp.asarray(valid))
        for row in rows:
            expected = p.truth[row, seen[row] : seen[row] + valid[row]]
            np.testing.assert_allclose(out.logits[row, : valid[row]], expected, rtol=0, atol=TOLERANCE)
        cache, seen = out.cache, seen + valid
        np.testing.assert_array_equal(cache.lengths, seen)
    np.testing.assert_array_equal(seen, p.lengths)


def rows_are_as_if_alone(p: Pair) -> None:
    """Bit for bit within one executable: the other rows may hold anything."""
    together = whole(p.model, p.tokens, p.lengths).logits
    for row, length in enumerate(p.lengths):
        tokens = (p.tokens + 1 + np.arange(3)[:, None]) % VOCABULARY
        tokens[row] = p.tokens[row]
        lengths = np.array([3, p.tokens.shape[1], 2], np.int32)
        lengths[row] = length
        alone = whole(p.model, tokens, lengths).logits[row, :length]
        np.testing.assert_array_equal(alone, together[row, :length])


def junk_behind_the_end_is_never_seen(p: Pair) -> None:
    clean = whole(p.model, p.tokens, p.lengths)
    noise = np.random.default_rng(1)
    tokens = np.where(p.real, p.tokens, noise.integers(0, VOCABULARY, p.tokens.shape)).astype(np.int32)

    def fill(array: jax.Array) -> jax.Array:
        return jnp.asarray(noise.normal(scale=1e3, size=array.shape), array.dtype)

    cache = p.model.init_cache(*p.tokens.shape)
    cache = dataclasses.replace(cache, keys=tuple(map(fill, cache.keys)), values=tuple(map(fill, cache.values)))
    junk = whole(p.model, tokens, p.lengths, cache=cache)
    np.testing.assert_array_equal(junk.logits[p.real], clean.logits[p.real])


def ids_of_padding_may_be_anything(p: Pair) -> None:
    """Also what no embedding has: NaN in the cache would reach every row's sums, however little weight it has."""
    clean = whole(p.model, p.tokens, p.lengths)
    for pad in (-1, -100, -(2**31), VOCABULARY, 2**31 - 1):
        padded = whole(p.model, np.where(p.real, p.tokens, pad).astype(np.int32), p.lengths)
        np.testing.assert_array_equal(padded.logits[p.real], clean.logits[p.real])
        assert np.isfinite(padded.logits).all()


def later_tokens_change_nothing_before_them(p: Pair) -> None:
    clean = whole(p.model, p.tokens, p.lengths).logits[0]
    for at in (1, p.tokens.shape[1] // 2, p.tokens.shape[1] - 1):
        tokens = p.tokens.copy()
        tokens[0, at] = (tokens[0, at] + 1) % VOCABULARY
        changed = whole(p.model, tokens, p.lengths).logits[0]
        np.testing.assert_array_equal(changed[:at], clean[:at])
        assert np.abs(changed[at] - clean[at]).max() > 0.01


def room_in_the_cache_changes_nothing(p: Pair) -> None:
    """Beyond float noise: the sums are over other blocks."""
    tight = whole(p.model, p.tokens, p.lengths).logits
    wide = whole(p.model, p.tokens, p.lengths, capacity=1024).logits
    np.testing.assert_allclose(wide[p.real], tight[p.real], rtol=0, atol=2e-5)


def half_precision_is_as_good_as_transformers(p: Pair) -> None:
    """bfloat16 has 8 bits, so errors depend on the order of roundings; ours may not exceed transformers' own by 15%.

    The error of each is its distance from float32: root mean square over all logits, stable where a maximum is not.
    """

    def error(logits: Any) -> float:
        return float(np.sqrt(np.mean((np.asarray(logits) - p.truth[:1]) ** 2)))

    ours = oracles.ours(p.folder, "bfloat16")
    assert {leaf.dtype for leaf in ours.params} == {jnp.dtype("bfloat16")}
    out = whole(ours, p.tokens[:1], p.lengths[:1])
    assert out.logits.dtype == jnp.float32
    assert out.cache.keys[0].dtype == jnp.bfloat16
    theirs = oracles.logits_of(oracles.theirs(p.folder, torch.bfloat16), p.tokens[:1])
    assert error(out.logits) <= 1.15 * error(theirs), (error(out.logits), error(theirs))
    assert error(theirs) < 0.03 * float(np.std(p.truth[:1])), "the yardstick itself has to be short"


PROPERTIES = [
    equals_transformers,
    grows_by_pieces_and_by_tokens,
    rows_are_as_if_alone,
    junk_behind_the_end_is_never_seen,
    ids_of_padding_may_be_anything,
    later_tokens_change_nothing_before_them,
    room_in_the_cache_changes_nothing,
    half_precision_is_as_good_as_transformers,
]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in TABLE.items() if not case.spelling])
@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_property(holds: Callable[[Pair], None], name: str, pair) -> None:
    holds(pair(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in TABLE.items() if case.spelling])
def test_spelling(name: str, pair) -> None:
    equals_transformers(pair(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2, long"])
def test_logits_of_the_last_token_alone_or_of_none(name: str, pair) -> None:
    p = pair(name)
    tokens, lengths = jnp.asarray(p.tokens), jnp.asarray(p.lengths)
    last = extend(p.model, p.model.init_cache(*p.tokens.shape), tokens, lengths, logits="last").logits
    np.testing.assert_allclose(last, p.truth[np.arange(3), p.lengths - 1], rtol=0, atol=TOLERANCE)
    none = extend(p.model, p.model.init_cache(*p.tokens.shape), tokens, lengths, logits="none")
    assert none.logits is None
    np.testing.assert_array_equal(none.cache.lengths, p.lengths)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in TABLE.items() if case.without])
def test_the_table_would_notice(name: str, pair, tmp_path: Path) -> None:
    """What a case is there for changes the logits, by far more than the tolerance."""
    p, case = pair(name), TABLE[name]
    config = type(case.config)(**(case.config.to_dict() | case.without))
    plain = oracles.logits_of(oracles.theirs(oracles.saved(config, tmp_path)), p.tokens[:1])
    assert np.abs(plain - p.truth[:1]).max() > 100 * TOLERANCE


@pytest.mark.slow
def test_a_text_may_fill_the_learned_positions(tmp_path: Path) -> None:
    """Prefill pads the prompt to more positions than the model has; what stands there must not reach the text."""
    folder = oracles.saved(gpt2(n_positions=21), tmp_path)
    prompt = np.random.default_rng(0).integers(0, VOCABULARY, 18)
    result = mechanex.loops.decode(
        oracles.ours(folder),
        prompt[None],
        [18],
        mechanex.transforms.temperature(0.0),
        key=jax.random.key(0),
        max_new_tokens=3,
    )
    assert np.isfinite(result.logprobs).all()
    text = np.concatenate([prompt, result.tokens[0]])
    np.testing.assert_array_equal(oracles.logits_of(oracles.theirs(folder), text[None])[0, 17:-1].argmax(-1), text[18:])
