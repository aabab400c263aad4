"""The table of methods that make vectors from contrastive examples. A new method is one function and one row."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from mechanex_jax.errors import expected
from mechanex_jax.loading import LoadedModel
from mechanex_jax.progress import Report, silent
from mechanex_jax.steering.activations import read_answers
from mechanex_jax.steering.examples import Example
from mechanex_jax.steering.few_shot import few_shot
from mechanex_jax.steering.method_types import MethodInput, MethodResult
from mechanex_jax.steering.perceptron import perceptrons
from mechanex_jax.validation import hint

_LAYERS = 8  # that are steered where the caller names none


def caa(task: MethodInput) -> MethodResult:
    """Contrastive activation addition: mean over positive answers less mean over negative ones (arXiv 2312.06681).

    An answer counts once, with the mean activation over its tokens. Vectors are not normalised: each moves an activation by the
    distance between the two means. What several layers add sums up on the way.
    """
    means = read_answers(task.loaded, task.examples, task.layers, task.site, report=task.report).astype(np.float64)
    kinds = np.array([example.positive for example in task.examples])
    positive, negative = means[kinds].mean(0), means[~kinds].mean(0)
    vectors = positive - negative
    scale = np.linalg.norm(means, axis=-1).mean(0)
    norms = np.linalg.norm(vectors, axis=-1)
    metrics = {"norm": norms.tolist(), "relative_norm": (norms / scale).tolist()}
    return MethodResult(vectors.astype(np.float32), metrics=metrics)


@dataclasses.dataclass(frozen=True)
class SteeringMethod:
    """One row of the table.

    Attributes:
      name: as the user writes it.
      make: the function.
      negatives: whether it needs negative answers.
      tokens: of each answer, the first so many count where the caller says nothing; None is all.
      defaults: the settings of `generate_vectors` that it reads, with their defaults; any other is refused. A whole number's
        setting takes whole numbers.
    """

    name: str
    make: Callable[[MethodInput], MethodResult]
    negatives: bool
    tokens: int | None = None
    defaults: Mapping[str, float] = dataclasses.field(default_factory=dict)


METHODS = {
    method.name: method
    for method in (
        # An answer's manner shows early, and training on long ones would cost the most.
        SteeringMethod("few-shot", few_shot, False, 16, {"steps": 16, "max_norm": 0.4, "learning_rate": 0.25}),
        SteeringMethod("caa", caa, True),
        SteeringMethod("steering-perceptrons", perceptrons, True, defaults={"steps": 300, "hidden": 16, "learning_rate": 1e-2}),
    )
}


def find_method(name: object) -> SteeringMethod:
    """Look a method up by its name, whatever the case.

    Raises:
      ArgumentError: there is none of this name; the message lists all.
    """
    method = METHODS.get(name.strip().lower()) if isinstance(name, str) else None
    if method is None:
        raise expected("method", name, f"one of {', '.join(METHODS)}", hint(name, METHODS))
    return method


def complete_settings(method: SteeringMethod, settings: Mapping[str, float | None]) -> dict[str, float]:
    """The method's defaults, with those replaced that `settings` names; None names nothing.

    Raises:
      ArgumentError: a setting that the method doesn't use, or a value that is no positive number.
    """
    for name, value in settings.items():
        if value is None:
            continue
        if name not in method.defaults:
            raise expected(name, value, f"None, because {method.name} does not use it")
        whole = isinstance(method.defaults[name], int)
        kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < float("inf"):
            raise expected(name, value, "a whole number, at least 1" if whole else "a finite number above 0")
    return {**method.defaults, **{name: value for name, value in settings.items() if value is not None}}


def make(
    name: str,
    loaded: LoadedModel,
    examples: Sequence[Example],
    layers: Sequence[int],
    site: str = "resid_pre",
    *,
    seed: int = 0,
    tokens: int | None = None,
    report: Report = silent,
    **settings: float | None,
) -> MethodResult:
    """Run one method on the first `tokens` tokens of each answer; None is the method's own number.

    Raises:
      ArgumentError: an unknown method, negatives missing where it needs them, a setting that it doesn't use.
    """
    method = find_method(name)
    complete = complete_settings(method, settings)
    if method.negatives and all(example.positive for example in examples):
        raise expected("negative_answers", None, f"a list of answers, because {method.name} compares two kinds")
    tokens = method.tokens if tokens is None else tokens
    shortened = examples if tokens is None else [example.cut(tokens) for example in examples]
    return method.make(MethodInput(loaded, shortened, tuple(layers), site, seed, report, complete))


def choose_layers(layer_idxs: object, depth: int) -> tuple[int, ...]:
    """The layers to steer, rising; None is eight from two thirds of the model's `depth` on.

    Raises:
      ArgumentError: empty, not whole numbers, beyond the model, or one twice.
    """
    if layer_idxs is None:
        first = math.floor(2 * depth / 3)
        return tuple(range(first, min(first + _LAYERS, depth)))
    if isinstance(layer_idxs, (str, Mapping)) or not isinstance(layer_idxs, Iterable):
        raise expected("layer_idxs", layer_idxs, "a list of layers, or None")
    layers = list(layer_idxs)
    whole = all(isinstance(layer, numbers.Integral) and not isinstance(layer, bool) for layer in layers)
    if not layers or not whole or min(layers) < 0 or max(layers) >= depth or len(set(layers)) != len(layers):
        raise expected("layer_idxs", layers, f"at least one layer from 0 to {depth - 1}, each once")
    return tuple(sorted(int(layer) for layer in layers))
