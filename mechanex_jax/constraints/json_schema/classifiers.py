"""Automata that tell numbers, strings or keys apart by the truth of formulas about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Set
from typing import Generic, TypeVar

from mechanex_jax.constraints.automata.byte_dfa import ByteDfa
from mechanex_jax.constraints.automata.dfa import CharDfa
from mechanex_jax.constraints.json_schema.formula import Formula

Outcome = TypeVar("Outcome", bound=Hashable)
Valuation = Set[Formula]  # the leaves that are true
Decision = Callable[[Valuation], Outcome | None]  # None: not accepted


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier(Generic[Outcome]):
    """An automaton whose labels stand for outcomes.

    Attributes:
      automaton: over bytes, or over characters where that is long.
      outcomes: by label.
      as_written: whether it is spelt only as JSON writers do; a number always is.
    """

    automaton: ByteDfa | CharDfa
    outcomes: list[Outcome]
    as_written: bool = True

    @property
    def size(self) -> int:
        return len(self.automaton.edges if isinstance(self.automaton, ByteDfa) else self.automaton.next)


class Labels(Generic[Outcome]):
    """Labels for the outcomes of a decision, in the order in which they turn up."""

    def __init__(self, decide: Decision[Outcome]):
        self._decide = decide
        self._labels: dict[Outcome, int] = {}

    def label(self, valuation: Valuation) -> int:
        """The label of the outcome; -1 where nothing is accepted."""
        outcome = self._decide(valuation)
        return -1 if outcome is None else self._labels.setdefault(outcome, len(self._labels))

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcomes so far, by label."""
        return list(self._labels)
