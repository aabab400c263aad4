"""Pictures of evaluations: effect against cost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mechanex_jax.errors import MechanexError, Verbatim, expected
from mechanex_jax.steering.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_class() -> type[Figure]:
    """The class of figures in matplotlib, which is an optional dependency.

    Raises:
      MechanexError: it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MechanexError("plot: matplotlib is not installed. Install it with `pip install 'mechanex_jax[plot]'`.") from error
    return Figure


def plot(evaluations: Mapping[str, Evaluation], path: str | os.PathLike[str], *, title: str = "") -> None:
    """Draw effect against cost: one line per entry (a layer, say), one point per strength.

    The effect is the logit difference against strength 0 where there are answers, else the change of projection; the cost is
    the KL divergence from the unsteered model on unrelated text.

    Args:
      evaluations: by what the legend calls them.
      path: the picture; its suffix says which kind.
      title: above the picture.

    Raises:
      MechanexError: matplotlib is not installed.
      ArgumentError: no evaluations, or a file name that matplotlib cannot write.
    """
    figure_type = figure_class()
    if not evaluations:
        raise expected("evaluations", Verbatim("none"), "at least one")
    figure = figure_type(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    with_answers = all(evaluation.logit_difference is not None for evaluation in evaluations.values())
    for name, evaluation in evaluations.items():
        effect = np.array(evaluation.logit_difference if with_answers else evaluation.projection)
        if with_answers and 0.0 in evaluation.strengths:
            effect = effect - effect[evaluation.strengths.index(0.0)]
        axes.plot(evaluation.kl, effect, marker="o", markersize=4, label=name)
        for x, y, strength in zip(evaluation.kl, effect, evaluation.strengths, strict=True):
            axes.annotate(f"{strength:g}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set_xlabel("cost: KL to the unsteered model, nats per token of other text")
    axes.set_ylabel("effect: " + ("positive - negative, nats per token" if with_answers else "change of projection"))
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_title(title)
    axes.legend()
    try:
        figure.savefig(path)
    except ValueError as error:
        raise expected("path", str(path), f"a name of a picture, such as steering.png ({error})") from error
