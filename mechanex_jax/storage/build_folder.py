"""Folders that appear in the user's cache whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from mechanex_jax.errors import CheckpointError
from mechanex_jax.storage.atomic import sync


def build_folder(target: Path, build: Callable[[Path], None]) -> Path:
    """Return `target`, built first if it is not there yet.

    `build` fills an empty folder beside the target, which is then renamed to it: a target that is there is
    whole, and a build that fails or is killed leaves no target. A second process waits for the first and uses its result.

    Args:
      target: the folder to make; if it exists, it is complete and returned as it is.
      build: writes the content into the empty folder that it is given.

    Returns:
      `target`.

    Raises:
      CheckpointError: the folder cannot be written (no permission, disk full).
    """
    target = Path(target)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / f".{target.name}.lock"):
            if not target.is_dir():
                _build_beside(target, build)
    except OSError as error:
        raise CheckpointError(
            f"Cannot write {target}: {error}. Free some space there or set MECHANEX_CACHE to a folder that can be written."
        ) from error
    return target


def _build_beside(target: Path, build: Callable[[Path], None]) -> None:
    prefix = f".{target.name}.tmp-"
    # The lock is held, so whatever is left here belongs to a process that was killed.
    for stale in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = target.parent / f"{prefix}{uuid.uuid4().hex[:12]}"
    temporary.mkdir()
    try:
        build(temporary)
        for path in sorted(temporary.rglob("*"), reverse=True):
            sync(path)
        sync(temporary)  # on disk before it has its name
        os.replace(temporary, target)
        sync(target.parent)
    except BaseException:  # KeyboardInterrupt too: nothing half-written stays
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; the system frees it when its holder dies.

    The file stays: removing it could hand two processes two different locks of one name.
    """
    with open(path, "a+b") as file:
        _lock(file.fileno())
        try:
            yield
        finally:
            _unlock(file.fileno())


try:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)

except ImportError:  # Windows
    import msvcrt

    def _lock(descriptor: int) -> None:
        while True:
            try:
                os.lseek(descriptor, 0, os.SEEK_SET)
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
                return
            except OSError:
                time.sleep(0.1)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]
