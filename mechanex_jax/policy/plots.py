"""A plot of a search for a policy."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechanex_jax.errors import expected
from mechanex_jax.policy.tuning import SearchResult
from mechanex_jax.steering.plots import figure_class
from mechanex_jax.storage.json_values import JsonValue

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_MAX_LABEL = 16  # characters of a value


def plot(result: SearchResult, path: str | os.PathLike[str]) -> None:
    """Draw trials in order with the best score so far, then one panel for each axis: scores by value, and their means.

    Args:
      result: what `auto_tune` returned.
      path: of the picture; its suffix says the file format.

    Raises:
      MechanexError: matplotlib is not installed.
      ArgumentError: a file name that matplotlib cannot write.
    """
    figure_type = figure_class()
    trials = result["trials"]
    scores = np.array([trial["avg_score"] for trial in trials])
    best = trials.index(result["best_trial"])
    varied = [name for name in trials[0]["values"] if len({_label(trial["values"][name]) for trial in trials}) > 1]
    rows = -(-(1 + len(varied)) // _COLUMNS)
    columns = min(_COLUMNS, 1 + len(varied))
    figure = figure_type(figsize=(4.5 * columns, 3.5 * rows), layout="constrained")
    panels = [figure.add_subplot(rows, columns, 1 + at) for at in range(1 + len(varied))]
    numbers = np.arange(1, len(trials) + 1)
    panels[0].plot(numbers, scores, "o", markersize=4, color="0.6", label="trial")
    panels[0].step(numbers, np.maximum.accumulate(scores), where="post", label="best so far")
    panels[0].plot(best + 1, scores[best], "*", markersize=12, color="C1", label="chosen")
    panels[0].set_xlabel("trial")
    panels[0].legend(fontsize=8)
    for panel, name in zip(panels[1:], varied, strict=True):
        _axis(panel, name, [trial["values"][name] for trial in trials], scores, best)
    for panel in panels:
        panel.set_ylabel("mean score")
    try:
        figure.savefig(path)
    except ValueError as error:
        raise expected("path", str(path), f"a name of a picture, such as tuning.png ({error})") from error


def _axis(panel: Axes, name: str, values: Sequence[JsonValue], scores: np.ndarray, best: int) -> None:
    """Draw scores by the values of an axis: numbers in their order, others in that of the trials."""
    labels = list(dict.fromkeys(map(_label, values)))
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    ordered = len(numbers) == len(values)
    if ordered:
        labels.sort(key={_label(value): value for value in numbers}.__getitem__)
    places = {label: at for at, label in enumerate(labels)}
    at = np.array([places[_label(value)] for value in values])
    panel.plot(at, scores, "o", markersize=4, color="0.6")
    means = [scores[at == place].mean() for place in places.values()]
    panel.plot(range(len(places)), means, **({} if ordered else {"linestyle": "", "marker": "_", "markersize": 16}))
    panel.plot(at[best], scores[best], "*", markersize=12, color="C1")
    labels = [label if len(label) <= _MAX_LABEL else label[: _MAX_LABEL - 1] + "…" for label in labels]
    panel.set_xticks(range(len(places)), labels, rotation=30 if max(map(len, labels)) > 4 else 0, fontsize=8)
    panel.set_xlabel(name)


def _label(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)
