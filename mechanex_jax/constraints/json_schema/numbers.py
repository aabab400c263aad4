"""Automata over the decimal text of numbers, which decide what a schema asks of them exactly, from left to right.

Any JSON number may be read where nothing is asked of it. Where something is, a number with an exponent must be spelt as JSON
writers do: one digit that isn't 0, perhaps a fraction, and an exponent of at most three digits (`1.5e+20`, `1e-07`); every
number without an exponent may be spelt in any way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import TypeVar

import numpy as np

from mechanex_jax.constraints.automata import charset
from mechanex_jax.constraints.automata.dfa import CharDfa, CompileLimits, minimize, product
from mechanex_jax.constraints.automata.encoding import to_bytes
from mechanex_jax.constraints.json_schema.classifiers import Classifier, Decision, Labels
from mechanex_jax.constraints.json_schema.formula import Formula
from mechanex_jax.errors import ConstraintError

LESS, EQUAL, GREATER = 0, 1, 2  # labels of `comparison`
_SYMBOLS = "0123456789-+.eE"
_EXPONENT_DIGITS, _SHORT_DIGITS = 3, 15
_MAX_STATES = 40_000

Read = TypeVar("Read", bound=Hashable)  # what matters of the characters read so far
Outcome = TypeVar("Outcome", bound=Hashable)


def exact(value: int | float) -> Fraction:
    """The number that a schema's author wrote: a float stands for its shortest decimal spelling."""
    return Fraction(value) if isinstance(value, int) else Fraction(Decimal(repr(value)))


def classify(
    leaves: Sequence[Formula], decide: Decision[Outcome], limits: CompileLimits, *, short: bool = False
) -> Classifier[Outcome]:
    """Tell numbers apart by what `decide` makes of the truth of leaves.

    Leaves: ("below", b), ("equal", b), ("multiple", d), ("plain",): see `to_formula`. With `short`, numbers have at most 15
    digits (or more, if a leaf's number has as many) and 3 digits of an exponent; and where a leaf asks for integers, these have
    neither a fraction nor an exponent.
    """
    compared = [leaf for leaf in leaves if leaf.args[0] in ("below", "equal")]
    bounds = list(dict.fromkeys(leaf.args[1] for leaf in compared))
    others = [leaf for leaf in leaves if leaf.args[0] in ("multiple", "plain")]
    parts = [numbers(), *map(comparison, bounds)]
    parts += [multiples(leaf.args[1]) if leaf.args[0] == "multiple" else plain() for leaf in others]
    integers = next((1 + len(bounds) + i for i, leaf in enumerate(others) if leaf.args == ("multiple", 1)), 0)
    if short:
        parts.append(short_numbers(_digits_needed(leaves)))
    if short and integers:
        parts.append(plain())
    outcomes = Labels(decide)

    def combine(labels: tuple[int, ...]) -> int:
        if min(labels) < 0 or (short and integers and labels[integers] == 1 and labels[-1] != 1):
            return -1
        sizes = dict(zip(bounds, labels[1:], strict=False))
        true = {leaf for leaf, label in zip(others, labels[1 + len(bounds) :], strict=False) if label == 1}
        true.update(leaf for leaf in compared if sizes[leaf.args[1]] == (LESS if leaf.args[0] == "below" else EQUAL))
        return outcomes.label(true)

    dfa = minimize(product(parts, combine, limits))
    return Classifier(to_bytes(dfa), outcomes.outcomes)


def _explore(start: Read, step: Callable[[Read, str], Read | None], label: Callable[[Read], int]) -> CharDfa:
    """The automaton of a step function over the characters of numbers; None is dead."""
    numbers: dict[Read, int] = {start: 1}
    rows = [[0] * len(_SYMBOLS)]
    for state in (order := [start]):
        row = []
        for symbol in _SYMBOLS:
            target = step(state, symbol)
            if target is None:
                row.append(0)
                continue
            if target not in numbers:
                numbers[target] = len(numbers) + 1
                order.append(target)
            row.append(numbers[target])
        rows.append(row)
    bounds, classes, member = _alphabet()
    table = np.zeros((len(rows), member.shape[1]), np.int32)
    table[:, [int(np.flatnonzero(row)[0]) for row in member]] = rows
    return CharDfa(bounds, classes, table, np.array([-1, *map(label, order)], np.int16), 1)


@functools.cache
def _alphabet() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return charset.alphabet([charset.of(symbol) for symbol in _SYMBOLS])


@functools.cache
def numbers() -> CharDfa:
    """Every JSON number, label 0."""
    return _explore("start", _grammar, lambda state: 0 if state in ("zero", "int", "frac", "exp") else -1)


def _grammar(state: str, symbol: str) -> str | None:
    digit, point, exponent = symbol.isdigit(), symbol == ".", symbol in "eE"
    if state in ("start", "minus"):
        if symbol == "-":
            return "minus" if state == "start" else None
        return ("zero" if symbol == "0" else "int") if digit else None
    if state in ("zero", "int"):
        if digit:
            return "int" if state == "int" else None
        return "point" if point else "e" if exponent else None
    if state in ("point", "frac"):
        return "frac" if digit else "e" if exponent and state == "frac" else None
    if state == "e" and symbol in "+-":
        return "sign"
    return "exp" if digit else None


@functools.cache
def plain() -> CharDfa:
    """Numbers without point and exponent (label 1), others (label 0)."""

    def step(state: bool, symbol: str) -> bool:
        return state and symbol not in ".eE"

    return _explore(True, step, int)


# -- Short numbers -------------------------------------------------------------------------------------------------------------


@functools.cache
def short_numbers(digits: int) -> CharDfa:
    """Numbers of at most so many digits, a lone 0 before the point not counted, and 3 digits of an exponent: label 0."""

    # (digits that are left, whether the whole part has ended, whether it is a lone 0), or digits of an exponent that are left.
    def step(state: tuple[int, bool, bool] | int, symbol: str) -> tuple[int, bool, bool] | int | None:
        if isinstance(state, int):
            return state if symbol in "+-" else state - 1 if symbol.isdigit() and state else None
        left, ended, zero = state
        if symbol in "eE":
            return _EXPONENT_DIGITS
        if symbol == ".":
            return (left, True, False)
        if symbol == "-":
            return state
        if left == digits and not ended and symbol == "0" and not zero:
            return (left, False, True)
        return (left - 1, ended, False) if left else None

    return _explore((digits, False, False), step, lambda state: 0)


def _digits_needed(leaves: Sequence[Formula]) -> int:
    """Digits with which every number that leaves name can be written, and the integers next to it."""
    integers = any(leaf.args in (("multiple", 1), ("plain",)) for leaf in leaves)
    needed = [_SHORT_DIGITS]
    for leaf in leaves:
        if len(leaf.args) < 2:
            continue
        whole, fraction, _ = _digits(abs(leaf.args[1]))
        # Zeros at the ends can be left to an exponent, but for integers and multiples.
        full = integers or leaf.args[0] == "multiple"
        significant = whole + fraction if full else (whole + fraction).strip("0")
        needed.append(len(significant) if len(significant) < _SHORT_DIGITS else len(significant) + 1)
    return max(needed)


# -- Numbers that may have an exponent -----------------------------------------------------------------------------------------
#
# States are tuples. ("start",) and ("minus",) come before the first digit; ("i", ...) is in the whole part and ("f", ...)
# behind the point, as each automaton has it; ("e", mantissa, sign, digits, value) is inside an exponent. There
# `outcome(mantissa, exponent)` is the label, monotone in the exponent in the sense that it is the same between two exponents
# for which it is the same; so a prefix of the digits that leaves only one outcome is as good as any other, and the mantissa is
# ("decided", label) from there on.

_ExponentOutcome = Callable[[tuple, int], int]


def _with_exponent(
    first: Callable[[bool, str], tuple],
    step: Callable[[tuple, str], tuple | None],
    label: Callable[[tuple], int],
    outcome: _ExponentOutcome,
) -> CharDfa:
    """The automaton of numbers with a sign and an exponent around what `step` reads.

    Args:
      first: whether there is a minus, and the first digit, to a state.
      step: from a state in the whole part or behind the point to another one, or into the exponent.
      label: of a state in the whole part or behind the point.
      outcome: label of a mantissa and an exponent.
    """

    def decided(mantissa: tuple, exponent: int) -> int:
        return mantissa[1] if mantissa[0] == "decided" else outcome(mantissa, exponent)

    def any_step(state: tuple, symbol: str) -> tuple | None:
        kind = state[0]
        if kind == "e":
            return _exponent_step(state, symbol, decided)
        if kind not in ("start", "minus"):
            return step(state, symbol)
        if symbol == "-":
            return ("minus",) if kind == "start" else None
        return first(kind == "minus", symbol) if symbol.isdigit() else None

    def any_label(state: tuple) -> int:
        kind = state[0]
        if kind == "e":
            _, mantissa, sign, digits, value = state
            return decided(mantissa, -value if sign == "-" else value) if digits else -1
        return -1 if kind in ("start", "minus") else label(state)

    return _explore(("start",), any_step, any_label)


def _exponent_step(state: tuple, symbol: str, outcome: _ExponentOutcome) -> tuple | None:
    _, mantissa, sign, digits, value = state
    if symbol in "+-":
        return ("e", mantissa, symbol, 0, 0) if not sign else None
    if not symbol.isdigit() or digits == _EXPONENT_DIGITS:
        return None
    value, digits, sign = value * 10 + int(symbol), digits + 1, sign or "+"
    more = 10 ** (_EXPONENT_DIGITS - digits)
    least, most = (-value, -(value * more + more - 1)) if sign == "-" else (value, value * more + more - 1)
    label = outcome(mantissa, least)
    if label == outcome(mantissa, most):
        return ("e", ("decided", label), sign, digits, 0)
    return ("e", mantissa, sign, digits, value)


# -- Comparison ----------------------------------------------------------------------------------------------------------------


@functools.lru_cache(512)
def comparison(bound: Fraction) -> CharDfa:
    """Numbers less than, equal to and greater than a decimal bound, told apart by label."""
    whole, fraction, _ = _digits(abs(bound))
    significant = (whole + fraction).lstrip("0")
    scale = len(whole) - 1 if whole != "0" else -(len(fraction) - len(fraction.lstrip("0")) + 1)

    def signed(negative: bool, size: int) -> int:
        """The label for the sign and the comparison of absolute values (-1, 0, 1)."""
        if bound > 0 and negative:
            return LESS
        if bound < 0 and not negative:
            return GREATER
        return 1 + (-size if negative else size)

    def against(digit: str, digits: str, at: int) -> int:
        other = digits[at] if at < len(digits) else "0"
        return (digit > other) - (digit < other)

    def whole_size(at: int, so_far: int) -> int:
        return so_far if at == len(whole) else -1 if at < len(whole) else 1

    def rest(digits: str, at: int, so_far: int) -> int:
        return so_far or (-1 if digits[at:].strip("0") else 0)

    def outcome(mantissa: tuple, exponent: int) -> int:
        _, negative, size = mantissa
        return signed(negative, 1 if not significant or exponent > scale else -1 if exponent < scale else size)

    def settled(digits: str, at: int, size: int) -> tuple[int, int]:
        """Forget how many digits were read where that does not matter: once the comparison is decided, and beyond the bound."""
        return (0, size) if size else (min(at, len(digits)), 0)

    # ("i", negative, digits read, comparison so far, mantissa) and ("f", negative, digits read or -1, comparison, mantissa);
    # mantissa: (digits read or -1, comparison so far) of one digit and a fraction, None where no exponent may follow.
    def first(negative: bool, symbol: str) -> tuple:
        mantissa = settled(significant, 1, against(symbol, significant, 0)) if symbol != "0" else None
        return ("i", negative, 1, against(symbol, whole, 0), mantissa)

    def step(state: tuple, symbol: str) -> tuple | None:
        kind, negative, at, so_far, mantissa = state
        if symbol in "eE":
            return ("e", ("size", negative, rest(significant, *mantissa)), "", 0, 0) if mantissa else None
        if kind == "i" and symbol == ".":
            return ("f", negative, *settled(fraction, 0, whole_size(at, so_far)), mantissa)
        if not symbol.isdigit():
            return None
        if kind == "i":
            at = min(at + 1, len(whole) + 1)
            return ("i", negative, at, (so_far or against(symbol, whole, at - 1)) if at <= len(whole) else 1, None)
        if mantissa:
            m, size = mantissa
            mantissa = mantissa if size else settled(significant, m + 1, against(symbol, significant, m))
        if so_far == 0:
            at, so_far = settled(fraction, at + 1, against(symbol, fraction, at))
        return ("f", negative, at, so_far, mantissa)

    def label(state: tuple) -> int:
        kind, negative, at, so_far, _ = state
        if kind == "i":
            at, so_far = settled(fraction, 0, whole_size(at, so_far))
        return signed(negative, rest(fraction, at, so_far))

    return _with_exponent(first, step, label, outcome)


def _digits(value: Fraction) -> tuple[str, str, int]:
    """The decimal digits before and behind the point of a number that has finitely many."""
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
    text = str(int(value * 10**places)).rjust(places + 1, "0")
    return text[: len(text) - places], text[len(text) - places :], places


# -- Multiples -----------------------------------------------------------------------------------------------------------------


@functools.lru_cache(512)
def multiples(divisor: Fraction) -> CharDfa:
    """Multiples of a positive decimal number (label 1) and other numbers (label 0).

    Numbers with an exponent are read only where it alone decides: `d.ddde-XX` against a divisor that isn't finer, and
    `de+XX` against a power of ten.

    Raises:
      ConstraintError: the divisor has too many digits.
    """
    _, _, places = _digits(divisor)
    modulus = int(divisor * 10**places)
    if modulus * (places + 1) > _MAX_STATES:
        raise ConstraintError(f"a multiple of {float(divisor)} takes an automaton of {modulus * (places + 1):,} states")
    # multiples of 10**zeros / 10**places are what an exponent can decide by itself
    zeros = len(str(modulus)) - 1 if str(modulus).strip("0") == "1" else -1

    def outcome(mantissa: tuple, exponent: int) -> int:
        if mantissa[1]:  # a fraction that isn't 0, so no multiple of 10 ** exponent
            return 0 if exponent <= -places else -1
        if zeros < 0:
            return 0 if exponent < -places else -1
        return int(exponent >= zeros - places)

    # ("i", remainder, may have an exponent), ("f", remainder, digits behind the point, last digit or None)
    def first(negative: bool, symbol: str) -> tuple:
        return ("i", int(symbol) % modulus, symbol != "0")

    def step(state: tuple, symbol: str) -> tuple | None:
        if state[0] == "i":
            _, remainder, single = state
            if symbol == ".":
                return ("f", remainder, 0, "" if single else None)
            if symbol in "eE":
                return ("e", ("single", False), "", 0, 0) if single else None
            return ("i", (remainder * 10 + int(symbol)) % modulus, False) if symbol.isdigit() else None
        _, remainder, at, last = state
        if symbol in "eE":
            return ("e", ("single", True), "", 0, 0) if last == "9" else None
        if not symbol.isdigit():
            return None
        if last is not None:  # only whether it is 0 matters
            last = "0" if symbol == "0" else "9"
        if remainder < 0 or (at == places and symbol != "0"):
            return ("f", -1, 0, last)  # finer than the divisor
        if at == places:
            return ("f", remainder, at, last)
        return ("f", (remainder * 10 + int(symbol)) % modulus, at + 1, last)

    def label(state: tuple) -> int:
        at = state[2] if state[0] == "f" else 0
        return int(state[1] >= 0 and state[1] * 10 ** (places - at) % modulus == 0)

    return _with_exponent(first, step, label, outcome)
