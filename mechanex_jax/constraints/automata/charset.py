"""Sets of code points: sorted, disjoint, non-adjacent inclusive intervals.

Surrogates (U+D800 to U+DFFF) are no characters of a text that can be written as UTF-8; `ANY` leaves them out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np

CharSet = tuple[tuple[int, int], ...]

LAST = 0x10FFFF
SURROGATES: CharSet = ((0xD800, 0xDFFF),)
ANY: CharSet = ((0, 0xD7FF), (0xE000, LAST))
EMPTY: CharSet = ()


def union(*sets: Iterable[tuple[int, int]]) -> CharSet:
    """Every code point of any of the sets; also puts intervals in any order into the one form."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(interval for chars in sets for interval in chars):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(chars: CharSet) -> CharSet:
    """Every code point, surrogates aside, that is not in the set."""
    out, low = [], 0
    for first, last in union(chars, SURROGATES):
        if first > low:
            out.append((low, first - 1))
        low = last + 1
    return (*out, (low, LAST)) if low <= LAST else tuple(out)


def intersection(a: CharSet, b: CharSet) -> CharSet:
    """The code points of both sets."""
    out, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if low <= high:
            out.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(out)


def difference(a: CharSet, b: CharSet) -> CharSet:
    """The code points of `a`, surrogates aside, that are not in `b`."""
    return intersection(a, complement(b))


def of(text: str) -> CharSet:
    """The characters of a text as a set."""
    return union((ord(c), ord(c)) for c in text)


def interval(low: int | str, high: int | str) -> CharSet:
    """One interval, both ends included."""
    return ((ord(low) if isinstance(low, str) else low, ord(high) if isinstance(high, str) else high),)


def contains(chars: CharSet, point: int) -> bool:
    """Whether a code point is in the set."""
    return any(low <= point <= high for low, high in chars)


def alphabet(sets: Sequence[CharSet]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The coarsest partition of the code points that tells all the sets apart.

    Returns:
      bounds: int32 [C], ascending starts of intervals, beginning with 0.
      classes: int32 [C], the class of each interval. Class 0 is the surrogates, in none of the sets.
      member: bool [len(sets), K], whether a class is part of a set.
    """
    ends = [np.array([0, 0xD800, 0xE000])] + [(np.array(chars) + (0, 1)).ravel() for chars in sets if chars]
    bounds = np.unique(np.concatenate(ends)).astype(np.int32)
    bounds = bounds[bounds <= LAST]
    member = np.zeros((len(sets) + 1, len(bounds)), bool)
    for row, chars in zip(member[1:], sets, strict=True):
        if chars:
            steps = np.zeros(len(bounds) + 1, np.int32)
            starts, stops = np.array(chars).T
            steps[np.searchsorted(bounds, starts)] += 1
            steps[np.searchsorted(bounds, stops + 1)] -= 1
            row[:] = np.cumsum(steps[:-1]) > 0
    lost = (bounds >= 0xD800) & (bounds < 0xE000)
    member[:, lost] = False
    member[0] = ~lost  # sorts the surrogates first
    columns, classes = np.unique(member, axis=1, return_inverse=True)
    return bounds, classes.reshape(-1).astype(np.int32), columns[1:]


@functools.cache
def category(letter: str, ascii_only: bool = False) -> CharSet:
    r"""The characters of Python's `\d`, `\s` or `\w` (`letter`), or of their upper-case complements."""
    if letter.isupper():
        return complement(category(letter.lower(), ascii_only))
    flags = re.ASCII if ascii_only else re.UNICODE
    return tuple((m.start(), m.end() - 1) for m in re.finditer(rf"\{letter}+", _every_code_point(), flags))


def _every_code_point() -> str:
    return np.arange(LAST + 1, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
