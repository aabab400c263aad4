"""Keywords about the members of objects and the items of arrays."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from mechanex_jax.constraints.json_schema.formula import ARRAY, OBJECT, STRING, Formula
from mechanex_jax.constraints.json_schema.keywords import pattern_formula
from mechanex_jax.constraints.json_schema.references import Place, Schema
from mechanex_jax.constraints.json_schema.to_formula import Translator, count_bounds, keyword
from mechanex_jax.storage.json_values import JsonValue

# -- Objects -------------------------------------------------------------------------------------------------------------------


@keyword("properties")
def _properties(t: Translator, place: Place, value: dict[str, JsonValue]) -> Formula:
    chain = t.chain(tuple(value))
    return t.if_object(*(t.member(t.text(name), t.later(place, "properties", name), chain) for name in value))


@keyword("patternProperties")
def _pattern_properties(t: Translator, place: Place, value: dict[str, JsonValue]) -> Formula:
    word = "patternProperties"
    return t.if_object(*(t.member(pattern_formula(t, place, word, p), t.later(place, word, p)) for p in value))


def listed_keys(t: Translator, place: Place) -> Formula:
    """The keys that `properties` or `patternProperties` list."""
    texts = [t.text(name) for name in place.get("properties", ())]
    patterns = [pattern_formula(t, place, "patternProperties", p) for p in place.get("patternProperties", ())]
    return t.formulas.any(texts + patterns)


@keyword("additionalProperties")
def _additional_properties(t: Translator, place: Place, value: JsonValue) -> Formula:
    return t.if_object(t.member(t.formulas.negation(listed_keys(t, place)), t.later(place, "additionalProperties")))


@keyword("propertyNames")
def _property_names(t: Translator, place: Place, value: JsonValue) -> Formula:
    names = t.formulas.of_type(t.below(place, "propertyNames"), STRING)
    return t.if_object(t.member(t.formulas.negation(names), t.formulas.false))


@keyword("required")
def _required(t: Translator, place: Place, value: list[str]) -> Formula:
    return t.if_object(*map(t.has, value))


count_bounds("minProperties", "maxProperties", OBJECT, "members")


def _dependencies(t: Translator, place: Place, value: Mapping[str, list[str] | Schema], word: str) -> Formula:
    """Each name of the keyword, if the object has it, asks for other names or a schema."""
    parts = []
    for name, needed in value.items():
        formula = t.formulas.all(map(t.has, needed)) if isinstance(needed, list) else t.below(place, word, name)
        parts.append(t.if_object(t.formulas.any((t.formulas.negation(t.has(name)), formula))))
    return t.formulas.all(parts)


for _word in ("dependentRequired", "dependentSchemas", "dependencies"):
    keyword(_word)(functools.partial(_dependencies, word=_word))


# -- Arrays --------------------------------------------------------------------------------------------------------------------


def _tuple(t: Translator, place: Place, word: str) -> Formula:
    return t.if_array(*(t.items(i, i + 1, t.later(place, word, i)) for i in range(len(place.get(word)))))


@keyword("prefixItems")
def _prefix_items(t: Translator, place: Place, value: list[JsonValue]) -> Formula:
    return _tuple(t, place, "prefixItems")


@keyword("items")
def _items(t: Translator, place: Place, value: JsonValue) -> Formula:
    if isinstance(value, list):
        return _tuple(t, place, "items")
    first = len(place.get("prefixItems", ())) if place.dialect.number >= 2020 else 0
    return t.if_array(t.items(first, None, t.later(place, "items")))


@keyword("additionalItems")
def _additional_items(t: Translator, place: Place, value: JsonValue) -> Formula:
    if not isinstance(place.get("items"), list):
        return t.formulas.true
    return t.if_array(t.items(len(place.get("items")), None, t.later(place, "additionalItems")))


@keyword("contains")
def _contains(t: Translator, place: Place, value: JsonValue) -> Formula:
    goal, counts = t.later(place, "contains"), place.dialect.number >= 2019
    parts = [t.at_least("contains", place.get("minContains", 1) if counts else 1, goal)]
    if counts and "maxContains" in place:
        parts.append(t.at_most("contains", place.get("maxContains"), goal))
    return t.if_array(*parts)


count_bounds("minItems", "maxItems", ARRAY, "count")


@keyword("uniqueItems")
def _unique_items(t: Translator, place: Place, value: bool) -> Formula:
    return t.if_array(t.formulas.leaf("unique", frozenset(), place.path)) if value else t.formulas.true
