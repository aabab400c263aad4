"""The output file of a batch job: one line for each finished row, safe whatever happens to the process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechanex_jax.errors import ArgumentError, MechanexError, expected
from mechanex_jax.storage.atomic import temporary_file
from mechanex_jax.storage.json_values import JsonValue

try:
    import fcntl
except ImportError:  # Windows: two jobs on one output are not told apart there
    fcntl = None

_LINE_START = b'{"index": '  # of every line that is written here


class Output:
    """The lines of an output file, which one process at a time holds.

    Args:
      path: the file; it is made if it is absent.
      overwrite: disregard the lines that it has.

    Attributes:
      offsets: where the line of each row begins, by the row's index.
      batch_seed: the seed in its lines, or None without lines.

    Raises:
      ArgumentError: no file, no folder for it, or lines that no batch wrote.
      MechanexError: another process is writing it.
    """

    def __init__(self, path: Path, overwrite: bool):
        self._path = path.resolve()  # sorting replaces the file, not a link to it
        created = not self._path.exists()
        if not created and not self._path.is_file():
            raise expected("output", str(path), "a file, or the name of one to be made")
        if not self._path.parent.is_dir():
            raise expected("output", str(path), "a file in a folder that exists")
        self._file = open(self._path, "a+b")  # noqa: SIM115 (closed by close)
        self._created = created
        self.offsets: dict[int, int] = {}
        self.batch_seed: int | None = None
        self._end = 0
        try:
            self._lock()
            if not overwrite:
                self._scan()
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MechanexError(f"{self._path}: another process is writing it. Wait, or name another output.") from error
        except OSError:
            pass  # some network drives know no locks

    def _scan(self) -> None:
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                torn = line.rstrip(b"\0")  # a power cut can leave zeros
                if not (torn.startswith(_LINE_START) or _LINE_START.startswith(torn)):
                    raise self._foreign(number)
                return
            try:
                item = json.loads(line)
                index = item["index"]
                self.batch_seed = item["batch_seed"] if self.batch_seed is None else self.batch_seed
            except (ValueError, RecursionError, TypeError, KeyError) as error:
                raise self._foreign(number) from error
            if not line.startswith(_LINE_START) or type(index) is not int or index < 0 or index in self.offsets:
                raise self._foreign(number)
            self.offsets[index] = self._end
            self._end += len(line)

    def _foreign(self, number: int) -> ArgumentError:
        return ArgumentError(
            f"{self._path}, line {number}: got no line of a batch, or a row for the second time. Name another output, "
            "or overwrite this one."
        )

    def read(self, index: int) -> dict[str, JsonValue]:
        """The finished row of this index."""
        self._file.seek(self.offsets[index])
        return json.loads(self._file.readline())

    def begin(self) -> None:
        """Drop a torn last line, or everything that is to be overwritten."""
        self._file.truncate(self._end)

    def append(self, items: Sequence[Mapping[str, Any]]) -> None:
        """Add finished rows. When this returns, they survive whatever happens to the process or the machine."""
        lines = [json.dumps(item, ensure_ascii=False).encode() + b"\n" for item in items]
        self._file.write(b"".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())
        for item, line in zip(items, lines, strict=True):
            self.offsets[item["index"]] = self._end
            self._end += len(line)

    def sort(self) -> None:
        """Put the lines in order, in a new file that takes the place of the old one at once."""
        order = sorted(self.offsets)
        if order == sorted(order, key=self.offsets.__getitem__):
            return
        with temporary_file(self._path.with_name(f".{self._path.name}.sorting")) as temporary:
            with open(temporary, "wb") as file:
                for index in order:
                    self._file.seek(self.offsets[index])
                    file.write(self._file.readline())
                file.flush()
                os.fsync(file.fileno())
            shutil.copymode(self._path, temporary)
            self._file.close()  # Windows replaces no open file
            os.replace(temporary, self._path)

    def close(self) -> None:
        """Close the file; one that was made here and has no line is removed."""
        if self._created and self._end == 0 and not self._file.closed:  # leave nothing where nothing ran
            with contextlib.suppress(OSError):
                self._path.unlink()
        self._file.close()
