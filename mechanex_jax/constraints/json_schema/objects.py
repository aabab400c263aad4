"""Objects: the formula that is left, and the place in the order of names, change from member to member."""

from __future__ import annotations

from collections.abc import Iterator

from mechanex_jax.constraints.json_schema import string_bytes
from mechanex_jax.constraints.json_schema.containers import ContainerRule, Remainder
from mechanex_jax.constraints.json_schema.formula import Formula, conjuncts, sorted_leaves
from mechanex_jax.constraints.json_schema.property_keys import KeyClasses, Order, Positions
from mechanex_jax.constraints.json_schema.rules import Rule
from mechanex_jax.constraints.json_schema.steps import Continuation, Goals, LeafUpdate, next_part
from mechanex_jax.constraints.json_schema.to_automaton import ValueReader


def read_object(values: ValueReader, source: int, must: Formula, goals: Goals, then: Continuation) -> None:
    """Read an object for which `must` holds; its members are asked by the leaves that `to_formula` lists."""
    rule = values.rules.rule("object", must, goals, lambda rule: _ObjectRule(values, rule, must, goals).explore())
    values.rules.call(source, rule, then)


class _ObjectRule(ContainerRule):
    """The exploration of one object rule.

    Most objects have a fixed part: members that must satisfy this and that whatever else holds, and required names that have a
    place in the order. That part needs no state: a member is asked for what is fixed about its key, and a required name
    can't be passed by.
    """

    brackets = b"{}"
    true_at_end = frozenset(("member",))

    def __init__(self, values: ValueReader, rule: Rule, must: Formula, goals: Goals):
        super().__init__(values, rule)
        f = self.formulas
        leaves = sorted_leaves((must, *goals))
        members = [leaf for leaf in leaves if leaf.args[0] == "member"]
        chains = dict.fromkeys(leaf.args[3] for leaf in members if leaf.args[3] >= 0)
        self.order = Order(
            [self.translator.chains[chain] for chain in chains], [leaf.args[1] for leaf in leaves if leaf.args[0] == "has"]
        )
        key_formulas = list(dict.fromkeys(leaf.args[1] for leaf in members))
        self.keys = KeyClasses(self.translator.strings, key_formulas, self.order.place, self.translator.text)
        labels = dict(zip(key_formulas, self.keys.members, strict=True))
        self.labels = {leaf: labels[leaf.args[1]] for leaf in members}  # of keys that a leaf is about, as bits
        changes = {leaf: f.true for leaf in members if self._is_trivial(leaf)}
        must = f.substitute(must, changes)
        fixed = [part for part in conjuncts(must) if part.kind == "leaf" and part.args[0] in ("member", "has")]
        self.required = {leaf.args[1] for leaf in fixed if leaf.args[0] == "has"}
        self.fixed_goals = self._fixed_goals([leaf for leaf in fixed if leaf.args[0] == "member"])
        changes |= dict.fromkeys(fixed, f.true)
        self.first = Remainder(
            f.substitute(must, changes), tuple(f.substitute(goal, changes) for goal in goals), self.order.start
        )
        self._values: dict[tuple[Formula, Remainder], int] = {}
        self._ends: dict[int, frozenset[int]] = {}
        self._key_states: dict[tuple[int, int, tuple[int, ...]], int] = {}

    def _is_trivial(self, leaf: Formula) -> bool:
        return not self.labels[leaf] or self.translator.expand(leaf.args[2]) is self.formulas.true

    def _fixed_goals(self, fixed: list[Formula]) -> list[Formula]:
        """For each label what is asked of a member in any case."""
        expand, count = self.translator.expand, len(self.keys.classes)
        return [
            self.formulas.all([expand(leaf.args[2]) for leaf in fixed if self.labels[leaf] >> label & 1])
            for label in range(count)
        ]

    def explore(self) -> None:
        # Names without a label hold an escape that can't be written.
        if self.required <= self.keys.label_of.keys():
            super().explore()

    def may_close(self, left: Remainder) -> bool:
        ends = tuple(map(len, self.order.lists))
        return self.required.isdisjoint(self.order.passed(left.positions, ends))

    def read_part(self, source: int, left: Remainder) -> None:
        self.builder.edge(source, 1 << ord('"'), self._key(left))

    # -- Keys --------------------------------------------------------------------------------------------------------------

    def _key(self, left: Remainder) -> int:
        """The state behind the opening quote of a key."""
        targets = [self._member(left, label) for label in range(len(self.keys.classes))]
        first = self._key_state(targets)
        return first if first >= 0 else self.new_state()

    def _key_state(self, targets: list[int]) -> int:
        """A copy of the keys' automaton that ends at these states; copies share states where it makes no difference."""
        dfa = self.keys.dfa
        useful = sum(1 << label for label, target in enumerate(targets) if target >= 0)
        waiting: list[tuple[int, int]] = []

        def copy_of(original: int) -> int:
            reach = dfa.reach[original] & useful
            if not reach:
                return -1
            if dfa.labels[original] >= 0:
                return targets[dfa.labels[original]]
            key = (original, reach, tuple([targets[label] for label in _bits(reach)]))
            if key not in self._key_states:
                self._key_states[key] = self.new_state()
                waiting.append((original, self._key_states[key]))
            return self._key_states[key]

        ends = self._distinct_ends(useful)
        first = copy_of(dfa.start)
        while waiting:
            original, source = waiting.pop()
            edges = [(mask, following) for mask, target in dfa.edges[original] if (following := copy_of(target)) >= 0]
            self.builder.string_edges(source, edges, distinct=original in ends)
        return first

    def _distinct_ends(self, useful: int) -> frozenset[int]:
        """States at which a key without a name, of the labels `useful`, may be closed unless it is there already."""
        if useful not in self._ends:
            unnamed = [label for label in _bits(useful) if self.keys.classes[label].name is None]
            self._ends[useful] = string_bytes.distinct_ends(self.keys.dfa, unnamed)
        return self._ends[useful]

    # -- Members -----------------------------------------------------------------------------------------------------------

    def _member(self, left: Remainder, label: int) -> int:
        """The state behind a key of this label, -1 if it can't come."""
        name, always = self.keys.classes[label].name, self.fixed_goals[label]
        positions = self.order.after(left.positions, name)
        if positions is None or always is self.formulas.false:
            return -1
        passed = list(self.order.passed(left.positions, positions))
        if any(other in self.required and other != name for other in passed):
            return -1
        if left.must is self.formulas.true and not left.goals:
            return self._shared_value(always, Remainder(left.must, (), positions))
        part = next_part(self.translator, left.must, left.goals, self._updates(left, label, name, positions, passed), always)
        if part is None:
            return -1
        if part.goals:
            return self._value(part.must, part.goals, self.continuation(part, positions))
        rest = part.rest(())
        return -1 if rest is None else self._shared_value(part.must, Remainder(*rest, positions))

    def _updates(
        self, left: Remainder, label: int, name: str | None, positions: Positions, passed: list[str]
    ) -> Iterator[LeafUpdate]:
        f, label_of = self.formulas, self.keys.label_of
        gone = sum(1 << label_of[other] for other in self.order.passed(self.order.start, positions) if other in label_of)
        for leaf in sorted_leaves((left.must, *left.goals)):
            kind, argument = leaf.args[0], leaf.args[1]
            if kind == "has":
                if argument in passed or argument not in label_of:
                    truth = f.constant(argument == name)
                    yield LeafUpdate(leaf, f.true, truth, truth)
            elif kind == "members":
                fewer = self.translator.at_least("members", argument - 1)
                yield LeafUpdate(leaf, f.true, fewer, fewer)
            else:
                later = leaf if self.labels[leaf] & ~gone else f.true
                if self.labels[leaf] >> label & 1:
                    yield LeafUpdate(leaf, leaf.args[2], later, f.false)
                elif later is not leaf:
                    yield LeafUpdate(leaf, f.true, later, later)

    def _shared_value(self, must: Formula, left: Remainder) -> int:
        """The state before a member's colon, the same wherever the value and all that follows are the same."""
        key = (must, left)
        if key not in self._values:
            self._values[key] = self._value(must, (), lambda truths: self.behind(left))
        return self._values[key]

    def _value(self, must: Formula, goals: Goals, then: Continuation) -> int:
        colon, source = self.new_state(), self.new_state()
        self.builder.edge(colon, 1 << ord(":"), self.spaced(source))
        self.values.read(source, must, goals, then)
        return colon


def _bits(mask: int) -> list[int]:
    bits = []
    while mask:
        low = mask & -mask
        bits.append(low.bit_length() - 1)
        mask ^= low
    return bits
