"""Schemas to formulas: keywords that apply in place become logic, keywords about parts of a value become leaves.

Leaves about members of an object and items of an array name the formula that the part has to satisfy; the schemas of parts are
only looked at when such a part is read, so recursion ends here.

| leaf | true of |
|---|---|
| ("text", t), ("length", n), ("pattern", p), ("format", f) | strings, see `schema_strings` |
| ("below", b), ("equal", b), ("multiple", d), ("plain",) | numbers below b, equal to b, multiples of d, without `.` and `e` |
| ("member", key, goal, chain) | objects: every member whose key satisfies `key` has a value that satisfies `goal` |
| ("has", name), ("members", n) | objects with that key, with at least n members |
| ("items", low, high, goal) | arrays: the items low .. high - 1 satisfy `goal`; high None is all the rest |
| ("contains", goal, n), ("count", n) | arrays with at least n items that satisfy `goal`, n items |
| ("unique", seen) | arrays whose items differ from each other and from those seen |
| ("schema", key) | what the schema of that key is true of |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mechanex_jax.constraints.json_schema import formula as types
from mechanex_jax.constraints.json_schema.formula import Formula, Formulas
from mechanex_jax.constraints.json_schema.references import Documents, Place
from mechanex_jax.constraints.json_schema.strings import Strings
from mechanex_jax.errors import ConstraintError

Keyword = Callable[["Compiler", Place, Any], Formula]
KEYWORDS: dict[str, Keyword] = {}  # in the order in which they are compiled
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def keyword(*names: str) -> Callable[[Keyword], Keyword]:
    """Register the meaning of keywords: a function of the compiler, the place and the keyword's value."""

    def register(function: Keyword) -> Keyword:
        for name in names:
            KEYWORDS[name] = function
        return function

    return register


class Compiler:
    """The formulas of the schemas of a document."""

    def __init__(self, documents: Documents, strings: Strings):
        self.documents, self.strings = documents, strings
        self.formulas = Formulas()
        self.chains: list[tuple[str, ...]] = []  # names in the order of a `properties` keyword
        self._chain_numbers: dict[tuple[str, ...], int] = {}
        self._places: dict[tuple, Place] = {}
        self._done: dict[tuple, Formula] = {}
        self._active: dict[tuple, str] = {}

    def formula(self, place: Place) -> Formula:
        """What a schema asks of a value.

        Raises:
          ConstraintError: a reference that leads back to the schema itself, or something that can't be expressed.
        """
        if isinstance(place.schema, bool):
            return self.formulas.constant(place.schema)
        if place.key in self._done:
            return self._done[place.key]
        if place.key in self._active:
            raise ConstraintError(
                f"The schema at {place.path} refers to itself without reading anything in between. Put the reference below a "
                "keyword such as properties or items, or leave it out."
            )
        self._active[place.key] = place.path
        try:
            formula = self.formulas.all(self._parts(place))
        finally:
            del self._active[place.key]
        self._done[place.key] = formula
        return formula

    def _parts(self, place: Place) -> Iterator[Formula]:
        lonely = place.dialect.lonely_references and "$ref" in place
        if not lonely:
            known = place.dialect.validator.VALIDATORS
            for word, meaning in KEYWORDS.items():
                if word in place and word in known:
                    yield meaning(self, place, place.get(word))
        for target in self.documents.referred(place):
            yield self.formula(target)

    def below(self, place: Place, *steps: str | int) -> Formula:
        """What the subschema at `steps` asks of the same value."""
        return self.formula(self.documents.child(place, *steps))

    def later(self, place: Place, *steps: str | int) -> Formula:
        """What the subschema at `steps` asks of a part of the value: not looked at yet."""
        child = self.documents.child(place, *steps)
        if isinstance(child.schema, bool):
            return self.formulas.constant(child.schema)
        self._places.setdefault(child.key, child)
        return self.formulas.leaf("schema", child.key)

    def expand(self, formula: Formula) -> Formula:
        """The formula with its ("schema", key) leaves looked at."""
        waiting = [leaf for leaf in formula.leaves if leaf.args[0] == "schema"]
        return self.formulas.substitute(formula, {leaf: self.formula(self._places[leaf.args[1]]) for leaf in waiting})

    def chain(self, names: tuple[str, ...]) -> int:
        """The number of an order of names."""
        if names not in self._chain_numbers:
            self._chain_numbers[names] = len(self.chains)
            self.chains.append(names)
        return self._chain_numbers[names]

    # -- Leaves ------------------------------------------------------------------------------------------------------------

    def at_least(self, name: str, number: Any, *before: Formula) -> Formula:
        """The leaf of a count: true if there are `number` or more."""
        return self.formulas.leaf(name, *before, int(number)) if number >= 1 else self.formulas.true

    def text(self, text: str) -> Formula:
        return self.formulas.leaf("text", text)

    def member(self, key: Formula, goal: Formula, chain: int = -1) -> Formula:
        """Every member whose key satisfies `key` satisfies `goal`; with a chain, its key has a place in that order."""
        if key is self.formulas.false or (goal is self.formulas.true and chain < 0):
            return self.formulas.true
        return self.formulas.leaf("member", key, goal, chain)

    def items(self, low: int, high: int | None, goal: Formula) -> Formula:
        if goal is self.formulas.true or low == high:
            return self.formulas.true
        return self.formulas.leaf("items", low, high, goal)

    def has(self, name: str) -> Formula:
        return self.formulas.leaf("has", name)

    def given_object(self, *formulas: Formula) -> Formula:
        return self.formulas.given(types.OBJECT, self.formulas.all(formulas))

    def given_array(self, *formulas: Formula) -> Formula:
        return self.formulas.given(types.ARRAY, self.formulas.all(formulas))

    def equal(self, value: Any) -> Formula:
        """The formula of one JSON value."""
        return _equal(self, value)

    def refuse(self, place: Place, word: str, reason: str) -> ConstraintError:
        """The error about a keyword that can't be expressed."""
        return ConstraintError(f"{word} at {place.path} cannot be held exactly: {reason}. Leave it out or simplify it.")


def _equal(compiler: Compiler, value: Any) -> Formula:
    from mechanex_jax.constraints.json_schema.numbers import exact

    formulas = compiler.formulas
    if value is None:
        return formulas.type(types.NULL)
    if isinstance(value, bool):
        return formulas.type(types.TRUE if value else types.FALSE)
    if isinstance(value, int | float):
        return formulas.all((formulas.type(types.NUMBER), formulas.leaf("equal", exact(value))))
    if isinstance(value, str):
        return formulas.all((formulas.type(types.STRING), compiler.text(value)))
    size = len(value)
    if isinstance(value, list):
        parts = [compiler.items(i, i + 1, compiler.equal(item)) for i, item in enumerate(value)]
        count, bits = "count", types.ARRAY
    else:
        chain = compiler.chain(tuple(value))
        parts = [compiler.member(compiler.text(name), compiler.equal(item), chain) for name, item in value.items()]
        parts += [compiler.has(name) for name in value]
        count, bits = "members", types.OBJECT
    limits = [compiler.at_least(count, size), formulas.negation(compiler.at_least(count, size + 1))]
    return formulas.all((formulas.type(bits), *parts, *limits))
