"""Formulas to rules: for a formula that must hold and goals that are to be decided, a rule that reads one JSON value.

A rule ends with a label for the truth of its goals; its callers say where each truth leads. Which truths a rule can end with
is only known once it is explored, and rules call each other in circles; so callers are asked when a new one turns up.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from mechanex_jax.constraints.automata.dfa import CompileLimits, minimise, product, to_bytes
from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.automata.pushdown_builder import Builder
from mechanex_jax.constraints.json_schema import formula as types
from mechanex_jax.constraints.json_schema import numbers, string_bytes
from mechanex_jax.constraints.json_schema.formula import Formula, holds, signature
from mechanex_jax.constraints.json_schema.string_bytes import Chains, Graph
from mechanex_jax.constraints.json_schema.strings import decide_goals
from mechanex_jax.constraints.json_schema.to_formula import Compiler
from mechanex_jax.errors import ConstraintError

Truths = tuple[bool, ...]
Goals = tuple[Formula, ...]
Then = Callable[[Truths], int | None]  # where to go on after a value with these truths; None: nowhere

_LITERALS = {types.NULL: b"null", types.TRUE: b"true", types.FALSE: b"false"}
_MOST_LABELS = 60
_SMALL = 24  # states up to which a number or a string is copied where it is read, rather than called
_MOST_GOALS = 4096

# Automata of numbers and strings, kept between compilations: most schemas ask for the same few.
_KNOWN: dict[tuple, tuple] = {}
_MOST_KNOWN = 1024


def _keep(key: tuple, found: tuple, states: int) -> tuple:
    """Remember an automaton, unless it is large."""
    if states < 1000:
        if len(_KNOWN) >= _MOST_KNOWN:
            del _KNOWN[next(iter(_KNOWN))]
        _KNOWN[key] = found
    return found


@dataclasses.dataclass(eq=False)
class Rule:
    """A rule under construction: its number in the builder, its endings, and who waits for new ones."""

    number: int
    ends: dict[Truths, int] = dataclasses.field(default_factory=dict)
    callers: list[Callable[[Truths, int], None]] = dataclasses.field(default_factory=list)


class Rules:
    """All rules of one schema."""

    def __init__(self, compiler: Compiler, limits: CompileLimits, whitespace: bool):
        self.compiler, self.limits, self.formulas = compiler, limits, compiler.formulas
        self.builder = Builder()
        self.chains = Chains(self.builder)
        self.work: deque[Callable[[], None]] = deque()
        self._rules: dict[tuple, Rule] = {}
        self._calls: list[tuple[int, int, dict[int, int]]] = []
        self._same: list[tuple[int, int]] = []  # (state, the state that it also is)
        self._strings: dict[tuple, tuple] = {}
        self._deadline = time.monotonic() + limits.seconds
        self._space = self._whitespace() if whitespace else None

    # -- States ------------------------------------------------------------------------------------------------------------

    def _whitespace(self) -> int:
        """At most one line break, then at most 16 spaces; not nothing."""
        builder = self.builder
        rule = builder.rule("whitespace")
        states = [builder.state(rule, 0) for _ in range(17)]
        for state, following in itertools.pairwise(states):
            builder.edge(state, 1 << 0x20, following)
        builder.edge(builder.start(rule), 1 << 0x20, states[1])
        builder.edge(builder.start(rule), 1 << 0x0A, states[0])
        return rule

    def spaced(self, rule: int, state: int) -> int:
        """A state at which whitespace may come before what `state` reads."""
        if self._space is None:
            return state
        before = self.builder.state(rule)
        self._same.append((before, state))
        self._calls.append((before, self._space, {0: state}))
        return before

    def check(self) -> None:
        """Raise when the schema costs too much."""
        if len(self.builder.states) > self.limits.states or time.monotonic() > self._deadline:
            raise ConstraintError(
                f"json_schema is too large: its automaton needs more than {len(self.builder.states):,} states. Use smaller "
                "counts and lengths, fewer alternatives that overlap, or additionalProperties: false."
            )

    def end(self, rule: Rule, truths: Truths) -> int:
        """The state at which a rule ends with these truths."""
        if truths not in rule.ends:
            if len(rule.ends) >= _MOST_LABELS:
                raise ConstraintError(
                    f"json_schema has more than {_MOST_LABELS} ways to tell the values of one place apart. Use fewer "
                    "alternatives (anyOf, oneOf, not, if) about the same value."
                )
            label = len(rule.ends)
            rule.ends[truths] = self.builder.state(rule.number, label)
            for caller in tuple(rule.callers):
                caller(truths, label)
        return rule.ends[truths]

    def call(self, source: int, rule: Rule, then: Then) -> None:
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

    def finish(self, root: int) -> PushdownAutomaton:
        """Explore all that was asked for, then build."""
        while self.work:
            self.work.popleft()()
            self.check()
        for source, rule, returns in self._calls:
            if returns:
                self.builder.call(source, rule, returns)
        states = self.builder.states
        for state, other in self._same:  # the other may be one of an earlier pair, never of a later one
            states[state].edges += states[other].edges
            states[state].calls += states[other].calls
            if states[other].label >= 0:
                states[state].label = states[other].label
        return self.builder.finish(root)

    # -- Values ------------------------------------------------------------------------------------------------------------

    def value(self, source: int, must: Formula, goals: Sequence[Formula], then: Then) -> None:
        """From `source` of some rule read a value for which `must` holds.

        Args:
          source: a state without edges for first bytes of values.
          must: may have leaves not looked at yet, as may the goals.
          goals: to decide.
          then: where to go on, by the goals' truths.
        """
        must = self.compiler.expand(must)
        goals = tuple(self.compiler.expand(goal) for goal in goals)
        kinds = [bit for bit in (1 << i for i in range(7)) if self.formulas.of_type(must, bit) is not self.formulas.false]
        if len(kinds) > 2:
            self.call(source, self._value_rule(must, goals), then)
        else:
            self._kinds(source, kinds, must, goals, then)

    def _value_rule(self, must: Formula, goals: Goals) -> Rule:
        def explore(rule: Rule) -> None:
            self._kinds(self.builder.start(rule.number), _KINDS, must, goals, lambda truths: self.end(rule, truths))

        return self.rule("value", must, goals, explore)

    def rule(self, name: str, must: Formula, goals: Goals, explore: Callable[[Rule], None]) -> Rule:
        """The rule of that name for a formula and goals; explored when its turn comes."""
        key = (name, must, goals)
        if key not in self._rules:
            rule = self._rules[key] = Rule(self.builder.rule(name))
            self.work.append(lambda: explore(rule))
        return self._rules[key]

    def _kinds(self, source: int, kinds: Iterable[int], must: Formula, goals: Goals, then: Then) -> None:
        for bit in kinds:
            inner = self.formulas.of_type(must, bit)
            if inner is self.formulas.false:
                continue
            ends = [self.formulas.of_type(goal, bit) for goal in goals]
            open_goals = tuple(dict.fromkeys(goal for goal in ends if goal.kind != "constant"))
            number = {goal: i for i, goal in enumerate(open_goals)}

            def onwards(truths: Truths, ends: list[Formula] = ends, number: Mapping[Formula, int] = number) -> int | None:
                return then(tuple([truths[number[end]] if end in number else end.args[0] for end in ends]))

            if bit in _LITERALS:
                state = onwards(())
                if state is not None:
                    self.builder.text(source, _LITERALS[bit], state)
            else:
                _READERS[bit](self, source, inner, open_goals, onwards)

    def _number(self, source: int, must: Formula, goals: Goals, then: Then) -> None:
        graph, outcomes = self._number_graph(must, goals)
        if len(graph.edges) > _SMALL:
            self.call(source, self.rule("number", must, goals, self._explore_number(must, goals)), then)
        else:
            self._copy_number(source, graph, outcomes, then)

    def _explore_number(self, must: Formula, goals: Goals) -> Callable[[Rule], None]:
        def explore(rule: Rule) -> None:
            graph, outcomes = self._number_graph(must, goals)
            self._copy_number(self.builder.start(rule.number), graph, outcomes, lambda truths: self.end(rule, truths))

        return explore

    def _copy_number(self, source: int, graph: Graph, outcomes: list[Truths], then: Then) -> None:
        """Where a number may end, its state also is the state that comes next."""
        rule = self.builder.states[source].rule
        following = [then(truths) for truths in outcomes]
        names = [self.builder.state(rule) for _ in graph.edges]
        names[graph.start] = source
        for node, edges in enumerate(graph.edges):
            for mask, target in edges:
                self.builder.edge(names[node], mask, names[target])
            label = graph.ends[node]
            if label >= 0 and (state := following[label]) is not None:
                self._same.append((names[node], state))

    def _number_graph(self, must: Formula, goals: Goals) -> tuple[Graph, list[Truths]]:
        """The automaton of numbers for which `must` holds; its labels count the outcomes."""
        key = ("number", signature((must, *goals)))
        if key in _KNOWN:
            return _KNOWN[key]
        leaves = sorted(frozenset().union(must.leaves, *(goal.leaves for goal in goals)), key=lambda leaf: leaf.number)
        bounds = list(dict.fromkeys(leaf.args[1] for leaf in leaves if leaf.args[0] in ("below", "equal")))
        others = [leaf for leaf in leaves if leaf.args[0] in ("multiple", "plain")]
        parts = [numbers.numbers(), *map(numbers.comparison, bounds)]
        parts += [numbers.multiples(leaf.args[1]) if leaf.args[0] == "multiple" else numbers.plain() for leaf in others]
        decide, outcomes = decide_goals(must, goals), {}

        def combine(labels: tuple[int, ...]) -> int:
            if min(labels) < 0:
                return -1
            sizes = dict(zip(bounds, labels[1:], strict=False))
            divisible = dict(zip(others, labels[1 + len(bounds) :], strict=True))

            def truth(leaf: Formula) -> bool:
                if leaf in divisible:
                    return divisible[leaf] == 1
                wanted = numbers.LESS if leaf.args[0] == "below" else numbers.EQUAL
                return sizes[leaf.args[1]] == wanted

            outcome = decide(truth)
            return -1 if outcome is None else outcomes.setdefault(outcome, len(outcomes))

        dfa = minimise(product(parts, combine, self.limits))
        graph = string_bytes.from_dfa(to_bytes(dfa))
        return _keep(key, (graph, list(outcomes)), len(graph.edges))

    def _string(self, source: int, must: Formula, goals: Goals, then: Then) -> None:
        found, outcomes, _ = self._string_graph(must, goals)
        if isinstance(found, Graph) and (len(found.edges) <= _SMALL or len(outcomes) > _MOST_LABELS):
            self._copy_string(source, must, goals, then)
        else:

            def explore(rule: Rule) -> None:
                self._copy_string(self.builder.start(rule.number), must, goals, lambda truths: self.end(rule, truths))

            self.call(source, self.rule("string", must, goals, explore), then)

    def _string_graph(self, must: Formula, goals: Goals) -> tuple:
        if (must, goals) not in self._strings:
            key = ("string", signature((must, *goals)))
            if key in _KNOWN:
                found = _KNOWN[key]
            else:
                leaves = frozenset().union(must.leaves, *(goal.leaves for goal in goals))
                found = self.compiler.strings.graph(leaves, decide_goals(must, goals))
                _keep(key, found, len(found[0].edges if isinstance(found[0], Graph) else found[0].next))
            self._strings[must, goals] = found
        return self._strings[must, goals]

    def _copy_string(self, source: int, must: Formula, goals: Goals, then: Then) -> None:
        found, outcomes, written = self._string_graph(must, goals)
        into = {label: state for label, truths in enumerate(outcomes) if (state := then(truths)) is not None}
        rule = self.builder.states[source].rule
        if isinstance(found, Graph):
            start = string_bytes.copy(self.builder, rule, found, into)
        elif found.start:
            start = self.chains.copy(rule, found, into, written)
        else:
            return
        self.builder.edge(source, 1 << 0x22, start)

    def _object(self, source: int, must: Formula, goals: Goals, then: Then) -> None:
        from mechanex_jax.constraints.json_schema.objects import ObjectRule

        self.call(source, self.rule("object", must, goals, lambda rule: ObjectRule(self, rule, must, goals).explore()), then)

    def _array(self, source: int, must: Formula, goals: Goals, then: Then) -> None:
        from mechanex_jax.constraints.json_schema.arrays import ArrayRule

        self.call(source, self.rule("array", must, goals, lambda rule: ArrayRule(self, rule, must, goals).explore()), then)


_KINDS = tuple(1 << i for i in range(7))
_READERS = {types.NUMBER: Rules._number, types.STRING: Rules._string, types.OBJECT: Rules._object, types.ARRAY: Rules._array}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A leaf about the parts of a value, and what becomes of it behind the next part.

    Attributes:
      leaf: of the formula.
      goal: what decides it, asked of the part.
      met: what takes its place if the part satisfies the goal.
      missed: if not.
    """

    leaf: Formula
    goal: Formula
    met: Formula
    missed: Formula


@dataclasses.dataclass(frozen=True)
class Step:
    """What to ask of the next part of a value, and what is left to ask of the rest.

    Attributes:
      must: what the part has to satisfy.
      goals: to decide about the part.
      after: what is left by the goals' truths: (must, goals) of the whole, None if it can't be satisfied any more.
    """

    must: Formula
    goals: Goals
    after: Callable[[Truths], tuple[Formula, Goals] | None]


def step(
    rules: Rules, must: Formula, goals: Goals, candidates: Iterable[Candidate], always: Iterable[Formula] = ()
) -> Step | None:
    """One part further: leaves are decided by their candidates' goals.

    A goal that has to be met (or missed) for `must` to stay satisfiable is asked of the part at once. Candidates of the same
    leaf may not come twice; `always` holds of the part in any case. None if nothing can be satisfied any more.
    """
    f, expand = rules.formulas, rules.compiler.expand
    sure: dict[Formula, Formula] = {}
    by_goal: dict[Formula, list[Candidate]] = {}
    for candidate in candidates:
        goal = expand(candidate.goal)
        if goal.kind == "constant":
            sure[candidate.leaf] = candidate.met if goal.args[0] else candidate.missed
        else:
            by_goal.setdefault(goal, []).append(candidate)
    asked = [expand(formula) for formula in always]
    changed = True
    while changed:
        changed = False
        if f.substitute(must, sure) is f.false:
            return None
        for goal, group in tuple(by_goal.items()):
            met, missed = ({c.leaf: (c.met if yes else c.missed) for c in group} for yes in (True, False))
            if f.substitute(must, {**sure, **missed}) is f.false:
                asked.append(goal)
                sure.update(met)
            elif f.substitute(must, {**sure, **met}) is f.false:
                asked.append(f.negation(goal))
                sure.update(missed)
            else:
                continue
            del by_goal[goal]
            changed = True
            break
    open_goals = tuple(by_goal)
    outcomes: dict[Truths, tuple[Formula, Goals] | None] = {}

    def after(truths: Truths) -> tuple[Formula, Goals] | None:
        if truths not in outcomes:
            changes = dict(sure)
            for goal, true in zip(open_goals, truths, strict=True):
                changes.update((c.leaf, c.met if true else c.missed) for c in by_goal[goal])
            memo: dict[Formula, Formula] = {}
            left = f.substitute(must, changes, memo)
            rest = tuple([f.substitute(goal, changes, memo) for goal in goals])
            outcomes[truths] = None if left is f.false else (left, rest)
        return outcomes[truths]

    return Step(f.all(asked), open_goals, after)


def truth_at_end(formula: Formula, positive: frozenset[str]) -> bool:
    """The truth of a formula when no part follows: leaves of the names in `positive` are true then, others false."""
    return holds(formula, lambda leaf: leaf.args[0] in positive)
