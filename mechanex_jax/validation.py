"""Checks that arguments share: (name, value) -> nothing, or an ArgumentError that says what was expected."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

from mechanex_jax.errors import expected

Check = Callable[[str, Any], None]


def integer(least: int) -> Check:
    """A whole number, at least `least`."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
            raise expected(name, value, f"a whole number, at least {least}")

    return check


def number(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Check:
    """A finite number between `low` and `high`, both included but for `open_low` and `open_high`."""

    def check(name: str, value: Any) -> None:
        try:
            found = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
        except OverflowError:
            found = math.nan
        above = low < found if open_low else low <= found
        below = found < high if open_high else found <= high
        if not (math.isfinite(found) and above and below):
            span = f"above {low:g}" if open_low else f"{low:g} or more" if math.isfinite(low) else ""
            ends = [span, ("" if math.isinf(high) else f"below {high:g}" if open_high else f"at most {high:g}")]
            raise expected(name, value, ", ".join(["a finite number", *filter(None, ends)]))

    return check


def text(name: str, value: Any) -> None:
    """A string."""
    if not isinstance(value, str):
        raise expected(name, value, "a string")


def flag(name: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise expected(name, value, "True or False")


def check_seed(value: Any) -> None:
    """Raises ArgumentError unless `value` is a seed, or None."""
    if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32):
        raise expected("seed", value, "a whole number from 0 to 4294967295, or None for a fresh one")
