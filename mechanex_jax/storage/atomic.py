"""Files that appear whole or not at all, even if several processes write them or one dies in between."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from mechanex_jax.errors import StorageError

_TEMPORARY = ".tmp-"
_unfinished: set[Path] = set()
_STALE = 24 * 3600  # seconds after which a temporary file's writer is taken for dead


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, survive a power cut."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Remove a file when the `with` block ends, unless it was renamed; `discard_unfinished` knows of it until then."""
    _unfinished.add(path)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        _unfinished.discard(path)


def discard_unfinished() -> None:
    """Remove the temporary files of this process, which is about to end without unwinding."""
    for path in list(_unfinished):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, *, replace: bool, durable: bool = True) -> bool:
    """Write a file that others see whole or not at all.

    Args:
      path: the file.
      content: its bytes.
      replace: whether a file that is there gives way.
      durable: whether the file is on disk when this returns, and outlives a power cut from then on.

    Returns:
      False, and nothing changed, if there was a file and it was not to be replaced.

    Raises:
      StorageError: the disk is full, a folder cannot be made or written, or the like; nothing changed then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _write_whole(path, content, replace, durable)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror or error}). Check the space and the rights of its folder."
        ) from error


def remove(path: Path) -> None:
    """Remove a file.

    Raises:
      FileNotFoundError: there is none.
      StorageError: it cannot be removed.
    """
    try:
        path.unlink()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be removed ({error.strerror or error}). Check the rights of its folder.") from error


def _write_whole(path: Path, content: bytes, replace: bool, durable: bool) -> bool:
    with temporary_file(path.parent / f"{_TEMPORARY}{secrets.token_hex(8)}") as temporary:
        with open(temporary, "xb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            try:
                os.link(temporary, path)  # unlike a rename, it fails where the name is taken
            except FileExistsError:
                return False
        if durable:
            sync(path.parent)
        return True


def sweep(folder: Path) -> None:
    """Remove what writers left in a folder that were killed."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE:
                path.unlink()
