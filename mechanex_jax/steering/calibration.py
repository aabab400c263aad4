"""The unit of a vector's strength: how much of it the model takes without losing its language.

Methods give vectors of any length, and what several layers add sums up on the way. A vector is therefore scaled when it is
made: strength 1 is the largest at which the loss on plain prose, about nothing in particular, rises by at most 3%, and at
strength 2 by at most 12%, which is as much where the rise is quadratic in the strength. The model then still writes sentences
at 1.5 and 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from mechanex_jax import edits
from mechanex_jax.loading import LoadedModel
from mechanex_jax.progress import Report, silent
from mechanex_jax.steering.examples import tokenize_texts
from mechanex_jax.steering.reference_texts import TEXTS
from mechanex_jax.steering.scoring import score
from mechanex_jax.steering.vector import SteeringVector

MOST_LOSS = ((1.0, 0.03), (2.0, 0.12))  # strength, and how much the loss may rise at it
_TEXTS, _TOKENS = 8, 32  # neutral texts, and how much of each
_COARSE = tuple(2.0**power for power in range(-5, 4))
_FINE = (-2.0, -1.0, 0.9, 1.0, 1.1, 1.8, 2.0, 2.2)  # as shares of what the coarse strengths tell
_SMALLER, _ROUNDS = 64.0, 3  # where all of them are too much, others that are so much smaller, at most so often
_LENGTHS = ("norm", "relative_norm")  # metrics that scale with the vectors


def loss_rises(
    loaded: LoadedModel, steering: edits.RowSteering, strengths: Sequence[float], *, report: Report = silent
) -> Float64[np.ndarray, " S"]:
    """Share by which the loss on neutral text rises at each strength, which run as rows of one batch; inf where it is NaN."""
    texts = [text.cut(_TOKENS - 1) for text in tokenize_texts(loaded, TEXTS[:_TEXTS])]
    counts = np.array([len(text.tokens) - text.start for text in texts])
    scaled = [steering.scaled(strength) for strength in (0.0, *strengths)]
    losses = -(score(loaded, texts, scaled, report=report)[:, 0] * counts).sum(-1)
    return np.nan_to_num(losses[1:] / losses[0] - 1, nan=np.inf)


def largest_strength(strengths: Sequence[float], rises: Sequence[float]) -> float:
    """The strength up to which loss stays within `MOST_LOSS`, by lines between the measured points; inf where it does at all.

    The loss curves upwards, so that the lines lie above it, and the result is on the safe side.

    >>> largest_strength([1.0, 2.0, 4.0], [0.01, 0.04, 0.16])
    1.6666666666666667

    Args:
      strengths: above 0, in any order.
      rises: of the loss, as a share, at each.
    """
    xs, ys = np.array(sorted([(0.0, 0.0), *zip(strengths, rises, strict=True)])).T
    limits = []
    for multiple, most in MOST_LOSS:
        over = np.flatnonzero(ys > most)
        if len(over):
            low, high = over[0] - 1, over[0]
            share = (most - ys[low]) / (ys[high] - ys[low])
            limits.append((xs[low] + share * (xs[high] - xs[low])) / multiple)
    return float(min(limits, default=np.inf))


def calibrated(loaded: LoadedModel, vector: SteeringVector, *, report: Report = silent) -> SteeringVector:
    """Scale a vector so that strength 1 is the most that keeps the loss within `MOST_LOSS`.

    A gate is held open meanwhile: it may be shut on neutral text, and the vector has to be bearable where it opens.

    Args:
      loaded: the model that it was made for.
      vector: as a method made it.
      report: called with rows done and their total.

    Returns:
      The scaled vector. Its metrics tell `scale`, by which it was multiplied; `calibration_strengths`, negative ones too, and
      `calibration_loss`, the rise of the loss at each as a share; and `calibration_cap`, 1 where the loss stays within bounds
      at all strengths that were tried, so that strength 1 is 4 times the method's own vector, else 0. A vector of zeros stays
      as it is.
    """
    if not vector.vectors.any():
        return vector
    steering = dataclasses.replace(vector, perceptron=None).steering()
    measured: dict[float, float] = {}

    def measure(strengths: Sequence[float]) -> float:
        measured.update(zip(strengths, loss_rises(loaded, steering, strengths, report=report).tolist(), strict=True))
        rising = sorted(strength for strength in measured if strength > 0)
        return largest_strength(rising, [measured[strength] for strength in rising])

    for turn in range(_ROUNDS + 1):
        factor = _SMALLER**-turn
        scale = measure([factor * strength for strength in _COARSE])
        if scale >= factor * _COARSE[0]:
            break
    capped = scale == np.inf
    if capped:
        scale = max(measured) / MOST_LOSS[-1][0]
    else:
        refined = measure([scale * share for share in _FINE])
        scale = refined if np.isfinite(refined) else scale
    rising = sorted(measured)
    lengths = {name: [scale * value for value in vector.metrics[name]] for name in _LENGTHS if name in vector.metrics}
    curve = {
        "scale": [scale],
        "calibration_strengths": [strength / scale for strength in rising],
        "calibration_loss": [measured[strength] for strength in rising],
        "calibration_cap": [float(capped)],
    }
    metrics = {**vector.metrics, **lengths, **curve}
    return dataclasses.replace(vector, vectors=vector.vectors * np.float32(scale), metrics=metrics)
