"""The effect and the cost of a vector over strengths: measured on answers, and on text that has nothing to do with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from mechanex_jax import edits
from mechanex_jax.errors import expected
from mechanex_jax.loading import LoadedModel
from mechanex_jax.progress import Report, TimeBudget, silent
from mechanex_jax.steering.examples import Example
from mechanex_jax.steering.scoring import score
from mechanex_jax.warning import warn

_PARTS = 8  # of the texts, where a budget may end the measuring between two
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


def measure(
    loaded: LoadedModel,
    steerings: Sequence[edits.RowSteering],
    strengths: Sequence[float],
    answers: Sequence[Example],
    unrelated: Sequence[Example],
    *,
    budget_s: float | None = None,
    report: Report = silent,
) -> list[Evaluation]:
    """Measure effect and cost of each steering; the results have no texts.

    Args:
      loaded: the model.
      steerings: at strength 1.
      strengths: as `check_strengths` returns them.
      answers: positive and negative examples, or none.
      unrelated: texts that the cost is measured on.
      budget_s: seconds; once they would not suffice for more, the numbers are of the texts until then, with a warning. At least
        one part of the texts is measured. None is no limit.
      report: called with rows done and their total.
    """
    with_zero = sorted({0.0, *strengths})
    scaled = [steering.scaled(strength) for steering in steerings for strength in with_zero]
    along = [steering for steering in steerings for _ in with_zero]
    parts = [(answers, unrelated)] if budget_s is None else _parts(answers, unrelated)
    budget, total, done = TimeBudget(budget_s), len(scaled) * (len(answers) + len(unrelated)), 0
    logps, costs, measured_answers, measured_texts = [], [], [], []
    for some_answers, some_texts in parts:
        if measured_texts and not budget.fits_another():
            texts = len(measured_answers) + len(measured_texts)
            warn(
                f"budget_s: {texts} of {len(answers) + len(unrelated)} texts are measured, all of them would take about "
                f"{budget.forecast(done, total):.0f} s. Give more seconds, or fewer texts or strengths."
            )
            break
        for kind, (examples, compare) in enumerate(((some_answers, False), (some_texts, True))):
            if examples:
                moved = partial(_shifted, report, done, total)
                scores = score(loaded, examples, scaled, along=along, compare=compare, report=moved)
                (logps, costs)[kind].append(scores)
                done += len(scaled) * len(examples)
        measured_answers += some_answers
        measured_texts += some_texts
        budget.part_done()
    shape = (len(steerings), len(with_zero), 3, -1)
    cost = np.concatenate(costs, axis=-1).reshape(shape)
    lengths = np.array([len(example.tokens) - 1 for example in measured_texts])
    logp, projection, kl = np.moveaxis((cost * lengths).sum(-1) / lengths.sum(), 2, 0)
    projection = projection - projection[:, [with_zero.index(0.0)]]
    chosen = [with_zero.index(strength) for strength in strengths]
    columns = [column[:, chosen] for column in (projection, np.maximum(kl, 0), -logp)]
    effects: list[tuple[tuple[float, ...] | None, tuple[float, ...] | None]] = [(None, None)] * len(steerings)
    if measured_answers:
        kinds = np.array([example.positive for example in measured_answers])
        each = np.concatenate(logps, axis=-1).reshape(shape)[:, chosen, 0]
        sides = [each[..., kinds], each[..., ~kinds]]
        error = np.sqrt(sum(side.var(-1) / max(side.shape[-1] - 1, 1) for side in sides))
        effects = list(zip(_tuples(sides[0].mean(-1) - sides[1].mean(-1)), _tuples(error), strict=True))
    projections, divergences, losses = map(_tuples, columns)
    return [
        Evaluation(tuple(strengths), *effect, projection, divergence, loss)
        for effect, projection, divergence, loss in zip(effects, projections, divergences, losses, strict=True)
    ]


def _shifted(report: Report, before: int, total: int, done: int, _: int) -> None:
    report(before + done, total)


def _tuples(array: Float[np.ndarray, "N S"]) -> list[tuple[float, ...]]:
    return [tuple(row) for row in array.tolist()]


def _parts(answers: Sequence[Example], unrelated: Sequence[Example]) -> list[tuple[list[Example], list[Example]]]:
    """All texts in parts of like cost and mixture, one of each kind at least in each; a pair of answers is in one part."""
    groups = sorted({example.group for example in answers})
    count = max(1, min(_PARTS, len(unrelated), len(groups) or _PARTS))
    turn = {group: index % count for index, group in enumerate(groups)}
    by_turn = ([example for example in answers if turn[example.group] == part] for part in range(count))
    return [(some, list(unrelated[part::count])) for part, some in enumerate(by_turn)]
