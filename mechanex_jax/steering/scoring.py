"""How likely answers are under many steerings at once, and how far these move activations and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Float64, Int32

from mechanex_jax import edits, rows
from mechanex_jax.loading import LoadedModel
from mechanex_jax.progress import Report, silent
from mechanex_jax.steering import activations
from mechanex_jax.steering.batches import batches, padded_length
from mechanex_jax.steering.examples import Example

if TYPE_CHECKING:
    from mechanex_jax.architectures import Model

_POSITIONS = 4096  # rows times width of one batch
_LOGITS = 512  # positions whose logits are in memory together


def _from_layer(steering: edits.RowSteering, first: int) -> edits.RowSteering:
    """The same steering with layers counted from `first`: for a tail of the model."""
    return edits.RowSteering(
        {site: {layer - first: vector for layer, vector in by_layer.items()} for site, by_layer in steering.additions.items()},
        tuple(gated._replace(layer=gated.layer - first) for gated in steering.gates),
    )


def _directions(steering: edits.RowSteering) -> list[tuple[str, int, Float32[np.ndarray, " D"]]]:
    """(site, layer, vector) of all that it adds, gates open."""
    added = [(site, layer, vector) for site, by_layer in steering.additions.items() for layer, vector in by_layer.items()]
    return added + [(gated.site, gated.layer, gated.vector) for gated in steering.gates]


@partial(jax.jit, static_argnames=("places", "compare"))
def _score_batch(
    model: Model,
    hidden: Float[jax.Array, "T S D"],
    tokens: Int32[jax.Array, "T S"],
    lengths: Int32[jax.Array, " T"],
    mask: Float32[jax.Array, "T S"],
    steered: tuple[edits.Edit, ...],
    units: Float32[jax.Array, "K N D"],
    places: tuple[tuple[str, int], ...],
    compare: bool,
) -> Float32[jax.Array, "3 T K"]:
    """Sums over the masked tokens of each of T texts under each of K steerings, whose rows lie together: log-probability,
    projection on `units`, and with `compare` KL to the unsteered distribution, else 0."""
    count = units.shape[0]
    repeated = lambda array: jnp.repeat(array, count, axis=0)
    sites = (*dict.fromkeys((*(site for site, _ in places), "resid_post")),)

    def run(
        tokens: jax.Array, hidden: jax.Array, lengths: jax.Array, added: tuple[edits.Edit, ...], sites: tuple[str, ...]
    ) -> Mapping[str, jax.Array]:
        cache = model.init_cache(*tokens.shape)
        all_edits = (activations.resume(hidden), *added)
        return model.extend(cache, tokens, lengths, all_edits, logits="none", capture=sites).captured

    captured = run(repeated(tokens), repeated(hidden), repeated(lengths), steered, sites)
    along = jnp.zeros((*mask.shape[:1], count, mask.shape[1]))
    for index, (site, layer) in enumerate(places):
        kept = jax.lax.index_in_dim(captured[site], layer, axis=1, keepdims=False).astype(jnp.float32)
        kept = kept.reshape(*along.shape, -1)
        along += jnp.einsum("tksd,kd->tks", kept, units[:, index], precision="highest")
    leaving = captured["resid_post"][:, -1].reshape(*along.shape, -1)
    plain = run(tokens, hidden, lengths, (), ("resid_post",))["resid_post"][:, -1] if compare else hidden

    def one_text(
        text: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    ) -> tuple[Float32[jax.Array, " K"], Float32[jax.Array, " K"]]:
        """Log-probability and KL of one text: the logits of all texts never exist at once."""
        leaving, plain, tokens, mask = text
        ours = jax.nn.log_softmax(model.predict(leaving))
        logp = jnp.sum(jnp.take_along_axis(ours[:, :-1], tokens[None, 1:, None], axis=-1)[..., 0] * mask[1:], -1)
        if not compare:
            return logp, jnp.zeros_like(logp)
        theirs = jax.nn.log_softmax(model.predict(plain))
        return logp, jnp.sum(jnp.sum(jnp.exp(ours) * (ours - theirs), -1) * mask, -1)

    logp, divergence = jax.lax.map(one_text, (leaving, plain, tokens, mask))
    return jnp.stack([logp, jnp.sum(along * mask[:, None], -1), divergence])


def score(
    loaded: LoadedModel,
    examples: Sequence[Example],
    steerings: Sequence[edits.RowSteering],
    *,
    along: Sequence[edits.RowSteering] | None = None,
    compare: bool = False,
    report: Report = silent,
) -> Float64[np.ndarray, "K 3 E"]:
    """Score the answer tokens of E examples under K steerings: means of log-probability, projection and KL.

    A text under one steering is one row: rows of all steerings, whatever their layers and strengths, run in one batch.

    Args:
      loaded: the model.
      examples: any number; they run in micro-batches of like length.
      steerings: at least one, strengths applied.
      along: K steerings on whose vectors' directions activations are projected; None takes `steerings`.
      compare: also compute the KL divergence from the unsteered model, otherwise 0.
      report: called with rows done and their total.
    """
    directions = [_directions(steering) for steering in along or steerings]
    points = sorted({(site, layer) for each in directions for site, layer, _ in each})
    first = min(layer for _, layer in points)
    model, width = activations.tail(loaded.model, first), loaded.model.spec.width
    places = tuple((site, layer - first) for site, layer in points)
    units = np.zeros((len(steerings), len(points), width), np.float32)
    for row, each in enumerate(directions):
        for site, layer, vector in each:
            units[row, points.index((site, layer))] += vector / max(np.linalg.norm(vector), 1e-12) / len(each)
    longest = padded_length(max(len(example.tokens) for example in examples))
    turns = -(-len(steerings) // max(1, _LOGITS // longest))
    together = -(-len(steerings) // turns)  # steerings of one batch
    totals = np.zeros((len(steerings), 3, len(examples)))
    done = 0
    for batch in batches(examples, positions=_POSITIONS // together):
        mask = batch.answers()
        mask[:, 0] = False
        texts = len(batch.indices)
        hidden = activations.run_head(loaded, batch, first)
        for begin in range(0, len(steerings), together):
            chosen = [_from_layer(steering, first) for steering in steerings[begin : begin + together]]
            idle = [chosen[0].scaled(0)] * (together - len(chosen))
            per_row = edits.steering([*chosen, *idle] * len(mask), width)
            steered = rows.broadcast_rows(per_row, together * len(mask))
            unit = np.zeros((together, *units.shape[1:]), np.float32)
            unit[: len(chosen)] = units[begin : begin + together]
            weights = mask.astype(np.float32)
            with jax.default_device(loaded.device):
                sums = np.asarray(
                    _score_batch(model, hidden, batch.tokens, batch.lengths, weights, steered, unit, places, compare)
                )
            means = sums[:, :texts, : len(chosen)] / np.maximum(mask.sum(-1)[:texts, None], 1)
            totals[begin : begin + together, :, batch.indices] = means.transpose(2, 0, 1)
            done += texts * len(chosen)
            report(done, len(examples) * len(steerings))
    return totals
