"""Every byte of a small GGUF file's header changed in four ways, one after another: `python -m tests.fuzz.sweep` (minutes)."""

from __future__ import annotations

import collections
import sys
import time

from . import support  # noqa: F401  (first: the way to the helpers of the tests)
from .files import gguf_file, load_gguf

CHANGES = {"0x00": lambda byte: 0, "0xff": lambda byte: 0xFF, "^0x01": lambda byte: byte ^ 1, "^0x80": lambda byte: byte ^ 0x80}


def main() -> int:
    """Print how the cases ended; the exit status is 1 where one ended with another error, or took over a second."""
    from mechanex_jax.errors import CheckpointError

    whole, header = gguf_file()
    load_gguf(whole)
    outcomes: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    for at in range(header):
        for name, change in CHANGES.items():
            if change(whole[at]) == whole[at]:
                continue
            begun = time.process_time()
            try:
                load_gguf(whole[:at] + bytes([change(whole[at])]) + whole[at + 1 :])
                outcome = "loaded"
            except CheckpointError:
                outcome = "refused"
            except BaseException as error:
                outcome = f"FAILED with {type(error).__name__}"
                print(f"byte {at} {name}: {error!r:.300}", flush=True)
            taken = time.process_time() - begun
            if taken > 1:
                print(f"byte {at} {name}: {taken:.1f} s, {outcome}", flush=True)
            slowest = max(slowest, taken)
            outcomes[outcome] += 1
    print(f"{header:,} bytes, {outcomes.total():,} cases: {dict(outcomes)}; the slowest took {slowest:.2f} s")
    return int(slowest > 1 or any(outcome.startswith("FAILED") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
