"""The host's side of a loop: chunk after chunk, so that it can look, stream, stop, or be interrupted in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np

from mechanex_jax.loops.carry import FinishReason
from mechanex_jax.loops.step import CarryT, Finishing, decode_chunk

_POLL_SECONDS = 5e-4
_SECONDS_PER_CHUNK = 0.25  # how long Ctrl-C may have to wait

ProgramT = TypeVar("ProgramT")


def wait(array: jax.Array) -> None:
    """Wait for the device; Ctrl-C strikes between polls, and leaves no work running behind it."""
    try:
        while not array.is_ready():  # pyright: ignore[reportAttributeAccessIssue]
            time.sleep(_POLL_SECONDS)
    except BaseException:
        array.block_until_ready()
        raise


def running(carry: Finishing) -> bool:
    """Whether any row of a carry still runs; waits for the device."""
    wait(carry.finish)
    return bool(np.any(np.asarray(carry.finish) == FinishReason.RUNNING))


def advance(
    program: ProgramT,
    carry: CarryT,
    seconds: float = _SECONDS_PER_CHUNK,
    chunk: Callable[[ProgramT, CarryT, np.int32], CarryT] = decode_chunk,
) -> Iterator[CarryT]:
    """Run to the end in chunks of about `seconds`, yielding the carry after each.

    Where the chunks end changes no token. Between them the host can look, stream, stop, or be interrupted. Another loop passes
    its own `chunk(program, carry, until)`; its carry needs a `finish`.

    >>> program, carry = mx.loops.start(toy(), [[1, 2, 3]], 3, None, key=jax.random.key(0), max_new_tokens=6)
    >>> [carry.generated.tolist() for carry in advance(program, carry)]
    [[4], [6]]
    """
    until = 4
    while running(carry):
        started = time.perf_counter()
        carry = chunk(program, carry, np.int32(until))
        wait(carry.finish)
        yield carry
        quick = time.perf_counter() - started < seconds
        until = min(2 * until, 4096) if quick else max(1, until // 2)
