"""What each keyword of JSON Schema says about a value: assertions about one type, and logic.

Keywords that are not here are annotations (`title`, `default`, `contentEncoding`, ...) or only name places (`$defs`).
"""

from __future__ import annotations

from typing import Any

from mechanex_jax.constraints.json_schema import formats, numbers
from mechanex_jax.constraints.json_schema import formula as types
from mechanex_jax.constraints.json_schema.formula import Formula
from mechanex_jax.constraints.json_schema.references import Place
from mechanex_jax.constraints.json_schema.strings import is_everything
from mechanex_jax.constraints.json_schema.to_formula import Compiler, keyword
from mechanex_jax.constraints.regex import lookaround
from mechanex_jax.errors import ConstraintError

_TYPES = {
    "null": types.NULL, "boolean": types.BOOLEAN, "number": types.NUMBER, "integer": types.NUMBER, "string": types.STRING,
    "object": types.OBJECT, "array": types.ARRAY,
}  # fmt: skip


# -- Any type ------------------------------------------------------------------------------------------------------------------


@keyword("type")
def _type(c: Compiler, place: Place, value: Any) -> Formula:
    names = [value] if isinstance(value, str) else value
    bits = sum({_TYPES[name] for name in names if name != "integer"})
    if "integer" not in names or "number" in names:
        return c.formulas.type(bits)
    # Draft 4 alone looks at the spelling: there 1.0 is no integer.
    whole = c.formulas.leaf("plain") if place.dialect.number == 4 else c.formulas.leaf("multiple", numbers.exact(1))
    return c.formulas.any((c.formulas.type(bits), c.formulas.all((c.formulas.type(types.NUMBER), whole))))


@keyword("enum")
def _enum(c: Compiler, place: Place, value: Any) -> Formula:
    return c.formulas.any([c.equal(item) for item in value])


@keyword("const")
def _const(c: Compiler, place: Place, value: Any) -> Formula:
    return c.equal(value)


# -- Numbers -------------------------------------------------------------------------------------------------------------------


def _below(c: Compiler, bound: Any) -> Formula:
    return c.formulas.leaf("below", numbers.exact(bound))


def _up_to(c: Compiler, bound: Any) -> Formula:
    return c.formulas.any((_below(c, bound), c.formulas.leaf("equal", numbers.exact(bound))))


def _given_number(c: Compiler, formula: Formula) -> Formula:
    return c.formulas.given(types.NUMBER, formula)


@keyword("minimum")
def _minimum(c: Compiler, place: Place, value: Any) -> Formula:
    exclusive = place.get("exclusiveMinimum") is True  # draft 4
    return _given_number(c, c.formulas.negation((_up_to if exclusive else _below)(c, value)))


@keyword("maximum")
def _maximum(c: Compiler, place: Place, value: Any) -> Formula:
    exclusive = place.get("exclusiveMaximum") is True
    return _given_number(c, (_below if exclusive else _up_to)(c, value))


@keyword("exclusiveMinimum")
def _exclusive_minimum(c: Compiler, place: Place, value: Any) -> Formula:
    return _given_number(c, c.formulas.negation(_up_to(c, value)))


@keyword("exclusiveMaximum")
def _exclusive_maximum(c: Compiler, place: Place, value: Any) -> Formula:
    return _given_number(c, _below(c, value))


@keyword("multipleOf")
def _multiple_of(c: Compiler, place: Place, value: Any) -> Formula:
    divisor = numbers.exact(value)
    try:
        numbers.multiples(divisor)
    except ConstraintError as error:
        raise c.refuse(place, "multipleOf", error.message) from None
    return _given_number(c, c.formulas.leaf("multiple", divisor))


# -- Strings -------------------------------------------------------------------------------------------------------------------


@keyword("minLength")
def _min_length(c: Compiler, place: Place, value: Any) -> Formula:
    return c.formulas.given(types.STRING, c.at_least("length", value))


@keyword("maxLength")
def _max_length(c: Compiler, place: Place, value: Any) -> Formula:
    return c.formulas.given(types.STRING, c.formulas.negation(c.at_least("length", value + 1)))


def pattern(c: Compiler, place: Place, word: str, text: str) -> Formula:
    """What an ECMA-262 pattern asks of a string; its automata are built here, so that errors name the place."""
    parts = []
    for holds, part in lookaround.split(text):
        leaf = c.formulas.leaf("pattern", part)
        try:
            trivial = is_everything(c.strings.automaton(leaf))
        except ConstraintError as error:
            raise ConstraintError(f"{word} at {place.path}: {error.message}") from None
        formula = c.formulas.true if trivial else leaf
        parts.append(formula if holds else c.formulas.negation(formula))
    return c.formulas.all(parts)


@keyword("pattern")
def _pattern(c: Compiler, place: Place, value: Any) -> Formula:
    return c.formulas.given(types.STRING, pattern(c, place, "pattern", value))


@keyword("format")
def _format(c: Compiler, place: Place, value: Any) -> Formula:
    known = isinstance(value, str) and value in formats.PATTERNS
    return c.formulas.given(types.STRING, c.formulas.leaf("format", value)) if known else c.formulas.true


# -- Logic ---------------------------------------------------------------------------------------------------------------------


def _branches(c: Compiler, place: Place, word: str) -> list[Formula]:
    return [c.below(place, word, i) for i in range(len(place.get(word)))]


@keyword("allOf")
def _all_of(c: Compiler, place: Place, value: Any) -> Formula:
    return c.formulas.all(_branches(c, place, "allOf"))


@keyword("anyOf")
def _any_of(c: Compiler, place: Place, value: Any) -> Formula:
    return c.formulas.any(_branches(c, place, "anyOf"))


@keyword("oneOf")
def _one_of(c: Compiler, place: Place, value: Any) -> Formula:
    return c.formulas.one(_branches(c, place, "oneOf"))


@keyword("not")
def _not(c: Compiler, place: Place, value: Any) -> Formula:
    return c.formulas.negation(c.below(place, "not"))


@keyword("if")
def _if(c: Compiler, place: Place, value: Any) -> Formula:
    if "then" not in place and "else" not in place:
        return c.formulas.true
    condition, parts = c.below(place, "if"), []
    if "then" in place:
        parts.append(c.formulas.any((c.formulas.negation(condition), c.below(place, "then"))))
    if "else" in place:
        parts.append(c.formulas.any((condition, c.below(place, "else"))))
    return c.formulas.all(parts)
