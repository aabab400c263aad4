"""The table of sampling methods: which loop runs each, which arguments it reads, and what it keeps of a distribution.

A new method that only truncates is one row here. Rows of one batch may use different methods: they share one compiled
program, in which what a row doesn't use has its neutral value.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from mechanex_jax.errors import expected

_ONE_BY_ONE = "autoregressive"
NO_SUBSET = {"subset_size": 0, "beta": 0.3, "top_k": 1}
NEUTRAL = {"temperature": 1.0, "top_k": 2**31 - 1, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


@dataclasses.dataclass(frozen=True)
class SamplingMethod:
    """Attributes:
    name: as the user writes it.
    reads: arguments with default None that the method uses; any other such argument is refused.
    truncation: a row's validated arguments -> the fields of `transforms.truncation` that are not neutral.
    loop: which of `mechanex_jax.engine.runners` runs it.
    source: where the method comes from.
    constrained: it needs a constraint.
    subset: likewise the fields of `transforms.determinantal`.
    """

    name: str
    reads: frozenset[str] = frozenset()
    truncation: Callable[[Any], dict[str, float]] = lambda row: {}
    loop: str = _ONE_BY_ONE
    source: str = ""
    constrained: bool = False
    subset: Callable[[Any], dict[str, float]] = lambda row: {}


def _temperature(row: Any) -> dict[str, float]:
    return {"temperature": row.temperature}


def _top_k(row: Any) -> dict[str, float]:
    return {"temperature": row.temperature, "top_k": row.top_k}


def _top_p(row: Any) -> dict[str, float]:
    return {"temperature": row.temperature, "top_p": row.top_p}


def _min_p(row: Any) -> dict[str, float]:
    return {"temperature": row.temperature, "min_p": 0.05 if row.min_p is None else row.min_p}


def _typical(row: Any) -> dict[str, float]:
    return {"temperature": row.temperature, "typical_p": 0.95 if row.typical_p is None else row.typical_p}


def _subset(row: Any) -> dict[str, float]:
    size = 8 if row.ads_subset_size is None else row.ads_subset_size
    return {"subset_size": size, "beta": 0.3 if row.ads_beta is None else row.ads_beta, "top_k": row.top_k}


_ADS = frozenset({"ads_subset_size", "ads_beta", "draft_model"})
_DRAFT = frozenset({"draft_model"})
METHODS = {
    method.name: method
    for method in (
        SamplingMethod("greedy", _DRAFT, lambda row: {"temperature": 0.0}, _ONE_BY_ONE, "argmax"),
        SamplingMethod("top-k", _DRAFT, _top_k, _ONE_BY_ONE, "Fan et al. 2018, arXiv 1805.04833"),
        SamplingMethod("top-p", _DRAFT, _top_p, _ONE_BY_ONE, "Holtzman et al. 2019, arXiv 1904.09751"),
        SamplingMethod("min-p", _DRAFT | {"min_p"}, _min_p, _ONE_BY_ONE, "Nguyen et al. 2024, arXiv 2407.01082"),
        SamplingMethod("typical", _DRAFT | {"typical_p"}, _typical, _ONE_BY_ONE, "Meister et al. 2022, arXiv 2202.00666"),
        SamplingMethod("ads", _ADS, _temperature, _ONE_BY_ONE, "ours; Chen et al. 2018, arXiv 1709.05135", subset=_subset),
        SamplingMethod("constrained-beam-search", loop="beam", source="score = sum of log p / length ** length_penalty"),
        SamplingMethod("guided-generation", _DRAFT, _top_p, _ONE_BY_ONE, "top-p under a constraint", constrained=True),
        SamplingMethod("speculative-decoding", _DRAFT, _top_k, "speculative", "arXiv 2211.17192, 2302.01318; drawn as top-k"),
        SamplingMethod("ensemble-sampling", frozenset({"ensemble_models"}), _top_p, "ensemble", "drawn as top-p"),
    )
}
ALIASES = {"adaptive-determinantal-sampling": "ads", "ssd": "speculative-decoding"}


def method(name: Any) -> SamplingMethod:
    """The method of this name.

    Raises:
      ArgumentError: there is none; the message lists all of them.
    """
    found = METHODS.get(ALIASES.get(name, name)) if isinstance(name, str) else None
    if found is None:
        near = difflib.get_close_matches(str(name), [*METHODS, *ALIASES], n=1)
        raise expected("sampling_method", name, f"one of {', '.join(METHODS)}", f"Did you mean {near[0]!r}?" if near else "")
    return found
