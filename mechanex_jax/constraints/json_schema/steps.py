"""One part of an object or an array further: the formula that is left to hold of the parts that follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from mechanex_jax.constraints.json_schema.formula import Formula, holds
from mechanex_jax.constraints.json_schema.to_formula import Translator

Truths = tuple[bool, ...]  # of goals, in their order
Goals = tuple[Formula, ...]
Continuation = Callable[[Truths], int | None]  # the state to go on at after a value with these truths; None: nowhere


@dataclasses.dataclass(frozen=True)
class LeafUpdate:
    """A leaf about the parts of a value, and the formulas that take its place behind the next part.

    Attributes:
      leaf: a leaf of the formula that is left.
      goal: a formula of the part, which decides between the two.
      met: takes the leaf's place if the part satisfies the goal.
      missed: takes the leaf's place if it does not.
    """

    leaf: Formula
    goal: Formula
    met: Formula
    missed: Formula


@dataclasses.dataclass(frozen=True)
class NextPart:
    """The formulas to ask of the next part of a value, and those left to ask of the rest.

    Attributes:
      must: has to hold of the part.
      goals: to decide about the part.
      rest: (must, goals) of the parts that follow, by the truths of the goals; None if they can't be satisfied any more.
    """

    must: Formula
    goals: Goals
    rest: Callable[[Truths], tuple[Formula, Goals] | None]


def next_part(
    translator: Translator, must: Formula, goals: Goals, updates: Iterable[LeafUpdate], always: Formula | None = None
) -> NextPart | None:
    """Derive the formulas of the next part, and of the rest behind it, from those of a whole.

    A goal that has to be met (or missed) for `must` to stay satisfiable is asked of the part at once.

    Args:
      translator: of the schema.
      must: has to hold of the whole.
      goals: to decide about the whole.
      updates: at most one for a leaf; a leaf without one stays as it is.
      always: has to hold of the part in any case.

    Returns:
      None if nothing can be satisfied any more.
    """
    f, expand = translator.formulas, translator.expand
    decided: dict[Formula, Formula] = {}
    by_goal: dict[Formula, list[LeafUpdate]] = {}
    for update in updates:
        goal = expand(update.goal)
        if goal.kind == "constant":
            decided[update.leaf] = update.met if goal.args[0] else update.missed
        else:
            by_goal.setdefault(goal, []).append(update)
    asked = [] if always is None else [expand(always)]
    changed = True
    while changed:
        changed = False
        if f.substitute(must, decided) is f.false:
            return None
        for goal, group in tuple(by_goal.items()):
            met, missed = {u.leaf: u.met for u in group}, {u.leaf: u.missed for u in group}
            if f.substitute(must, {**decided, **missed}) is f.false:
                asked.append(goal)
                decided.update(met)
            elif f.substitute(must, {**decided, **met}) is f.false:
                asked.append(f.negation(goal))
                decided.update(missed)
            else:
                continue
            del by_goal[goal]
            changed = True
            break
    open_goals = tuple(by_goal)
    rests: dict[Truths, tuple[Formula, Goals] | None] = {}

    def rest(truths: Truths) -> tuple[Formula, Goals] | None:
        if truths not in rests:
            changes = dict(decided)
            for goal, true in zip(open_goals, truths, strict=True):
                changes.update((u.leaf, u.met if true else u.missed) for u in by_goal[goal])
            memo: dict[Formula, Formula] = {}
            left = f.substitute(must, changes, memo)
            left_goals = tuple([f.substitute(goal, changes, memo) for goal in goals])
            rests[truths] = None if left is f.false else (left, left_goals)
        return rests[truths]

    return NextPart(f.all(asked), open_goals, rest)


def truth_at_end(formula: Formula, positive: frozenset[str]) -> bool:
    """The truth of a formula when no part follows: leaves of the names in `positive` are true then, others false."""
    return holds(formula, lambda leaf: leaf.args[0] in positive)
