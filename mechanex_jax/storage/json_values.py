"""Values that JSON can hold, without arrays, tuples or objects: what policies and stores keep."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar, overload

from mechanex_jax.errors import expected
from mechanex_jax.validation import check_nesting

JsonValue: TypeAlias = "dict[str, JsonValue] | list[JsonValue] | str | int | float | bool | None"
"""A value of which every part is one that JSON can hold."""


K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
      ValueError: it is no JSON, no UTF-8, or nested more deeply than Python reads.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise json.JSONDecodeError("It is nested too deeply", "", 0) from None


@overload
def plain(name: str, value: Mapping[K, V]) -> dict[str, JsonValue]: ...
@overload
def plain(name: str, value: object) -> JsonValue: ...
def plain(name: str, value: object) -> JsonValue:
    """Copy a value so that every part is a dict, list, string, finite number, True, False or None.

    Args:
      name: what an error calls the value.
      value: mappings (their keys become strings), lists, tuples, scalars, and arrays of any library (what has `tolist`).

    Raises:
      ArgumentError: a part that JSON cannot hold, by its place; two keys that become the same string; or parts too deep
        inside one another.
    """
    check_nesting(name, value)
    return _plain(name, value)


def _plain(name: str, value: object) -> JsonValue:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        if not math.isfinite(value):
            raise expected(name, value, "finite numbers")
        return float(value)
    if isinstance(value, Mapping):
        result: dict[str, JsonValue] = {}
        for key, part in value.items():
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise expected(name, key, "keys that are strings or whole numbers")
            if str(key) in result:
                raise expected(name, key, f"one value for the key {str(key)!r}")
            result[str(key)] = _plain(f"{name}.{key}", part)
        return result
    if isinstance(value, (list, tuple)):
        return [_plain(f"{name}[{index}]", part) for index, part in enumerate(value)]
    if (to_list := getattr(value, "tolist", None)) is not None:
        return _plain(name, to_list())
    raise expected(name, value, "something that JSON can hold: a dict, list, string, number, True, False or None")


@overload
def copied(value: Mapping[K, V]) -> dict[K, V]: ...
@overload
def copied(value: T) -> T: ...
def copied(value: object) -> object:
    """Copy dicts and lists, at every depth; what they hold in the end, such as an array, is shared."""
    if isinstance(value, Mapping):
        return {key: copied(part) for key, part in value.items()}
    return [copied(part) for part in value] if isinstance(value, (list, tuple)) else value
