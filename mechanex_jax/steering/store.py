"""`Store`: vectors on disk, one file each, which appears whole or not at all. Any number of processes may use a folder."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.steering.vector import SteeringVector, VectorError
from mechanex_jax.storage.atomic import remove, sweep, write_whole
from mechanex_jax.storage.paths import data_folder
from mechanex_jax.warning import warn

_ID = re.compile(r"sv_[0-9a-f]{8}")
_SUFFIX = ".safetensors"
_SHOWN = 12


class Store:
    """Vectors by id: `sv_` and eight hexadecimal digits.

    Args:
      folder: where the files are; None is `steering` in the user's data folder, looked up at each use.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None):
        self._folder = Path(folder) if folder is not None else None

    @property
    def folder(self) -> Path:
        return self._folder or data_folder() / "steering"

    def ids(self) -> list[str]:
        """All ids, sorted."""
        paths = self.folder.glob(f"sv_*{_SUFFIX}") if self.folder.is_dir() else ()
        return sorted(path.stem for path in paths if _ID.fullmatch(path.stem))

    def add(self, vector: SteeringVector) -> str:
        """Keep a vector; returns its new id."""
        content = vector.to_bytes()
        sweep(self.folder)
        while True:
            id = f"sv_{secrets.token_hex(4)}"
            if write_whole(self.folder / f"{id}{_SUFFIX}", content, replace=False):
                return id

    def get(self, id: str) -> SteeringVector:
        """The vector of an id.

        Raises:
          ArgumentError: there is none; the message lists those there are.
          VectorError: its file is corrupt or cannot be read; it stays where it is.
        """
        path = self._path(id)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise self._unknown(id) from None
        except OSError as error:
            raise VectorError(f"{path}: cannot be read ({error.strerror or error}). Delete it, or check its rights.") from error
        return SteeringVector.from_bytes(content, str(path))

    def items(self) -> Iterator[tuple[str, SteeringVector]]:
        """All vectors, oldest first. A corrupt file is warned of by name, and left alone."""
        vectors: list[tuple[str, SteeringVector]] = []
        for id in self.ids():
            try:
                content = self._path(id).read_bytes()
                vectors.append((id, SteeringVector.from_bytes(content, str(self._path(id)))))
            except FileNotFoundError:  # deleted meanwhile
                continue
            except (VectorError, OSError) as error:
                warn(str(error))
        return iter(sorted(vectors, key=lambda item: (item[1].created, item[0])))

    def delete(self, id: str) -> None:
        """Remove a vector, corrupt or not.

        Raises:
          ArgumentError: there is none of this id.
        """
        try:
            remove(self._path(id))
        except FileNotFoundError:
            raise self._unknown(id) from None

    def _path(self, id: str) -> Path:
        # Checked in full: an id never reaches out of the folder.
        if not isinstance(id, str) or not _ID.fullmatch(id):
            raise self._unknown(id)
        return self.folder / f"{id}{_SUFFIX}"

    def _unknown(self, id: object) -> Exception:
        ids = self.ids()
        shown = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
        known = f"the id of a stored vector: {shown}" if ids else f"the id of a stored vector; {self.folder} holds none"
        return expected("steering_vector", id if ids else Verbatim(repr(id)), known, "Make one with generate_vectors.")
