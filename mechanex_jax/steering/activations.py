"""Activations of a model on given texts, and the split of a model into a head, which steering leaves alone, and a tail.

Steering from layer F on changes nothing before it. A training loop or a sweep over strengths therefore runs the layers before F
once (`run_head`, `head_states`) and then only the rest (`tail`), which is a model of its own whose input is put in place by an
edit (`Resume`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32

from mechanex_jax import rows
from mechanex_jax.edits import TextPositions
from mechanex_jax.loading import LoadedModel
from mechanex_jax.progress import Report, silent
from mechanex_jax.steering.batches import ExampleBatch, batches
from mechanex_jax.steering.examples import Example

if TYPE_CHECKING:
    from mechanex_jax.architectures import Model
    from mechanex_jax.architectures.kv_cache import Cache

_SHARED = 8  # a prefix of at least so many tokens, shared by at least so many examples, is worth a program of its own


@partial(jax.jit, static_argnames="site")
def _run_prefix(model: Model, tokens: Int32[jax.Array, "1 P"], site: str) -> tuple[Cache, Float[jax.Array, "1 L P D"]]:
    """The cache of one row, and its activations at a site."""
    lengths = jnp.full(1, tokens.shape[1], jnp.int32)
    out = model.extend(model.init_cache(*tokens.shape), tokens, lengths, logits="none", capture=(site,))
    return out.cache, out.captured[site]


def _run_after(
    model: Model,
    prefix: Cache | None,
    tokens: Int32[jax.Array, "B S"],
    lengths: Int32[jax.Array, " B"],
    site: str,
) -> Float[jax.Array, "B L S D"]:
    """Activations at a site, of rows that all continue `prefix`, the cache of one row; None: they continue nothing."""
    batch, size = tokens.shape
    if prefix is None:
        cache = model.init_cache(batch, size)
    else:
        empty = model.init_cache(batch, prefix.capacity + size)

        def fill(part: jax.Array, whole: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(whole, jnp.broadcast_to(part, (batch, *part.shape[1:])), (0, 0, 0, 0))

        keys, values = jax.tree.map(fill, (prefix.keys, prefix.values), (empty.keys, empty.values))
        cache = dataclasses.replace(empty, keys=keys, values=values, lengths=jnp.broadcast_to(prefix.lengths, batch))
    return model.extend(cache, tokens, lengths, logits="none", capture=(site,)).captured[site]


@partial(jax.jit, static_argnames=("site", "layers"))
def _weighted_sums(
    model: Model,
    prefix: Cache | None,
    tokens: Int32[jax.Array, "B S"],
    lengths: Int32[jax.Array, " B"],
    weights: Float32[jax.Array, "B K S"],
    site: str,
    layers: tuple[int, ...],
) -> Float32[jax.Array, "B N K D"]:
    """Sums over positions of activations times `weights`, at N layers."""
    activations = _run_after(model, prefix, tokens, lengths, site)
    kept = [jax.lax.index_in_dim(activations, layer, axis=1, keepdims=False) for layer in layers]
    stacked = jnp.stack(kept, axis=1).astype(jnp.float32)
    return jnp.einsum("bks,bnsd->bnkd", weights, stacked, precision=jax.lax.Precision.HIGHEST)


class SharedPrefix:
    """Examples split from the tokens with which all of them begin, such as a chat template's; those run once, as one row.

    Args:
      loaded: the model.
      examples: any number.
      last: the last layer whose activations are read.
      site: where in it.

    Attributes:
      model: the layers up to `last`.
      length: P, how many tokens are shared; 0 if so few that it isn't worth it.
      examples: the rest of each, with at least the token before its answer.
      cache: of the shared tokens, None if there are none.
      activations: [L, P, D], those of the shared tokens at the site.
    """

    def __init__(self, loaded: LoadedModel, examples: Sequence[Example], last: int, site: str):
        self.model = layer_range(loaded.model, 0, last + 1)
        longest = max(0, min(example.start for example in examples) - 1)
        columns = zip(*(example.tokens[:longest] for example in examples), strict=True)
        self.length = next((index for index, column in enumerate(columns) if len(set(column)) > 1), longest)
        if self.length < _SHARED or len(examples) < _SHARED:
            self.length = 0
        self.examples = [_without_first(example, self.length) for example in examples]
        self.cache: Cache | None = None
        self.activations = np.zeros((last + 1, 0, self.model.spec.width), self.model.dtype)
        if self.length:
            with jax.default_device(loaded.device):
                tokens = np.array([examples[0].tokens[: self.length]], np.int32)
                self.cache, activations = _run_prefix(self.model, tokens, site)
            self.activations = np.asarray(activations[0])


def _without_first(example: Example, count: int) -> Example:
    return dataclasses.replace(example, tokens=example.tokens[count:], start=example.start - count)


def _answer_weights(batch: ExampleBatch, samples: int) -> Float32[np.ndarray, "B K S"]:
    """Weights that pick the answers: for 0 samples the mean over each (K = 1), else up to K single tokens, evenly spread, the
    rest zero."""
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
    loaded: LoadedModel,
    examples: Sequence[Example],
    layers: Sequence[int],
    site: str,
    *,
    samples: int = 0,
    report: Report = silent,
) -> Float32[np.ndarray, "E N D"] | Float32[np.ndarray, "E N K D"]:
    """Read the activations at the answers' tokens.

    Args:
      loaded: the model.
      examples: E of them; they run in micro-batches of like length.
      layers: which layers, N of them.
      site: where in the block, the same as the one at which a vector is added.
      samples: 0 gives the mean over each answer; K gives up to K of its tokens, evenly spread.
      report: called with examples done and their total.

    Returns:
      [E, N, D]; with samples [E, N, K, D], NaN where an answer has fewer tokens.
    """
    done, shared = 0, SharedPrefix(loaded, examples, max(layers), site)
    result = np.full((len(examples), len(layers), max(samples, 1), loaded.model.spec.width), np.nan, np.float32)
    for batch in batches(shared.examples):
        weights = _answer_weights(batch, samples)
        with jax.default_device(loaded.device):
            sums = _weighted_sums(shared.model, shared.cache, batch.tokens, batch.lengths, weights, site, tuple(layers))
        sums = np.asarray(sums)
        for row, index in enumerate(batch.indices):
            taken = weights[row].any(-1)
            result[index][:, taken] = sums[row][:, taken]
        done += len(batch.indices)
        report(done, len(examples))
    return result if samples else result[:, :, 0]


@partial(jax.jit, static_argnames="layer")
def _residual_entering(
    model: Model, prefix: Cache | None, tokens: Int32[jax.Array, "B S"], lengths: Int32[jax.Array, " B"], layer: int
) -> Float[jax.Array, "B S D"]:
    return jax.lax.index_in_dim(_run_after(model, prefix, tokens, lengths, "resid_pre"), layer, axis=1, keepdims=False)


def run_head(loaded: LoadedModel, batch: ExampleBatch, layer: int) -> Float[jax.Array, "B S D"]:
    """The residual stream as it enters `layer`; the layers from there on don't run."""
    with jax.default_device(loaded.device):
        return _residual_entering(layer_range(loaded.model, 0, layer + 1), None, batch.tokens, batch.lengths, layer)


def head_states(loaded: LoadedModel, examples: Sequence[Example], layer: int, size: int) -> Float[np.ndarray, "E S D"]:
    """The residual stream of examples as it enters `layer`, on the host; 0 behind their ends.

    Args:
      loaded: the model.
      examples: E of them.
      layer: the first that doesn't run.
      size: S, at least the tokens of the longest example.
    """
    shared = SharedPrefix(loaded, examples, layer, "resid_pre")
    result = np.zeros((len(examples), size, loaded.model.spec.width), loaded.model.dtype)
    result[:, : shared.length] = shared.activations[layer]
    for batch in batches(shared.examples):
        with jax.default_device(loaded.device):
            states = np.asarray(_residual_entering(shared.model, shared.cache, batch.tokens, batch.lengths, layer))
        for row, index in enumerate(batch.indices):
            length = batch.lengths[row]
            result[index, shared.length : shared.length + length] = states[row, :length]
    return result


def layer_range(model: Model, first: int, end: int) -> Model:
    """The model's layers from `first` to before `end`, sharing its weights."""
    from mechanex_jax.architectures import Model, parameter_shapes  # Flax takes half a second to import

    config = dataclasses.replace(model.static.config, layers=end - first)
    static = dataclasses.replace(model.static, config=config)
    params = dict(zip(parameter_shapes(model.static), model.params, strict=True))

    def path_in_model(path: str) -> str:
        part, _, rest = path.partition(".")
        index, _, name = rest.partition(".")
        return f"blocks.{int(index) + first}.{name}" if part == "blocks" else path

    return Model(tuple(params[path_in_model(path)] for path in parameter_shapes(static)), static)


def tail(model: Model, layer: int) -> Model:
    """The model from `layer` on. What it embeds means nothing: put `Resume` first among its edits."""
    return layer_range(model, layer, model.spec.layers)


@rows.row_tree
class Resume:
    """An edit that puts `hidden` [S, D] where the first layer begins."""

    site: str = rows.static()
    hidden: jax.Array = rows.row(2)

    def apply(self, x: Float[jax.Array, "S D"], layer: Int32[jax.Array, ""], where: TextPositions) -> Float[jax.Array, "S D"]:
        return jnp.where(layer == 0, self.hidden.astype(x.dtype), x)


def resume(hidden: Float[jax.Array, "B S D"]) -> Resume:
    """The edit with which a tail goes on from the result of `run_head`."""
    return Resume("resid_pre", hidden)


def token_logprobs(logits: Float32[jax.Array, "B S V"], tokens: Int32[jax.Array, "B S"]) -> Float32[jax.Array, "B S"]:
    """Log-probability of each token given those before it; 0 for the first, which nothing precedes."""
    norm = jax.scipy.special.logsumexp(logits[:, :-1], axis=-1)
    chosen = jnp.take_along_axis(logits[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(chosen - norm, ((0, 0), (1, 0)))


def logprobs_at(
    model: Model,
    hidden: Float[jax.Array, "B S D"],
    tokens: Int32[jax.Array, "B S"],
    places: Int32[jax.Array, "B K"],
) -> Float32[jax.Array, "B K"]:
    """Log-probability of the tokens at `places` given those before them.

    Args:
      model: whose vocabulary is used, at these places only.
      hidden: what leaves the last block.
      tokens: the texts.
      places: positions in the text, above 0.
    """
    logits = model.predict(jnp.take_along_axis(hidden, (places - 1)[..., None], axis=1))
    chosen = jnp.take_along_axis(tokens, places, axis=1)
    return jnp.take_along_axis(logits, chosen[..., None], axis=-1)[..., 0] - jax.scipy.special.logsumexp(logits, axis=-1)
