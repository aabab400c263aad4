"""Checks of single arguments of `generate`, for the fields of `GenerationConfig`.

Each is called with an argument's name and a value that is not None, and raises an ArgumentError that says what was expected.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping

from mechanex_jax.edits import Scope, scope
from mechanex_jax.errors import expected
from mechanex_jax.validation import Check, number


def stop_strings(name: str, value: object) -> None:
    """A string, or a list of strings, none of them empty."""
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not all(isinstance(s, str) and s for s in strings):
        raise expected(name, value, "a string or a list of strings, none of them empty")


def token_biases(name: str, value: object) -> None:
    """A mapping of token ids to what is added to their logits; an id may be a string of digits, as in JSON."""
    if not isinstance(value, Mapping):
        raise expected(name, value, "a mapping of token ids to numbers, such as {50256: -100}")
    for token, bias in value.items():
        whole = isinstance(token, numbers.Integral) or (isinstance(token, str) and token.isdigit())
        if not whole or not isinstance(bias, numbers.Real) or math.isnan(bias) or bias == math.inf:
            raise expected(name, {str(token): bias}, "token ids mapped to finite numbers, or -inf for never")


def json_schema(name: str, value: object) -> None:
    """A JSON Schema as a mapping, True or False, a JSON text, or a pydantic model."""
    if not (isinstance(value, (Mapping, bool, str)) or hasattr(value, "model_json_schema")):
        raise expected(name, value, "a JSON Schema: a dict, or True, or a JSON text")


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

    return check


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
        if value.step is not None or not all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in ends):
            raise expected(name, value, "slice(start, end) of positions from 0 on")
    elif not isinstance(value, Scope):
        scope(value)


def model_names(name: str, value: object) -> None:
    """A list of names of models; it may be empty."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item for item in value):
        raise expected(name, value, "a list of names of models")


def weights(name: str, value: object) -> None:
    """A list of numbers from 0 on, one of them at least above 0."""
    if not isinstance(value, (list, tuple)) or not value:
        raise expected(name, value, "a list of numbers, one for each member")
    for weight in value:
        number(0.0)(name, weight)
    if not any(value):
        raise expected(name, list(value), "a weight above 0")


def voting(name: str, value: object) -> None:
    """How an ensemble decides."""
    if value not in ("majority", "mean", "product"):
        raise expected(name, value, "majority, mean or product")


def drafted_tokens(name: str, value: object) -> None:
    """The most tokens that are drafted in a round."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 8:
        raise expected(name, value, "1 to 8 drafted tokens a round")


def early_stopping(name: str, value: object) -> None:
    """When a beam search ends."""
    if value not in (True, False, "never"):
        raise expected(name, value, 'True, False or "never"')
