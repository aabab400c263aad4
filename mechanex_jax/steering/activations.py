"""What a model computes on given texts: activations, and its split into a head that steering leaves alone and a tail.

Steering from layer F on changes nothing before it. A training loop or a sweep over strengths therefore runs the layers before F
once (`head`) and then only the rest (`tail`), which is a model of its own whose input is put in place by an edit (`Resume`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mechanex_jax import rows
from mechanex_jax.checkpoints.progress import Report, silent
from mechanex_jax.steering.examples import Batch, Example, batches

if TYPE_CHECKING:
    from mechanex_jax.architectures import Model


@partial(jax.jit, static_argnames=("site", "layers"))
def _read(model: Any, tokens: jax.Array, lengths: jax.Array, weights: jax.Array, site: str, layers: tuple[int, ...]):
    """Weighted sums over positions, weights [B, K, S]: float32 [B, N, K, D]. XLA drops the layers behind the last one read."""
    out = model.extend(model.init_cache(*tokens.shape), tokens, lengths, logits="none", capture=(site,))
    kept = [jax.lax.index_in_dim(out.captured[site], layer, axis=1, keepdims=False) for layer in layers]
    stacked = jnp.stack(kept, axis=1).astype(jnp.float32)
    return jnp.einsum("bks,bnsd->bnkd", weights, stacked, precision=jax.lax.Precision.HIGHEST)


def _answer_weights(batch: Batch, samples: int) -> np.ndarray:
    """[B, K, S]: for 0 samples the mean over each answer (K = 1), else up to K single tokens, evenly spread, the rest zero."""
    answers = batch.answers()
    counts = answers.sum(-1)
    if samples == 0:
        return (answers / np.maximum(counts, 1)[:, None])[:, None].astype(np.float32)
    weights = np.zeros((len(answers), samples, answers.shape[1]), np.float32)
    for row, count in enumerate(counts):
        taken = min(samples, count)
        offsets = np.linspace(0, count - 1, taken).round().astype(int) if taken else np.zeros(0, int)
        weights[row, np.arange(taken), batch.starts[row] + offsets] = 1
    return weights


def read_answers(
    loaded: Any, examples: Sequence[Example], layers: Sequence[int], site: str, *, samples: int = 0, report: Report = silent
) -> np.ndarray:
    """Activations at the answers' tokens.

    Args:
      loaded: the model.
      examples: any number; they run in micro-batches of like length.
      layers: which layers, N of them.
      site: where in the block, the same as the one at which a vector is added.
      samples: 0 gives the mean over each answer; K gives up to K of its tokens, evenly spread.
      report: called with examples done and their total.

    Returns:
      float32 [examples, N, D]; with samples [examples, N, K, D], NaN where an answer has fewer tokens.
    """
    spec, done = loaded.model.spec, 0
    found = np.full((len(examples), len(layers), max(samples, 1), spec.width), np.nan, np.float32)
    for batch in batches(examples):
        weights = _answer_weights(batch, samples)
        with jax.default_device(loaded.device):
            values = np.asarray(_read(loaded.model, batch.tokens, batch.lengths, weights, site, tuple(layers)))
        for row, index in enumerate(batch.indices):
            taken = weights[row].any(-1)
            found[index][:, taken] = values[row][:, taken]
        done += len(batch.indices)
        report(done, len(examples))
    return found if samples else found[:, :, 0]


@partial(jax.jit, static_argnames="layer")
def _head(model: Any, tokens: jax.Array, lengths: jax.Array, layer: int) -> jax.Array:
    out = model.extend(model.init_cache(*tokens.shape), tokens, lengths, logits="none", capture=("resid_pre",))
    return jax.lax.index_in_dim(out.captured["resid_pre"], layer, axis=1, keepdims=False)


def head(loaded: Any, batch: Batch, layer: int) -> jax.Array:
    """The residual stream [B, S, D] as it enters `layer`; the layers from there on don't run."""
    with jax.default_device(loaded.device):
        return _head(loaded.model, batch.tokens, batch.lengths, layer)


def tail(model: Model, layer: int) -> Model:
    """The model from `layer` on, sharing its weights. What it embeds means nothing: put `Resume` first among its edits."""
    from mechanex_jax.architectures import Model, parameter_shapes  # Flax takes half a second to import

    config = dataclasses.replace(model.static.config, layers=model.spec.layers - layer)
    static = dataclasses.replace(model.static, config=config)
    named = dict(zip(parameter_shapes(model.static), model.params, strict=True))

    def whole(path: str) -> str:
        head, _, rest = path.partition(".")
        index, _, name = rest.partition(".")
        return f"blocks.{int(index) + layer}.{name}" if head == "blocks" else path

    return Model(tuple(named[whole(path)] for path in parameter_shapes(static)), static)


@rows.row_tree
class Resume:
    """Puts `hidden` where the first layer begins."""

    site: str = rows.static()
    hidden: Any = rows.row(2)

    def apply(self, x: jax.Array, layer: jax.Array, where: Any) -> jax.Array:
        return jnp.where(layer == 0, self.hidden.astype(x.dtype), x)


def resume(hidden: jax.Array) -> Resume:
    """The edit with which a tail goes on from `head`'s result [B, S, D]."""
    return Resume("resid_pre", hidden)


def token_logprobs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """float32 [B, S]: of each token given those before it; 0 for the first, which nothing precedes."""
    norm = jax.scipy.special.logsumexp(logits[:, :-1], axis=-1)
    chosen = jnp.take_along_axis(logits[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(chosen - norm, ((0, 0), (1, 0)))
