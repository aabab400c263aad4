"""Arrays: the formula that is left changes from item to item."""

from __future__ import annotations

from mechanex_jax.constraints.json_schema.containers import ContainerRule, Remainder
from mechanex_jax.constraints.json_schema.formula import FALSE, NULL, NUMBER, STRING, TRUE, Formula, conjuncts, sorted_leaves
from mechanex_jax.constraints.json_schema.rules import Rule
from mechanex_jax.constraints.json_schema.steps import Continuation, Goals, LeafUpdate, NextPart, Truths, next_part
from mechanex_jax.constraints.json_schema.to_automaton import ValueReader
from mechanex_jax.errors import ConstraintError

_MAX_DISTINCT = 10


def read_array(values: ValueReader, source: int, must: Formula, goals: Goals, then: Continuation) -> None:
    """Read an array for which `must` holds; its items are asked by the leaves that `to_formula` lists."""
    rule = values.rules.rule("array", must, goals, lambda rule: _ArrayRule(values, rule, must, goals).explore())
    values.rules.call(source, rule, then)


class _ArrayRule(ContainerRule):
    """The exploration of one array rule."""

    brackets = b"[]"
    true_at_end = frozenset(("items", "unique"))

    def __init__(self, values: ValueReader, rule: Rule, must: Formula, goals: Goals):
        super().__init__(values, rule)
        self.distinct_at = ""  # for "unique": the path, where items are told apart as they are read
        self.domain: list[Formula] = []  # for "unique": the values that items can have
        self.first = self._settle_unique(must, goals)

    def read_part(self, source: int, left: Remainder) -> None:
        leaves = sorted_leaves((left.must, *left.goals))
        unique = next((leaf for leaf in leaves if leaf.args[0] == "unique"), None)
        if unique is not None:
            self._read_distinct(source, left, leaves, unique)
            return
        part = next_part(self.translator, left.must, left.goals, map(self._update, leaves))
        if part is None:
            return
        if not self.distinct_at:
            self.values.read(source, part.must, part.goals, self.continuation(part))
            return
        try:
            self.values.read_distinct(source, part.must, part.goals, self.continuation(part))
        except ConstraintError as error:
            raise ConstraintError(
                f"uniqueItems at {self.distinct_at} cannot be held exactly: {error.message}, and they can have more than "
                f"{_MAX_DISTINCT} values. Give items an enum of fewer values, or the type string without maxLength and format, "
                "or leave uniqueItems out and check it afterwards."
            ) from None

    def _update(self, leaf: Formula) -> LeafUpdate:
        f, (name, *args) = self.formulas, leaf.args
        if name == "count":
            (number,) = args
            fewer = self.translator.at_least("count", number - 1)
            return LeafUpdate(leaf, f.true, fewer, fewer)
        if name == "contains":
            goal, number = args
            return LeafUpdate(leaf, goal, self.translator.at_least("contains", number - 1, goal), leaf)
        low, high, goal = args  # "items"
        shifted = self.translator.items(max(low - 1, 0), None if high is None else high - 1, goal)
        return LeafUpdate(leaf, f.true, shifted, shifted) if low else LeafUpdate(leaf, goal, shifted, f.false)

    # -- Distinct items ----------------------------------------------------------------------------------------------------

    def _read_distinct(self, source: int, left: Remainder, leaves: list[Formula], unique: Formula) -> None:
        """Read an item and tell its value: it decides which values may follow; one that was seen decides against the leaf."""
        f, (_, seen, path) = self.formulas, unique.args
        others = [self._update(leaf) for leaf in leaves if leaf is not unique]
        parts: dict[Formula, NextPart] = {}
        for value in self.domain:
            after = f.false if value in seen else f.leaf("unique", seen | {value}, path)
            part = next_part(self.translator, left.must, left.goals, [*others, LeafUpdate(unique, f.true, after, after)])
            if part is not None:
                parts[value] = part
        asked = list(dict.fromkeys((*parts, *(goal for part in parts.values() for goal in part.goals))))

        def then(truths: Truths) -> int | None:
            true = dict(zip(asked, truths, strict=True))
            part = next(part for value, part in parts.items() if true[value])
            return self.continuation(part)(tuple([true[goal] for goal in part.goals]))

        self.values.read(source, f.any([f.all((value, part.must)) for value, part in parts.items()]), asked, then)

    def _settle_unique(self, must: Formula, goals: Goals) -> Remainder:
        """The first remainder; where at most one item fits, "unique" is true, otherwise find the values that items can have."""
        f = self.formulas
        unique = [leaf for leaf in sorted_leaves((must, *goals)) if leaf.args[0] == "unique"]
        if not unique:
            return Remainder(must, goals)
        path = unique[0].args[2]
        parts = conjuncts(must)
        upper = [part.args[0].args[1] - 1 for part in parts if part.kind == "not" and part.args[0].args[0] == "count"]
        if upper and min(upper) <= 1:
            changes = dict.fromkeys(unique, f.true)
        else:
            # One leaf for all: they ask the same.
            changes = dict.fromkeys(unique, f.leaf("unique", frozenset(), path))
            whole = [part.args[3] for part in parts if part.args[:3] == ("items", 0, None)]
            domains = [domain for goal in whole if (domain := self._values(self.translator.expand(goal))) is not None]
            self.domain = min(domains, key=len, default=[])
            if not domains or len(self.domain) > _MAX_DISTINCT:
                if not set(unique) <= set(parts):
                    raise ConstraintError(
                        f"uniqueItems at {path} cannot be held exactly: other keywords ask whether it holds (not, oneOf, if "
                        f"or anyOf), and the items can have more than {_MAX_DISTINCT} values. Leave it out and check later."
                    )
                self.distinct_at, changes = path, dict.fromkeys(unique, f.true)
        return Remainder(f.substitute(must, changes), tuple(f.substitute(goal, changes) for goal in goals))

    def _values(self, formula: Formula) -> list[Formula] | None:
        """Formulas of single values, one of which holds wherever `formula` does; None if they are too many to list."""
        f = self.formulas
        if formula.kind == "constant":
            return None if formula.args[0] else []
        if formula.kind == "type":
            bits = [bit for bit in (NULL, TRUE, FALSE) if formula.args[0] & bit]
            return [f.type(bit) for bit in bits] if sum(bits) == formula.args[0] else None
        if formula.kind == "any":
            lists = [self._values(arg) for arg in formula.args]
            if any(values is None for values in lists):
                return None
            return list(dict.fromkeys(value for values in lists for value in values or ()))
        if formula.kind == "all":
            names = {part.args[0] for part in formula.args if part.kind == "leaf"}
            bits = next((part.args[0] for part in formula.args if part.kind == "type"), 0)
            if (bits, *names) in ((NUMBER, "equal"), (STRING, "text")):
                return [formula]
            lists = [values for arg in formula.args if (values := self._values(arg)) is not None]
            return min(lists, key=len) if lists else None
        return None
