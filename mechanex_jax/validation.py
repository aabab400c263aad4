"""Checks of arguments: called with a name and a value, they raise an ArgumentError that says what was expected, or pass."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from mechanex_jax.errors import expected

Check = Callable[[str, object], None]
_DEEPEST = 200  # Python ends recursion at 1,000 calls
HALF_OF_A_PAIR = "It has half of a surrogate pair: decode the input properly."


_SMALLEST, _LARGEST = (float(limit) for limit in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


def as_integer(value: object) -> int | None:
    """The `int` that a value stands for, be it Python's, NumPy's or JAX's; None where it stands for none, as True does not."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def integer(least: int, most: int | None = None) -> Check:
    """A check for a whole number, at least `least` and at most `most`."""
    words = f"a whole number, at least {least}" if most is None else f"a whole number from {least} to {most:,}"

    def check(name: str, value: object) -> None:
        number = as_integer(value)
        if number is None or number < least or (most is not None and number > most):
            raise expected(name, value, words)

    return check


def choice(*values: str | bool) -> Check:
    """A check for one of `values`."""
    *others, last = (f'"{value}"' if isinstance(value, str) else repr(value) for value in values)
    words = f"{', '.join(others)} or {last}"

    def check(name: str, value: object) -> None:
        if not (isinstance(value, (str, bool)) and value in values):
            raise expected(name, value, words)

    return check


def number(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Check:
    """A check for a finite number between `low` and `high`, both included but for `open_low` and `open_high`.

    Numbers are used in float32: one that is infinite there is refused, and one that is 0 there counts as 0.
    """

    def check(name: str, value: object) -> None:
        try:
            as_float = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
        except OverflowError:
            as_float = math.nan
        if abs(as_float) < _SMALLEST:
            as_float = 0.0
        above = low < as_float if open_low else low <= as_float
        below = as_float < high if open_high else as_float <= high
        if not (math.isfinite(as_float) and above and below):
            span = f"above {low:g}" if open_low else f"{low:g} or more" if math.isfinite(low) else ""
            ends = [span, ("" if math.isinf(high) else f"below {high:g}" if open_high else f"at most {high:g}")]
            raise expected(name, value, ", ".join(["a finite number", *filter(None, ends)]))
        if abs(as_float) > _LARGEST:
            raise expected(name, value, f"a number that float32 holds, at most {_LARGEST:.4g}")

    return check


def hint(name: object, valid: Iterable[str]) -> str:
    """The closest of the valid names, as advice; nothing if none is close."""
    near = difflib.get_close_matches(name, list(valid), n=1) if isinstance(name, str) and len(name) <= 100 else []
    return f"Did you mean {near[0]!r}?" if near else ""


def check_nesting(name: str, value: object) -> None:
    """Raise ArgumentError where mappings and lists lie more than 200 deep inside one another, or hold themselves."""
    layer = [value] if isinstance(value, (Mapping, list, tuple)) else []
    for _ in range(_DEEPEST):
        inside = (item for part in layer for item in (part.values() if isinstance(part, Mapping) else part))
        layer = list({id(item): item for item in inside if isinstance(item, (Mapping, list, tuple))}.values())
        if not layer:
            return
    raise expected(name, value, f"values at most {_DEEPEST} deep inside one another")


def text(name: str, value: object) -> None:
    """Check for a string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise expected(name, value, "a string")
    check_utf8(name, value)


def check_utf8(name: str, value: object) -> None:
    """Raise ArgumentError where a string, or one within lists and mappings, has half of a surrogate pair."""
    parts, seen = [value], set()  # no recursion: how deep a value goes is for others to judge
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            if not part.isascii() and any("\ud800" <= c <= "\udfff" for c in part):
                raise expected(name, part, "text that UTF-8 can hold", HALF_OF_A_PAIR)
        elif isinstance(part, (Mapping, list, tuple)) and id(part) not in seen:
            seen.add(id(part))
            parts.extend(part)
            parts.extend(part.values() if isinstance(part, Mapping) else ())


def flag(name: str, value: object) -> None:
    """Check for True or False."""
    if not isinstance(value, bool):
        raise expected(name, value, "True or False")
