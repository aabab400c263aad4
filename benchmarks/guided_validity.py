"""How often generated JSON is valid: 200 texts at temperature 1 over 40 schemas, constrained and unconstrained.

    python -m benchmarks.guided_validity [--per-schema 5] [--max-tokens 160]

The same prompts, seeds and method on both sides; the unconstrained side sees the schema in its prompt. A text counts when the
whole of it parses and validates under `jsonschema`; for the unconstrained side the first JSON value of the text counts as well,
in a column of its own. Prints a line per schema and the totals.
"""

from __future__ import annotations

import argparse
import json
import time

from jsonschema import Draft202012Validator, FormatChecker

import mechanex_jax as mx
from benchmarks.schemas import SCHEMAS


def valid(schema: object, text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return Draft202012Validator(schema, format_checker=FormatChecker()).is_valid(value)


def first_value(text: str) -> str:
    """The first JSON object or array in a text, or the text."""
    starts = [at for at in (text.find("{"), text.find("[")) if at >= 0]
    if not starts:
        return text.strip()
    try:
        _, end = json.JSONDecoder().raw_decode(text, min(starts))
    except ValueError:
        return text
    return text[min(starts) : end]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-schema", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=160)
    options = parser.parse_args()
    mx.set_execution_mode("local")
    mx.load()
    rows = [(name, prompt, schema) for name, prompt, schema in SCHEMAS for _ in range(options.per_schema)]
    prompts = [f"{prompt} Answer with JSON for this schema: {json.dumps(schema)}" for _, prompt, schema in rows]
    common = {"chat": True, "temperature": 1.0, "max_tokens": options.max_tokens, "seed": 0}
    begun = time.perf_counter()
    schemas = [schema for _, _, schema in rows]
    guided = mx.generation.generate_batch(
        prompts, sampling_method="guided-generation", top_p=1.0, json_schema=schemas, **common
    )
    middle = time.perf_counter()
    free = mx.generation.generate_batch(prompts, sampling_method="top-p", top_p=1.0, **common)
    print(f"{len(rows)} texts each; {middle - begun:.0f} s constrained, {time.perf_counter() - middle:.0f} s unconstrained")
    print(f"{'schema':18} | constrained | unconstrained | its first JSON value | a constrained text")
    totals = [0, 0, 0]
    for name, _, schema in SCHEMAS:
        here = [i for i, row in enumerate(rows) if row[0] == name]
        counts = [
            sum(valid(schema, guided[i]) for i in here),
            sum(valid(schema, free[i]) for i in here),
            sum(valid(schema, first_value(free[i])) for i in here),
        ]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        print(f"{name:18} | {counts[0]:11d} | {counts[1]:13d} | {counts[2]:20d} | {guided[here[0]][:70]}")
    print(f"{'all':18} | " + " | ".join(f"{total / len(rows):.1%}" for total in totals))


if __name__ == "__main__":
    main()
