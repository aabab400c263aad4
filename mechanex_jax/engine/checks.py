"""Checks of single arguments of `generate`, for the fields of `GenerationConfig`.

Each is called with an argument's name and a value that is not its default, and raises an ArgumentError that says what was
expected.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping
from pathlib import Path

from mechanex_jax.constraints import sources
from mechanex_jax.edits import Scope, scope
from mechanex_jax.errors import expected
from mechanex_jax.validation import Check, as_integer, check_utf8, choice, number, text

_REPLACEMENT = "\ufffd"  # shown for bytes that are no text


def _matchable(name: str, value: object) -> None:
    """Raise unless UTF-8 can hold the strings, and none has U+FFFD, which a text shows where its bytes are no characters."""
    check_utf8(name, value)
    for string in [value] if isinstance(value, str) else value:  # type: ignore[union-attr]
        if _REPLACEMENT in string:
            raise expected(name, string, "strings without U+FFFD", "It stands for bytes that are no text, and matches none.")


def stop_strings(name: str, value: object) -> None:
    """A string, or a list of strings, none of them empty, all of them in UTF-8, without U+FFFD."""
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not all(isinstance(s, str) and s for s in strings):
        raise expected(name, value, "a string or a list of strings, none of them empty")
    _matchable(name, value)


def token_biases(name: str, value: object) -> None:
    """A mapping of token ids to what is added to their logits; an id may be a string of digits, as in JSON."""
    if not isinstance(value, Mapping):
        raise expected(name, value, "a mapping of token ids to numbers, such as {50256: -100}")
    seen: set[int] = set()
    for token, bias in value.items():
        decimal = isinstance(token, str) and token.isascii() and token.isdecimal()
        index = int(token) if decimal else as_integer(token)
        if index is None or index < 0:
            raise expected(name, {token: bias}, "token ids, 0 or more, mapped to finite numbers, or to -inf for never")
        if index in seen:
            raise expected(name, token, "each token once", "It is there as a number and as a string.")
        seen.add(index)
        if not (isinstance(bias, numbers.Real) and bias == -math.inf):
            number(-math.inf)(f"{name}[{index}]", bias)


def json_schema(name: str, value: object) -> None:
    """A JSON Schema in one of its forms; whether it is one is found out when it is compiled."""
    if not (isinstance(value, (Mapping, bool, str, Path)) or sources.is_schema_class(value)):
        raise expected(name, value, sources.SCHEMAS, "Give alternatives as choices, or as an enum.")


def regex_pattern(name: str, value: object) -> None:
    """A regular expression, as text or compiled by `re.compile`."""
    text(name, value.pattern if isinstance(value, re.Pattern) else value)


def grammar(name: str, value: object) -> None:
    """The text of a grammar, or the path of its file."""
    if not isinstance(value, Path):
        text(name, value)


def choices(name: str, value: object) -> None:
    """A list of texts, or an Enum of them."""
    _matchable(name, sources.read_choices(value, name))


def compiled_constraint(name: str, value: object) -> None:
    """A constraint that `mx.constraints.compile` returned."""
    if not hasattr(value, "compiled"):
        raise expected(
            name, value, "what mx.constraints.compile returns", "Give texts as json_schema, regex_pattern or grammar."
        )


def strings(noun: str) -> Check:
    """A list of strings, at least one, none of them empty; errors call them `noun`."""

    def check(name: str, value: object) -> None:
        if not isinstance(value, (list, tuple)) or not value or not all(isinstance(item, str) and item for item in value):
            raise expected(name, value, f"a list of {noun}, at least one, none of them empty")
        check_utf8(name, value)

    return check


def terms(name: str, value: object) -> None:
    """A list of terms that a text must not hold, at least one, none of them empty, without U+FFFD."""
    strings("terms")(name, value)
    _matchable(name, value)


def schedule(check_value: Check) -> Check:
    """A list of values, one for each round, of which each passes `check_value`."""

    def check(name: str, value: object) -> None:
        if not isinstance(value, (list, tuple)) or not value:
            raise expected(name, value, "a list of numbers, one for each round, at least one")
        for index, item in enumerate(value):
            check_value(f"{name}[{index}]", item)

    return check


def policy(name: str, value: object) -> None:
    """A mapping; what is in it is for `mechanex_jax.policy` to check."""
    if not isinstance(value, Mapping):
        raise expected(name, value, "a mapping with the sections of a policy", "A saved one goes by policy_id.")


def layers(name: str, value: object) -> None:
    """A list of layers, at least one; which of them there are is known with the model."""
    if not isinstance(value, (list, tuple)) or not value:
        raise expected(name, value, "a list of layers, at least one")


def positions(name: str, value: object) -> None:
    """A scope, the name of one, or a slice of the whole text's positions."""
    if isinstance(value, slice):
        ends = [end for end in (value.start, value.stop) if end is not None]
        if value.step is not None or any((index := as_integer(end)) is None or index < 0 for end in ends):
            raise expected(name, value, "slice(start, end) of positions from 0 on")
    elif not isinstance(value, Scope):
        scope(value)


def model_names(name: str, value: object) -> None:
    """A list of names of models; it may be empty."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item for item in value):
        raise expected(name, value, "a list of names of models")
    check_utf8(name, value)


def weights(name: str, value: object) -> None:
    """A list of numbers from 0 on, one of them at least above 0."""
    if not isinstance(value, (list, tuple)) or not value:
        raise expected(name, value, "a list of numbers, one for each member")
    for weight in value:
        number(0.0)(name, weight)
    if not any(value):
        raise expected(name, list(value), "a weight above 0")


json_numbers = choice(*sources.NUMBERS)
early_stopping = choice(True, False, "never")
voting = choice("majority", "mean", "product")
on_failure = choice("warn", "raise")
