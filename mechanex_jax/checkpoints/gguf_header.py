"""A walk over a GGUF file's header that checks its lengths: the format's own library trusts them, and can read for ever."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""The size in bytes of each type of value that has a fixed one."""
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4  # GGML's own limit


def check(source: Path) -> None:
    """Check that every string, array and tensor description of a header ends inside the file.

    Raises:
      ValueError: it is no GGUF file, or one whose header is damaged.
    """
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        big_endian = data[4:6] == b"\0\0"  # of the version, a small number
        cursor = _Cursor(data, ">" if big_endian else "<")
        cursor.skip(8)
        tensors, fields = cursor.number("Q"), cursor.number("Q")
        for _ in range(fields):
            cursor.string()
            _value(cursor)
        for _ in range(tensors):
            cursor.string()
            dimensions = cursor.number("I")
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions:,} dimensions")
            cursor.skip(8 * dimensions + 4 + 8)  # sizes, type, offset


class _Cursor:
    """A place in the header, which moves forward as values are read or skipped."""

    def __init__(self, data: mmap.mmap, order: str):
        self._data, self._order, self._at = data, order, 0

    def skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise ValueError(f"a value that ends at byte {self._at:,}")

    def number(self, form: str) -> int:
        start = self._at
        self.skip(struct.calcsize(f"={form}"))
        return struct.unpack_from(self._order + form, self._data, start)[0]

    def string(self) -> None:
        self.skip(self.number("Q"))


def _value(cursor: _Cursor) -> None:
    kind, count = cursor.number("I"), 1
    if kind == _ARRAY:
        kind, count = cursor.number("I"), cursor.number("Q")
    if kind in _SCALARS:
        cursor.skip(_SCALARS[kind] * count)
    elif kind == _STRING:
        for _ in range(count):
            cursor.string()
    else:
        raise ValueError(f"a value of the unknown type {kind}")
