"""`python -m tests.fuzz --seconds 60 --seed 0`: wild input for every part of the library that reads what others wrote.

A case either works or is refused with one of the library's own errors, within the seconds of its target and within bounded
memory. One that does not is printed with the command that runs it again.
"""

from __future__ import annotations

import argparse
import sys
import time

from .supervisor import supervise
from .targets import TARGETS


def main() -> int:
    """Run the cases that the command line asks for; the exit status is 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="of all cases")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this one; give it again for more")
    parser.add_argument("--case", type=int, help="only the case of this number")
    options = parser.parse_args()
    names = options.target or sorted(TARGETS)
    begun = time.monotonic()
    report = supervise(
        "tests.fuzz.targets",
        names,
        lambda name: 20 + 2 * TARGETS[name].seconds,
        seed=options.seed,
        seconds=options.seconds,
        first=options.case or 0,
        only=options.case is not None,
        say=lambda line: print(line, flush=True),
    )
    counts = ", ".join(f"{name} {report.cases[name]}" for name in names)
    print(f"seed {options.seed}: {report.cases.total():,} cases in {time.monotonic() - begun:.0f} s, ", end="")
    print(f"{len(report.failures)} failed ({counts})")
    return int(bool(report.failures))


if __name__ == "__main__":
    sys.exit(main())
