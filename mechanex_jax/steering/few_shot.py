"""A vector found by gradient: added to the activations, it makes positive answers likelier and negative ones less likely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32

from mechanex_jax import edits, rows
from mechanex_jax.steering import activations
from mechanex_jax.steering.batches import ExampleBatch, pad
from mechanex_jax.steering.examples import Example
from mechanex_jax.steering.method_types import MethodInput, MethodResult

if TYPE_CHECKING:
    import optax

    from mechanex_jax.architectures import Model

_POSITIONS = 512  # rows times width of a training step: logits of that many positions are in memory
_MULTIPLE = 8  # all rows are padded to the next multiple of it
_WINDOW, _GAIN = 8, 0.03  # stop where the mean loss of so many steps is not this share below that of those before
_INITIAL_NORM = 0.01  # of the first vectors, as a share of their bound
_B2 = 0.99  # Adam's decay of squared gradients
_Array = jax.Array | np.ndarray


class TrainingBatch(NamedTuple):
    """B rows of a training step.

    Attributes:
      tokens, lengths: the texts.
      places: positions of the answers' tokens, 1 where `mask` is 0.
      mask: 1 at tokens of the answer that something precedes, else 0.
      sign: 1 for positive answers, -1 for negative ones, 0 for rows that don't count.
    """

    tokens: Int32[_Array, "B S"]
    lengths: Int32[_Array, " B"]
    places: Int32[_Array, "B K"]
    mask: Float32[_Array, "B K"]
    sign: Float32[_Array, " B"]


def loss(
    vectors: Float32[jax.Array, "N D"],
    model: Model,
    hidden: Float[jax.Array, "B S D"],
    batch: TrainingBatch,
    site: str,
    layers: Sequence[int],
) -> tuple[Float32[jax.Array, ""], Float32[jax.Array, " N"]]:
    """Mean over rows of the mean over an answer's tokens: -log p for positives, -log(1 - p) for negatives.

    Args:
      vectors: added at `layers`.
      model: `activations.tail`.
      hidden: what its first layer is given.
      batch: texts and answers.
      site: where in a layer the vectors are added.
      layers: N indices, counted from the tail's first.

    Returns:
      The loss, and the median norm of the activations that enter each of `layers`.
    """
    tokens, lengths, places, mask, sign = map(jnp.asarray, batch)
    steered = rows.broadcast_rows(edits.add(vectors, np.asarray(layers), site=site), tokens.shape[0])
    cache = model.init_cache(*tokens.shape)
    all_edits = (activations.resume(hidden), steered)
    out = model.extend(cache, tokens, lengths, all_edits, logits="none", capture=("resid_pre", "resid_post"))
    logp = activations.logprobs_at(model, out.captured["resid_post"][:, -1], tokens, places)
    # log(1 - p), its slope bounded where p is near 1.
    log_complement = jnp.log1p(-jnp.exp(jnp.minimum(logp, -1e-3)))
    per_token = jnp.where(sign[:, None] > 0, -logp, -log_complement)
    per_row = jnp.sum(per_token * mask, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1.0)
    counted = jnp.abs(sign)
    real = (jnp.arange(tokens.shape[1]) < lengths[:, None]) & (counted > 0)[:, None]
    entering = [out.captured["resid_pre"][:, layer].astype(jnp.float32) for layer in layers]
    norms = jnp.stack([jnp.nanmedian(jnp.where(real, jnp.linalg.norm(x, axis=-1), jnp.nan)) for x in entering])
    return jnp.sum(per_row * counted) / jnp.maximum(jnp.sum(counted), 1.0), jax.lax.stop_gradient(norms)


@partial(jax.jit, static_argnames=("site", "layers"))
def _step(
    relative: Float32[jax.Array, "N D"],
    state: optax.OptState,
    bound: Float32[jax.Array, " N"],
    rate: Float32[jax.Array, ""],
    model: Model,
    hidden: Float[jax.Array, "B S D"],
    batch: TrainingBatch,
    site: str,
    layers: tuple[int, ...],
) -> tuple[Float32[jax.Array, "N D"], optax.OptState, Float32[jax.Array, ""], Float32[jax.Array, " N"]]:
    """One step of Adam, then the projection onto the ball of norm 1. Vectors are `relative` times the bound of their layer."""
    import optax

    def loss_of(relative: jax.Array) -> tuple[jax.Array, jax.Array]:
        return loss(relative * bound[:, None], model, hidden, batch, site, layers)

    (value, norms), gradient = jax.value_and_grad(loss_of, has_aux=True)(relative)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types, which callers may have forbidden
        updates, state = optax.scale_by_adam(b2=_B2).update(gradient, state)
    relative = relative - rate * cast(jax.Array, updates)
    length = jnp.linalg.norm(relative, axis=-1, keepdims=True)
    return relative / jnp.maximum(length, 1.0), state, value, norms


def training_batch(batch: ExampleBatch, examples: Sequence[Example]) -> TrainingBatch:
    """What `loss` takes of a batch of these examples."""
    sign = np.zeros(len(batch.tokens), np.float32)
    sign[: len(batch.indices)] = [1 if examples[i].positive else -1 for i in batch.indices]
    longest = max(len(example.tokens) - example.start for example in examples)
    places = batch.starts[:, None] + np.arange(longest, dtype=np.int32)
    mask = (places < batch.lengths[:, None]) & (places > 0)  # what nothing precedes has no probability
    return TrainingBatch(batch.tokens, batch.lengths, np.where(mask, places, 1), mask.astype(np.float32), sign)


def _minibatches(examples: Sequence[Example], count: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Passes over all examples without end, in random order, the two kinds mixed evenly."""
    kinds = np.array([example.positive for example in examples])
    while True:
        share_done = np.zeros(len(examples))  # of its kind, when an example's turn comes
        for kind in (np.flatnonzero(kinds), np.flatnonzero(~kinds)):
            share_done[rng.permutation(kind)] = np.arange(len(kind)) / max(len(kind), 1)
        order = np.lexsort((rng.permutation(len(examples)), share_done))
        for first in range(0, len(order), count):
            yield order[first : first + count].tolist()


class _FrozenLayers:
    """What the layers before the first steered one compute, kept on the host: training runs the rest only.

    Attributes:
      size: S, to which all rows are padded.
      hidden: [E, S, D], for all examples.
    """

    def __init__(self, task: MethodInput, first: int):
        longest = max(len(example.tokens) for example in task.examples)
        self.size = -(-longest // _MULTIPLE) * _MULTIPLE
        self.hidden = activations.head_states(task.loaded, task.examples, first, self.size)
        self._examples = task.examples

    def rows(self, chosen: Sequence[int], count: int) -> tuple[Float[np.ndarray, "B S D"], TrainingBatch]:
        """The chosen examples as `count` rows; those behind them count for nothing."""
        batch = pad([self._examples[i] for i in chosen], np.array(chosen), count, self.size)
        hidden = np.zeros((count, *self.hidden.shape[1:]), self.hidden.dtype)
        hidden[: len(chosen)] = self.hidden[chosen]
        return hidden, training_batch(batch, self._examples)


def few_shot(task: MethodInput) -> MethodResult:
    """Optimise one vector per layer, all layers at once, so that strength 1 is what was trained (arXiv 2502.18862).

    Settings: `steps`, the most steps of Adam, of about 512 positions each; `max_norm`, the bound on the vectors' norms added
    up over layers, each as a share of the norm of a typical activation at its layer, and all bounded alike; `learning_rate`,
    in units of a vector's bound / sqrt(D) per step and coordinate. Training stops early where
    the loss, averaged over a window of steps, no longer falls.
    """
    import optax

    examples, first = task.examples, min(task.layers)
    rng = np.random.default_rng(task.seed)
    frozen, model = _FrozenLayers(task, first), activations.tail(task.loaded.model, first)
    layers = tuple(layer - first for layer in task.layers)
    dimension = model.spec.width
    rate = jnp.float32(task.settings["learning_rate"] / dimension**0.5)
    start = rng.normal(size=(len(layers), dimension)).astype(np.float32)
    relative = jnp.asarray(_INITIAL_NORM * start / np.linalg.norm(start, axis=-1, keepdims=True))
    state = optax.scale_by_adam(b2=_B2).init(relative)
    count = min(len(examples), max(2, _POSITIONS // frozen.size))
    window = min(_WINDOW, -(-len(examples) // count))
    minibatches, steps = _minibatches(examples, count, rng), int(task.settings["steps"])

    def run(
        relative: jax.Array, state: optax.OptState, bound: jax.Array, chosen: Sequence[int]
    ) -> tuple[jax.Array, optax.OptState, jax.Array, jax.Array]:
        hidden, batch = frozen.rows(chosen, count)
        with jax.default_device(task.loaded.device):
            return _step(relative, state, bound, rate, model, hidden, batch, task.site, layers)

    # With a bound of 0 a step moves nothing and tells how large activations are.
    spread = np.linspace(0, len(examples) - 1, count).astype(int).tolist()
    *_, norms = run(relative, state, jnp.zeros(len(layers)), spread)
    bound = task.settings["max_norm"] / len(layers) * norms
    curve: list[float] = []
    for step in range(steps):
        relative, state, value, _ = run(relative, state, bound, next(minibatches))
        curve.append(float(value))
        task.report(step + 1, steps)
        if len(curve) >= 2 * window + 2:
            before, now = np.mean(curve[-2 * window : -window]), np.mean(curve[-window:])
            if now > before * (1 - _GAIN):
                break
    vectors = np.asarray(relative * bound[:, None])
    lengths = np.linalg.norm(vectors, axis=-1)
    metrics = {"loss": curve, "norm": lengths.tolist(), "relative_norm": (lengths / np.asarray(norms)).tolist()}
    return MethodResult(vectors, metrics=metrics)
