"""The rules of one automaton under construction, which end with labels for the truths of their goals.

Which truths a rule can end with is only known once it is explored, and rules call each other in circles; so a caller says by
a continuation where each truth leads, and is asked again when a new one turns up.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable

from mechanex_jax.constraints.automata.dfa import CompileLimits
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.automata.pushdown_builder import Builder
from mechanex_jax.constraints.json_schema.formula import Formula
from mechanex_jax.constraints.json_schema.steps import Continuation, Goals, Truths
from mechanex_jax.errors import ConstraintError

MAX_LABELS = 60


@dataclasses.dataclass(eq=False)
class Rule:
    """A rule under construction.

    Attributes:
      number: in the builder.
      ends: the state at which it ends with these truths.
      callers: told of each new ending, by truths and label.
    """

    number: int
    ends: dict[Truths, int] = dataclasses.field(default_factory=dict)
    callers: list[Callable[[Truths, int], None]] = dataclasses.field(default_factory=list)


class Rules:
    """All rules of one schema, and the work that is left to explore them.

    Attributes:
      builder: where the states are.
    """

    def __init__(self, limits: CompileLimits, whitespace: bool):
        self.builder = Builder()
        self._limits = limits
        self._work: deque[Callable[[], None]] = deque()
        self._rules: dict[tuple[str, Formula, Goals], Rule] = {}
        self._calls: list[tuple[int, int, dict[int, int]]] = []
        self._aliases: list[tuple[int, int]] = []
        self._space = self._whitespace() if whitespace else None

    # -- States ------------------------------------------------------------------------------------------------------------

    def _whitespace(self) -> int:
        """The rule that reads at most one line break, then at most 16 spaces; not nothing."""
        builder = self.builder
        rule = builder.rule("whitespace")
        states = [builder.state(rule, 0) for _ in range(17)]
        for state, following in itertools.pairwise(states):
            builder.edge(state, 1 << 0x20, following)
        builder.edge(builder.start(rule), 1 << 0x20, states[1])
        builder.edge(builder.start(rule), 1 << 0x0A, states[0])
        return rule

    def alias(self, state: int, other: int) -> None:
        """Let `state` also read and end as `other` does, which may have an alias itself, but only one made before."""
        self._aliases.append((state, other))

    def spaced(self, rule: int, state: int) -> int:
        """A state of a rule at which whitespace may come before what `state` reads."""
        if self._space is None:
            return state
        before = self.builder.state(rule)
        self.alias(before, state)
        self._calls.append((before, self._space, {0: state}))
        return before

    # -- Rules -------------------------------------------------------------------------------------------------------------

    def rule(self, name: str, must: Formula, goals: Goals, explore: Callable[[Rule], None]) -> Rule:
        """The rule of that name for a formula and goals; explored when its turn comes."""
        key = (name, must, goals)
        if key not in self._rules:
            rule = self._rules[key] = Rule(self.builder.rule(name))
            self.later(lambda: explore(rule))
        return self._rules[key]

    def end(self, rule: Rule, truths: Truths) -> int:
        """The state at which a rule ends with these truths."""
        if truths not in rule.ends:
            if len(rule.ends) >= MAX_LABELS:
                raise ConstraintError(
                    f"json_schema has more than {MAX_LABELS} ways to tell the values of one place apart. Use fewer "
                    "alternatives (anyOf, oneOf, not, if) about the same value."
                )
            label = len(rule.ends)
            rule.ends[truths] = self.builder.state(rule.number, label)
            for caller in tuple(rule.callers):
                caller(truths, label)
        return rule.ends[truths]

    def call(self, source: int, rule: Rule, then: Continuation) -> None:
        """Call a rule, going on as `then` says for each truth it can end with, known now or later."""
        returns: dict[int, int] = {}
        self._calls.append((source, rule.number, returns))

        def ended(truths: Truths, label: int) -> None:
            state = then(truths)
            if state is not None:
                returns[label] = state

        rule.callers.append(ended)
        for label, truths in enumerate(tuple(rule.ends)):
            ended(truths, label)

    def call_reader(
        self, source: int, name: str, must: Formula, goals: Goals, read: Callable[[int, Continuation], None], then: Continuation
    ) -> None:
        """Call the rule of that name, which `read` fills: a function of its first state and of where to go on."""
        start = self.builder.start

        def explore(rule: Rule) -> None:
            read(start(rule.number), lambda truths: self.end(rule, truths))

        self.call(source, self.rule(name, must, goals, explore), then)

    # -- The whole ---------------------------------------------------------------------------------------------------------

    def later(self, task: Callable[[], None]) -> None:
        """Queue a part of the exploration."""
        self._work.append(task)

    def finish(self, root: int) -> PushdownAutomaton:
        """Explore all that was asked for, then build the automaton.

        Raises:
          ConstraintError: the schema exceeds the limits.
        """
        while self._work:
            self._work.popleft()()
            self._check()
        for source, rule, returns in self._calls:
            if returns:
                self.builder.call(source, rule, returns)
        states = self.builder.states
        for state, other in self._aliases:
            states[state].edges += states[other].edges
            states[state].calls += states[other].calls
            if states[other].label >= 0:
                states[state].label = states[other].label
        for known in self._rules.values():
            known.callers.clear()  # they hold all that explored them, in circles
        return self.builder.finish(root)

    def _check(self) -> None:
        if len(self.builder.states) > self._limits.states:
            raise ConstraintError(
                f"json_schema is too large: its automaton needs more than {self._limits.states:,} states. Use smaller "
                "counts and lengths, fewer alternatives that overlap, or additionalProperties: false."
            )
