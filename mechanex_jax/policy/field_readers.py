"""Readers of a policy's fields: each takes a dotted name and a value as given, and returns the value as kept.

A value that cannot be used is an ArgumentError under that name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias, TypeVar

from mechanex_jax import validation
from mechanex_jax.errors import expected
from mechanex_jax.policy.sandbox.runner import check_tests
from mechanex_jax.policy.tool_schema import JsonSchema, as_schema
from mechanex_jax.storage.json_values import plain

T = TypeVar("T")
Reader: TypeAlias = Callable[[str, object], T]


def checked(check: validation.Check, convert: Callable[..., T]) -> Reader[T]:
    """A reader of values that pass the check, kept as `convert` returns them."""

    def read(name: str, value: object) -> T:
        check(name, value)
        return convert(value)

    return read


def _unchanged(value: str) -> str:
    return value


text = checked(validation.text, _unchanged)
flag = checked(validation.flag, bool)


def whole(least: int, most: int | None = None) -> Reader[int]:
    """A whole number from `least` on, to `most` included."""
    return checked(validation.integer(least, most), int)


def real(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Reader[float]:
    """A finite number, see `validation.number`; kept as a float."""
    return checked(validation.number(low, high, open_low=open_low, open_high=open_high), float)


def filled(name: str, value: object) -> str:
    """A string with something in it."""
    if not isinstance(value, str) or not value:
        raise expected(name, value, "a string that is not empty")
    return value


def choice(valid: Iterable[str], aliases: Mapping[str, str] | None = None) -> Reader[str]:
    """One of the valid names; an alias is kept as what it stands for."""
    names, others = tuple(valid), dict(aliases or {})

    def read(name: str, value: object) -> str:
        chosen = others.get(value, value) if isinstance(value, str) else None
        if chosen not in names:
            raise expected(name, value, f"one of {', '.join(names)}", validation.hint(value, [*names, *others]))
        return str(chosen)

    return read


def items(reader: Reader[T], *, empty: bool = True, distinct: bool = False) -> Reader[tuple[T, ...]]:
    """A list, kept as a tuple, of what `reader` reads.

    Args:
      reader: of one item.
      empty: whether there may be none.
      distinct: keep what is named twice once.
    """

    def read(name: str, value: object) -> tuple[T, ...]:
        if not isinstance(value, (list, tuple)):
            raise expected(name, value, "a list", f"Write {name}=[...], also for one." if isinstance(value, str) else "")
        if not empty and not value:
            raise expected(name, value, "one value or more", "Leave it out for none.")
        read_items = tuple(reader(f"{name}[{index}]", item) for index, item in enumerate(value))
        return tuple(dict.fromkeys(read_items)) if distinct else read_items

    return read


def mapping(name: str, value: object) -> dict[str, object]:
    """A mapping, kept as JSON has it."""
    if not isinstance(value, Mapping):
        raise expected(name, value, "a mapping")
    return {**plain(name, value)}


def json_schema(name: str, value: object) -> JsonSchema:
    """A JSON Schema in any form that `generate` takes."""
    return plain(name, as_schema(name, value))


def vector(name: str, value: object) -> dict[str, object]:
    """{layer: vector}; arrays of any library become lists."""
    vectors = mapping(name, value)
    if not vectors:
        raise expected(name, value, "{layer: vector} with at least one layer")
    return vectors


def pattern(name: str, value: object) -> str:
    """A regular expression in Python's syntax."""
    expression = text(name, value)
    try:
        re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise expected(name, value, f"a regular expression ({error})") from None
    return expression


def tests(name: str, value: object) -> tuple[str, ...]:
    """Snippets of Python, such as asserts; each compiles."""
    return checked(lambda name, value: check_tests(value, name), tuple)(name, value)


_SCOPE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?|blocks\.(\d{1,4})(?:\.\w+)?")


def _layers(item: str) -> frozenset[int]:
    """The layers that one item names; none if it is not of the form."""
    match = _SCOPE.fullmatch(item)
    if match is None:
        return frozenset()
    first, last, block = match.groups()
    start = int(first or block)
    return frozenset(range(start, int(last or start) + 1))


def layers(scope: Iterable[str]) -> frozenset[int]:
    """The layers that a `layer_scope` names: "11", "8-15" (both included) or "blocks.11.hook_resid_pre", taken together."""
    return frozenset().union(*map(_layers, scope))


def layer(name: str, value: object) -> str:
    """One item of a `layer_scope`."""
    if not isinstance(value, str) or not _layers(value):
        raise expected(name, value, "layers, as '11', '8-15' or 'blocks.11'")
    return value
