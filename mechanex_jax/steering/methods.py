"""The table of methods that make vectors from contrastive examples. A new method is one function and one row."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mechanex_jax.errors import expected
from mechanex_jax.progress import Report, silent
from mechanex_jax.steering.activations import read_answers
from mechanex_jax.steering.examples import Example
from mechanex_jax.steering.few_shot import few_shot
from mechanex_jax.steering.method_types import Made, Task
from mechanex_jax.steering.perceptron import perceptrons


def caa(task: Task) -> Made:
    """Contrastive activation addition: mean over positive answers less mean over negative ones (arXiv 2312.06681).

    An answer counts once, with the mean activation over its tokens. Vectors are not normalised: with one layer, strength 1
    moves an activation by the distance between the two means. What N layers add sums up on the way; there 1 / N does so.
    """
    means = read_answers(task.loaded, task.examples, task.layers, task.site, report=task.report).astype(np.float64)
    kinds = np.array([example.positive for example in task.examples])
    positive, negative = means[kinds].mean(0), means[~kinds].mean(0)
    vectors = positive - negative
    scale = np.linalg.norm(means, axis=-1).mean(0)
    norms = np.linalg.norm(vectors, axis=-1)
    return Made(vectors.astype(np.float32), metrics={"norm": norms.tolist(), "relative_norm": (norms / scale).tolist()})


@dataclasses.dataclass(frozen=True)
class SteeringMethod:
    """Attributes:
    name: as the user writes it.
    make: the function.
    negatives: whether it needs negative answers.
    apart: whether each layer's vector is made as if it were the only one, so that N layers need an Nth of it each.
    tokens: of each answer, the first so many count where the caller says nothing; None is all.
    reads: settings of `generate_vectors` that it uses, with their defaults; any other is refused.
    """

    name: str
    make: Callable[[Task], Made]
    negatives: bool
    apart: bool = True
    tokens: int | None = None
    reads: dict[str, Any] = dataclasses.field(default_factory=dict)


METHODS = {
    method.name: method
    for method in (
        # An answer's manner shows early, and training on long ones would cost the most.
        SteeringMethod("few-shot", few_shot, False, False, 16, {"steps": 16, "max_norm": 0.4, "learning_rate": 0.25}),
        SteeringMethod("caa", caa, True),
        SteeringMethod("steering-perceptrons", perceptrons, True, reads={"steps": 300, "hidden": 16, "learning_rate": 1e-2}),
    )
}


def method(name: Any) -> SteeringMethod:
    """The method of this name.

    Raises:
      ArgumentError: there is none; the message lists all of them.
    """
    found = METHODS.get(name.strip().lower()) if isinstance(name, str) else None
    if found is None:
        near = difflib.get_close_matches(str(name), METHODS, n=1)
        raise expected("method", name, f"one of {', '.join(METHODS)}", f"Did you mean {near[0]!r}?" if near else "")
    return found


def settings(chosen: SteeringMethod, given: dict[str, Any]) -> dict[str, Any]:
    """A method's settings: what is given over its defaults. None is not given.

    Raises:
      ArgumentError: a setting that the method doesn't use, or a value that is no positive number.
    """
    for name, value in given.items():
        if value is None:
            continue
        if name not in chosen.reads:
            raise expected(name, value, f"None, because {chosen.name} does not use it")
        whole = isinstance(chosen.reads[name], int)
        kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < float("inf"):
            raise expected(name, value, "a whole number, at least 1" if whole else "a finite number above 0")
    return {name: default if given.get(name) is None else given[name] for name, default in chosen.reads.items()}


def make(
    name: str,
    loaded: Any,
    examples: Sequence[Example],
    layers: Sequence[int],
    site: str = "resid_pre",
    *,
    seed: int = 0,
    tokens: int | None = None,
    report: Report = silent,
    **given: Any,
) -> Made:
    """Run one method on the first `tokens` tokens of each answer; None is the method's own number.

    Raises:
      ArgumentError: an unknown method, negatives missing where it needs them, a setting that it doesn't use.
    """
    chosen = method(name)
    used = settings(chosen, given)
    if chosen.negatives and all(example.positive for example in examples):
        raise expected("negative_answers", None, f"a list of answers, because {chosen.name} compares two kinds")
    tokens = chosen.tokens if tokens is None else tokens
    begun = examples if tokens is None else [example.cut(tokens) for example in examples]
    return chosen.make(Task(loaded, begun, tuple(layers), site, seed, report, used))
