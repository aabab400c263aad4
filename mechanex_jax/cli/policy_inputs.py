"""Inputs of the commands of `policy`: policies, prompts and search spaces, checked before a model is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechanex_jax.cli import base
from mechanex_jax.errors import ArgumentError, Verbatim, expected
from mechanex_jax.storage.json_values import JsonValue, parse_json

if TYPE_CHECKING:
    from mechanex_jax.policy.controls import Policy
    from mechanex_jax.policy.presets import PolicyDict


def _from_schema(option: str) -> PolicyDict:
    from mechanex_jax.policy import presets

    return presets.strict_json_extraction(base.json_file(Path(option)))


def _from_models(option: str) -> PolicyDict:
    from mechanex_jax.policy import presets

    return presets.ensemble_vote([name.strip() for name in option.split(",") if name.strip()])


def _from_preset(option: str) -> PolicyDict:
    from mechanex_jax.policy import presets

    return presets.steering_preset(option)


def _without_option(name: str) -> Callable[[str], PolicyDict]:
    def build(option: str) -> PolicyDict:
        from mechanex_jax.policy import presets

        if option:
            raise expected("POLICY", f"{name}:{option}", f"{name} alone", "It takes nothing after a colon.")
        return getattr(presets, name)()

    return build


# Builders: what each takes after the colon, in words, and the function that builds the policy from it.
_BUILDERS: dict[str, tuple[str, Callable[[str], PolicyDict]]] = {
    "strict_json_extraction": ("the file of a JSON Schema", _from_schema),
    "fast_tool_router": ("", _without_option("fast_tool_router")),
    "diverse_chatbot": ("", _without_option("diverse_chatbot")),
    "ensemble_vote": ("names of models, with commas between them", _from_models),
    "steering_preset": ("the name of a steering preset", _from_preset),
}


def policy(spec: str) -> Policy:
    """The policy that an argument names: a JSON file, a saved one's id, or a builder with what it takes."""
    from mechanex_jax.policy import default, validate

    name, _, option = spec.partition(":")
    path = Path(spec)
    if name in _BUILDERS:
        takes, build = _BUILDERS[name]
        if takes and not option:
            raise expected("POLICY", spec, f"{takes} with it", f"Write {name}:...")
        mapping = build(option)
    elif path.suffix == ".json" or path.is_file():
        mapping = base.json_file(path)
    else:
        try:
            mapping = default.get(spec)
        except ArgumentError as error:
            raise ArgumentError(f"{error} Or a JSON file, or one of {', '.join(_BUILDERS)}.") from None
    return validate.read(mapping)


def prompts(spec: str) -> list[str]:
    """Prompts of a file, of standard input, or the one that was given."""
    path = Path(spec)
    if spec == "-":
        texts = [line for line in base.stdin().splitlines() if line.strip()]
    elif path.suffix == ".jsonl":
        texts = [*_rows(path)]
    elif path.suffix == ".txt":
        texts = [line for line in base.text_file(path).splitlines() if line.strip()]
    else:
        texts = [spec]
    if not texts:
        raise expected("PROMPTS", Verbatim(f"no prompt in {spec}"), "at least one")
    return [checked(prompt) for prompt in texts]


def _rows(path: Path) -> Iterator[str]:
    for number, line in enumerate(base.text_file(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except json.JSONDecodeError as error:
            raise expected(f"{path}, line {number}", line, f"JSON ({error.msg}, column {error.colno})") from error
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise expected(f"{path}, line {number}", row, 'an object with a "prompt", a string')
        yield row["prompt"]


def checked(prompt: str) -> str:
    from mechanex_jax.cli.job import check_text

    check_text("prompt", prompt)
    return prompt


def space(file: Path | None, tries: Sequence[str]) -> dict[str, Any]:
    """The search space of a file, and of PATH=VALUE,VALUE."""
    space = {} if file is None else base.json_file(file)
    if not isinstance(space, dict):
        raise expected("--space", space, "a JSON object of paths and lists of values")
    for item in tries:
        path, equals, values = item.partition("=")
        if not (path and equals):
            raise expected("--try", item, "PATH=VALUE,VALUE, such as sampling.temperature=0.2,0.7")
        space[path.strip()] = _values(values)
    return space


def _values(text: str) -> list[JsonValue]:
    """JSON values with commas between them; what is no JSON is a string."""
    try:
        return parse_json(f"[{text}]")
    except ValueError:
        return [_value(part.strip()) for part in text.split(",")]


def _value(part: str) -> JsonValue:
    try:
        return parse_json(part)
    except ValueError:
        return part
