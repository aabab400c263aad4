"""Readers of a policy's fields: (dotted name, value as given) -> the value as kept, or an ArgumentError."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mechanex_jax import validation
from mechanex_jax.errors import expected
from mechanex_jax.policy.sandbox.runner import check_tests
from mechanex_jax.policy.tool_schema import as_schema
from mechanex_jax.storage.json_values import plain

Reader = Callable[[str, Any], Any]


def hint(name: Any, valid: Iterable[str]) -> str:
    """The closest of the valid names, as advice; nothing if none is close."""
    near = difflib.get_close_matches(str(name), list(valid), n=1)
    return f"Did you mean {near[0]!r}?" if near else ""


def checked(check: validation.Check, convert: Callable[[Any], Any] = lambda value: value) -> Reader:
    """What passes the check, converted."""

    def read(name: str, value: Any) -> Any:
        check(name, value)
        return convert(value)

    return read


text = checked(validation.text)
flag = checked(validation.flag)


def whole(least: int, most: int | None = None) -> Reader:
    """A whole number from `least` on, to `most` included."""
    lower = validation.integer(least)

    def check(name: str, value: Any) -> None:
        lower(name, value)
        if most is not None and value > most:
            raise expected(name, value, f"a whole number from {least} to {most}")

    return checked(check, int)


def real(low: float, *bounds: float, **ends: bool) -> Reader:
    """A finite number, see `checks.number`; kept as a float."""
    return checked(validation.number(low, *bounds, **ends), float)


def filled(name: str, value: Any) -> str:
    """A string with something in it."""
    if not isinstance(value, str) or not value:
        raise expected(name, value, "a string that is not empty")
    return value


def choice(valid: Iterable[str], aliases: Mapping[str, str] | None = None) -> Reader:
    """One of the valid names; an alias is kept as what it stands for."""
    names, others = tuple(valid), dict(aliases or {})

    def read(name: str, value: Any) -> str:
        found = others.get(value, value) if isinstance(value, str) else None
        if found not in names:
            raise expected(name, value, f"one of {', '.join(names)}", hint(value, [*names, *others]))
        return str(found)

    return read


def items(reader: Reader, *, empty: bool = True, distinct: bool = False) -> Reader:
    """A list, kept as a tuple, of what `reader` reads.

    Args:
      reader: of one item.
      empty: whether there may be none.
      distinct: keep what is named twice once.
    """

    def read(name: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise expected(name, value, "a list", f"Write {name}=[...], also for one." if isinstance(value, str) else "")
        if not empty and not value:
            raise expected(name, value, "one value or more", "Leave it out for none.")
        found = tuple(reader(f"{name}[{index}]", item) for index, item in enumerate(value))
        return tuple(dict.fromkeys(found)) if distinct else found

    return read


def mapping(name: str, value: Any) -> dict[str, Any]:
    """A mapping, kept as JSON has it."""
    if not isinstance(value, Mapping):
        raise expected(name, value, "a mapping")
    return plain(name, value)


def json_schema(name: str, value: Any) -> dict[str, Any]:
    """A JSON Schema in any form that `generate` takes."""
    return plain(name, as_schema(name, value))


def vector(name: str, value: Any) -> dict[str, Any]:
    """{layer: vector}; arrays of any library become lists."""
    found = mapping(name, value)
    if not found:
        raise expected(name, value, "{layer: vector} with at least one layer")
    return found


def pattern(name: str, value: Any) -> str:
    """A regular expression in Python's syntax."""
    validation.text(name, value)
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise expected(name, value, f"a regular expression ({error})") from None
    return value


def tests(name: str, value: Any) -> tuple[str, ...]:
    """Snippets of Python, such as asserts; each compiles."""
    check_tests(value, name)
    return tuple(value)


_SCOPE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?|blocks\.(\d{1,4})(?:\.\w+)?")


def _layers(item: str) -> frozenset[int]:
    match = _SCOPE.fullmatch(item)
    if match is None:
        return frozenset()
    first, last, block = match.groups()
    start = int(first or block)
    return frozenset(range(start, int(last or start) + 1))


def layers(scope: Iterable[str]) -> frozenset[int]:
    """The layers that a `layer_scope` names: "11", "8-15" (both included) or "blocks.11.hook_resid_pre", taken together."""
    return frozenset().union(*map(_layers, scope))


def layer(name: str, value: Any) -> str:
    """One item of a `layer_scope`."""
    if not isinstance(value, str) or not _layers(value):
        raise expected(name, value, "layers, as '11', '8-15' or 'blocks.11'")
    return value
