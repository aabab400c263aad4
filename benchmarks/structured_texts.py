"""Texts that a user would want: 200 at temperature 1 over 40 schemas as users have them, with the default model.

    python -m benchmarks.structured_texts [--per-schema 5] [--max-tokens 160] [--show 10]

The schemas are pydantic models, OpenAI's tools, and parts of well-known package and configuration files, given as they are to
`generate_batch`. Counts the texts that parse and validate under `jsonschema`, those without a key that the schema doesn't list
(of a class or a strict tool), without a key that comes twice, and without a number of more than 15 digits; prints some of them.
"""

from __future__ import annotations

import argparse
import enum
import json
import time
from typing import Any, Literal

import pydantic
from jsonschema import Draft202012Validator, FormatChecker

import mechanex_jax as mx
from mechanex_jax.constraints.sources import read_schema

WORDS = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
TEXT, FLAG, WHOLE = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


def _models() -> dict[str, Any]:
    """Pydantic models, one for each line: its name and the annotations of its fields."""
    address = pydantic.create_model("Address", street=(str, ...), city=(str, ...), postcode=(str | None, None))
    item = pydantic.create_model("Item", name=(str, ...), quantity=(int, ...), price=(float, ...))
    fields: dict[str, dict[str, Any]] = {
        "Person": {"name": (str, ...), "age": (int, ...), "email": (str | None, None)},
        "Customer": {"name": (str, ...), "address": (address, ...)},
        "Order": {"number": (int, ...), "items": (list[item], ...)},
        "Review": {"stars": (int, pydantic.Field(ge=1, le=5)), "text": (str, pydantic.Field(max_length=60))},
        "Recipe": {"title": (str, ...), "minutes": (int, ...), "ingredients": (list[str], ...)},
        "Ticket": {"title": (str, ...), "level": (Level, ...), "open": (bool, True)},
        "Weather": {"city": (str, ...), "celsius": (float, ...), "sky": (Literal["clear", "cloudy", "rain"], ...)},
        "Book": {"title": (str, ...), "author": (str, ...), "year": (int, pydantic.Field(ge=1450, le=2030))},
        "Event": {"name": (str, ...), "day": (str, pydantic.Field(pattern=r"^\d{4}-\d{2}-\d{2}$")), "place": (address, ...)},
        "Film": {"title": (str, ...), "cast": (set[str], ...), "rating": (float, pydantic.Field(ge=0, le=10))},
        "Invoice": {"total": (float, ...), "currency": (Literal["EUR", "USD"], ...), "lines": (list[item], ...)},
        "Answer": {"answer": (bool, ...), "reason": (str, ...)},
        "Settings": {"theme": (str, "dark"), "options": (dict[str, int], ...)},
        "Shape": {"side": (float, pydantic.Field(gt=0)), "colour": (tuple[int, int, int], ...)},
    }
    return {name: pydantic.create_model(name, **of) for name, of in fields.items()}


def _tools() -> dict[str, Any]:
    """OpenAI's tools, strict and not."""
    parameters: dict[str, dict[str, Any]] = {
        "get_weather": {"location": TEXT, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "search": {"query": TEXT, "limit": {"type": "integer", "minimum": 1, "maximum": 20}},
        "send_email": {"to": TEXT, "subject": TEXT, "body": TEXT},
        "book_table": {"people": WHOLE, "time": TEXT, "outside": FLAG},
        "convert": {"amount": {"type": "number"}, "from": TEXT, "to": TEXT},
        "play_music": {"artist": TEXT, "genres": WORDS},
        "set_alarm": {"hour": {"type": "integer", "minimum": 0, "maximum": 23}, "days": WORDS},
        "create_issue": {"title": TEXT, "labels": WORDS, "priority": {"enum": ["low", "high"]}},
        "translate": {"text": TEXT, "language": TEXT},
        "run_query": {"table": TEXT, "where": {"type": "object", "additionalProperties": TEXT}},
        "add_contact": {"name": TEXT, "phone": TEXT},
        "navigate": {"destination": TEXT, "avoid": {**WORDS, "items": {"enum": ["tolls", "ferries"]}}},
        "remember": {"fact": TEXT},
    }  # fmt: skip
    return {
        name: {
            "type": "function",
            "function": {
                "name": name,
                "strict": index % 2 == 0,
                "parameters": {"type": "object", "properties": properties, "required": list(properties)},
            },
        }
        for index, (name, properties) in enumerate(parameters.items())
    }


def _files() -> dict[str, Any]:
    """Parts of package and configuration files: open objects, maps and recursion, written after their public schemas."""
    maps = {"type": "object", "additionalProperties": TEXT}
    job = {
        "type": "object",
        "properties": {"runs-on": TEXT, "steps": {"type": "array", "items": maps}},
        "required": ["runs-on"],
    }
    properties: dict[str, dict[str, Any]] = {
        "package.json": {"name": TEXT, "version": {**TEXT, "pattern": r"^\d+\.\d+\.\d+$"}, "scripts": maps, "keywords": WORDS},
        "dependencies": {"dependencies": maps, "devDependencies": maps},
        "composer.json": {"name": TEXT, "require": maps, "minimum-stability": {"enum": ["dev", "stable"]}},
        "tsconfig.json": {
            "compilerOptions": {"type": "object", "properties": {"strict": FLAG, "target": TEXT}},
            "files": WORDS,
        },
        "workflow": {"name": TEXT, "on": WORDS, "jobs": {"type": "object", "additionalProperties": job}},
        "compose": {"services": {"type": "object", "additionalProperties": {"properties": {"image": TEXT, "ports": WORDS}}}},
        "eslint": {"root": FLAG, "rules": {"type": "object", "additionalProperties": {"enum": ["off", "warn", "error"]}}},
        "renovate": {"extends": WORDS, "prHourlyLimit": WHOLE, "enabled": FLAG},
        "pyproject": {"project": {"type": "object", "properties": {"name": TEXT, "dependencies": WORDS}, "required": ["name"]}},
        "deployment": {"kind": {"const": "Deployment"}, "metadata": {"type": "object", "properties": {"labels": maps}}},
        "manifest": {"name": TEXT, "permissions": WORDS, "manifest_version": {"const": 3}},
        "schema": {
            "type": {"enum": ["object", "string"]},
            "properties": {"additionalProperties": {"$ref": "#"}, "type": "object"},
        },
        "any object": {},
    }
    return {
        name: {"type": "object", "properties": of, "required": list(of)[:2], "maxProperties": len(of) + 3}
        for name, of in properties.items()
    }


def repeats(text: str) -> bool:
    """Whether some object of a JSON text has a key twice."""
    found = False

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal found
        found |= len(dict(members)) < len(members)
        return dict(members)

    json.loads(text, object_pairs_hook=pairs)
    return found


def closed(schema: Any) -> Any:
    """The schema with `additionalProperties: false` wherever it lists properties and says nothing about others."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(part) for name, part in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    return inner if not named else {"additionalProperties": False, **inner}


def long_number(text: str) -> bool:
    """Whether some number of a JSON text has more than 15 digits."""
    digits = lambda number: sum(map(str.isdigit, number.lower().partition("e")[0].removeprefix("-").removeprefix("0.")))
    numbers: list[str] = []
    keep = lambda number: numbers.append(number) or 0
    json.loads(text, parse_int=keep, parse_float=keep)
    return any(digits(number) > 15 for number in numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-schema", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--show", type=int, default=10)
    options = parser.parse_args()
    mx.set_execution_mode("local")
    mx.load()
    sources = {**_models(), **_tools(), **_files()}
    rows = [(name, source) for name, source in sources.items() for _ in range(options.per_schema)]
    begun = time.perf_counter()
    texts = mx.generation.generate_batch(
        [f"Write an example of {name} as JSON." for name, _ in rows],
        json_schema=[source for _, source in rows],
        sampling_method="guided-generation",
        top_p=1.0,
        temperature=1.0,
        chat=True,
        max_tokens=options.max_tokens,
        seed=0,
    )
    seconds = time.perf_counter() - begun
    counts = dict.fromkeys(("valid", "closed", "asked to be closed", "without a repeated key", "without a long number"), 0)
    for (name, source), text in zip(rows, texts, strict=True):
        read = read_schema(source)
        value = json.loads(text)
        checks = {
            "valid": Draft202012Validator(read.schema, format_checker=FormatChecker()).is_valid(value),
            "closed": read.closed and Draft202012Validator(closed(read.schema)).is_valid(value),
            "asked to be closed": read.closed,
            "without a repeated key": not repeats(text),
            "without a long number": not long_number(text),
        }
        for check, true in checks.items():
            counts[check] += bool(true)
        if not checks["valid"] or checks["closed"] < read.closed or not checks["without a repeated key"]:
            print(f"WRONG {name}: {text}")
    print(
        f"{len(texts)} texts over {len(sources)} schemas, {seconds:.0f} s: " + ", ".join(f"{n} {c}" for c, n in counts.items())
    )
    for index in range(0, len(texts), max(1, len(texts) // options.show))[: options.show] if options.show else ():
        print(f"{rows[index][0]}: {texts[index]}")


if __name__ == "__main__":
    main()
