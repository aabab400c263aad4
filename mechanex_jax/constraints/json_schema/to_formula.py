"""Schemas to formulas: keywords that apply in place become logic, keywords about parts of a value become leaves.

Leaves about members of an object and items of an array name the formula that the part has to satisfy; the schemas of parts are
only looked at when such a part is read, so recursion ends here.

| leaf | true of | decided in |
|---|---|---|
| ("below", b), ("equal", b) | numbers below b, equal to b | `numbers` |
| ("multiple", d), ("plain",) | multiples of d; numbers without `.` and `e` | `numbers` |
| ("text", t), ("length", n) | the string t; strings with at least n characters | `strings` |
| ("pattern", e), ("format", f) | strings with a part that an expression matches; strings of that format | `strings` |
| ("member", key, goal, chain) | objects: every member whose key satisfies `key` has a value that satisfies `goal` | `objects` |
| ("has", name), ("members", n) | objects with that key, with at least n members | `objects` |
| ("items", low, high, goal) | arrays: the items low .. high - 1 satisfy `goal`; high None is all the rest | `arrays` |
| ("contains", goal, n), ("count", n) | arrays with at least n items that satisfy `goal`, n items | `arrays` |
| ("unique", seen, path) | arrays whose items differ from each other and from those seen | `arrays` |
| ("schema", key), ("closed", key) | values for which the schema of that key holds, that it closes | `Translator.expand` |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mechanex_jax.constraints.automata.pushdown import LONGEST
from mechanex_jax.constraints.json_schema.formula import ARRAY, FALSE, NULL, NUMBER, OBJECT, STRING, TRUE, Formula, Formulas
from mechanex_jax.constraints.json_schema.numbers import exact
from mechanex_jax.constraints.json_schema.references import Documents, Place
from mechanex_jax.constraints.json_schema.strings import Strings
from mechanex_jax.errors import ConstraintError
from mechanex_jax.storage.json_values import JsonValue

_MOST_COUNTED = 1 << 20  # characters, items or members; each takes at least a byte

# The formula of a keyword, from the place where it stands and its value, whose type the metaschema has checked.
Keyword = Callable[["Translator", Place, Any], Formula]
KEYWORDS: dict[str, Keyword] = {}  # in the order in which they are translated
# What may be asked of a part of a value about the schema at a place, by the name of the leaf that stands for it.
READINGS: dict[str, Callable[[Translator, Place], Formula]] = {"schema": lambda t, place: t.formula(place)}


def keyword(name: str) -> Callable[[Keyword], Keyword]:
    """Register the function that translates a keyword."""

    def register(function: Keyword) -> Keyword:
        KEYWORDS[name] = function
        return function

    return register


def count_bounds(least: str, most: str, bits: int, leaf: str) -> None:
    """Register the two keywords that bound what a leaf counts in values of the types `bits`."""

    def at_least(t: Translator, place: Place, value: float) -> Formula:
        if value > _MOST_COUNTED:
            raise refusal(place, least, f"texts of {_MOST_COUNTED:,} bytes and more are not written")
        return t.formulas.if_type(bits, t.at_least(leaf, value))

    keyword(least)(at_least)
    keyword(most)(lambda t, place, value: t.formulas.if_type(bits, t.at_most(leaf, value)))


class Translator:
    """Translates the schemas of a document to formulas.

    Attributes:
      documents: where the schemas stand.
      strings: the automata of leaves about strings.
      formulas: all that were made.
      longest: see `PushdownAutomaton`: counts beyond it are not held.
      chains: orders of names, one for each `properties` keyword and each object among constants.
    """

    def __init__(self, documents: Documents, strings: Strings):
        self.documents, self.strings = documents, strings
        self.formulas = Formulas(strings.limits)
        self.longest = LONGEST
        self.chains: list[tuple[str, ...]] = []
        self._chain_numbers: dict[tuple[str, ...], int] = {}
        self._places: dict[tuple, Place] = {}
        self._read: dict[Formula, Formula] = {}
        self._done: dict[tuple, Formula] = {}
        self._active: dict[tuple, str] = {}

    def formula(self, place: Place) -> Formula:
        """Translate a schema: the formula of the values that it allows.

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
        if not (place.dialect.ref_stands_alone and "$ref" in place):
            for word, translate in KEYWORDS.items():
                if word in place and word in place.dialect.keywords:
                    yield translate(self, place, place.get(word))
        for target in self.documents.targets(place):
            yield self.formula(target)

    def below(self, place: Place, *steps: str | int) -> Formula:
        """The formula of the subschema at `steps`, of the same value."""
        return self.formula(self.documents.child(place, *steps))

    def later(self, place: Place, *steps: str | int, reading: str = "schema") -> Formula:
        """The formula of the subschema at `steps`, of a part of the value: a leaf, not looked at yet."""
        child = self.documents.child(place, *steps)
        if isinstance(child.schema, bool):
            return READINGS[reading](self, child)
        self._places.setdefault(child.key, child)
        return self.formulas.leaf(reading, child.key)

    def expand(self, formula: Formula) -> Formula:
        """The formula with its ("schema", key) and ("closed", key) leaves looked at."""
        waiting = [leaf for leaf in formula.leaves if leaf.args[0] in READINGS]
        return self.formulas.substitute(formula, {leaf: self._looked_at(leaf) for leaf in waiting})

    def _looked_at(self, leaf: Formula) -> Formula:
        if leaf not in self._read:
            reading, key = leaf.args
            self._read[leaf] = READINGS[reading](self, self._places[key])
        return self._read[leaf]

    def chain(self, names: tuple[str, ...]) -> int:
        """The number of an order of names."""
        if names not in self._chain_numbers:
            self._chain_numbers[names] = len(self.chains)
            self.chains.append(names)
        return self._chain_numbers[names]

    # -- Leaves ------------------------------------------------------------------------------------------------------------

    def at_least(self, name: str, number: float, *before: Formula) -> Formula:
        """The leaf of a count: true if there are `number` or more. False without a leaf for what no text can come to."""
        if number > _MOST_COUNTED:
            self.longest = min(self.longest, int(min(number, LONGEST)) - 1)
            return self.formulas.false
        return self.formulas.leaf(name, *before, int(number)) if number >= 1 else self.formulas.true

    def at_most(self, name: str, number: float, *before: Formula) -> Formula:
        """True if there are no more than `number`."""
        return self.formulas.negation(self.at_least(name, number + 1, *before))

    def text(self, text: str) -> Formula:
        """The leaf of one string."""
        return self.formulas.leaf("text", text)

    def member(self, key: Formula, goal: Formula, chain: int = -1) -> Formula:
        """Every member whose key satisfies `key` satisfies `goal`; with a chain, its key has a place in that order."""
        if key is self.formulas.false or (goal is self.formulas.true and chain < 0):
            return self.formulas.true
        return self.formulas.leaf("member", key, goal, chain)

    def items(self, low: int, high: int | None, goal: Formula) -> Formula:
        """The items from `low` up to `high`, without it, satisfy `goal`."""
        if goal is self.formulas.true or low == high:
            return self.formulas.true
        return self.formulas.leaf("items", low, high, goal)

    def has(self, name: str) -> Formula:
        """The object has a member of that name."""
        return self.formulas.leaf("has", name)

    def if_number(self, formula: Formula) -> Formula:
        return self.formulas.if_type(NUMBER, formula)

    def if_string(self, formula: Formula) -> Formula:
        return self.formulas.if_type(STRING, formula)

    def if_object(self, *formulas: Formula) -> Formula:
        return self.formulas.if_type(OBJECT, self.formulas.all(formulas))

    def if_array(self, *formulas: Formula) -> Formula:
        return self.formulas.if_type(ARRAY, self.formulas.all(formulas))

    def equal(self, value: JsonValue) -> Formula:
        """The formula of one JSON value."""
        f = self.formulas
        if value is None:
            return f.type(NULL)
        if isinstance(value, bool):
            return f.type(TRUE if value else FALSE)
        if isinstance(value, int | float):
            return f.all((f.type(NUMBER), f.leaf("equal", exact(value))))
        if isinstance(value, str):
            return f.all((f.type(STRING), self.text(value)))
        if isinstance(value, list):
            parts = [self.items(i, i + 1, self.equal(item)) for i, item in enumerate(value)]
            count, bits = "count", ARRAY
        else:
            chain = self.chain(tuple(value))
            parts = [self.member(self.text(name), self.equal(item), chain) for name, item in value.items()]
            parts += map(self.has, value)
            count, bits = "members", OBJECT
        return f.all((f.type(bits), *parts, self.at_least(count, len(value)), self.at_most(count, len(value))))


def refusal(place: Place, word: str, reason: str) -> ConstraintError:
    """The error about a keyword that can't be expressed."""
    return ConstraintError(f"{word} at {place.path} cannot be held exactly: {reason}. Leave it out or simplify it.")
