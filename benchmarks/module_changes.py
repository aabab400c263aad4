"""How often one warm `generate` changes module, on its way in and out: the length of the road that a request takes.

python -m benchmarks.module_changes [--path]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType

import mechanex_jax as mx

ROOT = Path(mx.__file__).parent
BEFORE = 155  # of the same call before requests had one road (commit 9f4ecda), in 31 modules
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"]}


def visited(call: Callable[[], object]) -> list[str]:
    """Files of the package in the order in which their functions are entered, neighbours that are equal as one."""
    prefix, files = str(ROOT), []

    def see(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and (name := frame.f_code.co_filename).startswith(prefix):
            files.append(name.removeprefix(prefix + "/"))

    sys.setprofile(see)
    try:
        call()
    finally:
        sys.setprofile(None)
    return [files[0], *(now for before, now in pairwise(files) if now != before)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", action="store_true", help="print the files in the order in which they are entered")
    arguments = parser.parse_args()
    mx.set_execution_mode("local")
    loaded = mx.load()
    vector = {12: [0.01] * loaded.model.spec.width}

    def call() -> object:
        return mx.generation.generate(
            "A person:",
            sampling_method="top-p",
            json_schema=SCHEMA,
            steering_vector=vector,
            steering_strength=1.0,
            max_tokens=24,
            seed=1,
        )

    call()
    files = visited(call)
    if arguments.path:
        print("\n".join(files))
    changes = len(files) - 1
    print(f"changes of module: {changes} in {len(set(files))} modules; before: {BEFORE} ({changes / BEFORE:.0%})")


if __name__ == "__main__":
    main()
