"""What real JSON schemas cost to compile, cold and in one process: those of SchemaStore in `benchmarks/data/schemas`.

    python -m benchmarks.real_schemas [FILE] [--every N] [--each]

CPU seconds from the schema to its tables for the default model's vocabulary, without the disk's cache; what one compile leaves
in memory the next may use. FILE has one schema a line, as `{"name": ..., "schema": ...}`. llguidance, where it is installed, is
timed to its first mask in the same run; it works lazily, so most of its work comes while decoding. Peaks are those of the
resident memory of the whole process, model and libraries included; llguidance's schemas come after ours.
"""

from __future__ import annotations

import argparse
import collections
import json
import lzma
import os
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

import mechanex_jax as mx
from benchmarks.constraint_peers import PEERS
from mechanex_jax.constraints import cache, compiler
from mechanex_jax.constraints.sources import JsonOptions

CORPUS = Path(__file__).parent / "data" / "schemas" / "schemastore.jsonl.xz"


def corpus(path: Path) -> list[tuple[str, Any]]:
    """Names and schemas of a file."""
    content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    entries = [json.loads(line) for line in content.decode().splitlines()]
    return [(entry["name"], entry["schema"]) for entry in entries]


def peak() -> float:
    """Peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(call: Callable[[], Any]) -> tuple[float, Any, str]:
    """CPU seconds, the result, and the reason where there is none."""
    begun = time.process_time()
    try:
        result, reason = call(), ""
    except Exception as error:  # each library has its own
        result, reason = None, str(error)
    return time.process_time() - begun, result, reason


def report(title: str, times: list[float], reasons: list[str]) -> None:
    """One line of figures, and how many were refused and why."""
    held = [spent for spent, reason in zip(times, reasons, strict=True) if not reason]
    figures = " | ".join(f"{value:7.3f}" for value in (*np.percentile(held, [50, 75, 95]), max(held)))
    print(f"{title:18} | {len(held):4d} | {figures} | {sum(spent > 1 for spent in held):5d} | {peak():7.0f}")
    refused = collections.Counter(re.sub(r"#\S*|'[^']*'|\d[\d,]*", "...", reason)[:88] for reason in reasons if reason)
    for reason, count in refused.most_common(8):
        print(f"    refused {count:3d}: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=CORPUS)
    parser.add_argument("--every", type=int, default=1, help="compile only every so many")
    parser.add_argument("--each", action="store_true", help="a line for each schema")
    options = parser.parse_args()
    mx.set_execution_mode("local")
    target = compiler.Target.of(mx.load())
    schemas = corpus(options.file)[:: options.every]

    def ours(schema: Any) -> Any:
        read = compiler.FRONT_ENDS["json_schema"](schema, JsonOptions())
        ends = {"eos_ids": target.eos_ids, "logits": target.logits}
        return cache.cached("json_schema", read.key, read.compile, target.vocabulary, **ends)

    ours({"properties": {"name": {"type": "string"}, "age": {"type": "integer"}}})  # imports, and the vocabulary's trie
    print(f"{len(schemas)} schemas; CPU seconds, MB; {peak():.0f} MB before the first")
    print("                   | held |  median |     75% |     95% | largest | > 1 s |    peak")
    results = [timed(lambda schema=schema: ours(schema)) for _, schema in schemas]
    if options.each:
        for (name, _), (spent, compiled, reason) in zip(schemas, results, strict=True):
            print(f"{name[:44]:44} | {spent:7.3f} | {int(compiled.stats['states']) if compiled else reason[:60]}")
    report("ours", [spent for spent, _, _ in results], [reason for _, _, reason in results])
    for name, make in PEERS.items():
        peer = make(target)
        mask = np.zeros((1, peer.words), np.int32)
        found = [timed(lambda s=s: peer.fill(peer.matcher(peer.compile("json_schema", s)), mask)) for _, s in schemas]  # noqa: B023
        report(f"{name}, first mask", [spent for spent, _, _ in found], [reason for _, _, reason in found])


if __name__ == "__main__":
    main()
