"""Wild values, and mutations of JSON, bytes and text; all decided by a `random.Random`."""

from __future__ import annotations

import copy
import decimal
import fractions
import json
from random import Random
from typing import Any

import numpy as np

NUMBERS = [
    0,
    1,
    -1,
    2,
    7,
    15,
    255,
    2**24 + 1,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    10**400,
] + [0.0, -0.0, 0.5, 1.0, 2.5, -1.5, 1e-320, 1e-45, 3.4e38, 3.5e38, 1e308, float("nan"), float("inf"), float("-inf")]
TEXTS = [
    "",
    " ",
    "a",
    "he",
    "1",
    "-1",
    "true",
    "null",
    "nan",
    "default",
    "linear",
    "llama3",
    "silu",
    "top-p",
    "greedy",
    "all",
    "prompt",
    "majority",
    "../x",
    "/",
    ".",
    "\0",
    "\n",
    "\ufffd",
    "\ud800",
    "a\udfffb",
    "é",
    "🙂" * 3,
    "{}",
    "[1",
    "{{ 7 * 7 }}",
    "{% for %}",
    "%s%n",
    "<s>",
    "</s>",
    "x" * 100_000,
    "[" * 5_000,
    "(" * 2_000,
    "9" * 5_000,
    "\\",
    "\\u",
    "a|b",
    ".*",
    'root ::= "a"',
]


def nested(levels: int, kind: int) -> object:
    """Lists, or objects, inside one another."""
    value: object = 1
    for _ in range(levels):
        value = [value] if kind else {"a": value}
    return value


def wild(rng: Random, depth: int = 0) -> Any:
    """A value that JSON can hold."""
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 6:
        return rng.choice(TEXTS)
    if kind == 6:
        return rng.choice([None, True, False, [], {}])
    if kind == 7 or depth > 2:
        return (
            nested(rng.choice([1, 30, 400, 3_000]), rng.randrange(2)) if rng.random() < 0.3 else rng.choice([None, True, False])
        )
    if kind == 8:
        return [wild(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(TEXTS[:24]): wild(rng, depth + 1) for _ in range(rng.randrange(4))}


class Opaque:
    """An object that is nothing else, and whose length and truth are errors."""

    def __len__(self) -> int:
        raise RuntimeError("no length")


def endless() -> list[object]:
    """A list that holds itself."""
    value: list[object] = []
    value.append(value)
    return value


def foreign(rng: Random) -> Any:
    """A value that Python can hold and JSON cannot."""
    return rng.choice(
        [
            lambda: rng.choice([np.int64(3), np.float32(0.5), np.bool_(True), np.float64("nan"), np.int8(-1), np.str_("a")]),
            lambda: np.zeros(rng.choice([(), (0,), (1,), (3,), (2, 2)])),
            lambda: np.array(["a", None], object),
            lambda: rng.choice([object(), int, len, ..., NotImplemented, Random, TEXTS.append]),
            lambda: rng.choice([b"bytes", bytearray(b"a"), {1, 2}, frozenset("ab"), range(10**12), 1j, slice(1, None)]),
            lambda: rng.choice([decimal.Decimal("0.5"), decimal.Decimal("sNaN"), fractions.Fraction(1, 3)]),
            lambda: (wild(rng), wild(rng)),
            lambda: iter([1, 2]),
            lambda: {wild_key(rng): wild(rng) for _ in range(3)},
            endless,
            Opaque,
        ]
    )()


def wild_key(rng: Random) -> Any:
    """A key of a mapping: a number, a text, a tuple."""
    return rng.choice([*NUMBERS, *TEXTS[:20], (1, 2), None, True, np.int64(1), np.int64(-1)])


def anything(rng: Random) -> Any:
    """A wild value, of JSON or of Python."""
    return foreign(rng) if rng.random() < 0.3 else wild(rng)


# --- mutations -----------------------------------------------------------------------------------------------------------


def places(value: object, most: int = 2_000) -> list[tuple[Any, Any]]:
    """(container, key) of all values inside a JSON value, the first `most`."""
    found: list[tuple[Any, Any]] = []
    todo = [value]
    while todo and len(found) < most:
        container = todo.pop()
        if isinstance(container, (dict, list)):
            for key, item in list(container.items() if isinstance(container, dict) else enumerate(container)):
                found.append((container, key))
                todo.append(item)
    return found


def copied(value: Any) -> Any:
    """A copy of a JSON value; of one that is too deep for that, a number."""
    try:
        return copy.deepcopy(value)
    except RecursionError:
        return 7


def mutated(rng: Random, value: Any) -> Any:
    """A JSON value with one to three changes: something replaced, removed, added, or taken from elsewhere in it."""
    holder = {"value": copied(value)}
    for _ in range(rng.choice([1, 1, 2, 3])):
        container, key = rng.choice(places(holder))
        kind = rng.randrange(8)
        if kind < 4:
            container[key] = wild(rng)
        elif kind == 4 and container is not holder:
            container.pop(key)
        elif kind == 5:
            other, at = rng.choice(places(holder))
            container[key] = copied(other[at])
        elif isinstance(container[key], dict):
            container[key][rng.choice(TEXTS[:24])] = wild(rng)
        elif isinstance(container[key], list):
            container[key].insert(0, wild(rng))
        elif isinstance(container[key], (int, float)) and abs(container[key]) < 1e18:
            container[key] = rng.choice([-container[key], container[key] + 1, container[key] * 1000, str(container[key])])
        elif isinstance(container[key], str):
            container[key] = spliced(rng, container[key])
    return holder["value"]


def damaged(rng: Random, whole: bytes, end: int) -> bytes:
    """Bytes of which the first `end` are changed in one of several ways."""
    at, out = rng.randrange(end), bytearray(whole)
    kind = rng.randrange(6)
    if kind < 3:
        for _ in range(rng.choice([1, 1, 2, 8])):
            out[rng.randrange(end)] ^= rng.choice([1, 4, 0x80, 0xFF, rng.randrange(1, 256)])
    elif kind == 3:
        width = rng.choice([4, 8])
        number = rng.choice([0, 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]) % 2 ** (8 * width)
        out[at : at + width] = number.to_bytes(width, "little")
    elif kind == 4:
        del out[at : at + rng.choice([1, 3, 8, len(out)])]
    else:
        out[at:at] = rng.randbytes(rng.choice([1, 7, 64]))
    return bytes(out)


def spliced(rng: Random, text: str) -> str:
    """A text of which a piece is doubled, dropped, or something put in."""
    start, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    piece = text[start:end]
    return text[:start] + rng.choice(["", piece * 2, piece[::-1], *rng.sample(TEXTS[:35], 3)]) + text[end:]


def dumped(value: object) -> bytes:
    """JSON, deep or not, as a file could have it; half of a surrogate pair stays escaped."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 100_000
