"""`unevaluatedProperties` and `unevaluatedItems`: about the parts of a value that no other keyword has evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mechanex_jax.constraints.json_schema.applicators import listed_keys
from mechanex_jax.constraints.json_schema.formula import Formula, holds
from mechanex_jax.constraints.json_schema.references import Place
from mechanex_jax.constraints.json_schema.to_formula import Translator, keyword, refusal
from mechanex_jax.storage.json_values import JsonValue

_MAX_VARIED = 8  # choices are tried in all combinations


def in_place(t: Translator, place: Place) -> Iterator[tuple[Place, Formula]]:
    """Subschemas about the same value, each with the condition under which what it evaluates counts."""
    true = t.formulas.true
    for target in t.documents.targets(place):
        yield target, true
    for word in ("allOf", "anyOf", "oneOf"):
        for i in range(len(place.get(word, ()))):
            branch = t.documents.child(place, word, i)
            yield branch, true if word == "allOf" else t.formula(branch)
    if "if" in place:
        condition = t.below(place, "if")
        for word, holding in (("if", condition), ("then", condition), ("else", t.formulas.negation(condition))):
            if word in place:
                yield t.documents.child(place, word), holding
    for name in place.get("dependentSchemas", ()):
        yield t.documents.child(place, "dependentSchemas", name), t.has(name)


# -- Members -------------------------------------------------------------------------------------------------------------------


class EvaluatedKeys(NamedTuple):
    """Keys that a schema evaluates, and the formula of the objects in which it does."""

    key: Formula
    condition: Formula


@keyword("unevaluatedProperties")
def _unevaluated_properties(t: Translator, place: Place, value: JsonValue) -> Formula:
    """For each key: its value satisfies the subschema, or the condition of one of the places that evaluate the key holds.

    Places that hold under the same condition go together. Each name they mention is looked at by itself; all other keys are
    told apart by the patterns that match them.
    """
    evaluated = evaluated_members(t, place, skip="unevaluatedProperties")
    return members_satisfy(t, place, "unevaluatedProperties", evaluated, t.later(place, "unevaluatedProperties"))


def members_satisfy(t: Translator, place: Place, word: str, evaluated: Iterable[EvaluatedKeys], goal: Formula) -> Formula:
    """The formula of the objects of which each member is evaluated, or its value satisfies `goal`; errors name `word`."""
    f = t.formulas
    groups: dict[Formula, Formula] = {}
    for key, condition in evaluated:
        groups[condition] = f.any((groups.get(condition, f.false), key))
    names = sorted(
        {leaf for key in groups.values() for leaf in key.leaves if leaf.args[0] == "text"}, key=lambda leaf: leaf.number
    )
    parts = []
    for leaf in names:
        text = leaf.args[1]
        evaluating = [
            condition
            for condition, key in groups.items()
            if holds(key, lambda other, text=text: t.strings.is_true(other, text))
        ]
        parts.append(f.any((t.member(leaf, goal), *evaluating)))
    no_name = dict.fromkeys(names, f.false)
    others = {condition: f.substitute(key, no_name) for condition, key in groups.items()}
    always = [condition for condition, key in others.items() if key is f.true]
    varied = [(condition, key) for condition, key in others.items() if key.kind != "constant"]
    if len(varied) > _MAX_VARIED:
        raise refusal(place, word, f"it depends on {len(varied)} patterns under different conditions")
    for chosen in range(1 << len(varied)):
        keys = [key if chosen >> i & 1 else f.negation(key) for i, (_, key) in enumerate(varied)]
        evaluating = [condition for i, (condition, _) in enumerate(varied) if chosen >> i & 1]
        parts.append(f.any((t.member(f.all((*map(f.negation, names), *keys)), goal), *always, *evaluating)))
    return t.if_object(*parts)


def evaluated_members(t: Translator, place: Place, skip: str = "") -> Iterator[EvaluatedKeys]:
    if isinstance(place.schema, bool):
        return
    f = t.formulas
    if "properties" in place or "patternProperties" in place:
        yield EvaluatedKeys(listed_keys(t, place), f.true)
    if "additionalProperties" in place:
        yield EvaluatedKeys(f.negation(listed_keys(t, place)), f.true)
    if "unevaluatedProperties" in place and skip != "unevaluatedProperties":
        yield EvaluatedKeys(f.true, f.true)
    for target, condition in in_place(t, place):
        for key, inner in evaluated_members(t, target):
            yield EvaluatedKeys(key, f.all((condition, inner)))


# -- Items ---------------------------------------------------------------------------------------------------------------------


class _Items(NamedTuple):
    """Items that a schema evaluates, and the formula of the arrays in which it does.

    Attributes:
      end: items before it; None for all.
      goal: only the items that satisfy it; None for all.
      condition: of the array.
    """

    end: int | None
    goal: Formula | None
    condition: Formula


@keyword("unevaluatedItems")
def _unevaluated_items(t: Translator, place: Place, value: JsonValue) -> Formula:
    """For each item: it satisfies the subschema, or the condition of one of the places that evaluate it holds.

    A place evaluates a first part of the array, or (`contains`) the items that satisfy a goal. An item that satisfies
    the goals of some of the latter is fine if one of them holds, so for every choice of them: each item satisfies a chosen
    goal, or a place that is not chosen holds.
    """
    f, goal = t.formulas, t.later(place, "unevaluatedItems")
    evaluated = list(_evaluated_items(t, place, skip="unevaluatedItems"))
    ranges = [(items.end, items.condition) for items in evaluated if items.goal is None]
    varied = list(dict.fromkeys((items.goal, items.condition) for items in evaluated if items.goal is not None))
    if len(varied) > _MAX_VARIED:
        raise refusal(place, "unevaluatedItems", f"it depends on {len(varied)} uses of contains")
    ends: list[int | None] = [*sorted({end for end, _ in ranges if end}), None]
    parts, low = [], 0
    for high in ends:
        covered = [condition for end, condition in ranges if end is None or (high is not None and end >= high)]
        for chosen in range(1 << len(varied)):
            inside = [inner for i, (inner, _) in enumerate(varied) if chosen >> i & 1]
            outside = [condition for i, (_, condition) in enumerate(varied) if not chosen >> i & 1]
            parts.append(f.any((t.items(low, high, f.any((goal, *inside))), *covered, *outside)))
        low = high or 0
    return t.if_array(*parts)


def _evaluated_items(t: Translator, place: Place, skip: str = "") -> Iterator[_Items]:
    if isinstance(place.schema, bool):
        return
    true, newest = t.formulas.true, place.dialect.number >= 2020
    prefix = place.get("prefixItems" if newest else "items")
    if isinstance(prefix, list):
        yield _Items(len(prefix), None, true)
    whole = "additionalItems" if isinstance(prefix, list) and not newest else "items"
    for word in (whole, "unevaluatedItems"):
        if word in place and word != skip:
            yield _Items(None, None, true)
    if newest and "contains" in place:
        yield _Items(None, t.later(place, "contains"), true)
    for target, condition in in_place(t, place):
        for items in _evaluated_items(t, target):
            yield items._replace(condition=t.formulas.all((condition, items.condition)))
