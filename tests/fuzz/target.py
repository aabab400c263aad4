"""What is fuzzed: how a case is drawn, what is done with it, and how it may end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from random import Random
from typing import Any

from mechanex_jax.errors import MechanexError


@dataclasses.dataclass(frozen=True)
class Target:
    """A part of the library that takes input of others.

    Attributes:
      draw: makes a case.
      run: gives the case to the library, and raises AssertionError where the outcome is wrong.
      refusals: errors with which a case may be refused; any other is a failure.
      seconds: of the processor that a case may take.
    """

    draw: Callable[[Random], Any]
    run: Callable[[Any], object]
    refusals: tuple[type[Exception], ...] = (MechanexError,)
    seconds: float = 5.0
