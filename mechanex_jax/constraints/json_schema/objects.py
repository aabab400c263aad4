"""Objects: the formula that is left, and the place in the order of names, change from member to member."""

from __future__ import annotations

import dataclasses

from mechanex_jax.constraints.json_schema.formula import Formula, conjuncts
from mechanex_jax.constraints.json_schema.property_keys import Keys, Order, Positions
from mechanex_jax.constraints.json_schema.to_automaton import Candidate, Goals, Rule, Rules, Step, Truths, step, truth_at_end

_TRUE_AT_END = frozenset(("member",))


@dataclasses.dataclass(frozen=True)
class State:
    """What is left of an object.

    Attributes:
      must: the changing part of the formula that has to hold; see `ObjectRule` for the rest.
      goals: to decide.
      at: positions in the order of names.
    """

    must: Formula
    goals: Goals
    at: Positions


class ObjectRule:
    """The exploration of one object rule.

    Most objects have a fixed part: members that must satisfy this and that whatever else holds, and required names that have a
    place in the order. That part needs no state: a member is asked for what is fixed about its key, and a required name
    can't be passed by.
    """

    def __init__(self, rules: Rules, rule: Rule, must: Formula, goals: Goals):
        self.rules, self.rule, self.formulas, self.compiler = rules, rule, rules.formulas, rules.compiler
        leaves = sorted(frozenset().union(must.leaves, *(goal.leaves for goal in goals)), key=lambda leaf: leaf.number)
        members = [leaf for leaf in leaves if leaf.args[0] == "member"]
        wanted = [leaf.args[1] for leaf in leaves if leaf.args[0] == "has"]
        chains = dict.fromkeys(leaf.args[3] for leaf in members if leaf.args[3] >= 0)
        self.order = Order([self.compiler.chains[chain] for chain in chains], wanted)
        formulas = list(dict.fromkeys(leaf.args[1] for leaf in members))
        self.keys = Keys(self.compiler.strings, formulas, self.order.place, self.compiler.text)
        mask = dict(zip(formulas, self.keys.members, strict=True))
        self.labels = {leaf: mask[leaf.args[1]] for leaf in members}
        trivial = {leaf: self.formulas.true for leaf in members if self._is_trivial(leaf)}
        must = self.formulas.substitute(must, trivial)
        goals = tuple(self.formulas.substitute(goal, trivial) for goal in goals)
        fixed = [part for part in conjuncts(must) if part.kind == "leaf" and part.args[0] in ("member", "has")]
        self.fixed = [leaf for leaf in fixed if leaf.args[0] == "member"]
        self.required = {leaf.args[1] for leaf in fixed if leaf.args[0] == "has"}
        left = self.formulas.substitute(must, dict.fromkeys(fixed, self.formulas.true))
        goals = tuple(self.formulas.substitute(goal, dict.fromkeys(fixed, self.formulas.true)) for goal in goals)
        # Names without a place: an escape that can't be written.
        self.first = State(left, goals, self.order.start)
        self.asked = self._fixed_goals()
        self.states: dict[State, int] = {}
        self.values: dict[tuple, int] = {}
        self.nodes: dict[tuple, int] = {}

    def _is_trivial(self, leaf: Formula) -> bool:
        return not self.labels[leaf] or self.compiler.expand(leaf.args[2]) is self.formulas.true

    def _fixed_goals(self) -> list[Formula]:
        """For each label what is asked of a member in any case."""
        expand = self.compiler.expand
        asked = []
        for label in range(len(self.keys.classes)):
            goals = [expand(leaf.args[2]) for leaf in self.fixed if self.labels[leaf] >> label & 1]
            asked.append(self.formulas.all(goals))
        return asked

    def explore(self) -> None:
        if not self.required <= set(self.keys.label_of):
            return
        builder, number = self.rules.builder, self.rule.number
        opened = builder.state(number)
        builder.edge(builder.start(number), 1 << ord("{"), self.rules.spaced(number, opened))
        self._close(opened, self.first)
        builder.edge(opened, 1 << ord('"'), self._key(self.first))

    def _state(self, state: State) -> int:
        """The builder's state behind a member, with this left to ask."""
        if state not in self.states:
            builder, number = self.rules.builder, self.rule.number
            inner = builder.state(number)
            self.states[state] = self.rules.spaced(number, inner)
            self.rules.work.append(lambda: self._explore(inner, state))
        return self.states[state]

    def _explore(self, source: int, state: State) -> None:
        builder, number = self.rules.builder, self.rule.number
        self._close(source, state)
        before = builder.state(number)
        builder.edge(source, 1 << ord(","), self.rules.spaced(number, before))
        builder.edge(before, 1 << ord('"'), self._key(state))

    def _close(self, source: int, state: State) -> None:
        ends = tuple(map(len, self.order.lists))
        if any(name in self.required for name in self.order.passed(state.at, ends)):
            return
        if truth_at_end(state.must, _TRUE_AT_END):
            truths = tuple([truth_at_end(goal, _TRUE_AT_END) for goal in state.goals])
            self.rules.builder.edge(source, 1 << ord("}"), self.rules.end(self.rule, truths))

    # -- Keys --------------------------------------------------------------------------------------------------------------

    def _key(self, state: State) -> int:
        """The builder's state behind the opening quote of a key."""
        targets = [self._member(state, label) for label in range(len(self.keys.classes))]
        return self._node(self.keys.graph.start, targets)

    def _node(self, start: int, targets: list[int]) -> int:
        """A copy of a node of the key graph, for ends at these states; shared by all for which that makes no difference."""
        builder, graph, number = self.rules.builder, self.keys.graph, self.rule.number
        useful = sum(1 << label for label, target in enumerate(targets) if target >= 0)
        waiting: list[tuple[int, int]] = []

        def name(node: int) -> int:
            reach = graph.reach[node] & useful
            if not reach:
                return -1
            if graph.ends[node] >= 0:
                return targets[graph.ends[node]]
            key = (node, reach, tuple([targets[label] for label in _bits(reach)]))
            if key not in self.nodes:
                self.nodes[key] = builder.state(number)
                waiting.append((node, self.nodes[key]))
            return self.nodes[key]

        first = name(start)
        while waiting:
            node, source = waiting.pop()
            for mask, target in graph.edges[node]:
                following = name(target)
                if following >= 0:
                    builder.edge(source, mask, following)
        return first if first >= 0 else builder.state(number)

    # -- Members -----------------------------------------------------------------------------------------------------------

    def _member(self, state: State, label: int) -> int:
        """The builder's state behind a key of this label, -1 if it can't come."""
        name = self.keys.classes[label].name
        at = self.order.after(state.at, name)
        if at is None or self.asked[label] is self.formulas.false:
            return -1
        passed = list(self.order.passed(state.at, at))
        if any(other in self.required and other != name for other in passed):
            return -1
        if state.must is self.formulas.true and not state.goals:
            return self._value(self.asked[label], (), State(state.must, (), at), None)
        found = self._step(state, label, name, passed)
        return -1 if found is None else self._value(found.must, found.goals, State(state.must, state.goals, at), found)

    def _step(self, state: State, label: int, name: str | None, passed: list[str]) -> Step | None:
        f = self.formulas
        gone = sum(1 << self.keys.label_of[other] for other in passed if other in self.keys.label_of)
        alive = ~self._gone(state.at) & ~gone
        candidates = []
        for leaf in frozenset().union(state.must.leaves, *(goal.leaves for goal in state.goals)):
            kind, argument = leaf.args[0], leaf.args[1]
            if kind == "has":
                if argument in passed or argument not in self.keys.label_of:
                    truth = f.constant(argument == name)
                    candidates.append(Candidate(leaf, f.true, truth, truth))
            elif kind == "members":
                fewer = self.compiler.at_least("members", argument - 1)
                candidates.append(Candidate(leaf, f.true, fewer, fewer))
            else:
                later = leaf if self.labels[leaf] & alive else f.true
                if self.labels[leaf] >> label & 1:
                    candidates.append(Candidate(leaf, leaf.args[2], later, f.false))
                elif later is not leaf:
                    candidates.append(Candidate(leaf, f.true, later, later))
        return step(self.rules, state.must, state.goals, candidates, [self.asked[label]])

    def _gone(self, at: Positions) -> int:
        """The labels of names that can't come any more, as bits."""
        passed = self.order.passed(self.order.start, at)
        return sum(1 << self.keys.label_of[name] for name in passed if name in self.keys.label_of)

    def _value(self, must: Formula, goals: Goals, state: State, found: Step | None) -> int:
        """The builder's state before the colon of a member; shared where the value and all that follows are the same."""
        if found is None:
            key: tuple = (must, state)
        elif not goals:
            after = found.after(())
            if after is None:
                return -1
            key = (must, State(*after, state.at))
        else:
            key = (must, goals, state, id(found))
            # The step decides what comes next, so it is part of the key, and is kept for as long as the key.
            self.values[id(found), found] = -1
        if key in self.values:
            return self.values[key]
        builder, number = self.rules.builder, self.rule.number
        colon, source = builder.state(number), builder.state(number)
        self.values[key] = colon
        builder.edge(colon, 1 << ord(":"), self.rules.spaced(number, source))

        def then(truths: Truths) -> int | None:
            if found is None:
                return self._state(state)
            after = found.after(truths)
            return None if after is None else self._state(State(*after, state.at))

        self.rules.value(source, must, goals, then)
        return colon


def _bits(mask: int) -> list[int]:
    bits = []
    while mask:
        low = mask & -mask
        bits.append(low.bit_length() - 1)
        mask ^= low
    return bits
