"""`json_closed`: objects without keys that their schema does not list, though the schema would allow them.

A formula besides that of the schema, so that a closed text is valid under the schema as it stands. It says of each object, as
`unevaluatedProperties: false` would, that its members are listed by some keyword that counts for it; and asks the same of the
parts of a value. A schema that lists no names (a map, or any object) says nothing about its keys, and its objects stay open.
"""

from __future__ import annotations

from collections.abc import Iterator

from mechanex_jax.constraints.json_schema.applicators import listed_keys
from mechanex_jax.constraints.json_schema.formula import Formula
from mechanex_jax.constraints.json_schema.keywords import pattern_formula
from mechanex_jax.constraints.json_schema.references import Place
from mechanex_jax.constraints.json_schema.to_formula import READINGS, Translator
from mechanex_jax.constraints.json_schema.unevaluated import EvaluatedKeys, evaluated_members, in_place, members_satisfy

_OTHERS = ("additionalProperties", "unevaluatedProperties", "propertyNames")  # they say something about other keys


def closed(t: Translator, place: Place) -> Formula:
    """The formula of the values of a place whose objects, at any depth, have no keys but those that are listed."""
    if isinstance(place.schema, bool):
        return t.formulas.true
    parts, places = [], list(_all_in_place(t, place))
    listing = any("properties" in inner or "patternProperties" in inner for inner, _ in places)
    if listing and not any(word in inner for inner, _ in places for word in _OTHERS):
        required = [
            EvaluatedKeys(t.formulas.any(map(t.text, inner.get("required", ()))), condition) for inner, condition in places
        ]
        keys = [*evaluated_members(t, place), *required]
        parts.append(members_satisfy(t, place, "json_closed", keys, t.formulas.false))
    for inner, condition in places:
        of_parts = t.formulas.all(_of_parts(t, inner))
        parts.append(t.formulas.any((t.formulas.negation(condition), of_parts)))
    return t.formulas.all(parts)


READINGS["closed"] = closed


def _all_in_place(t: Translator, place: Place) -> Iterator[tuple[Place, Formula]]:
    """The place and all subschemas about the same value, each with the condition under which it counts."""
    yield place, t.formulas.true
    for target, condition in in_place(t, place):
        if not isinstance(target.schema, bool):
            for inner, further in _all_in_place(t, target):
                yield inner, t.formulas.all((condition, further))


def _of_parts(t: Translator, place: Place) -> Iterator[Formula]:
    """What is asked of members and items: the same, by the schemas that they have to satisfy."""
    member = lambda key, *steps: t.if_object(t.member(key, t.later(place, *steps, reading="closed")))
    for name in place.get("properties", ()):
        yield member(t.text(name), "properties", name)
    for pattern in place.get("patternProperties", ()):
        yield member(pattern_formula(t, place, "patternProperties", pattern), "patternProperties", pattern)
    if "additionalProperties" in place:
        yield member(t.formulas.negation(listed_keys(t, place)), "additionalProperties")
    first = 0
    for word in ("prefixItems", "items"):
        if isinstance(place.get(word), list):
            first = len(place.get(word))
            for i in range(first):
                yield t.if_array(t.items(i, i + 1, t.later(place, word, i, reading="closed")))
    for word in ("items", *(("additionalItems",) if first else ())):
        if word in place and not isinstance(place.get(word), list):
            yield t.if_array(t.items(first, None, t.later(place, word, reading="closed")))
