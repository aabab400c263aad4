"""What of this process is alive: child processes and open descriptors."""

from __future__ import annotations

import os
import subprocess

from mechanex_jax.policy.sandbox import containment


def parents() -> dict[int, int]:
    """Every process of the system and its parent."""
    lines = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.split("\n")
    return {int(pid): int(ppid) for pid, ppid in (line.split() for line in lines if line)}


def descendants(ancestor: int) -> set[int]:
    """Processes that a process started, and those that they started, without the `ps` that looks for them."""
    known, family = parents(), {ancestor}
    while more := {pid for pid, parent in known.items() if parent in family} - family:
        family |= more
    return {pid for pid in family - {ancestor} if os.path.exists(f"/proc/{pid}") or not containment.LINUX}


def descriptors() -> int:
    """How many files this process holds open."""
    return len(os.listdir("/proc/self/fd" if containment.LINUX else "/dev/fd"))
