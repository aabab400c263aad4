"""Arguments of `generate` as a policy's fields: which is which, and what happens where both say something."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from mechanex_jax.engine.config import PARAMETERS
from mechanex_jax.errors import ArgumentError, expected
from mechanex_jax.policy.controls import Policy
from mechanex_jax.policy.tool_schema import as_schema
from mechanex_jax.storage.json_values import copied, plain

# Every argument that has a field. Those not here, such as max_tokens and seed, belong to the call alone. A steering vector goes
# to "steering.vector" as a mapping, and to "steering.vector_id" as the id of a stored one.
FIELDS = {"model": "model.model"} | {name: declared.policy for name, declared in PARAMETERS.items() if declared.policy}
_DEFAULTS = Policy()
_STEERED = ("steering.vector", "steering.vector_id")

# Arguments that bring their verifiers where there is no policy that lists some. The first that is given counts, tests besides.
_VERIFIERS = {"json_schema": ["syntax", "json_schema"], "regex_pattern": ["regex"]}


def merge(policy: Any, arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A policy and the arguments of a call in one mapping, for `read`.

    Arguments with another value than their default fill what the policy leaves out. Left out is a field that is not there,
    is None where None is its default, or says "default" for the model.

    Args:
      policy: a mapping or a `Policy`. None is no policy: then `retry_on_failure` is 0, a schema, a pattern and tests bring
        their verifiers, and `steering_strength` means what it means in `generate` (0 is a preset's own).
      arguments: of the call; those without a field are ignored.
      defaults: of the same arguments.

    Raises:
      ArgumentError: an argument and a field of the policy disagree; the message names both.
    """
    given = policy.given if isinstance(policy, Policy) else policy
    if given is not None and not isinstance(given, Mapping):
        raise expected("policy", given, "a mapping of sections")
    said = {name: value for name, value in arguments.items() if name in FIELDS and not _same(value, defaults.get(name))}
    merged = _base(said, arguments, defaults) if given is None else copied(given)
    for name, value in said.items():
        if name == "model" and not isinstance(value, str):  # a loaded model itself, which no policy can name
            continue
        if name == "stop" and isinstance(value, str):
            value = [value]
        path = _STEERED[isinstance(value, str)] if name == "steering_vector" else FIELDS[name]
        _fill(merged, name, path, value)
    return merged


def _base(said: Mapping[str, Any], arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What a call without a policy starts from."""
    base: dict[str, Any] = {"optimization": {"retry_on_failure": 0}}
    enabled = next((names for name, names in _VERIFIERS.items() if name in said), [])
    if said.get("code_unit_tests"):
        enabled = [*enabled, "unit_tests"]
    if enabled:
        base["verifiers"] = {"enabled": list(enabled)}
    if "steering_vector" in said or "steering_preset" in said:
        strength = arguments.get("steering_strength", defaults.get("steering_strength", 0))
        base["steering"] = {"strength": strength}
    return base


def _fill(merged: dict[str, Any], name: str, path: str, value: Any) -> None:
    """Set the field, unless the policy says something: then it must be the same."""
    for place in _STEERED if path in _STEERED else (path,):
        section, field = place.split(".")
        found = merged.get(section)
        if isinstance(found, Mapping) and field in found and not _unsaid(place, found[field]):
            if place == path and _same(value, found[field]):
                return
            raise expected(name, value, f"{found[field]!r}, which policy.{place} says", "Leave one of the two out.")
    section, field = path.split(".")
    if merged.get(section) is None:
        merged[section] = {}
    if isinstance(merged[section], dict):  # else `read` says what is wrong with it
        merged[section][field] = copied(value)


def _unsaid(path: str, value: Any) -> bool:
    default = operator.attrgetter(path)(_DEFAULTS)
    return (value is None and default is None) or (path == "model.model" and value in (None, default))


def _same(one: Any, other: Any) -> bool:
    """Whether two values mean the same: lists and tuples, arrays and lists, a schema and its text."""
    if one is other:
        return True
    if one is None or other is None:
        return False
    try:
        one, other = _comparable(one), _comparable(other)
    except ArgumentError:  # something that no policy can hold: `read` says so
        return False
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _comparable(value: Any) -> Any:
    if hasattr(value, "model_json_schema"):
        value = as_schema("json_schema", value)
    return plain("value", value)
