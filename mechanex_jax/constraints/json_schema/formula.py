"""Boolean formulas over what can be asked of a JSON value: the meaning of a schema, and of what is left of it part-way.

Formulas are shared: equal ones are the same object, so that sets of them name automaton states. A leaf is a question about a
value of one JSON type (`to_formula` lists them), about its type, or a reference to a schema not looked at yet.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set

from mechanex_jax.constraints.automata.dfa import DEFAULT_LIMITS, CompileLimits
from mechanex_jax.errors import ConstraintError

JSON_TYPES = NULL, TRUE, FALSE, NUMBER, STRING, OBJECT, ARRAY = tuple(1 << i for i in range(7))
BOOLEAN = TRUE | FALSE
ANY_TYPE = 127


class Formula:
    """A node of a formula; made by `Formulas`, compared by identity.

    Attributes:
      kind: "constant", "type", "leaf", "not", "all", "any" or "one" (exactly one holds).
      args: operands; of a constant its value, of a type its bits, of a leaf its name and arguments.
      leaves: the nodes of kind "leaf" and "type" below.
      of_none, parts: remembered by `holds_of`.
      number: ascending in the order in which formulas are made.
    """

    __slots__ = ("args", "kind", "leaves", "number", "of_none", "parts")

    def __init__(self, kind: str, args: tuple, number: int):
        self.kind, self.args, self.number = kind, args, number
        self.of_none: bool | None = None  # the truth where no leaf is true, once it has been asked for
        self.parts: tuple[frozenset[Formula], tuple[Formula, ...]] | None = None  # operands that are leaves, and others
        if kind in ("leaf", "type"):
            self.leaves: frozenset[Formula] = frozenset((self,))
        elif kind == "constant":
            self.leaves = frozenset()
        else:
            self.leaves = frozenset().union(*(arg.leaves for arg in args))

    def __repr__(self) -> str:
        return f"{self.kind}{self.args}"


class Formulas:
    """All formulas of one compilation, each made once.

    Args:
      limits: on how many operands are looked at; beyond them `ConstraintError` is raised.
    """

    def __init__(self, limits: CompileLimits = DEFAULT_LIMITS):
        self.steps, self._limits = 0, limits
        self._known: dict[tuple, Formula] = {}
        self._types: dict[tuple[Formula, int], Formula] = {}
        self.true, self.false = self._make("constant", (True,)), self._make("constant", (False,))

    def _make(self, kind: str, args: tuple) -> Formula:
        # 1, 1.0 and True are equal to Python, but no leaf of the same name mixes them.
        node = self._known.get((kind, args))
        if node is None:
            node = self._known[kind, args] = Formula(kind, args, len(self._known))
        return node

    def constant(self, value: bool) -> Formula:
        """The formula that always has this truth."""
        return self.true if value else self.false

    def leaf(self, name: str, *args: Hashable) -> Formula:
        """A question, by name and hashable arguments."""
        return self._make("leaf", (name, *args))

    def type(self, bits: int) -> Formula:
        """Whether the value's type is among `bits`."""
        return self.constant(bits != 0) if bits in (0, ANY_TYPE) else self._make("type", (bits,))

    def if_type(self, bits: int, formula: Formula) -> Formula:
        """The formula for values of the types `bits`, and true of values of other types."""
        return self.any((self.type(ANY_TYPE & ~bits), formula))

    def negation(self, formula: Formula) -> Formula:
        """The formula that holds where `formula` does not."""
        if formula.kind == "constant":
            return self.constant(not formula.args[0])
        if formula.kind == "type":
            return self.type(ANY_TYPE & ~formula.args[0])
        if formula.kind == "not":
            return formula.args[0]
        if formula.kind == "any":
            return self.all(self.negation(arg) for arg in formula.args)
        if formula.kind == "all":
            return self.any(self.negation(arg) for arg in formula.args)
        return self._make("not", (formula,))

    def all(self, formulas: Iterable[Formula]) -> Formula:
        """Whether all of the formulas hold; true of none."""
        return self._gather("all", formulas, self.true, self.false)

    def any(self, formulas: Iterable[Formula]) -> Formula:
        """Whether one of the formulas holds, or more; false of none."""
        return self._gather("any", formulas, self.false, self.true)

    def _gather(self, kind: str, formulas: Iterable[Formula], neutral: Formula, absorbing: Formula) -> Formula:
        parts: set[Formula] = set()
        bits = ANY_TYPE if kind == "all" else 0
        for formula in formulas:
            for part in formula.args if formula.kind == kind else (formula,):
                if part is absorbing:
                    return absorbing
                if part.kind == "type":
                    bits = bits & part.args[0] if kind == "all" else bits | part.args[0]
                elif part is not neutral:
                    parts.add(part)
        types = self.type(bits)
        if types is absorbing:
            return absorbing
        if types is not neutral:
            parts.add(types)
        for part in parts:
            if part.kind == "not" and part.args[0] in parts:
                return absorbing
        if len(parts) < 2:
            return next(iter(parts), neutral)
        return self._make(kind, tuple(sorted(parts, key=lambda part: part.number)))

    def exactly_one(self, formulas: Iterable[Formula]) -> Formula:
        """Whether exactly one of the formulas holds."""
        rest = [formula for formula in formulas if formula is not self.false]
        sure = sum(formula is self.true for formula in rest)
        if sure > 1:
            return self.false
        if sure == 1:
            return self.all(self.negation(formula) for formula in rest if formula is not self.true)
        if len(rest) < 2:
            return rest[0] if rest else self.false
        return self._make("one", tuple(sorted(rest, key=lambda part: part.number)))

    def _join(self, kind: str, parts: Sequence[Formula]) -> Formula:
        self.steps += len(parts)
        if self.steps > self._limits.steps:
            raise ConstraintError(
                f"json_schema is too large: telling apart what its alternatives leave open takes more than "
                f"{self._limits.steps:,} steps. Use fewer alternatives (anyOf, oneOf, not, if) that overlap."
            )
        if kind == "not":
            return self.negation(parts[0])
        return self.all(parts) if kind == "all" else self.any(parts) if kind == "any" else self.exactly_one(parts)

    def substitute(
        self, formula: Formula, changes: Mapping[Formula, Formula], memo: dict[Formula, Formula] | None = None
    ) -> Formula:
        """The formula with some leaves replaced; calls with the same `changes` may share a `memo`."""
        if not changes or formula.leaves.isdisjoint(changes):
            return formula
        if formula.kind in ("leaf", "type"):
            return changes[formula]
        memo = {} if memo is None else memo
        known = memo.get(formula)
        if known is None:
            known = self._join(formula.kind, [self.substitute(arg, changes, memo) for arg in formula.args])
            memo[formula] = known
        return known

    def of_type(self, formula: Formula, bit: int) -> Formula:
        """The formula for values of one type."""
        if (formula, bit) not in self._types:
            types = {leaf: self.constant(bool(leaf.args[0] & bit)) for leaf in formula.leaves if leaf.kind == "type"}
            self._types[formula, bit] = self.substitute(formula, types)
        return self._types[formula, bit]


def holds(formula: Formula, truth: Callable[[Formula], bool]) -> bool:
    """Evaluate a formula, with the truth of its leaves by `truth`."""
    kind, args = formula.kind, formula.args
    if kind == "constant":
        return args[0]
    if kind in ("leaf", "type"):
        return truth(formula)
    if kind == "not":
        return not holds(args[0], truth)
    if kind == "all":
        return all(holds(arg, truth) for arg in args)
    if kind == "any":
        return any(holds(arg, truth) for arg in args)
    return sum(holds(arg, truth) for arg in args) == 1


def holds_of(formula: Formula, true: Set[Formula]) -> bool:
    """Evaluate a formula of which the leaves in `true` are true, and no others: quick where they are few."""
    if not formula.leaves.isdisjoint(true):
        return _evaluated(formula, true)
    if formula.of_none is None:
        formula.of_none = _evaluated(formula, true)
    return formula.of_none


def _evaluated(formula: Formula, true: Set[Formula]) -> bool:
    kind, args = formula.kind, formula.args
    if kind == "constant":
        return args[0]
    if kind in ("leaf", "type"):
        return formula in true
    if kind == "not":
        return not holds_of(args[0], true)
    if formula.parts is None:
        simple = frozenset(arg for arg in args if arg.kind in ("leaf", "type"))
        formula.parts = simple, tuple(arg for arg in args if arg not in simple)
    simple, others = formula.parts
    if kind == "all":
        return simple <= true and all(holds_of(arg, true) for arg in others)
    if kind == "any":
        return not simple.isdisjoint(true) or any(holds_of(arg, true) for arg in others)
    return len(simple & true) + sum(holds_of(arg, true) for arg in others) == 1


def sorted_leaves(formulas: Iterable[Formula]) -> list[Formula]:
    """The leaves of several formulas in the order in which they were made."""
    return sorted(frozenset().union(*(formula.leaves for formula in formulas)), key=lambda leaf: leaf.number)


def signature(formulas: Sequence[Formula]) -> tuple:
    """A hashable value that means the same in every compilation, of formulas whose leaves name no other formulas."""
    number: dict[Formula, int] = {}
    nodes: list[tuple] = []

    def visit(formula: Formula) -> int:
        if formula not in number:
            composite = formula.kind in ("not", "all", "any", "one")
            args = tuple([visit(arg) for arg in formula.args]) if composite else formula.args
            nodes.append((formula.kind, args))
            number[formula] = len(nodes) - 1
        return number[formula]

    top = tuple([visit(formula) for formula in formulas])
    return (top, tuple(nodes))


def conjuncts(formula: Formula) -> tuple[Formula, ...]:
    """The formulas all of which hold wherever `formula` does."""
    if formula.kind == "all":
        return formula.args
    return () if formula.kind == "constant" and formula.args[0] else (formula,)
