"""Guards around XLA's faults: a flag against wrong results on CPUs, and a bound on the memory mappings of compiled programs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.monitoring
from jaxlib.version import __version__ as jaxlib_version

from mechanex_jax.warning import warn

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
# Versions that compute some fused reductions wrongly on CPUs (https://github.com/jax-ml/jax/issues/39103), or crash.
# Named one by one: XLA ends the process over a flag that it does not know.
AFFECTED = ("0.10.2", "0.11.0")

_COMPILED = "/jax/core/compile/backend_compile_duration"
_MAPS, _LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
_SHARE = 0.7  # of the limit; one program takes about a hundred
_EVERY = 16  # compilations between two looks: reading the mappings takes milliseconds


def backend_is_up() -> bool:
    """Whether JAX has started a backend, which reads XLA_FLAGS once."""
    from jax._src import xla_bridge  # JAX has no public name for it

    return bool(xla_bridge.backends_are_initialized())


def flags_for(version: str, flags: str) -> str:
    """XLA_FLAGS for a version of jaxlib: with the flag that it needs, unless it needs none or there is a value already."""
    return flags if version not in AFFECTED or FLAG in flags else f"{flags} {FLAG}=individual_dot".strip()


def avoid_wrong_reductions() -> None:
    """Set a flag of XLA that avoids the reductions of affected versions; a value of the user's own stays."""
    flags = os.environ.get("XLA_FLAGS", "")
    needed = flags_for(jaxlib_version, flags)
    if needed == flags:
        return
    if backend_is_up():
        warn(
            f"jaxlib {jaxlib_version} computes some reductions wrongly on CPUs, and JAX has started already. Import "
            f"mechanex_jax before the first JAX computation, or set XLA_FLAGS={FLAG}=individual_dot.",
            RuntimeWarning,
        )
        return
    os.environ["XLA_FLAGS"] = needed


class MappingGuard:
    """Drops compiled programs before a process reaches Linux's limit of memory mappings, beyond which LLVM aborts.

    Args:
      limit: of mappings.
      count: how many there are.
      every: compilations between two looks.
    """

    def __init__(self, limit: int, count: Callable[[], int], every: int = _EVERY):
        self._threshold, self._count, self._every = int(_SHARE * limit), count, every
        self._compiled, self._warned = 0, False

    def on_duration(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """Count a compilation: a listener of `jax.monitoring`."""
        if event == _COMPILED:
            self._compiled += 1

    def relieve(self) -> None:
        """Drop all compiled programs if there are too many mappings; called where none is running. Says so once."""
        if self._compiled < self._every:
            return
        self._compiled = 0
        if self._count() < self._threshold:
            return
        jax.clear_caches()
        if not self._warned:
            self._warned = True
            warn(
                f"Compiled programs took {self._threshold} memory mappings, near the limit of Linux (vm.max_map_count). "
                "They have been dropped, and compile again when needed.",
                RuntimeWarning,
            )


def count_mappings() -> int:
    """The memory mappings of this process."""
    return _MAPS.read_bytes().count(b"\n")


@functools.cache
def mapping_guard() -> MappingGuard | None:
    """The guard of this process, registered with JAX; None where there is no such limit."""
    try:
        limit = int(os.environ.get("MECHANEX_MAX_MAPPINGS") or _LIMIT.read_text())
        count_mappings()
    except (OSError, ValueError):
        return None
    guard = MappingGuard(limit, count_mappings)
    jax.monitoring.register_event_duration_secs_listener(guard.on_duration)
    return guard


def relieve_mappings() -> None:
    """Drop compiled programs where their memory mappings near the limit of Linux."""
    guard = mapping_guard()
    if guard is not None:
        guard.relieve()
