"""Keywords about the members of objects and the items of arrays."""

from __future__ import annotations

from typing import Any

from mechanex_jax.constraints.json_schema import formula as types
from mechanex_jax.constraints.json_schema.formula import Formula, holds
from mechanex_jax.constraints.json_schema.keywords import pattern
from mechanex_jax.constraints.json_schema.references import Place
from mechanex_jax.constraints.json_schema.to_formula import Compiler, keyword

_MOST_VARIED = 8

# -- Objects -------------------------------------------------------------------------------------------------------------------


@keyword("properties")
def _properties(c: Compiler, place: Place, value: Any) -> Formula:
    chain = c.chain(tuple(value))
    return c.given_object(*(c.member(c.text(name), c.later(place, "properties", name), chain) for name in value))


@keyword("patternProperties")
def _pattern_properties(c: Compiler, place: Place, value: Any) -> Formula:
    word = "patternProperties"
    return c.given_object(*(c.member(pattern(c, place, word, p), c.later(place, word, p)) for p in value))


def _named(c: Compiler, place: Place) -> Formula:
    """Keys that `properties` and `patternProperties` speak of."""
    texts = [c.text(name) for name in place.get("properties", ())]
    patterns = [pattern(c, place, "patternProperties", p) for p in place.get("patternProperties", ())]
    return c.formulas.any(texts + patterns)


@keyword("additionalProperties")
def _additional_properties(c: Compiler, place: Place, value: Any) -> Formula:
    return c.given_object(c.member(c.formulas.negation(_named(c, place)), c.later(place, "additionalProperties")))


@keyword("propertyNames")
def _property_names(c: Compiler, place: Place, value: Any) -> Formula:
    names = c.formulas.of_type(c.below(place, "propertyNames"), types.STRING)
    return c.given_object(c.member(c.formulas.negation(names), c.formulas.false))


@keyword("required")
def _required(c: Compiler, place: Place, value: Any) -> Formula:
    return c.given_object(*map(c.has, value))


@keyword("minProperties")
def _min_properties(c: Compiler, place: Place, value: Any) -> Formula:
    return c.given_object(c.at_least("members", value))


@keyword("maxProperties")
def _max_properties(c: Compiler, place: Place, value: Any) -> Formula:
    return c.given_object(c.formulas.negation(c.at_least("members", value + 1)))


def _depends(c: Compiler, name: str, formula: Formula) -> Formula:
    return c.given_object(c.formulas.any((c.formulas.negation(c.has(name)), formula)))


@keyword("dependentRequired")
def _dependent_required(c: Compiler, place: Place, value: Any) -> Formula:
    return c.formulas.all([_depends(c, name, c.formulas.all(map(c.has, others))) for name, others in value.items()])


@keyword("dependentSchemas")
def _dependent_schemas(c: Compiler, place: Place, value: Any) -> Formula:
    return c.formulas.all([_depends(c, name, c.below(place, "dependentSchemas", name)) for name in value])


@keyword("dependencies")
def _dependencies(c: Compiler, place: Place, value: Any) -> Formula:
    parts = []
    for name, needed in value.items():
        if isinstance(needed, list):
            parts.append(_depends(c, name, c.formulas.all(map(c.has, needed))))
        else:
            parts.append(_depends(c, name, c.below(place, "dependencies", name)))
    return c.formulas.all(parts)


# -- Arrays --------------------------------------------------------------------------------------------------------------------


def _tuple(c: Compiler, place: Place, word: str) -> Formula:
    return c.given_array(*(c.items(i, i + 1, c.later(place, word, i)) for i in range(len(place.get(word)))))


@keyword("prefixItems")
def _prefix_items(c: Compiler, place: Place, value: Any) -> Formula:
    return _tuple(c, place, "prefixItems")


@keyword("items")
def _items(c: Compiler, place: Place, value: Any) -> Formula:
    if isinstance(value, list):
        return _tuple(c, place, "items")
    first = len(place.get("prefixItems", ())) if place.dialect.number >= 2020 else 0
    return c.given_array(c.items(first, None, c.later(place, "items")))


@keyword("additionalItems")
def _additional_items(c: Compiler, place: Place, value: Any) -> Formula:
    if not isinstance(place.get("items"), list):
        return c.formulas.true
    return c.given_array(c.items(len(place.get("items")), None, c.later(place, "additionalItems")))


@keyword("contains")
def _contains(c: Compiler, place: Place, value: Any) -> Formula:
    goal, counts = c.later(place, "contains"), place.dialect.number >= 2019
    least = place.get("minContains", 1) if counts else 1
    parts = [c.at_least("contains", least, goal)]
    if counts and "maxContains" in place:
        parts.append(c.formulas.negation(c.at_least("contains", place.get("maxContains") + 1, goal)))
    return c.given_array(*parts)


@keyword("minItems")
def _min_items(c: Compiler, place: Place, value: Any) -> Formula:
    return c.given_array(c.at_least("count", value))


@keyword("maxItems")
def _max_items(c: Compiler, place: Place, value: Any) -> Formula:
    return c.given_array(c.formulas.negation(c.at_least("count", value + 1)))


@keyword("uniqueItems")
def _unique_items(c: Compiler, place: Place, value: Any) -> Formula:
    return c.given_array(c.formulas.leaf("unique", frozenset(), place.path)) if value else c.formulas.true


# -- What no other keyword has spoken of ---------------------------------------------------------------------------------------


@keyword("unevaluatedProperties")
def _unevaluated_properties(c: Compiler, place: Place, value: Any) -> Formula:
    """For each key: its value satisfies the subschema, or one of the places that speak of the key holds.

    Places that hold under the same condition go together. Each name they mention is looked at by itself; all other keys are
    told apart by the patterns that match them.
    """
    f, goal = c.formulas, c.later(place, "unevaluatedProperties")
    groups: dict[Formula, Formula] = {}
    for key, condition in evaluated_members(c, place, skip="unevaluatedProperties"):
        groups[condition] = f.any((groups.get(condition, f.false), key))
    names = {leaf for key in groups.values() for leaf in key.leaves if leaf.args[0] == "text"}
    parts = []
    for leaf in sorted(names, key=lambda leaf: leaf.number):
        text = leaf.args[1]
        speak = [
            condition
            for condition, key in groups.items()
            if holds(key, lambda other, text=text: c.strings.is_true(other, text))
        ]
        parts.append(f.any((c.member(leaf, goal), *speak)))
    no_name = dict.fromkeys(names, f.false)
    rest = {condition: f.substitute(key, no_name) for condition, key in groups.items()}
    always = [condition for condition, key in rest.items() if key is f.true]
    varied = [(condition, key) for condition, key in rest.items() if key.kind != "constant"]
    if len(varied) > _MOST_VARIED:
        raise c.refuse(place, "unevaluatedProperties", f"it depends on {len(varied)} patterns under different conditions")
    for chosen in range(1 << len(varied)):
        keys = [key if chosen >> i & 1 else f.negation(key) for i, (_, key) in enumerate(varied)]
        speak = [condition for i, (condition, _) in enumerate(varied) if chosen >> i & 1]
        parts.append(f.any((c.member(f.all((*map(f.negation, names), *keys)), goal), *always, *speak)))
    return c.given_object(*parts)


def evaluated_members(c: Compiler, place: Place, skip: str = "") -> list[tuple[Formula, Formula]]:
    """Keys that a schema speaks of, as pairs (formula of the key, formula of the object under which it does)."""
    found: list[tuple[Formula, Formula]] = []
    if isinstance(place.schema, bool):
        return found
    if "properties" in place or "patternProperties" in place:
        found.append((_named(c, place), c.formulas.true))
    if "additionalProperties" in place:
        found.append((c.formulas.negation(_named(c, place)), c.formulas.true))
    if "unevaluatedProperties" in place and skip != "unevaluatedProperties":
        found.append((c.formulas.true, c.formulas.true))
    for target, condition in _in_place(c, place):
        found += [(key, c.formulas.all((condition, inner))) for key, inner in evaluated_members(c, target)]
    return found


def _in_place(c: Compiler, place: Place) -> list[tuple[Place, Formula]]:
    """Subschemas that speak about the same value, with the condition under which what they evaluate counts."""
    child, formulas = c.documents.child, c.formulas
    found = [(target, formulas.true) for target in c.documents.referred(place)]
    for word in ("allOf", "anyOf", "oneOf"):
        for i in range(len(place.get(word, ()))):
            branch = child(place, word, i)
            found.append((branch, formulas.true if word == "allOf" else c.formula(branch)))
    if "if" in place:
        condition = c.below(place, "if")
        found.append((child(place, "if"), condition))
        for word, holding in (("then", condition), ("else", formulas.negation(condition))):
            if word in place:
                found.append((child(place, word), holding))
    for name in place.get("dependentSchemas", ()):
        found.append((child(place, "dependentSchemas", name), c.has(name)))
    return found


@keyword("unevaluatedItems")
def _unevaluated_items(c: Compiler, place: Place, value: Any) -> Formula:
    """For each item: it satisfies the subschema, or one of the places that speak of it holds.

    A place speaks of a first part of the array, or (`contains`) of the items that satisfy a formula. An item that satisfies
    the goals of some of the latter is fine if one of them holds, so for every choice of them: each item satisfies a chosen
    goal, or a place that is not chosen holds.
    """
    f, goal = c.formulas, c.later(place, "unevaluatedItems")
    spoken = evaluated_items(c, place, skip="unevaluatedItems")
    ranges = [(high, condition) for high, inner, condition in spoken if inner is None]
    chosen_from = list(dict.fromkeys((inner, condition) for _, inner, condition in spoken if inner is not None))
    if len(chosen_from) > _MOST_VARIED:
        raise c.refuse(place, "unevaluatedItems", f"it depends on {len(chosen_from)} uses of contains")
    ends: list[int | None] = [*sorted({high for high, _ in ranges if high}), None]
    parts, low = [], 0
    for high in ends:
        covered = [condition for end, condition in ranges if end is None or (high is not None and end >= high)]
        for choice in range(1 << len(chosen_from)):
            inside = [inner for i, (inner, _) in enumerate(chosen_from) if choice >> i & 1]
            outside = [condition for i, (_, condition) in enumerate(chosen_from) if not choice >> i & 1]
            parts.append(f.any((c.items(low, high, f.any((goal, *inside))), *covered, *outside)))
        low = high or 0
    return c.given_array(*parts)


def evaluated_items(c: Compiler, place: Place, skip: str = "") -> list[tuple[int | None, Formula | None, Formula]]:
    """Items that a schema speaks of: (end of the range, None, condition) or (None, goal of `contains`, condition)."""
    found: list[tuple[int | None, Formula | None, Formula]] = []
    if isinstance(place.schema, bool):
        return found
    true, newest = c.formulas.true, place.dialect.number >= 2020
    prefix = place.get("prefixItems" if newest else "items")
    if isinstance(prefix, list):
        found.append((len(prefix), None, true))
    whole = ["items", "unevaluatedItems"] if newest else ["unevaluatedItems"]
    if not newest and isinstance(prefix, list):
        whole.append("additionalItems")
    elif not newest:
        whole.append("items")
    found += [(None, None, true) for word in whole if word in place and word != skip]
    if newest and "contains" in place:
        found.append((None, c.later(place, "contains"), true))
    for target, condition in _in_place(c, place):
        found += [(end, goal, c.formulas.all((condition, inner))) for end, goal, inner in evaluated_items(c, target)]
    return found
