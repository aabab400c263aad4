"""The process that runs cases: it says over a pipe which one it is at, and how each ended badly."""

from __future__ import annotations

import faulthandler
import importlib
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from random import Random

from .target import Target

MEMORY = 8 << 30  # bytes of address space that the cases may add


def _limit_memory() -> None:
    """Let allocations beyond `MEMORY` fail."""
    pages = int(open("/proc/self/statm").read().split()[0])  # noqa: SIM115
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def problem(target: Target, case: object) -> str:
    """Run a case; returns what is wrong with how it ended, empty if nothing is."""
    begun = time.process_time()
    try:
        target.run(case)
    except target.refusals as error:
        if not str(error).strip():
            return f"a {type(error).__name__} that says nothing"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        frames = traceback.format_tb(error.__traceback__)[1:]
        frames = "".join(frames if len(frames) <= 9 else [*frames[:5], "  ...\n", *frames[-4:]])
        return f"{type(error).__name__}: {str(error)[:300]}\n{frames}"
    taken = time.process_time() - begun
    return f"took {taken:.1f} s of the processor; {target.seconds:g} are allowed" if taken > target.seconds else ""


def work(
    table: str, names: list[str], seed: int, starts: Mapping[str, int], seconds: float, only: bool, pipe: Connection
) -> None:
    """Run cases of the targets in turn, each getting the same time.

    Args:
      table: the module whose `TARGETS` has the targets.
      names: which of them to run.
      seed: of all cases.
      starts: the number of each target's next case.
      seconds: when to end.
      only: end after one case of each target.
      pipe: takes (event, target, case, words) with the events "start", "end", "failed" and "done".
    """
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    warnings.simplefilter("ignore")
    targets = importlib.import_module(table).TARGETS
    _limit_memory()
    pipe.send(("ready", "", 0, ""))
    numbers, spent = dict(starts), dict.fromkeys(names, 0.0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        name = min(spent, key=lambda name: spent[name])
        number, begun = numbers[name], time.monotonic()
        target = targets[name]
        case = target.draw(Random(f"{seed} {name} {number}"))
        pipe.send(("start", name, number, ""))
        words = problem(target, case)
        if words:
            pipe.send(("failed", name, number, f"{words}\n  case: {shown(case)}"))
        pipe.send(("end", name, number, ""))
        numbers[name] += 1
        spent[name] += time.monotonic() - begun
        if only and all(numbers[name] > starts[name] for name in names):
            break
    pipe.send(("done", "", 0, ""))


def shown(case: object) -> str:
    """The beginning of what a case looks like."""
    try:
        text = repr(case)
    except Exception as error:
        return f"(no repr: {type(error).__name__})"
    return text if len(text) <= 700 else f"{text[:700]}... ({len(text):,} characters)"
