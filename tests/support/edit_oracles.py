"""Every operation on activations once more, in NumPy and float64, and what to compare models by."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import oracles
import torch

import mechanex_jax as mechanex
from mechanex_jax import edits

TOLERANCE = 1e-4
D, L, R, H = 64, 2, 3, 5
PROMPTS = np.random.default_rng(0).integers(0, oracles.VOCABULARY, (3, 12)).astype(np.int32)
LENGTHS = np.array([12, 7, 1], np.int32)
NEW = 6
GREEDY = mechanex.transforms.temperature(0.0)


def vectors(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation: `make(values, layer, strength, **common)` is the edit, `formula(values, h, w)` the oracle.

    `draw(seed, n)` gives the values of n entries by name; h is float64 [S, D], w [S, 1]; the formula gets those of one entry.
    """

    draw: Callable[[int, int], dict[str, np.ndarray]]
    make: Callable[..., Any]
    formula: Callable[[dict[str, np.ndarray], np.ndarray, np.ndarray], np.ndarray]


def _vector(seed: int, n: int) -> dict[str, np.ndarray]:
    return {"v": vectors(n, D, seed=seed)}


def _low_rank(seed: int, n: int) -> dict[str, np.ndarray]:
    return _vector(seed, n) | {"a": vectors(n, R, D, seed=seed + 1) / 8, "b": vectors(n, R, D, seed=seed + 2) / 8}


def _two_vectors(seed: int, n: int) -> dict[str, np.ndarray]:
    return _vector(seed, n) | {"c": vectors(n, D, seed=seed + 1)}


def _network(seed: int, n: int) -> dict[str, np.ndarray]:
    w1, b1 = vectors(n, D, H, seed=seed + 1) / 8, vectors(n, H, seed=seed + 2)
    return _vector(seed, n) | {"w1": w1, "b1": b1, "w2": vectors(n, H, seed=seed + 3), "b2": vectors(n, seed=seed + 4)}


def _norm(h: np.ndarray) -> np.ndarray:
    return np.sqrt((h**2).sum(-1, keepdims=True))


def _ablated(p: dict[str, np.ndarray], h: np.ndarray, w: np.ndarray) -> np.ndarray:
    u = p["v"] / _norm(p["v"])
    return h - w * np.outer(h @ u, u)


def _preserved(p: dict[str, np.ndarray], h: np.ndarray, w: np.ndarray) -> np.ndarray:
    moved = h + w * p["v"]
    return moved * _norm(h) / _norm(moved)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def _cosine(h: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (h @ c)[:, None] / (_norm(h) * _norm(c))


def _perceived(p: dict[str, np.ndarray], h: np.ndarray, w: np.ndarray) -> np.ndarray:
    g = _sigmoid(np.tanh(h @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"])
    return h + w * g[:, None] * p["v"]


CASES = {
    "add": Case(_vector, lambda p, layer, s, **k: edits.add(p["v"], layer, s, **k), lambda p, h, w: h + w * p["v"]),
    "ablate": Case(_vector, lambda p, layer, s, **k: edits.ablate(p["v"], layer, s, **k), _ablated),
    "clamp": Case(
        _vector,
        lambda p, layer, s, **k: edits.clamp(p["v"], layer, 0.7, s, **k),
        lambda p, h, w: _ablated(p, h, w) + w * 0.7 * p["v"],
    ),
    "affine": Case(
        _low_rank,
        lambda p, layer, s, **k: edits.affine(p["a"], p["b"], layer, s, vector=p["v"], **k),
        lambda p, h, w: h + w * (h @ (p["a"].T @ p["b"]).T + p["v"]),
    ),
    "norm_preserving": Case(
        _vector, lambda p, layer, s, **k: edits.norm_preserving(edits.add(p["v"], layer, s, **k)), _preserved
    ),
    "gate, hard": Case(
        _two_vectors,
        lambda p, layer, s, **k: edits.gate(p["v"], layer, s, direction=p["c"], threshold=-0.03, **k),
        lambda p, h, w: h + w * (_cosine(h, p["c"]) > -0.03) * p["v"],
    ),
    "gate, soft": Case(
        _two_vectors,
        lambda p, layer, s, **k: edits.gate(p["v"], layer, s, direction=p["c"], threshold=0.1, sharpness=9.0, **k),
        lambda p, h, w: h + w * _sigmoid(9.0 * (_cosine(h, p["c"]) - 0.1)) * p["v"],
    ),
    "gate, perceptron": Case(
        _network,
        lambda p, layer, s, **k: edits.gate(p["v"], layer, s, perceptron=(p["w1"], p["b1"], p["w2"], p["b2"]), **k),
        _perceived,
    ),
}

# (arguments of `scope`, the positions meant in a text of `total` tokens, the first `prompt` of which are the prompt)
SCOPES: dict[str, tuple[dict[str, Any], Callable[[int, int], Sequence[int]]]] = {
    "all": ({"part": "all"}, lambda prompt, total: range(total)),
    "all, first 3": ({"part": "all", "first": 3}, lambda prompt, total: [*range(total)][:3]),
    "prompt": ({"part": "prompt"}, lambda prompt, total: range(prompt)),
    "prompt, first 2": ({"part": "prompt", "first": 2}, lambda prompt, total: [*range(prompt)][:2]),
    "prompt, last 3": ({"part": "prompt", "last": 3}, lambda prompt, total: [*range(prompt)][-3:]),
    "generated": ({"part": "generated"}, lambda prompt, total: range(prompt, total)),
    "generated, first 2": ({"part": "generated", "first": 2}, lambda prompt, total: [*range(prompt, total)][:2]),
}


def weights(scope: str, prompt: int, total: int, strength: float = 1.0, decay: float = 1.0) -> np.ndarray:
    """float64 [total, 1]: strength, decaying over the positions of the scope, 0 elsewhere."""
    weight = np.zeros((total, 1))
    for age, position in enumerate(SCOPES[scope][1](prompt, total)):
        weight[position] = strength * decay**age
    return weight


def entry(values: dict[str, np.ndarray], *index: int) -> dict[str, np.ndarray]:
    """The values of one entry, in float64."""
    return {name: value[index].astype(np.float64) for name, value in values.items()}


@contextlib.contextmanager
def hooked(hf: Any, site: str, layer: int, change: Callable[[np.ndarray], np.ndarray]):
    """While active, PyTorch's activations of one text [1, S, D] go through a function of float64 [S, D]."""
    with oracles.edited(hf, site, layer, lambda x: torch.from_numpy(change(x[0].double().numpy())).float()[None]):
        yield


def decode(model: Any, edit: Any) -> Any:
    key = jax.random.key(0)
    return mechanex.loops.decode(model, PROMPTS, LENGTHS, GREEDY, edits=edit, key=key, max_new_tokens=NEW)


def text_of(result: Any, row: int) -> np.ndarray:
    return np.concatenate([PROMPTS[row, : LENGTHS[row]], result.tokens[row]])


def assert_greedy(hf: Any, tokens: np.ndarray, prompt: int, logprobs: Any) -> None:
    """Each token behind the prompt is the likeliest, and has this log-probability, by PyTorch without a cache."""
    logits = oracles.logits_of(hf, tokens[None])[0, prompt - 1 : -1].astype(np.float64)
    new = tokens[prompt:]
    np.testing.assert_array_equal(logits.argmax(-1), new)
    expected = logits[range(len(new)), new] - np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(logprobs, expected, rtol=0, atol=TOLERANCE)


def pair(family: str, folder: Any) -> tuple[Any, Any]:
    """A random model of `transformers`, ours and theirs."""
    saved = oracles.saved({"llama": oracles.llama, "gpt2": oracles.gpt2}[family](), folder)
    return oracles.ours(saved), oracles.theirs(saved)
