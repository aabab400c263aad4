"""Small gates trained on activations: a vector is added where the activation looks like that of a positive answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Num, Shaped

from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.progress import Report
from mechanex_jax.steering.activations import read_answers
from mechanex_jax.steering.method_types import MethodInput, MethodResult
from mechanex_jax.steering.vector import PerceptronWeights

if TYPE_CHECKING:
    import optax

_SAMPLES = 16  # tokens of an answer that are trained on
_HELD_OUT = 0.25
_DECAY = 0.1  # decoupled weight decay: there are more coordinates than examples
_CHUNKS, _PATIENCE = 20, 4  # the held-out loss is looked at so often, and may rise so often in a row
_Weights: TypeAlias = dict[str, jax.Array]  # w1, b1, w2, b2 of N perceptrons in training, see `PerceptronWeights`
_Carry: TypeAlias = "tuple[_Weights, optax.OptState, jax.Array]"  # weights, AdamW's state, the last loss


def auc(positive: Num[np.ndarray, " P"], negative: Num[np.ndarray, " M"]) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, ties counting half."""
    scores = np.concatenate([np.asarray(positive, np.float64), np.asarray(negative, np.float64)])
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


def _logits(weights: _Weights, x: Float32[jax.Array, "N R D"]) -> Float32[jax.Array, "N R"]:
    """The output of each layer's perceptron."""
    hidden = jnp.tanh(jnp.einsum("nrd,ndh->nrh", x, weights["w1"], precision="highest") + weights["b1"][:, None])
    return jnp.einsum("nrh,nh->nr", hidden, weights["w2"], precision="highest") + weights["b2"][:, None]


def _loss(weights: _Weights, x: Float32[jax.Array, "N R D"], y: Float32[jax.Array, " R"]) -> Float32[jax.Array, ""]:
    """Cross-entropy, mean over layers, the two kinds weighing the same; `y` is 1 or 0."""
    import optax

    each = optax.sigmoid_binary_cross_entropy(_logits(weights, x), jnp.broadcast_to(y, x.shape[:2]))
    balance = jnp.where(y > 0, 0.5 / jnp.maximum(jnp.sum(y), 1), 0.5 / jnp.maximum(jnp.sum(1 - y), 1))
    return jnp.sum(each * balance) / x.shape[0]


def train(
    x: Float[np.ndarray, "N R D"],
    y: Bool[np.ndarray, " R"],
    held: Bool[np.ndarray, " R"],
    *,
    hidden: int,
    steps: int,
    learning_rate: float,
    seed: int,
    report: Report,
) -> tuple[PerceptronWeights, list[list[float]]]:
    """Fit a perceptron per layer on activations of single tokens, with AdamW and early stopping on held-out ones.

    Args:
      x: raw activations of R tokens at N layers.
      y: whether a token is of a positive answer.
      held: the tokens that are not trained on.
      hidden: units H.
      steps: of full-batch gradient descent, the most.
      learning_rate: of AdamW.
      seed: of the initial weights.
      report: called with steps done and their total.

    Returns:
      The weights, and [training loss, held-out loss] by chunk of steps. The standardization of activations is part of w1 and
      b1: the gate takes raw ones.
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
    optimizer = optax.adamw(learning_rate, weight_decay=_DECAY)

    @jax.jit
    def chunk(carry: _Carry, x: jax.Array, y: jax.Array, count: jax.Array) -> _Carry:
        def step(_: jax.Array, carry: _Carry) -> _Carry:
            weights, state, _ = carry
            value, gradient = jax.value_and_grad(_loss)(weights, x, y)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes types, which callers may have forbidden
                updates, state = optimizer.update(gradient, state, weights)
            return cast(_Weights, optax.apply_updates(weights, updates)), state, value

        return jax.lax.fori_loop(0, count, step, carry)

    carry: _Carry = (weights, optimizer.init(weights), jnp.float32(0))
    curve: list[list[float]] = []
    best, best_weights, stale, done = np.inf, weights, 0, 0
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
            best, best_weights = value, carry[0]
        report(done, steps)
    w1, b1, w2, b2 = (np.asarray(best_weights[name], np.float64) for name in ("w1", "b1", "w2", "b2"))
    w1 = w1 / spread[:, 0, :, None]
    b1 = b1 - np.einsum("nd,ndh->nh", mean[:, 0], w1)
    return PerceptronWeights(*(array.astype(np.float32) for array in (w1, b1, w2, b2))), curve


def _held_out(groups: Shaped[np.ndarray, " E"], kinds: Bool[np.ndarray, " E"], seed: int) -> Bool[np.ndarray, " E"]:
    """Which examples are held out: whole groups, about a quarter, and both kinds on both sides."""
    if min(len(np.unique(groups[kinds])), len(np.unique(groups[~kinds]))) < 2:
        raise expected(
            "answers",
            Verbatim(f"{kinds.sum()} positive and {(~kinds).sum()} negative examples"),
            "at least 2 different answers of each kind",
            "One is held out to measure the gate.",
        )
    shared = np.intersect1d(groups[kinds], groups[~kinds])
    pool = np.random.default_rng(seed).permutation(shared if len(shared) > 1 else np.unique(groups))
    return np.isin(groups, pool[: max(1, round(_HELD_OUT * len(pool)))])


def gate_logits(perceptron: PerceptronWeights, x: Float[np.ndarray, "N R D"]) -> Float64[np.ndarray, "N R"]:
    """The logits of gates for raw activations; a gate is their sigmoid."""
    w1, b1, w2, b2 = (array.astype(np.float64) for array in perceptron)
    return np.einsum("nrh,nh->nr", np.tanh(np.einsum("nrd,ndh->nrh", x, w1) + b1[:, None]), w2) + b2[:, None]


def perceptrons(task: MethodInput) -> MethodResult:
    """Half the difference of means behind a gate per layer that is trained to open on positive answers.

    Half of it leads from midway between the means, where a gate begins to open, to that of the positive answers.

    A quarter of the answers is held out: their AUC is reported by token and by answer (mean of its tokens), and training
    stops when their loss rises. Settings: `hidden` units, `steps` (the most), `learning_rate`.

    Source: the gate in place of the cosine threshold of conditional activation steering (arXiv 2409.05907).
    """
    kinds = np.array([example.positive for example in task.examples])
    groups = np.array([example.group for example in task.examples])
    held = _held_out(groups, kinds, task.seed)
    activations = read_answers(task.loaded, task.examples, task.layers, task.site, samples=_SAMPLES)  # [E, N, K, D]
    means = np.nanmean(activations.astype(np.float64), axis=2)
    vectors = (means[kinds].mean(0) - means[~kinds].mean(0)) / 2
    real = ~np.isnan(activations[:, 0, :, 0])  # [E, K]
    x = activations.transpose(1, 0, 2, 3)[:, real].astype(np.float64)  # [N, R, D]
    owner = np.broadcast_to(np.arange(len(kinds))[:, None], real.shape)[real]
    weights, curve = train(
        x,
        kinds[owner],
        held[owner],
        hidden=int(task.settings["hidden"]),
        steps=int(task.settings["steps"]),
        learning_rate=task.settings["learning_rate"],
        seed=task.seed,
        report=task.report,
    )
    answer_aucs, token_aucs = [], []
    side = held[owner]
    for scores in gate_logits(weights, x):
        by_answer = np.bincount(owner, scores, len(kinds)) / np.bincount(owner, minlength=len(kinds))
        answer_aucs.append(auc(by_answer[held & kinds], by_answer[held & ~kinds]))
        token_aucs.append(auc(scores[side & kinds[owner]], scores[side & ~kinds[owner]]))
    metrics = {
        "loss": [training for training, _ in curve],
        "held_out_loss": [held_out for _, held_out in curve],
        "auc": answer_aucs,
        "token_auc": token_aucs,
        "norm": np.linalg.norm(vectors, axis=-1).tolist(),
    }
    return MethodResult(vectors.astype(np.float32), weights, metrics)
