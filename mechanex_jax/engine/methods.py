"""The table of sampling methods: which loop runs each, which arguments it reads, and what it keeps of a distribution.

A new method that only truncates is one row here. Rows of one batch may use different methods: they share one compiled
program, in which what a row doesn't use has its neutral value.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from mechanex_jax.errors import expected
from mechanex_jax.validation import hint

# The fields of `transforms.determinantal`, each with the value that keeps all tokens.
NEUTRAL_SUBSET = {"subset_size": 0, "beta": 0.3, "top_k": 1}

Sources = Mapping[str, str | float]


@dataclasses.dataclass(frozen=True)
class SamplingMethod:
    """A sampling method.

    Attributes:
      name: as the user writes it.
      truncation: field of `transforms.truncation` -> the argument that it is read from, or a number. The other fields are
        neutral.
      source: where the method comes from.
      loop: which of `mechanex_jax.engine.runners` runs it.
      more: further arguments with default None that the method uses.
      constrained: whether it needs a constraint.
      subset: field of `transforms.determinantal` -> the argument that it is read from.
    """

    name: str
    truncation: Sources
    source: str
    loop: str = "autoregressive"
    more: tuple[str, ...] = ("draft_model",)
    constrained: bool = False
    subset: Sources = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def reads(self) -> frozenset[str]:
        """Arguments that the method uses. Any other that belongs to methods, and whose default is None, is refused."""
        sources = (*self.truncation.values(), *self.subset.values())
        return frozenset(self.more) | {source for source in sources if isinstance(source, str)}


def _named(*arguments: str) -> dict[str, str]:
    """Sources for fields that are called like the arguments they are read from."""
    return {name: name for name in arguments}


_TOP_K, _TOP_P = _named("temperature", "top_k"), _named("temperature", "top_p")
_SUBSET = {"subset_size": "ads_subset_size", "beta": "ads_beta", "top_k": "top_k"}
METHODS = {
    method.name: method
    for method in (
        SamplingMethod("greedy", {"temperature": 0.0}, "argmax"),
        SamplingMethod("top-k", _TOP_K, "Fan et al. 2018, arXiv 1805.04833"),
        SamplingMethod("top-p", _TOP_P, "Holtzman et al. 2019, arXiv 1904.09751"),
        SamplingMethod("min-p", _named("temperature", "min_p"), "Nguyen et al. 2024, arXiv 2407.01082"),
        SamplingMethod("typical", _named("temperature", "typical_p"), "Meister et al. 2022, arXiv 2202.00666"),
        SamplingMethod("epsilon", _named("temperature", "epsilon_cutoff"), "Hewitt et al. 2022, arXiv 2210.15191"),
        SamplingMethod("ads", _named("temperature"), "ours; Chen et al. 2018, arXiv 1709.05135", subset=_SUBSET),
        SamplingMethod("constrained-beam-search", {}, "score = sum of log p / length ** length_penalty", "beam", more=()),
        SamplingMethod("guided-generation", _TOP_P, "top-p under a constraint", constrained=True),
        SamplingMethod("speculative-decoding", _TOP_K, "arXiv 2211.17192, 2302.01318; drawn as top-k", "speculative"),
        SamplingMethod("ensemble-sampling", _TOP_P, "drawn as top-p", "ensemble", more=("ensemble_models",)),
    )
}
ALIASES = {"adaptive-determinantal-sampling": "ads", "ssd": "speculative-decoding"}


def method(name: object) -> SamplingMethod:
    """The method of this name.

    Raises:
      ArgumentError: there is none; the message lists all of them.
    """
    chosen = METHODS.get(ALIASES.get(name, name)) if isinstance(name, str) else None
    if chosen is None:
        raise expected("sampling_method", name, f"one of {', '.join(METHODS)}", hint(name, [*METHODS, *ALIASES]))
    return chosen
