"""Arguments of `generate` as fields of a policy: which is which, and what happens where both say something."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from mechanex_jax.constraints import sources
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


_READ = {"regex_pattern": sources.read_regex, "grammar": sources.read_grammar}  # what no policy can hold, as text


def merge(policy: object, arguments: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """Merge a policy and the arguments of a call into one mapping, for `validate.read`.

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
    fields = policy.given if isinstance(policy, Policy) else policy
    if fields is not None and not isinstance(fields, Mapping):
        raise expected("policy", fields, "a mapping of sections")
    changed = {name: value for name, value in arguments.items() if name in FIELDS and not _same(value, defaults.get(name))}
    changed |= {name: read(changed[name]) for name, read in _READ.items() if name in changed}
    merged = _base(changed, arguments, defaults) if fields is None else copied(fields)
    constraints = merged.get("constraints")
    without = not isinstance(constraints, Mapping) or constraints.get("json_schema") is None
    if without and "json_schema" in changed and _closes(changed["json_schema"]):
        changed.setdefault("json_closed", True)
    for name, value in changed.items():
        if name == "model" and not isinstance(value, str):  # a loaded model itself, which no policy can name
            continue
        if name == "stop" and isinstance(value, str):
            value = [value]
        path = _STEERED[isinstance(value, str)] if name == "steering_vector" else FIELDS[name]
        _fill(merged, name, path, value)
    return merged


def _base(changed: Mapping[str, object], arguments: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """The fields that a call without a policy starts from; `changed` are its arguments that have not their defaults."""
    base: dict[str, object] = {"optimization": {"retry_on_failure": 0}}
    enabled = next((names for name, names in _VERIFIERS.items() if name in changed), [])
    if changed.get("code_unit_tests"):
        enabled = [*enabled, "unit_tests"]
    if enabled:
        base["verifiers"] = {"enabled": list(enabled)}
    if "steering_vector" in changed or "steering_preset" in changed:
        strength = arguments.get("steering_strength", defaults.get("steering_strength", 0))
        base["steering"] = {"strength": strength}
    return base


def _fill(merged: dict[str, object], name: str, path: str, value: object) -> None:
    """Set the field, unless the policy says something: then it must be the same."""
    for place in _STEERED if path in _STEERED else (path,):
        section, field = place.split(".")
        controls = merged.get(section)
        if isinstance(controls, Mapping) and field in controls and not _left_out(place, controls[field]):
            if place == path and _same(value, controls[field]):
                return
            raise expected(name, value, f"{controls[field]!r}, which policy.{place} says", "Leave one of the two out.")
    section, field = path.split(".")
    if merged.get(section) is None:
        merged[section] = {}
    controls = merged[section]
    if isinstance(controls, dict):  # else `read` says what is wrong with it
        controls[field] = copied(value)


def _closes(schema: object) -> bool:
    """Whether a schema comes from a class or a strict tool; one that can't be read is left to what reads the policy."""
    try:
        return sources.read_schema(schema).closed
    except ArgumentError:
        return False


def _left_out(path: str, value: object) -> bool:
    """Whether a field's value says no more than that the field is left out."""
    default = operator.attrgetter(path)(_DEFAULTS)
    return (value is None and default is None) or (path == "model.model" and value in (None, default))


def _same(one: object, other: object) -> bool:
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


def _comparable(value: object) -> object:
    """A value as a policy keeps it."""
    if sources.is_schema_class(value):
        value = as_schema("json_schema", value)
    return plain("value", value)
