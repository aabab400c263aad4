"""What a vector does and what it costs, over strengths: measured on answers, and on text that has nothing to do with it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mechanex_jax import edits, rows
from mechanex_jax.errors import MechanexError, Verbatim, expected
from mechanex_jax.progress import Report, silent
from mechanex_jax.steering import activations
from mechanex_jax.steering.examples import Example, batches, check
from mechanex_jax.steering.examples import examples as tokenised
from mechanex_jax.steering.examples import texts as checked_texts

_POSITIONS = 512  # rows times width: two sets of logits of that many positions are in memory
_COLUMNS = {
    "logit_difference": "positive - negative",
    "projection": "projection change",
    "kl": "KL to unsteered",
    "loss": "loss, other text",
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One number per strength in each column.

    Attributes:
      strengths: rising.
      logit_difference: mean log-probability per token of the positive answers less that of the negative ones, in nats; None
        without answers.
      logit_difference_error: its standard error, over answers.
      projection: change against strength 0 of the projection on the vector's direction, mean over its layers and the tokens of
        unrelated text, in units of the activations.
      kl: KL divergence of the steered next-token law from the unsteered one, nats per token of unrelated text.
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

    def to_dict(self) -> dict[str, Any]:
        """Lists and numbers only: JSON."""
        return {name: _plain(value) for name, value in ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))}

    def table(self) -> str:
        """The numbers as aligned text, one line per strength, and below them the texts side by side."""
        shown = {title: getattr(self, name) for name, title in _COLUMNS.items() if getattr(self, name) is not None}
        lines = ["strength  " + "  ".join(shown)]
        for index, strength in enumerate(self.strengths):
            cells = [f"{values[index]:+.4f}".rjust(len(title)) for title, values in shown.items()]
            lines.append(f"{strength:+8.2f}  " + "  ".join(cells))
        for prompt, texts in zip(self.prompts, self.texts, strict=True):
            lines += ["", f"> {prompt}"]
            lines += [f"{strength:+8.2f}  {text.strip()}" for strength, text in zip(self.strengths, texts, strict=True)]
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def check_strengths(strengths: Any) -> tuple[float, ...]:
    """Finite numbers, at least one, each once, in rising order.

    Raises:
      ArgumentError: otherwise.
    """
    try:
        found = tuple(sorted(float(value) for value in strengths))
    except (TypeError, ValueError):
        raise expected("strengths", strengths, "a list of numbers, such as [-2, 0, 2]") from None
    if not found or not np.isfinite(found).all() or len(set(found)) != len(found):
        raise expected("strengths", strengths, "at least one finite number, each once")
    return found


def shifted(steering: edits.RowSteering, by: int) -> edits.RowSteering:
    """The same with layers counted from `by`: for a tail of the model."""
    return edits.RowSteering(
        {site: {layer - by: vector for layer, vector in found.items()} for site, found in steering.additions.items()},
        tuple(gated._replace(layer=gated.layer - by) for gated in steering.gates),
    )


def directions(steering: edits.RowSteering) -> list[tuple[str, int, np.ndarray]]:
    """(site, layer, vector) of all that it adds, gates open."""
    found = [(site, layer, vector) for site, by_layer in steering.additions.items() for layer, vector in by_layer.items()]
    return found + [(gated.site, gated.layer, gated.vector) for gated in steering.gates]


@partial(jax.jit, static_argnames=("places", "compare"))
def _score(model, hidden, tokens, lengths, mask, steered, units, places, compare):
    """Per row, sums over the masked tokens: log-probability, projection, and with `compare` KL to the unsteered law."""
    sites = tuple(dict.fromkeys(site for site, _ in places))
    given = (activations.resume(hidden), *steered)
    out = model.extend(model.init_cache(*tokens.shape), tokens, lengths, given, logits="all", capture=sites)
    logp = jnp.sum(activations.token_logprobs(out.logits, tokens) * mask, -1)
    along = jnp.zeros_like(mask)
    for index, (site, layer) in enumerate(places):
        kept = jax.lax.index_in_dim(out.captured[site], layer, axis=1, keepdims=False).astype(jnp.float32)
        along += jnp.einsum("bsd,d->bs", kept, units[index], precision="highest") / len(places)
    projection = jnp.sum(along * mask, -1)
    if not compare:
        return logp, projection, jnp.zeros_like(logp)
    plain = model.extend(model.init_cache(*tokens.shape), tokens, lengths, (given[0],), logits="all").logits
    ours, theirs = jax.nn.log_softmax(out.logits), jax.nn.log_softmax(plain)
    return logp, projection, jnp.sum(jnp.sum(jnp.exp(ours) * (ours - theirs), -1) * mask, -1)


def score(
    loaded: Any,
    examples: Sequence[Example],
    steering: edits.RowSteering,
    strengths: Sequence[float],
    *,
    compare: bool = False,
    report: Report = silent,
) -> np.ndarray:
    """Means over each example's answer tokens: float64 [strengths, 3, examples] of log-probability, projection and KL."""
    found = [(site, layer, vector / max(np.linalg.norm(vector), 1e-12)) for site, layer, vector in directions(steering)]
    first = min(layer for _, layer, _ in found)
    model, moved = activations.tail(loaded.model, first), shifted(steering, first)
    places = tuple((site, layer - first) for site, layer, _ in found)
    units = np.stack([unit for _, _, unit in found]).astype(np.float32)
    totals = np.zeros((len(strengths), 3, len(examples)))
    done = 0
    for batch in batches(examples, positions=_POSITIONS):
        mask = batch.answers()
        mask[:, 0] = False
        count = len(batch.indices)
        hidden = activations.head(loaded, batch, first)
        for index, strength in enumerate(strengths):
            rows_of = edits.steering([moved.scaled(strength)] * len(mask), loaded.model.spec.width)
            steered = rows.broadcast_rows(rows_of, len(mask))
            with jax.default_device(loaded.device):
                columns = _score(
                    model, hidden, batch.tokens, batch.lengths, mask.astype(np.float32), steered, units, places, compare
                )
            for column, values in enumerate(columns):
                totals[index, column, batch.indices] = np.asarray(values)[:count] / np.maximum(mask.sum(-1)[:count], 1)
        done += count
        report(done, len(examples))
    return totals


def plain_examples(loaded: Any, texts: Sequence[str], *, positive: bool = True) -> list[Example]:
    """Texts by themselves, every token but the first to be scored."""
    found = []
    for index, text in enumerate(texts):
        tokens = loaded.tokenizer.encode(text)
        if not 2 <= len(tokens) <= loaded.model.spec.context:
            raise expected("texts", Verbatim(f"a text of {len(tokens)} tokens"), f"2 to {loaded.model.spec.context}")
        found.append(Example(tuple(tokens), 1, positive, index))
    return found


def answer_examples(loaded: Any, prompts: Any, positive: Any, negative: Any, chat: bool) -> list[Example]:
    """Positive and negative examples, of prompts with answers or of the answers alone."""
    if prompts is not None:
        return tokenised(loaded, check(prompts, positive, negative), chat=chat)
    if chat:
        raise expected("prompts", None, "the users' messages that the answers are for", "Give prompts, or leave out chat.")
    sides = (checked_texts("positive_texts", positive), checked_texts("negative_texts", negative))
    return [x for kind, texts in zip((True, False), sides, strict=True) for x in plain_examples(loaded, texts, positive=kind)]


def only(steering: edits.RowSteering, layers: Any) -> edits.RowSteering:
    """The steering of some of its layers."""
    if layers is None:
        return steering
    own = {layer for _, layer, _ in directions(steering)}
    if not set(layers) or not set(layers) <= own:
        raise expected("layer_idxs", layers, f"some of the vector's layers, {sorted(own)}")
    kept = {site: {i: v for i, v in found.items() if i in layers} for site, found in steering.additions.items()}
    return edits.RowSteering(
        {site: found for site, found in kept.items() if found},
        tuple(gated for gated in steering.gates if gated.layer in layers),
    )


def measure(
    loaded: Any,
    steering: edits.RowSteering,
    strengths: Sequence[float],
    answers: Sequence[Example],
    unrelated: Sequence[Example],
    *,
    report: Report = silent,
) -> Evaluation:
    """An Evaluation without texts.

    Args:
      loaded: the model.
      steering: at strength 1.
      strengths: checked.
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
    used = sorted({0.0, *strengths})
    cost = score(loaded, unrelated, steering, used, compare=True, report=lambda done, _: report(len(answers) + done, total))
    lengths = np.array([len(example.tokens) - 1 for example in unrelated])
    logp, projection, kl = np.moveaxis((cost * lengths).sum(-1) / lengths.sum(), 1, 0)
    projection = projection - projection[used.index(0.0)]
    chosen = [used.index(strength) for strength in strengths]
    columns = (tuple(column[chosen].tolist()) for column in (projection, np.maximum(kl, 0), -logp))
    return Evaluation(tuple(strengths), difference, error, *columns)


def matplotlib() -> Any:
    """matplotlib's Figure.

    Raises:
      MechanexError: it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MechanexError("plot: matplotlib is not installed. Install it with `pip install 'mechanex_jax[plot]'`.") from error
    return Figure


def plot(evaluations: Mapping[str, Evaluation], path: str | os.PathLike[str], *, title: str = "") -> None:
    """Effect against cost: one line per entry (a layer, say), one point per strength.

    The effect is the logit difference against strength 0 where there are answers, else the change of projection; the cost is
    the KL divergence from the unsteered model on unrelated text.

    Raises:
      MechanexError: matplotlib is not installed.
      ArgumentError: no evaluations, or a file name that matplotlib cannot write.
    """
    figure_class = matplotlib()
    if not evaluations:
        raise expected("evaluations", Verbatim("none"), "at least one")
    figure = figure_class(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    measured = all(found.logit_difference is not None for found in evaluations.values())
    for name, found in evaluations.items():
        effect = np.array(found.logit_difference if measured else found.projection)
        if measured and 0.0 in found.strengths:
            effect = effect - effect[found.strengths.index(0.0)]
        axes.plot(found.kl, effect, marker="o", markersize=4, label=name)
        for x, y, strength in zip(found.kl, effect, found.strengths, strict=True):
            axes.annotate(f"{strength:g}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set_xlabel("cost: KL to the unsteered model, nats per token of other text")
    axes.set_ylabel("effect: " + ("positive - negative, nats per token" if measured else "change of projection"))
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_title(title)
    axes.legend()
    try:
        figure.savefig(path)
    except ValueError as error:
        raise expected("path", str(path), f"a name of a picture, such as steering.png ({error})") from error
