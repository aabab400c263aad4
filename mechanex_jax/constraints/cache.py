"""CompiledConstraint constraints, remembered in memory and on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import threading
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.compiled import CompiledConstraint
from mechanex_jax.constraints.token_index import build
from mechanex_jax.tokenization.vocabulary import Vocabulary

FORMAT = 2  # raise it whenever tables change, or what a front end makes of a text
MEMORY_BYTES, DISK_BYTES = 256 << 20, 1 << 30
_MAGIC = b"mechanex constraint\n"
_ALIGN = 64

_memory: OrderedDict[str, CompiledConstraint] = OrderedDict()
_lock = threading.Lock()


def cached(
    kind: str,
    source: str,
    make: Callable[[], PushdownAutomaton],
    vocabulary: Vocabulary,
    *,
    eos_ids: Sequence[int],
    logits: int | None = None,
    limits: build.IndexLimits = build.DEFAULT_LIMITS,
    folder: Path | None = None,
) -> CompiledConstraint:
    """A compiled constraint, from memory, else from disk, else made now.

    Args:
      kind: which front end reads it.
      source: the constraint in one spelling, with the front end's options: equal sources are the same constraint.
      make: gives its automaton; called only if it has not been compiled before.
      vocabulary, eos_ids, logits, limits: see `build.build`.
      folder: where compiled constraints are kept; None keeps none. What cannot be read there is made anew.

    Raises:
      ConstraintError: whatever `make` and `build.build` raise; nothing is remembered then.
    """
    size = vocabulary.size if logits is None else int(logits)
    parts = [FORMAT, kind, source, vocabulary.fingerprint, sorted(map(int, eos_ids)), size, dataclasses.astuple(limits)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    with _lock:
        found = _memory.pop(key, None)
    if found is None and folder is not None:
        held = _load(folder / f"{key}.tables")
        found = None if held is None else CompiledConstraint(_pushdown(held), vocabulary, held)
    if found is None:
        pushdown = make()
        found = CompiledConstraint(
            pushdown, vocabulary, build.build(pushdown, vocabulary, eos_ids=eos_ids, logits=size, limits=limits)
        )
        if folder is not None:
            _save(folder, key, found.tables)
    _remember(key, found)
    return found


def forget() -> None:
    """Empty the memory; the disk keeps what it has."""
    with _lock:
        _memory.clear()


def _remember(key: str, compiled: CompiledConstraint) -> None:
    with _lock:
        _memory[key] = compiled
        held = sum(entry.tables.bytes for entry in _memory.values())
        while held > MEMORY_BYTES and len(_memory) > 1:
            held -= _memory.popitem(last=False)[1].tables.bytes


def _pushdown(held: build.Tables) -> PushdownAutomaton:
    """The automaton that tables were built from; its rules' names are not kept."""
    rule = np.zeros(len(held.label), np.int32)
    return PushdownAutomaton(
        held.classes, held.target, held.push, held.stay, held.label, held.returns, rule, ("the constraint",), held.start
    )


def _save(folder: Path, key: str, built: build.Tables) -> None:
    """Write a file that appears whole or not at all. A folder that cannot be written is no reason to fail."""
    arrays, values, at = {}, {}, 0
    for field in dataclasses.fields(built):
        value = getattr(built, field.name)
        if isinstance(value, np.ndarray):
            at += -at % _ALIGN
            arrays[field.name] = (value.dtype.str, value.shape, at)
            at += value.nbytes
        else:
            values[field.name] = dict(value) if field.name == "stats" else value
    body = bytearray(at)
    for name, (_, _, offset) in arrays.items():
        data = np.ascontiguousarray(getattr(built, name)).tobytes()
        body[offset : offset + len(data)] = data
    header = json.dumps({"arrays": arrays, "values": values, "length": at, "checksum": zlib.crc32(body)}).encode()
    temporary = folder / f".{key}.{uuid.uuid4().hex[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(_MAGIC + len(header).to_bytes(4, "little") + header + body)
        os.replace(temporary, folder / f"{key}.tables")
        _trim(folder)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _load(path: Path) -> build.Tables | None:
    """The tables of a file; None if there is none, or it is not whole."""
    try:
        data = path.read_bytes()
        start = len(_MAGIC) + 4
        if data[: len(_MAGIC)] != _MAGIC:
            return None
        size = int.from_bytes(data[len(_MAGIC) : start], "little")
        header = json.loads(data[start : start + size])
        body = memoryview(data)[start + size :]
        if len(body) != header["length"] or zlib.crc32(body) != header["checksum"]:
            return None
        fields = dict(header["values"])
        for name, (dtype, shape, offset) in header["arrays"].items():
            count = int(np.prod(shape, dtype=np.int64))
            fields[name] = np.frombuffer(body, np.dtype(dtype), count, offset).reshape(shape)
        with contextlib.suppress(OSError):
            os.utime(path)  # the files used longest ago go first
        return build.Tables(**fields)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _trim(folder: Path) -> None:
    """Delete the files used longest ago, beyond the bound on all of them together."""
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may have deleted it
            status = path.stat()
            files.append((status.st_mtime, status.st_size, path))
    held = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if held <= DISK_BYTES:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        held -= size
