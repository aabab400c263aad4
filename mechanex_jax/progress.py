"""One progress bar for everything that takes a while: downloads, conversion, loading, long batches."""

from __future__ import annotations

import contextlib
import sys
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
