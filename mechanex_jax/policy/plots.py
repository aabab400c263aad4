"""A picture of a search for a policy."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mechanex_jax.errors import expected
from mechanex_jax.steering.plots import figure_class

_COLUMNS = 3
_LONGEST = 16  # characters of a value


def plot(found: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Trials in order with the best score so far, then one panel for each axis: scores by value, and their means.

    Args:
      found: what `auto_tune` returned.
      path: of the picture; its suffix says which kind.

    Raises:
      MechanexError: matplotlib is not installed.
      ArgumentError: a file name that matplotlib cannot write.
    """
    figure_type = figure_class()
    trials = found["trials"]
    scores = np.array([trial["avg_score"] for trial in trials])
    best = next(at for at, trial in enumerate(trials) if trial is found["best_trial"] or trial == found["best_trial"])
    varied = [name for name in trials[0]["values"] if len({_shown(trial["values"][name]) for trial in trials}) > 1]
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


def _axis(panel: Any, name: str, values: list[Any], scores: np.ndarray, best: int) -> None:
    """Scores by the values of an axis: numbers in order, others as they came."""
    distinct = {_shown(value): value for value in values}
    ordered = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if ordered:
        distinct = dict(sorted(distinct.items(), key=lambda item: item[1]))
    places = {shown: at for at, shown in enumerate(distinct)}
    at = np.array([places[_shown(value)] for value in values])
    panel.plot(at, scores, "o", markersize=4, color="0.6")
    means = [scores[at == place].mean() for place in places.values()]
    panel.plot(range(len(places)), means, **({} if ordered else {"linestyle": "", "marker": "_", "markersize": 16}))
    panel.plot(at[best], scores[best], "*", markersize=12, color="C1")
    labels = [shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…" for shown in places]
    panel.set_xticks(range(len(places)), labels, rotation=30 if max(map(len, labels)) > 4 else 0, fontsize=8)
    panel.set_xlabel(name)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
