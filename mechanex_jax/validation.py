"""Checks of arguments: called with a name and a value, they raise an ArgumentError that says what was expected, or pass."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

from mechanex_jax.errors import expected

Check = Callable[[str, object], None]


def integer(least: int) -> Check:
    """A check for a whole number, at least `least`."""

    def check(name: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
            raise expected(name, value, f"a whole number, at least {least}")

    return check


def number(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Check:
    """A check for a finite number between `low` and `high`, both included but for `open_low` and `open_high`."""

    def check(name: str, value: object) -> None:
        try:
            as_float = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
        except OverflowError:
            as_float = math.nan
        above = low < as_float if open_low else low <= as_float
        below = as_float < high if open_high else as_float <= high
        if not (math.isfinite(as_float) and above and below):
            span = f"above {low:g}" if open_low else f"{low:g} or more" if math.isfinite(low) else ""
            ends = [span, ("" if math.isinf(high) else f"below {high:g}" if open_high else f"at most {high:g}")]
            raise expected(name, value, ", ".join(["a finite number", *filter(None, ends)]))

    return check


def text(name: str, value: object) -> None:
    """Check for a string."""
    if not isinstance(value, str):
        raise expected(name, value, "a string")


def flag(name: str, value: object) -> None:
    """Check for True or False."""
    if not isinstance(value, bool):
        raise expected(name, value, "True or False")
