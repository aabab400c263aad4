"""Compiled constraints, remembered in memory and on disk.

On disk a constraint is a safetensors file of the arrays of its tables. The file's metadata holds the other fields as JSON,
and a checksum of the whole file, header and body: what a broken disk or a torn write changed is made anew, never used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import re
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mechanex_jax.constraints.automata.pushdown import PushdownAutomaton
from mechanex_jax.constraints.compiled import CompiledConstraint
from mechanex_jax.constraints.token_index import build
from mechanex_jax.storage.atomic import write_whole
from mechanex_jax.tokenization.vocabulary import Vocabulary

FORMAT = 4  # raise it whenever tables change, or what a front end makes of a text
MEMORY_BYTES, DISK_BYTES = 256 << 20, 1 << 30
_SUFFIX = ".safetensors"
_CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{8})"')
_NO_CHECKSUM = "00000000"  # stands in the file while its checksum is taken

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
    """Take a compiled constraint from memory, else from disk, else make it.

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
        compiled = _memory.get(key)
        if compiled is not None:
            _memory.move_to_end(key)
            return compiled
    if folder is not None:
        tables = _load(folder / f"{key}{_SUFFIX}")
        compiled = None if tables is None else CompiledConstraint(_automaton_of(tables), vocabulary, tables)
    if compiled is None:
        with _no_collection():
            automaton = make()
            tables = build.build(automaton, vocabulary, eos_ids=eos_ids, logits=size, limits=limits)
        compiled = CompiledConstraint(automaton, vocabulary, tables)
        if folder is not None:
            _save(folder / f"{key}{_SUFFIX}", tables)
    _remember(key, compiled)
    return compiled


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the cyclic garbage collector: a compile makes many objects and few cycles, and jax's hook in it loses Ctrl-C."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
            gc.collect(0)  # what was made since, and nothing older


def forget() -> None:
    """Empty the memory; the disk keeps what it has."""
    with _lock:
        _memory.clear()


def _remember(key: str, compiled: CompiledConstraint) -> None:
    with _lock:
        _memory[key] = compiled
        total = sum(entry.tables.bytes for entry in _memory.values())
        while total > MEMORY_BYTES and len(_memory) > 1:
            total -= _memory.popitem(last=False)[1].tables.bytes


def _automaton_of(tables: build.Tables) -> PushdownAutomaton:
    """The automaton that tables were built from; its rules' names are not kept."""
    return PushdownAutomaton(
        classes=tables.classes,
        target=tables.target,
        push=tables.push,
        stay=tables.stay,
        label=tables.label,
        returns=tables.returns,
        rule=np.zeros(len(tables.label), np.int32),
        names=("the constraint",),
        start=tables.start,
        longest=tables.longest,
        boundary=tables.boundary,
    )


def to_bytes(tables: build.Tables) -> bytes:
    """Write tables as the content of a file."""
    from safetensors.numpy import save

    fields = dict(vars(tables)) | {"stats": dict(tables.stats)}
    arrays = {name: np.ascontiguousarray(value) for name, value in fields.items() if isinstance(value, np.ndarray)}
    values = {name: value for name, value in fields.items() if name not in arrays}
    content = save(arrays, {"values": json.dumps(values), "checksum": _NO_CHECKSUM})
    match = _CHECKSUM.search(content)
    assert match is not None, "safetensors writes its metadata as compact JSON"
    return b"%s%08x%s" % (content[: match.start(1)], zlib.crc32(content), content[match.end(1) :])


def from_bytes(content: bytes) -> build.Tables | None:
    """Read tables from the content of a file; None if it is not exactly what was written."""
    match = _CHECKSUM.search(content)
    if match is None:
        return None
    checksum = zlib.crc32(_NO_CHECKSUM.encode(), zlib.crc32(content[: match.start(1)]))
    checksum = zlib.crc32(memoryview(content)[match.end(1) :], checksum)
    if b"%08x" % checksum != match[1]:
        return None
    from safetensors.numpy import load

    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return build.Tables(**load(content), **json.loads(header["__metadata__"]["values"]))


def _save(path: Path, tables: build.Tables) -> None:
    """Write a file that appears whole or not at all. A folder that cannot be written is no reason to fail."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_bytes(tables), replace=True, durable=False)
        _trim(path.parent)


def _load(path: Path) -> build.Tables | None:
    """The tables of a file; None if there is none, or it is not whole."""
    try:
        tables = from_bytes(path.read_bytes())
    except OSError:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the files used longest ago go first
    return tables


def _trim(folder: Path) -> None:
    """Delete the files used longest ago, beyond the bound on all of them together."""
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may have deleted it
            status = path.stat()
            files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= DISK_BYTES:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
