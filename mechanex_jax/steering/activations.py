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
from mechanex_jax.progress import Report, silent
from mechanex_jax.steering.examples import Example, ExampleBatch, batches

if TYPE_CHECKING:
    from mechanex_jax.architectures import Model

_SHARED = 8  # tokens that all of at least so many examples share are worth a program of their own


@partial(jax.jit, static_argnames="site")
def _begin(model: Any, tokens: jax.Array, site: str) -> tuple[Any, jax.Array]:
    """The cache of one row [1, P], and its activations at a site [1, L, P, D]."""
    lengths = jnp.full(1, tokens.shape[1], jnp.int32)
    out = model.extend(model.init_cache(*tokens.shape), tokens, lengths, logits="none", capture=(site,))
    return out.cache, out.captured[site]


def _behind(model: Any, past: Any, tokens: jax.Array, lengths: jax.Array, site: str) -> jax.Array:
    """Activations [B, L, S, D] of rows that all continue `past`, a cache of one row; None: they continue nothing."""
    batch, size = tokens.shape
    if past is None:
        cache = model.init_cache(batch, size)
    else:
        empty = model.init_cache(batch, past.capacity + size)

        def fill(part: jax.Array, whole: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(whole, jnp.broadcast_to(part, (batch, *part.shape[1:])), (0, 0, 0, 0))

        keys, values = jax.tree.map(fill, (past.keys, past.values), (empty.keys, empty.values))
        cache = dataclasses.replace(empty, keys=keys, values=values, lengths=jnp.broadcast_to(past.lengths, batch))
    return model.extend(cache, tokens, lengths, logits="none", capture=(site,)).captured[site]


@partial(jax.jit, static_argnames=("site", "layers"))
def _read(model: Any, past: Any, tokens: jax.Array, lengths: jax.Array, weights: jax.Array, site: str, layers: tuple[int, ...]):
    """Weighted sums over positions, weights [B, K, S]: float32 [B, N, K, D]."""
    found = _behind(model, past, tokens, lengths, site)
    kept = [jax.lax.index_in_dim(found, layer, axis=1, keepdims=False) for layer in layers]
    stacked = jnp.stack(kept, axis=1).astype(jnp.float32)
    return jnp.einsum("bks,bnsd->bnkd", weights, stacked, precision=jax.lax.Precision.HIGHEST)


class Shared:
    """Examples without the tokens with which all of them begin, such as a chat template's; those run once, as one row.

    Args:
      loaded: the model.
      examples: any number.
      last: the last layer whose activations are wanted.
      site: where in it.

    Attributes:
      model: the layers up to `last`.
      length: how many tokens are shared; 0 if so few that it isn't worth it.
      examples: the rest of each, with at least the token before its answer.
      past: the cache of the shared ones, None if there are none.
      beginning: their activations [L, P, D] at the site.
    """

    def __init__(self, loaded: Any, examples: Sequence[Example], last: int, site: str):
        self.model = part(loaded.model, 0, last + 1)
        most = max(0, min(example.start for example in examples) - 1)
        rows_of = zip(*(example.tokens[:most] for example in examples), strict=True)
        self.length = next((index for index, column in enumerate(rows_of) if len(set(column)) > 1), most)
        if self.length < _SHARED or len(examples) < _SHARED:
            self.length = 0
        self.examples = [_without(example, self.length) for example in examples]
        self.past, self.beginning = None, np.zeros((last + 1, 0, self.model.spec.width), self.model.dtype)
        if self.length:
            with jax.default_device(loaded.device):
                self.past, found = _begin(self.model, np.array([examples[0].tokens[: self.length]], np.int32), site)
            self.beginning = np.asarray(found[0])


def _without(example: Example, count: int) -> Example:
    return dataclasses.replace(example, tokens=example.tokens[count:], start=example.start - count)


def _answer_weights(batch: ExampleBatch, samples: int) -> np.ndarray:
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
    done, shared = 0, Shared(loaded, examples, max(layers), site)
    found = np.full((len(examples), len(layers), max(samples, 1), loaded.model.spec.width), np.nan, np.float32)
    for batch in batches(shared.examples):
        weights = _answer_weights(batch, samples)
        with jax.default_device(loaded.device):
            values = _read(shared.model, shared.past, batch.tokens, batch.lengths, weights, site, tuple(layers))
        values = np.asarray(values)
        for row, index in enumerate(batch.indices):
            taken = weights[row].any(-1)
            found[index][:, taken] = values[row][:, taken]
        done += len(batch.indices)
        report(done, len(examples))
    return found if samples else found[:, :, 0]


@partial(jax.jit, static_argnames="layer")
def _enter(model: Any, past: Any, tokens: jax.Array, lengths: jax.Array, layer: int) -> jax.Array:
    return jax.lax.index_in_dim(_behind(model, past, tokens, lengths, "resid_pre"), layer, axis=1, keepdims=False)


def head(loaded: Any, batch: ExampleBatch, layer: int) -> jax.Array:
    """The residual stream [B, S, D] as it enters `layer`; the layers from there on don't run."""
    with jax.default_device(loaded.device):
        return _enter(part(loaded.model, 0, layer + 1), None, batch.tokens, batch.lengths, layer)


def heads(loaded: Any, examples: Sequence[Example], layer: int, size: int) -> np.ndarray:
    """What `head` gives for examples of at most `size` tokens, on the host: [examples, size, D], 0 behind their ends."""
    shared = Shared(loaded, examples, layer, "resid_pre")
    found = np.zeros((len(examples), size, loaded.model.spec.width), loaded.model.dtype)
    found[:, : shared.length] = shared.beginning[layer]
    for batch in batches(shared.examples):
        with jax.default_device(loaded.device):
            states = np.asarray(_enter(shared.model, shared.past, batch.tokens, batch.lengths, layer))
        for row, index in enumerate(batch.indices):
            length = batch.lengths[row]
            found[index, shared.length : shared.length + length] = states[row, :length]
    return found


def part(model: Model, first: int, end: int) -> Model:
    """The model's layers from `first` to before `end`, sharing its weights."""
    from mechanex_jax.architectures import Model, parameter_shapes  # Flax takes half a second to import

    config = dataclasses.replace(model.static.config, layers=end - first)
    static = dataclasses.replace(model.static, config=config)
    named = dict(zip(parameter_shapes(model.static), model.params, strict=True))

    def whole(path: str) -> str:
        head, _, rest = path.partition(".")
        index, _, name = rest.partition(".")
        return f"blocks.{int(index) + first}.{name}" if head == "blocks" else path

    return Model(tuple(named[whole(path)] for path in parameter_shapes(static)), static)


def tail(model: Model, layer: int) -> Model:
    """The model from `layer` on. What it embeds means nothing: put `Resume` first among its edits."""
    return part(model, layer, model.spec.layers)


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


def logprobs_at(model: Model, hidden: jax.Array, tokens: jax.Array, places: jax.Array) -> jax.Array:
    """float32 [B, K]: of the tokens at `places` [B, K], above 0, given those before them.

    Args:
      model: whose vocabulary is used, at these places only.
      hidden: [B, S, D], what leaves the last block.
      tokens: [B, S].
      places: positions in the text.
    """
    logits = model.predict(jnp.take_along_axis(hidden, (places - 1)[..., None], axis=1))
    chosen = jnp.take_along_axis(tokens, places, axis=1)
    return jnp.take_along_axis(logits, chosen[..., None], axis=-1)[..., 0] - jax.scipy.special.logsumexp(logits, axis=-1)
