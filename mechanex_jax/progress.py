"""One progress bar for everything that takes a while (downloads, conversion, loading, long batches), and a budget of time."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator

Report = Callable[[int, int], None]
"""A function to call with the amount that is done and the total."""


def silent(done: int, total: int) -> None:
    """Report nothing."""


def is_shown(progress: bool | None) -> bool:
    """Whether to show a bar for an argument `progress`; None asks for one on a terminal."""
    return sys.stderr.isatty() if progress is None else progress


@contextlib.contextmanager
def bar(description: str, *, enabled: bool, unit: str = "bytes") -> Iterator[Report]:
    """Show a bar on standard error for the time of the `with` block; yields the function that moves it, in `unit`s."""
    if not enabled:
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount = (DownloadColumn(),) if unit == "bytes" else (MofNCompleteColumn(), TextColumn(unit))
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(description, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total or None)


class TimeBudget:
    """Seconds for work that consists of parts: whether another part fits is told from how long the parts so far took.

    Args:
      seconds: from now on; None is no limit.
    """

    def __init__(self, seconds: float | None):
        self._seconds = math.inf if seconds is None else seconds
        self._begun = self._last = time.monotonic()
        self._shortest = 0.0

    def part_done(self) -> None:
        """Note that a part has ended. The first often compiles, so the shortest tells what a further one takes."""
        now = time.monotonic()
        part = now - self._last
        self._shortest = min(self._shortest, part) if self._shortest else part
        self._last = now

    def fits_another(self) -> bool:
        """Whether a part as long as the shortest so far would end in time."""
        return time.monotonic() - self._begun + self._shortest <= self._seconds

    def forecast(self, done: float, total: float) -> float:
        """Seconds that the whole would take, `done` of `total` having taken the time until now."""
        return (time.monotonic() - self._begun) * total / done
