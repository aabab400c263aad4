"""JSON Schema's own test suite through the constraint compiler: instances right, falsely accepted, falsely rejected, refused.

    python -m benchmarks.json_schema_suite FOLDER [--dialect URI] [--each]

FOLDER holds the suite's files of one draft, such as `tests/draft2020-12` of the JSON-Schema-Test-Suite (jsonschema's source
distribution has a copy under `json/`). An instance is written as compact JSON with its keys in the schema's order. Formats are
enforced here, so the suite's cases that take an invalid format for an annotation count as falsely rejected. A schema that no
value satisfies is refused by the compiler, which rejects all instances, rightly. `--dialect URI` is for other drafts: their
schemas do not say which they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from mechanex_jax.constraints import json_schema
from mechanex_jax.constraints.automata.matcher import Matcher
from mechanex_jax.constraints.sources import JsonOptions
from mechanex_jax.errors import ConstraintError

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from schema_tools import reorder


def verdict(pushdown: Any, schema: Any, instance: Any) -> bool:
    text = json.dumps(reorder(schema, instance), separators=(",", ":"), ensure_ascii=False)
    matcher = Matcher(pushdown)
    return matcher.feed(text.encode()) and matcher.accepts()


def outcome(schema: Any, tests: list[dict[str, Any]]) -> list[str]:
    try:
        pushdown = json_schema.pushdown_automaton(schema, options=JsonOptions(numbers="any"))
    except ConstraintError as error:
        if "No value satisfies" not in str(error):
            return ["refused"] * len(tests)
        return ["falsely rejected" if test["valid"] else "right" for test in tests]
    names = {
        (True, True): "right",
        (False, False): "right",
        (True, False): "falsely accepted",
        (False, True): "falsely rejected",
    }
    return [names[verdict(pushdown, schema, test["data"]), test["valid"]] for test in tests]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dialect", help="$schema of those schemas that have none")
    parser.add_argument("--each", action="store_true", help="name every instance that is not right")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    for path in sorted(options.folder.glob("*.json")):
        for case in json.loads(path.read_text()):
            schema = case["schema"]
            if options.dialect and isinstance(schema, dict):
                schema = {"$schema": options.dialect, **schema}
            for test, found in zip(case["tests"], outcome(schema, case["tests"]), strict=True):
                counts[found] += 1
                if options.each and found != "right":
                    print(f"{found}: {path.name}: {case['description']}: {test['description']}")
    print(f"{counts.total()} instances: " + ", ".join(f"{count} {name}" for name, count in counts.most_common()))


if __name__ == "__main__":
    main()
