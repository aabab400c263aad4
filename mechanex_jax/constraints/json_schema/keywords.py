"""Keywords about values of any type, numbers and strings, and the keywords of logic.

Keywords that have no function here, in `applicators` or in `unevaluated` are annotations (`title`, `default`,
`contentEncoding`, ...), read by their neighbours (`then`, `minContains`, ...) or only name places (`$defs`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from mechanex_jax.constraints.json_schema import formats, numbers
from mechanex_jax.constraints.json_schema.formula import ARRAY, BOOLEAN, NULL, NUMBER, OBJECT, STRING, Formula, Formulas
from mechanex_jax.constraints.json_schema.references import Place
from mechanex_jax.constraints.json_schema.strings import is_everything
from mechanex_jax.constraints.json_schema.to_formula import Translator, count_bounds, keyword, refusal
from mechanex_jax.constraints.regex import lookaround
from mechanex_jax.errors import ConstraintError
from mechanex_jax.storage.json_values import JsonValue

_TYPES = {"null": NULL, "boolean": BOOLEAN, "number": NUMBER, "string": STRING, "object": OBJECT, "array": ARRAY}


# -- Any type ------------------------------------------------------------------------------------------------------------------


@keyword("type")
def _type(t: Translator, place: Place, value: str | list[str]) -> Formula:
    names = {value} if isinstance(value, str) else set(value)
    bits = sum(_TYPES[name] for name in names - {"integer"})
    if "integer" not in names or "number" in names:
        return t.formulas.type(bits)
    # Draft 4 alone looks at the spelling: there 1.0 is no integer.
    whole = t.formulas.leaf("plain") if place.dialect.number == 4 else t.formulas.leaf("multiple", numbers.exact(1))
    return t.formulas.any((t.formulas.type(bits), t.formulas.all((t.formulas.type(NUMBER), whole))))


@keyword("enum")
def _enum(t: Translator, place: Place, value: list[JsonValue]) -> Formula:
    return t.formulas.any([t.equal(item) for item in value])


@keyword("const")
def _const(t: Translator, place: Place, value: JsonValue) -> Formula:
    return t.equal(value)


# -- Numbers -------------------------------------------------------------------------------------------------------------------


def _below(t: Translator, bound: float) -> Formula:
    return t.formulas.leaf("below", numbers.exact(bound))


def _up_to(t: Translator, bound: float) -> Formula:
    return t.formulas.any((_below(t, bound), t.formulas.leaf("equal", numbers.exact(bound))))


@keyword("minimum")
def _minimum(t: Translator, place: Place, value: float) -> Formula:
    exclusive = place.get("exclusiveMinimum") is True  # draft 4
    return t.if_number(t.formulas.negation((_up_to if exclusive else _below)(t, value)))


@keyword("maximum")
def _maximum(t: Translator, place: Place, value: float) -> Formula:
    exclusive = place.get("exclusiveMaximum") is True
    return t.if_number((_below if exclusive else _up_to)(t, value))


@keyword("exclusiveMinimum")
def _exclusive_minimum(t: Translator, place: Place, value: float) -> Formula:
    return t.if_number(t.formulas.negation(_up_to(t, value)))


@keyword("exclusiveMaximum")
def _exclusive_maximum(t: Translator, place: Place, value: float) -> Formula:
    return t.if_number(_below(t, value))


@keyword("multipleOf")
def _multiple_of(t: Translator, place: Place, value: float) -> Formula:
    divisor = numbers.exact(value)
    try:
        numbers.multiples(divisor)
    except ConstraintError as error:
        raise refusal(place, "multipleOf", error.message) from None
    return t.if_number(t.formulas.leaf("multiple", divisor))


# -- Strings -------------------------------------------------------------------------------------------------------------------


count_bounds("minLength", "maxLength", STRING, "length")


def pattern_formula(t: Translator, place: Place, word: str, pattern: str) -> Formula:
    """The strings with a part that an ECMA-262 pattern matches; its automata are built here, so that errors name the place."""
    parts = []
    try:
        for positive, expression in lookaround.split(pattern):
            leaf = t.formulas.leaf("pattern", expression)
            formula = t.formulas.true if is_everything(t.strings.automaton(leaf)) else leaf
            parts.append(formula if positive else t.formulas.negation(formula))
    except ConstraintError as error:
        raise ConstraintError(f"{word} at {place.path}: {error.message}") from None
    return t.formulas.all(parts)


@keyword("pattern")
def _pattern(t: Translator, place: Place, value: str) -> Formula:
    return t.if_string(pattern_formula(t, place, "pattern", value))


@keyword("format")
def _format(t: Translator, place: Place, value: JsonValue) -> Formula:
    if not isinstance(value, str) or value not in formats.PATTERNS:
        return t.formulas.true
    return t.if_string(t.formulas.leaf("format", value))


# -- Logic ---------------------------------------------------------------------------------------------------------------------


def _branches(
    t: Translator, place: Place, value: list[JsonValue], word: str, combine: Callable[[Formulas, list[Formula]], Formula]
) -> Formula:
    return combine(t.formulas, [t.below(place, word, i) for i in range(len(value))])


for _word, _combine in (("allOf", Formulas.all), ("anyOf", Formulas.any), ("oneOf", Formulas.exactly_one)):
    keyword(_word)(functools.partial(_branches, word=_word, combine=_combine))


@keyword("not")
def _not(t: Translator, place: Place, value: JsonValue) -> Formula:
    return t.formulas.negation(t.below(place, "not"))


@keyword("if")
def _if(t: Translator, place: Place, value: JsonValue) -> Formula:
    if "then" not in place and "else" not in place:
        return t.formulas.true
    condition, parts = t.below(place, "if"), []
    if "then" in place:
        parts.append(t.formulas.any((t.formulas.negation(condition), t.below(place, "then"))))
    if "else" in place:
        parts.append(t.formulas.any((condition, t.below(place, "else"))))
    return t.formulas.all(parts)
