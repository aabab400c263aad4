"""Records on disk, each in a JSON file of its own, which appears whole or not at all. Any number of processes may use them."""

from __future__ import annotations

import difflib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeGuard

from mechanex_jax.errors import MechanexError, Verbatim, expected
from mechanex_jax.storage.atomic import remove, sweep, write_whole
from mechanex_jax.storage.json_values import parse_json, plain
from mechanex_jax.storage.paths import data_folder
from mechanex_jax.warning import warn

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file names on Windows
_SUFFIX = ".json"
_FORMAT = 1
_SHOWN = 12


class _Envelope(TypedDict):
    """The content of a file; `created` is in seconds since the epoch."""

    format: int
    created: float
    record: dict[str, Any]


class StoreError(MechanexError):
    """A stored file cannot be read; it stays where it is."""


def _usable(id: object) -> TypeGuard[str]:
    """Whether an id is a plain file name everywhere, so that it never reaches out of the folder."""
    return isinstance(id, str) and bool(_ID.fullmatch(id)) and not id.endswith(".") and not _DEVICE.fullmatch(id)


class JsonStore:
    """A folder of records, which are dicts, by id.

    Args:
      name: of the folder in the user's data folder, which is looked up at each use.
      noun: what errors call a record, such as "policy".
      prefix: of new ids, which have eight hexadecimal digits more.
      folder: another place than the user's data folder.
      random_hex: (bytes) -> twice as many random hexadecimal digits, for new ids.
    """

    def __init__(
        self,
        name: str,
        noun: str,
        prefix: str,
        folder: str | os.PathLike[str] | None = None,
        *,
        random_hex: Callable[[int], str] = secrets.token_hex,
    ):
        self._name, self._noun, self._prefix, self._random_hex = name, noun, prefix, random_hex
        self._folder = Path(folder) if folder is not None else None

    @property
    def folder(self) -> Path:
        return self._folder or data_folder() / self._name

    def ids(self) -> list[str]:
        """All ids, sorted."""
        paths = self.folder.glob(f"*{_SUFFIX}") if self.folder.is_dir() else ()
        return sorted(path.name.removesuffix(_SUFFIX) for path in paths if _usable(path.name.removesuffix(_SUFFIX)))

    def save(self, record: Mapping[str, object], id: str | None = None) -> str:
        """Keep a record.

        Args:
          record: anything that JSON can hold; its "id" becomes the id.
          id: where; a record that is there gives way, and its place in the order stays. None is a new id.

        Returns:
          The id.

        Raises:
          ArgumentError: an id that is no plain name, or a part that JSON cannot hold.
          StorageError: the disk is full, or the like.
        """
        if id is not None and not _usable(id):
            raise expected(
                f"{self._noun} id", id, "1 to 128 letters, digits, dots, dashes and underscores, a letter or digit first"
            )
        if not isinstance(record, Mapping):
            raise expected(self._noun, record, "a mapping")
        content = plain(self._noun, record)
        sweep(self.folder)
        if id is not None:
            write_whole(self._path(id), self._bytes(content, id, self._created(id)), replace=True)
            return id
        while True:
            new = f"{self._prefix}{self._random_hex(4)}"
            if write_whole(self._path(new), self._bytes(content, new, time.time()), replace=False):
                return new

    def get(self, id: str) -> dict[str, Any]:
        """The record of an id, with its "id".

        Raises:
          ArgumentError: there is none; the message lists those there are.
          StoreError: its file is corrupt; it stays where it is.
        """
        if not _usable(id):
            raise self._unknown(id)
        try:
            return self._read(id)["record"]
        except FileNotFoundError:
            raise self._unknown(id) from None

    def list(self) -> list[dict[str, Any]]:
        """All records, oldest first. A corrupt file is warned of by name, and left alone."""
        envelopes = []
        for id in self.ids():
            try:
                envelopes.append((self._read(id), id))
            except FileNotFoundError:  # deleted meanwhile
                continue
            except StoreError as error:
                warn(str(error))
        return [envelope["record"] for envelope, _ in sorted(envelopes, key=lambda item: (item[0]["created"], item[1]))]

    def delete(self, id: str) -> None:
        """Remove a record, corrupt or not.

        Raises:
          ArgumentError: there is none of this id.
        """
        if not _usable(id):
            raise self._unknown(id)
        try:
            remove(self._path(id))
        except FileNotFoundError:
            raise self._unknown(id) from None

    def _path(self, id: str) -> Path:
        return self.folder / f"{id}{_SUFFIX}"

    def _bytes(self, record: Mapping[str, object], id: str, created: float) -> bytes:
        envelope = {"format": _FORMAT, "created": created, "record": {**record, "id": id}}
        return json.dumps(envelope, indent=2, allow_nan=False).encode()

    def _created(self, id: str) -> float:
        """When the record was first kept; now, if there is none or its file is corrupt."""
        try:
            return self._read(id)["created"]
        except (FileNotFoundError, StoreError):
            return time.time()

    def _read(self, id: str) -> _Envelope:
        path = self._path(id)
        try:
            envelope = parse_json(path.read_bytes())
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise self._corrupt(path, str(error)) from None
        if not isinstance(envelope, dict) or not isinstance(envelope.get("record"), dict):
            raise self._corrupt(path, "it holds no record")
        created = envelope.get("created")
        if isinstance(created, bool) or not isinstance(created, (int, float)):
            raise self._corrupt(path, "it says not when it was made")
        if envelope.get("format") != _FORMAT:
            raise self._corrupt(path, f"its format is {envelope.get('format')!r}, not {_FORMAT}")
        record = {**envelope["record"], "id": id}  # the file's name counts, whatever was copied where
        return {"format": _FORMAT, "created": created, "record": record}

    def _corrupt(self, path: Path, why: str) -> StoreError:
        return StoreError(f"{path}: not a readable {self._noun} ({why}). Repair the file, or delete this {self._noun}.")

    def _unknown(self, id: object) -> Exception:
        ids = self.ids()
        if not ids:
            return expected(
                f"{self._noun} id", Verbatim(repr(id)), f"the id of a stored {self._noun}; {self.folder} holds none"
            )
        shown = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
        near = difflib.get_close_matches(str(id)[:200], ids, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else ""
        return expected(f"{self._noun} id", id, f"the id of a stored {self._noun}: {shown}", hint)
