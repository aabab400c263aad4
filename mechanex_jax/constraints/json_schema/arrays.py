"""Arrays: the formula that is left changes from item to item."""

from __future__ import annotations

from mechanex_jax.constraints.json_schema import formula as types
from mechanex_jax.constraints.json_schema.formula import Formula, conjuncts
from mechanex_jax.constraints.json_schema.to_automaton import Candidate, Goals, Rule, Rules, Step, Truths, step, truth_at_end
from mechanex_jax.errors import ConstraintError

_TRUE_AT_END = frozenset(("items", "unique"))
_MOST_DISTINCT = 10

State = tuple[Formula, Goals]


class ArrayRule:
    """The exploration of one array rule."""

    def __init__(self, rules: Rules, rule: Rule, must: Formula, goals: Goals):
        self.rules, self.rule = rules, rule
        self.formulas, self.compiler = rules.formulas, rules.compiler
        self.domain: list[Formula] | None = None  # for "unique": the values that items can have
        self.first = self._unique(must, goals)
        self.states: dict[State, int] = {}

    def explore(self) -> None:
        builder, number = self.rules.builder, self.rule.number
        opened = builder.state(number)
        builder.edge(builder.start(number), 1 << ord("["), self.rules.spaced(number, opened))
        self._close(opened, self.first)
        self._item(opened, self.first)

    def _state(self, state: State) -> int:
        """The state behind an item, with this left to ask."""
        if state not in self.states:
            builder, number = self.rules.builder, self.rule.number
            inner = builder.state(number)
            self.states[state] = self.rules.spaced(number, inner)
            self.rules.work.append(lambda: self._explore(inner, state))
        return self.states[state]

    def _explore(self, source: int, state: State) -> None:
        builder, number = self.rules.builder, self.rule.number
        self._close(source, state)
        item = builder.state(number)
        builder.edge(source, 1 << ord(","), self.rules.spaced(number, item))
        self._item(item, state)

    def _close(self, source: int, state: State) -> None:
        must, goals = state
        if truth_at_end(must, _TRUE_AT_END):
            truths = tuple([truth_at_end(goal, _TRUE_AT_END) for goal in goals])
            self.rules.builder.edge(source, 1 << ord("]"), self.rules.end(self.rule, truths))

    def _item(self, source: int, state: State) -> None:
        must, goals = state
        leaves = sorted(frozenset().union(must.leaves, *(goal.leaves for goal in goals)), key=lambda leaf: leaf.number)
        seen = next((leaf for leaf in leaves if leaf.args[0] == "unique"), None)
        if seen is None:
            self._read(source, step(self.rules, must, goals, map(self._candidate, leaves)))
            return
        # Which value it is decides what was seen after it; the same value once more decides against the leaf.
        others = list(map(self._candidate, (leaf for leaf in leaves if leaf is not seen)))
        steps: dict[Formula, Step] = {}
        for value in self.domain or ():
            after = self.formulas.false
            if value not in seen.args[1]:
                after = self.formulas.leaf("unique", seen.args[1] | {value}, seen.args[2])
            found = step(self.rules, must, goals, [*others, Candidate(seen, self.formulas.true, after, after)])
            if found is not None:
                steps[value] = found
        asked = list(dict.fromkeys((*steps, *(goal for found in steps.values() for goal in found.goals))))

        def then(truths: Truths) -> int | None:
            true = dict(zip(asked, truths, strict=True))
            found = next(found for value, found in steps.items() if true[value])
            after = found.after(tuple([true[goal] for goal in found.goals]))
            return None if after is None else self._state(after)

        parts = [self.formulas.all((value, found.must)) for value, found in steps.items()]
        self.rules.value(source, self.formulas.any(parts), asked, then)

    def _read(self, source: int, found: Step | None) -> None:
        if found is None:
            return

        def then(truths: Truths) -> int | None:
            after = found.after(truths)
            return None if after is None else self._state(after)

        self.rules.value(source, found.must, found.goals, then)

    def _candidate(self, leaf: Formula) -> Candidate:
        name, *args = leaf.args
        return getattr(self, f"_next_{name}")(leaf, *args)

    def _next_count(self, leaf: Formula, number: int) -> Candidate:
        fewer = self.compiler.at_least("count", number - 1)
        return Candidate(leaf, self.formulas.true, fewer, fewer)

    def _next_contains(self, leaf: Formula, goal: Formula, number: int) -> Candidate:
        return Candidate(leaf, goal, self.compiler.at_least("contains", number - 1, goal), leaf)

    def _next_items(self, leaf: Formula, low: int, high: int | None, goal: Formula) -> Candidate:
        shifted = self.compiler.items(max(low - 1, 0), None if high is None else high - 1, goal)
        if low:
            return Candidate(leaf, self.formulas.true, shifted, shifted)
        return Candidate(leaf, goal, shifted, self.formulas.false)

    def _unique(self, must: Formula, goals: Goals) -> State:
        """The first state, with "unique" settled where at most one item fits."""
        unique = [leaf for formula in (must, *goals) for leaf in formula.leaves if leaf.args[0] == "unique"]
        if not unique:
            return must, goals
        parts = conjuncts(must)
        most = [part.args[0].args[1] - 1 for part in parts if part.kind == "not" and part.args[0].args[0] == "count"]
        if most and min(most) <= 1:
            changes = dict.fromkeys(unique, self.formulas.true)
        else:
            # One leaf for all: they ask the same.
            one = self.formulas.leaf("unique", frozenset(), unique[0].args[2])
            changes = dict.fromkeys(unique, one)
            whole = [part.args[3] for part in parts if part.args[:3] == ("items", 0, None)]
            found = [domain for goal in whole if (domain := self._values(self.compiler.expand(goal))) is not None]
            if not found or len(min(found, key=len)) > _MOST_DISTINCT:
                raise ConstraintError(
                    f"uniqueItems at {unique[0].args[2]} cannot be held exactly: the items can have more than {_MOST_DISTINCT} "
                    "values. Give items an enum of fewer values, or leave uniqueItems out and check it afterwards."
                )
            self.domain = min(found, key=len)
        return (
            self.formulas.substitute(must, changes),
            tuple(self.formulas.substitute(goal, changes) for goal in goals),
        )

    def _values(self, formula: Formula) -> list[Formula] | None:
        """Formulas of single values, one of which holds wherever `formula` does; None if they are too many to list."""
        f = self.formulas
        if formula.kind == "constant":
            return None if formula.args[0] else []
        if formula.kind == "type":
            bits = [bit for bit in (types.NULL, types.TRUE, types.FALSE) if formula.args[0] & bit]
            return [f.type(bit) for bit in bits] if sum(bits) == formula.args[0] else None
        if formula.kind == "any":
            lists = [self._values(arg) for arg in formula.args]
            if any(values is None for values in lists):
                return None
            return list(dict.fromkeys(value for values in lists for value in values or ()))
        if formula.kind == "all":
            names = {part.args[0] for part in formula.args if part.kind == "leaf"}
            bits = next((part.args[0] for part in formula.args if part.kind == "type"), 0)
            if (bits, *names) in ((types.NUMBER, "equal"), (types.STRING, "text")):
                return [formula]
            lists = [values for arg in formula.args if (values := self._values(arg)) is not None]
            return min(lists, key=len) if lists else None
        return None
