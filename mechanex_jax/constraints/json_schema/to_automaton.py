"""Formulas to automata: for a formula that must hold and goals that are to be decided, states that read one JSON value.

Each type of JSON has its reader (`scalars`, `objects`, `arrays`), a function that `compile` hands in; readers of what nests
come back to `ValueReader.read`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from mechanex_jax.constraints.json_schema.formula import FALSE, JSON_TYPES, NULL, STRING, TRUE, Formula
from mechanex_jax.constraints.json_schema.rules import Rules
from mechanex_jax.constraints.json_schema.steps import Continuation, Goals, Truths
from mechanex_jax.constraints.json_schema.to_formula import Translator
from mechanex_jax.errors import ConstraintError

_LITERALS = {NULL: b"null", TRUE: b"true", FALSE: b"false"}
_MAX_INLINE_TYPES = 2  # a value of more types is read by a rule of its own

TypeReader = Callable[["ValueReader", int, Formula, Goals, Continuation], None]


class ValueReader:
    """Writes the states that read values, by type.

    Attributes:
      translator: of the schema.
      formulas: the translator's.
      rules: where the states go.
    """

    def __init__(
        self, translator: Translator, rules: Rules, readers: Mapping[int, TypeReader], read_distinct_string: TypeReader
    ):
        self.translator, self.formulas, self.rules = translator, translator.formulas, rules
        self._readers, self._read_distinct_string = readers, read_distinct_string

    def read(self, source: int, must: Formula, goals: Sequence[Formula], then: Continuation) -> None:
        """From `source` of some rule read a value for which `must` holds.

        Args:
          source: a state without edges for first bytes of values.
          must: may have leaves not looked at yet, as may the goals.
          goals: to decide.
          then: where to go on, by the goals' truths.
        """
        must = self.translator.expand(must)
        goals = tuple(self.translator.expand(goal) for goal in goals)
        possible = [bit for bit in JSON_TYPES if self.formulas.of_type(must, bit) is not self.formulas.false]
        if len(possible) <= _MAX_INLINE_TYPES:
            self._read_types(source, possible, must, goals, then)
        else:
            self.rules.call_reader(
                source, "value", must, goals, lambda start, end: self._read_types(start, possible, must, goals, end), then
            )

    def read_distinct(self, source: int, must: Formula, goals: Sequence[Formula], then: Continuation) -> None:
        """From `source` read a string for which `must` holds, and which no other one of its array may be equal to.

        Raises:
          ConstraintError: `must` holds for values that are no strings, or for strings that can't be told apart by a token.
        """
        must = self.translator.expand(must)
        goals = tuple(self.translator.expand(goal) for goal in goals)
        if any(self.formulas.of_type(must, bit) is not self.formulas.false for bit in JSON_TYPES if bit != STRING):
            raise ConstraintError("the items need not be strings")
        readers = {**self._readers, STRING: self._read_distinct_string}
        ValueReader(self.translator, self.rules, readers, self._read_distinct_string)._read_types(
            source, [STRING], must, goals, then
        )

    def _read_types(self, source: int, possible: Iterable[int], must: Formula, goals: Goals, then: Continuation) -> None:
        for bit in possible:
            of_type = [self.formulas.of_type(goal, bit) for goal in goals]
            open_goals = tuple(dict.fromkeys(goal for goal in of_type if goal.kind != "constant"))
            number = {goal: i for i, goal in enumerate(open_goals)}

            def onwards(truths: Truths, goals: list[Formula] = of_type, number: Mapping[Formula, int] = number) -> int | None:
                return then(tuple([truths[number[goal]] if goal in number else goal.args[0] for goal in goals]))

            if bit in _LITERALS:
                state = onwards(())
                if state is not None:
                    self.rules.builder.text(source, _LITERALS[bit], state)
            else:
                self._readers[bit](self, source, self.formulas.of_type(must, bit), open_goals, onwards)
