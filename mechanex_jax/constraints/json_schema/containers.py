"""Values of parts, objects and arrays: brackets, commas, and a formula that changes from part to part."""

from __future__ import annotations

import abc
from typing import ClassVar, NamedTuple

from mechanex_jax.constraints.json_schema.formula import Formula
from mechanex_jax.constraints.json_schema.rules import Rule
from mechanex_jax.constraints.json_schema.steps import Continuation, Goals, NextPart, Truths, truth_at_end
from mechanex_jax.constraints.json_schema.to_automaton import ValueReader


class Remainder(NamedTuple):
    """The formulas left to hold of the parts that follow.

    Attributes:
      must: has to hold.
      goals: to decide.
      positions: in the orders of names of an object.
    """

    must: Formula
    goals: Goals
    positions: tuple[int, ...] = ()


class ContainerRule(abc.ABC):
    """The exploration of a rule that reads an object or an array.

    Attributes:
      brackets: the bytes that open and close it.
      true_at_end: names of the leaves that are true when no part follows; others are false then.
      first: what all parts have to satisfy.
    """

    brackets: ClassVar[bytes]
    true_at_end: ClassVar[frozenset[str]]
    first: Remainder

    def __init__(self, values: ValueReader, rule: Rule):
        self.values, self.rules, self.rule = values, values.rules, rule
        self.translator, self.formulas = values.translator, values.formulas
        self.builder = values.rules.builder
        self._behind: dict[Remainder, int] = {}

    @abc.abstractmethod
    def read_part(self, source: int, left: Remainder) -> None:
        """From `source` read one part, and go on behind it."""

    def may_close(self, left: Remainder) -> bool:
        """Whether no part has to follow, whatever the formula says."""
        return True

    def explore(self) -> None:
        opened = self.new_state()
        self.builder.edge(self.builder.start(self.rule.number), 1 << self.brackets[0], self.spaced(opened))
        self._close(opened, self.first)
        self.read_part(opened, self.first)

    def new_state(self) -> int:
        return self.builder.state(self.rule.number)

    def spaced(self, state: int) -> int:
        """The state, or one before it at which whitespace may come."""
        return self.rules.spaced(self.rule.number, state)

    def behind(self, left: Remainder) -> int:
        """The state behind a part."""
        if left not in self._behind:
            inner = self.new_state()
            self._behind[left] = self.spaced(inner)
            self.rules.later(lambda: self._explore_behind(inner, left))
        return self._behind[left]

    def continuation(self, part: NextPart, positions: tuple[int, ...] = ()) -> Continuation:
        """Go on behind a part with what its goals leave."""

        def then(truths: Truths) -> int | None:
            rest = part.rest(truths)
            return None if rest is None else self.behind(Remainder(*rest, positions))

        return then

    def _explore_behind(self, source: int, left: Remainder) -> None:
        self._close(source, left)
        before = self.new_state()
        self.builder.edge(source, 1 << ord(","), self.spaced(before))
        self.read_part(before, left)

    def _close(self, source: int, left: Remainder) -> None:
        if self.may_close(left) and truth_at_end(left.must, self.true_at_end):
            truths = tuple([truth_at_end(goal, self.true_at_end) for goal in left.goals])
            self.builder.edge(source, 1 << self.brackets[1], self.rules.end(self.rule, truths))
