"""Runs cases in a process beside this one, which may crash or hang, and reports what each failure takes to be replayed."""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .worker import work

START_SECONDS = 120.0
GRACE_SECONDS = 2.0


class Report(NamedTuple):
    """How a run went.

    Attributes:
      cases: how many of each target ended.
      failures: (target, case, what is wrong).
    """

    cases: collections.Counter[str]
    failures: list[tuple[str, int, str]]


def supervise(
    table: str,
    names: Sequence[str],
    limits: Callable[[str], float],
    *,
    seed: int,
    seconds: float,
    first: int = 0,
    only: bool = False,
    say: Callable[[str], None] = print,
) -> Report:
    """Run cases for some time, in a new process after each that hangs or ends its process.

    Args:
      table: the module whose `TARGETS` has the targets.
      names: which of them to run.
      limits: the seconds after which a case of a target hangs.
      seed: of all cases.
      seconds: how long.
      first: number of the first case.
      only: end after this one case of each target.
      say: takes a line about each failure.
    """
    report = Report(collections.Counter(), [])
    starts = dict.fromkeys(names, first)
    end = time.monotonic() + seconds
    context = multiprocessing.get_context("spawn")

    def fail(name: str, case: int, words: str) -> None:
        report.failures.append((name, case, words))
        say(f"FAILED  python -m tests.fuzz --target {name} --seed {seed} --case {case}\n  {words}")

    while (left := end - time.monotonic()) > 0:
        ours, theirs = context.Pipe()
        child = context.Process(target=work, args=(table, list(names), seed, dict(starts), left, only, theirs), daemon=True)
        child.start()
        theirs.close()
        at: tuple[str, int] | None = None
        patience = START_SECONDS
        while True:
            try:
                if not ours.poll(patience):
                    os.kill(child.pid or 0, signal.SIGUSR1)  # it prints where it is
                    time.sleep(GRACE_SECONDS)
                    child.kill()
                    words = f"hung for {patience:g} s"
                    break
                event, name, case, more = ours.recv()
            except EOFError:
                child.join()
                words = f"ended its process, with status {child.exitcode}"
                break
            if event == "done":
                child.join()
                return report
            if event == "start":
                at, patience = (name, case), limits(name)
            elif event == "failed":
                fail(name, case, more)
            elif event == "end":
                report.cases[name] += 1
                starts[name], at, patience = case + 1, None, START_SECONDS
        child.join()
        if at is None:
            raise RuntimeError(f"the process that runs cases {words} between two cases")
        fail(*at, words)
        starts[at[0]] = at[1] + 1
        if only:
            break
    return report
