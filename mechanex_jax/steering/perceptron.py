"""Small gates trained on activations: a vector is added where the activation looks like that of a positive answer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.steering.activations import read_answers
from mechanex_jax.steering.method_types import Made, Task

_SAMPLES = 16  # tokens of an answer that are trained on
_HELD_OUT = 0.25
_DECAY = 0.1  # decoupled weight decay: there are more coordinates than examples
_CHUNKS, _PATIENCE = 20, 4  # the held-out loss is looked at so often, and may rise so often in a row


def auc(positive: Any, negative: Any) -> float:
    """The probability that a positive scores above a negative, ties counting half (Mann and Whitney's U)."""
    scores = np.concatenate([np.asarray(positive, np.float64), np.asarray(negative, np.float64)])
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


def _logits(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """[N, R] for x [N, R, D]: a perceptron for each layer."""
    hidden = jnp.tanh(jnp.einsum("nrd,ndh->nrh", x, weights["w1"], precision="highest") + weights["b1"][:, None])
    return jnp.einsum("nrh,nh->nr", hidden, weights["w2"], precision="highest") + weights["b2"][:, None]


def _loss(weights: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy summed over layers, the two kinds weighing the same; y [R] is 1 or 0."""
    import optax

    each = optax.sigmoid_binary_cross_entropy(_logits(weights, x), jnp.broadcast_to(y, x.shape[:2]))
    balance = jnp.where(y > 0, 0.5 / jnp.maximum(jnp.sum(y), 1), 0.5 / jnp.maximum(jnp.sum(1 - y), 1))
    return jnp.sum(each * balance) / x.shape[0]


def train(
    x: np.ndarray, y: np.ndarray, held: np.ndarray, *, hidden: int, steps: int, learning_rate: float, seed: int, report: Any
) -> tuple[tuple[np.ndarray, ...], list[list[float]]]:
    """Fit a perceptron per layer on activations of single tokens, with AdamW and early stopping on held-out ones.

    Args:
      x: [N, R, D], raw activations.
      y: [R], 1 for those of positive answers.
      held: bool [R], those that are not trained on.
      hidden: units H.
      steps: of full-batch gradient descent, the most.
      learning_rate: of AdamW.
      seed: of the initial weights.
      report: called with steps done and their total.

    Returns:
      (w1 [N, D, H], b1 [N, H], w2 [N, H], b2 [N]), and [training loss, held-out loss] by chunk of steps. The standardisation
      of activations is part of w1 and b1: the gate takes raw ones.
    """
    import optax

    mean = x[:, ~held].mean(1, keepdims=True)
    spread = x[:, ~held].std(1, keepdims=True) + 1e-6
    inputs = ((x - mean) / spread).astype(np.float32)
    labels = y.astype(np.float32)
    sides = [(inputs[:, side], labels[side]) for side in (~held, held)]
    layers, _, dimension = x.shape
    rng = np.random.default_rng(seed)
    weights = {
        "w1": jnp.asarray(rng.normal(size=(layers, dimension, hidden)) / dimension**0.5, jnp.float32),
        "b1": jnp.zeros((layers, hidden)),
        "w2": jnp.asarray(rng.normal(size=(layers, hidden)) / hidden**0.5, jnp.float32),
        "b2": jnp.zeros(layers),
    }
    optimiser = optax.adamw(learning_rate, weight_decay=_DECAY)

    @jax.jit
    def chunk(carry: Any, x: jax.Array, y: jax.Array, count: jax.Array) -> Any:
        def step(_: Any, carry: Any) -> Any:
            weights, state, _ = carry
            value, gradient = jax.value_and_grad(_loss)(weights, x, y)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes types, which callers may have forbidden
                updates, state = optimiser.update(gradient, state, weights)
            return optax.apply_updates(weights, updates), state, value

        return jax.lax.fori_loop(0, count, step, carry)

    carry, curve = (weights, optimiser.init(weights), jnp.float32(0)), []
    best, kept, stale, done = np.inf, weights, 0, 0
    size = max(1, -(-steps // _CHUNKS))
    measure = jax.jit(_loss)
    while done < steps and stale < _PATIENCE:
        count = min(size, steps - done)
        carry = chunk(carry, *sides[0], np.int32(count))
        done += count
        value = float(measure(carry[0], *sides[1]))
        curve.append([float(carry[2]), value])
        stale = 0 if value < best else stale + 1
        if value < best:
            best, kept = value, carry[0]
        report(done, steps)
    w1, b1, w2, b2 = (np.asarray(kept[name], np.float64) for name in ("w1", "b1", "w2", "b2"))
    w1 = w1 / spread[:, 0, :, None]
    b1 = b1 - np.einsum("nd,ndh->nh", mean[:, 0], w1)
    return tuple(part.astype(np.float32) for part in (w1, b1, w2, b2)), curve


def _split(groups: np.ndarray, kinds: np.ndarray, seed: int) -> np.ndarray:
    """bool, true for examples that are held out: whole groups, about a quarter, and both kinds on both sides."""
    found = np.unique(groups)
    if min(len(np.unique(groups[kinds])), len(np.unique(groups[~kinds]))) < 2:
        raise expected(
            "answers",
            Verbatim(f"{kinds.sum()} positive and {(~kinds).sum()} negative examples"),
            "at least 2 different answers of each kind",
            "One is held out to measure the gate.",
        )
    shared = np.intersect1d(groups[kinds], groups[~kinds])
    pool = np.random.default_rng(seed).permutation(shared if len(shared) > 1 else found)
    return np.isin(groups, pool[: max(1, round(_HELD_OUT * len(pool)))])


def gate_logits(perceptron: tuple[np.ndarray, ...], x: np.ndarray) -> np.ndarray:
    """[N, R] for raw activations [N, R, D]; the gate is their sigmoid."""
    w1, b1, w2, b2 = (part.astype(np.float64) for part in perceptron)
    return np.einsum("nrh,nh->nr", np.tanh(np.einsum("nrd,ndh->nrh", x, w1) + b1[:, None]), w2) + b2[:, None]


def perceptrons(task: Task) -> Made:
    """Half the difference of means behind a gate per layer that is trained to open on positive answers.

    Half of it leads from midway between the means, where a gate begins to open, to that of the positive answers.

    A quarter of the answers is held out: their AUC is reported by token and by answer (mean of its tokens), and training
    stops when their loss rises. Settings: `hidden` units, `steps` (the most), `learning_rate`.

    Source: the gate in place of the cosine threshold of conditional activation steering (arXiv 2409.05907).
    """
    kinds = np.array([example.positive for example in task.examples])
    groups = np.array([example.group for example in task.examples])
    held = _split(groups, kinds, task.seed)
    read = read_answers(task.loaded, task.examples, task.layers, task.site, samples=_SAMPLES)  # [E, N, K, D]
    means = np.nanmean(read.astype(np.float64), axis=2)
    vectors = (means[kinds].mean(0) - means[~kinds].mean(0)) / 2
    real = ~np.isnan(read[:, 0, :, 0])  # [E, K]
    x = read.transpose(1, 0, 2, 3)[:, real].astype(np.float64)  # [N, R, D]
    owner = np.broadcast_to(np.arange(len(kinds))[:, None], real.shape)[real]
    gate, curve = train(x, kinds[owner], held[owner], seed=task.seed, report=task.report, **task.settings)
    scores = gate_logits(gate, x)
    metrics = {"loss": [row[0] for row in curve], "held_out_loss": [row[1] for row in curve], "auc": [], "token_auc": []}
    for layer_scores in scores:
        by_answer = np.bincount(owner, layer_scores, len(kinds)) / np.bincount(owner, minlength=len(kinds))
        metrics["auc"].append(auc(by_answer[held & kinds], by_answer[held & ~kinds]))
        side = held[owner]
        metrics["token_auc"].append(auc(layer_scores[side & kinds[owner]], layer_scores[side & ~kinds[owner]]))
    metrics["norm"] = np.linalg.norm(vectors, axis=-1).tolist()
    return Made(vectors.astype(np.float32), gate, metrics)
