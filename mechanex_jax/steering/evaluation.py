"""The effect and the cost of a vector over strengths: measured on answers, and on text that has nothing to do with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Float64, Int32

from mechanex_jax import edits, rows
from mechanex_jax.errors import expected
from mechanex_jax.loading import LoadedModel
from mechanex_jax.progress import Report, silent
from mechanex_jax.steering import activations
from mechanex_jax.steering.batches import batches
from mechanex_jax.steering.examples import Example

if TYPE_CHECKING:
    from mechanex_jax.architectures import Model

_POSITIONS = 512  # rows times width: two sets of logits of that many positions are in memory
_TITLES = {
    "logit_difference": "positive - negative",
    "projection": "projection change",
    "kl": "KL to unsteered",
    "loss": "loss, other text",
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Measurements of a vector: one number per strength in each column, and texts side by side.

    Attributes:
      strengths: rising.
      logit_difference: mean log-probability per token of the positive answers less that of the negative ones, in nats; None
        without answers.
      logit_difference_error: its standard error, over answers.
      projection: change against strength 0 of the projection on the vector's direction, mean over its layers and the tokens of
        unrelated text, in units of the activations.
      kl: KL divergence of the steered next-token distribution from the unsteered one, nats per token of unrelated text.
      loss: negative log-likelihood of unrelated text, nats per token.
      prompts: what was continued.
      texts: for each prompt, one greedy continuation per strength.
    """

    strengths: tuple[float, ...]
    logit_difference: tuple[float, ...] | None
    logit_difference_error: tuple[float, ...] | None
    projection: tuple[float, ...]
    kl: tuple[float, ...]
    loss: tuple[float, ...]
    prompts: tuple[str, ...] = ()
    texts: tuple[tuple[str, ...], ...] = ()

    def to_dict(self) -> dict[str, object]:
        """All fields by name, tuples as lists, as JSON has them."""
        return {field.name: _as_lists(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def table(self) -> str:
        """The numbers as aligned text, one line per strength, and below them the texts side by side."""
        columns = {title: getattr(self, name) for name, title in _TITLES.items() if getattr(self, name) is not None}
        lines = ["strength  " + "  ".join(columns)]
        for index, strength in enumerate(self.strengths):
            cells = [f"{values[index]:+.4f}".rjust(len(title)) for title, values in columns.items()]
            lines.append(f"{strength:+8.2f}  " + "  ".join(cells))
        for prompt, texts in zip(self.prompts, self.texts, strict=True):
            lines += ["", f"> {prompt}"]
            lines += [f"{strength:+8.2f}  {text.strip()}" for strength, text in zip(self.strengths, texts, strict=True)]
        return "\n".join(lines)


def _as_lists(value: object) -> object:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def check_strengths(strengths: Iterable[float]) -> tuple[float, ...]:
    """Sort strengths: finite numbers, at least one, each once.

    Raises:
      ArgumentError: otherwise.
    """
    try:
        rising = tuple(sorted(float(value) for value in strengths))
    except (TypeError, ValueError):
        raise expected("strengths", strengths, "a list of numbers, such as [-2, 0, 2]") from None
    if not rising or not np.isfinite(rising).all() or len(set(rising)) != len(rising):
        raise expected("strengths", strengths, "at least one finite number, each once")
    return rising


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


def at_layers(steering: edits.RowSteering, layers: Collection[int] | None) -> edits.RowSteering:
    """The steering at some of its layers; None is all.

    Raises:
      ArgumentError: no layers, or one at which nothing is steered.
    """
    if layers is None:
        return steering
    steered = {layer for _, layer in steering.hook_points}
    if not set(layers) or not set(layers) <= steered:
        raise expected("layer_idxs", layers, f"some of the vector's layers, {sorted(steered)}")
    return steering.only([(site, layer) for site, layer in steering.hook_points if layer in layers])


@partial(jax.jit, static_argnames=("places", "compare"))
def _score_batch(
    model: Model,
    hidden: Float[jax.Array, "B S D"],
    tokens: Int32[jax.Array, "B S"],
    lengths: Int32[jax.Array, " B"],
    mask: Float32[jax.Array, "B S"],
    steered: tuple[edits.Edit, ...],
    units: Float32[jax.Array, "N D"],
    places: tuple[tuple[str, int], ...],
    compare: bool,
) -> tuple[Float32[jax.Array, " B"], Float32[jax.Array, " B"], Float32[jax.Array, " B"]]:
    """Sums over each row's masked tokens: log-probability, projection on `units`, and with `compare` KL to the unsteered
    distribution, else 0."""
    sites = tuple(dict.fromkeys(site for site, _ in places))
    entry = activations.resume(hidden)
    out = model.extend(model.init_cache(*tokens.shape), tokens, lengths, (entry, *steered), logits="all", capture=sites)
    assert out.logits is not None
    logp = jnp.sum(activations.token_logprobs(out.logits, tokens) * mask, -1)
    along = jnp.zeros_like(mask)
    for index, (site, layer) in enumerate(places):
        kept = jax.lax.index_in_dim(out.captured[site], layer, axis=1, keepdims=False).astype(jnp.float32)
        along += jnp.einsum("bsd,d->bs", kept, units[index], precision="highest") / len(places)
    projection = jnp.sum(along * mask, -1)
    if not compare:
        return logp, projection, jnp.zeros_like(logp)
    unsteered = model.extend(model.init_cache(*tokens.shape), tokens, lengths, (entry,), logits="all").logits
    assert unsteered is not None
    ours, theirs = jax.nn.log_softmax(out.logits), jax.nn.log_softmax(unsteered)
    return logp, projection, jnp.sum(jnp.sum(jnp.exp(ours) * (ours - theirs), -1) * mask, -1)


def score(
    loaded: LoadedModel,
    examples: Sequence[Example],
    steering: edits.RowSteering,
    strengths: Sequence[float],
    *,
    compare: bool = False,
    report: Report = silent,
) -> Float64[np.ndarray, "strengths 3 examples"]:
    """Score the answer tokens of examples at several strengths: means of log-probability, projection and KL.

    Args:
      loaded: the model.
      examples: any number; they run in micro-batches of like length.
      steering: at strength 1.
      strengths: any numbers.
      compare: also compute the KL divergence from the unsteered model, otherwise 0.
      report: called with examples done and their total.
    """
    directions = _directions(steering)
    first = min(layer for _, layer, _ in directions)
    model, tail_steering = activations.tail(loaded.model, first), _from_layer(steering, first)
    places = tuple((site, layer - first) for site, layer, _ in directions)
    units = np.stack([vector / max(np.linalg.norm(vector), 1e-12) for _, _, vector in directions]).astype(np.float32)
    totals = np.zeros((len(strengths), 3, len(examples)))
    done = 0
    for batch in batches(examples, positions=_POSITIONS):
        mask = batch.answers()
        mask[:, 0] = False
        count = len(batch.indices)
        hidden = activations.run_head(loaded, batch, first)
        for index, strength in enumerate(strengths):
            per_row = edits.steering([tail_steering.scaled(strength)] * len(mask), loaded.model.spec.width)
            steered = rows.broadcast_rows(per_row, len(mask))
            with jax.default_device(loaded.device):
                columns = _score_batch(
                    model, hidden, batch.tokens, batch.lengths, mask.astype(np.float32), steered, units, places, compare
                )
            for column, values in enumerate(columns):
                totals[index, column, batch.indices] = np.asarray(values)[:count] / np.maximum(mask.sum(-1)[:count], 1)
        done += count
        report(done, len(examples))
    return totals


def measure(
    loaded: LoadedModel,
    steering: edits.RowSteering,
    strengths: Sequence[float],
    answers: Sequence[Example],
    unrelated: Sequence[Example],
    *,
    report: Report = silent,
) -> Evaluation:
    """Measure a vector's effect and cost; the result has no texts.

    Args:
      loaded: the model.
      steering: at strength 1.
      strengths: as `check_strengths` returns them.
      answers: positive and negative examples, or none.
      unrelated: texts that the cost is measured on.
      report: called with examples done and their total.
    """
    total = len(answers) + len(unrelated)
    difference = error = None
    if answers:
        logp = score(loaded, answers, steering, strengths, report=lambda done, _: report(done, total))[:, 0]
        kinds = np.array([example.positive for example in answers])
        sides = [logp[:, kinds], logp[:, ~kinds]]
        difference = tuple((sides[0].mean(-1) - sides[1].mean(-1)).tolist())
        error = tuple(np.sqrt(sum(side.var(-1) / max(side.shape[-1] - 1, 1) for side in sides)).tolist())
    with_zero = sorted({0.0, *strengths})
    cost = score(
        loaded, unrelated, steering, with_zero, compare=True, report=lambda done, _: report(len(answers) + done, total)
    )
    lengths = np.array([len(example.tokens) - 1 for example in unrelated])
    logp, projection, kl = np.moveaxis((cost * lengths).sum(-1) / lengths.sum(), 1, 0)
    projection = projection - projection[with_zero.index(0.0)]
    chosen = [with_zero.index(strength) for strength in strengths]
    columns = (tuple(column[chosen].tolist()) for column in (projection, np.maximum(kl, 0), -logp))
    return Evaluation(tuple(strengths), difference, error, *columns)
