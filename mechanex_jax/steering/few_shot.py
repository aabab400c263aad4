"""A vector found by gradient: added to the activations, it makes positive answers likelier and negative ones less likely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechanex_jax import edits, rows
from mechanex_jax.steering import activations
from mechanex_jax.steering.examples import Example, ExampleBatch, pad
from mechanex_jax.steering.method_types import Made, Task

_POSITIONS = 512  # rows times width of a training step: logits of that many positions are in memory
_MULTIPLE = 8  # the length of all rows is the next one of it
_WINDOW, _GAIN = 8, 0.03  # stop where the mean loss of so many steps is not this share below that of those before
_START = 0.01  # norm of the first vectors, of a bound of 1
_B2 = 0.99


def loss(vectors: jax.Array, model: Any, hidden: jax.Array, batch: dict[str, jax.Array], site: str, layers: Sequence[int]):
    """Mean over rows of the mean over an answer's tokens: -log p for positives, -log(1 - p) for negatives.

    With it goes the median norm of the activations that enter each of `layers`, [N].

    Args:
      vectors: [N, D], added at `layers` (counted from the model's first, a tail's).
      model: `activations.tail`.
      hidden: [B, S, D], what the first layer is given.
      batch: tokens [B, S], lengths [B], and of the answers: places [B, K] in the text, mask [B, K] of those that there are,
        sign [B] (1, -1, or 0 for rows that don't count).
    """
    tokens, mask, sign = batch["tokens"], batch["mask"], batch["sign"]
    steered = rows.broadcast_rows(edits.add(vectors, np.asarray(layers), site=site), tokens.shape[0])
    cache = model.init_cache(*tokens.shape)
    given = (activations.resume(hidden), steered)
    out = model.extend(cache, tokens, batch["lengths"], given, logits="none", capture=("resid_pre", "resid_post"))
    logp = activations.logprobs_at(model, out.captured["resid_post"][:, -1], tokens, batch["places"])
    # log(1 - p), its slope bounded where p is near 1.
    other = jnp.log1p(-jnp.exp(jnp.minimum(logp, -1e-3)))
    per_token = jnp.where(sign[:, None] > 0, -logp, -other)
    per_row = jnp.sum(per_token * mask, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1.0)
    counted = jnp.abs(sign)
    real = (jnp.arange(tokens.shape[1]) < batch["lengths"][:, None]) & (counted > 0)[:, None]
    entering = [out.captured["resid_pre"][:, layer].astype(jnp.float32) for layer in layers]
    norms = jnp.stack([jnp.nanmedian(jnp.where(real, jnp.linalg.norm(x, axis=-1), jnp.nan)) for x in entering])
    return jnp.sum(per_row * counted) / jnp.maximum(jnp.sum(counted), 1.0), jax.lax.stop_gradient(norms)


@partial(jax.jit, static_argnames=("site", "layers"))
def _step(relative, state, rates, model, hidden, batch, site, layers):
    """One step of Adam, then the projection onto the ball of norm 1. Vectors are `relative` times the bound of their layer."""
    import optax

    bound, rate = rates

    def of(relative: jax.Array) -> Any:
        return loss(relative * bound[:, None], model, hidden, batch, site, layers)

    (value, norms), gradient = jax.value_and_grad(of, has_aux=True)(relative)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types, which callers may have forbidden
        updates, state = optax.scale_by_adam(b2=_B2).update(gradient, state)
    relative = relative - rate * updates
    length = jnp.linalg.norm(relative, axis=-1, keepdims=True)
    return relative / jnp.maximum(length, 1.0), state, value, norms


def fields(batch: ExampleBatch, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """What `loss` takes of a batch of these examples."""
    sign = np.zeros(len(batch.tokens), np.float32)
    sign[: len(batch.indices)] = [1 if examples[i].positive else -1 for i in batch.indices]
    longest = max(len(example.tokens) - example.start for example in examples)
    places = batch.starts[:, None] + np.arange(longest, dtype=np.int32)
    mask = (places < batch.lengths[:, None]) & (places > 0)  # what nothing precedes has no probability
    places = np.where(mask, places, 1)
    return {"tokens": batch.tokens, "lengths": batch.lengths, "places": places, "mask": mask.astype(np.float32), "sign": sign}


def _minibatches(examples: Sequence[Example], count: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Passes over all examples without end, in random order, the two kinds mixed evenly."""
    kinds = np.array([example.positive for example in examples])
    while True:
        places = np.zeros(len(examples))
        for own in (np.flatnonzero(kinds), np.flatnonzero(~kinds)):
            places[rng.permutation(own)] = np.arange(len(own)) / max(len(own), 1)
        order = np.lexsort((rng.permutation(len(examples)), places))
        for first in range(0, len(order), count):
            yield order[first : first + count].tolist()


class _Frozen:
    """What the layers before the first steered one compute, kept on the host: training runs the rest only."""

    def __init__(self, task: Task, examples: Sequence[Example], first: int):
        longest = max(len(example.tokens) for example in examples)
        self.size = -(-longest // _MULTIPLE) * _MULTIPLE
        self.hidden = activations.heads(task.loaded, examples, first, self.size)

    def rows(self, examples: Sequence[Example], chosen: Sequence[int], count: int) -> tuple[Any, dict[str, np.ndarray]]:
        batch = pad([examples[i] for i in chosen], np.array(chosen), count, self.size)
        hidden = np.zeros((count, *self.hidden.shape[1:]), self.hidden.dtype)
        hidden[: len(chosen)] = self.hidden[chosen]
        return hidden, fields(batch, examples)


def few_shot(task: Task) -> Made:
    """Optimise one vector per layer, all layers at once, so that strength 1 is what was trained (arXiv 2502.18862).

    Settings: `steps`, the most steps of Adam, of about 512 positions each; `max_norm`, the bound on the vectors' norms added
    up over layers, each as a share of the norm of a typical activation at its layer, and all bounded alike; `learning_rate`,
    in units of a vector's bound / sqrt(D) per step and coordinate. Training stops early where
    the loss, averaged over a window of steps, no longer falls.
    """
    import optax

    examples = task.examples
    first, rng = min(task.layers), np.random.default_rng(task.seed)
    frozen, model = _Frozen(task, examples, first), activations.tail(task.loaded.model, first)
    layers = tuple(layer - first for layer in task.layers)
    dimension = model.spec.width
    rate = jnp.float32(task.settings["learning_rate"] / dimension**0.5)
    start = rng.normal(size=(len(layers), dimension)).astype(np.float32)
    relative = jnp.asarray(_START * start / np.linalg.norm(start, axis=-1, keepdims=True))
    state = optax.scale_by_adam(b2=_B2).init(relative)
    count = min(len(examples), max(2, _POSITIONS // frozen.size))
    window = min(_WINDOW, -(-len(examples) // count))
    chosen, curve, steps = _minibatches(examples, count, rng), [], task.settings["steps"]

    def run(relative: jax.Array, state: Any, bound: jax.Array, rows_of: Sequence[int]) -> Any:
        hidden, batch = frozen.rows(examples, rows_of, count)
        with jax.default_device(task.loaded.device):
            return _step(relative, state, (bound, rate), model, hidden, batch, task.site, layers)

    # With a bound of 0 a step moves nothing and tells how large activations are.
    *_, norms = run(relative, state, jnp.zeros(len(layers)), np.linspace(0, len(examples) - 1, count).astype(int).tolist())
    bound = task.settings["max_norm"] / len(layers) * norms
    for step in range(steps):
        relative, state, value, _ = run(relative, state, bound, next(chosen))
        curve.append(float(value))
        task.report(step + 1, steps)
        if len(curve) >= 2 * window + 2:
            before, now = np.mean(curve[-2 * window : -window]), np.mean(curve[-window:])
            if now > before * (1 - _GAIN):
                break
    vectors = np.asarray(relative * bound[:, None])
    lengths = np.linalg.norm(vectors, axis=-1)
    metrics = {"loss": curve, "norm": lengths.tolist(), "relative_norm": (lengths / np.asarray(norms)).tolist()}
    return Made(vectors, metrics=metrics)
