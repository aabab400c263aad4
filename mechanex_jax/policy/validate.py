"""Policies from mappings and back: every mistake is found before anything runs, and what fields imply is written out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mechanex_jax.errors import NotLocalError, Verbatim, expected
from mechanex_jax.policy.controls import (
    ConstraintControls,
    Policy,
    SteeringControls,
    controls_of,
    effective_schema,
    read_section,
)
from mechanex_jax.policy.criteria import criteria_for
from mechanex_jax.policy.verifiers import VERIFIERS
from mechanex_jax.storage.json_values import JsonValue, copied
from mechanex_jax.validation import check_nesting


@dataclasses.dataclass(frozen=True)
class Extras:
    """What a steering preset asks for besides steering.

    Attributes:
      json_mode: any JSON object, where no pattern or grammar says what the text is.
      verifiers: names of verifiers, each with the constraint that it goes with; None: it is enabled in any case.
    """

    json_mode: bool = False
    verifiers: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


PRESET_EXTRAS = {
    "json_compliance": Extras(json_mode=True, verifiers={"syntax": None, "json_schema": "json_schema"}),
    "truthfulness": Extras(verifiers={"factuality": None}),
    "safety_style": Extras(verifiers={"factuality": None}),
    "format_rigidity": Extras(verifiers={"regex": "regex_pattern"}),
}


def _implied(policy: Policy) -> Policy:
    """The policy with what its fields say about each other written out."""
    sampling, steering, constraints, verifiers = policy.sampling, policy.steering, policy.constraints, policy.verifiers
    extras = PRESET_EXTRAS.get(steering.preset or "", Extras())
    unconstrained = constraints.regex_pattern is None and constraints.grammar is None
    implied = [name for name, source in extras.verifiers.items() if source is None or getattr(constraints, source) is not None]
    implied += ["unit_tests"] if verifiers.code_unit_tests else []
    return dataclasses.replace(
        policy,
        sampling=dataclasses.replace(
            sampling,
            adaptive_temperature=sampling.adaptive_temperature or bool(sampling.adaptive_temperature_schedule),
            adaptive_top_p=sampling.adaptive_top_p or bool(sampling.adaptive_top_p_schedule),
        ),
        steering=dataclasses.replace(steering, enabled=steering.enabled or bool(_sources(steering))),
        constraints=dataclasses.replace(constraints, json_mode=constraints.json_mode or (extras.json_mode and unconstrained)),
        verifiers=dataclasses.replace(verifiers, enabled=tuple(dict.fromkeys((*verifiers.enabled, *implied)))),
    )


def _sources(steering: SteeringControls) -> list[str]:
    """Names of the fields that say what to steer by."""
    return [name for name in ("preset", "vector", "vector_id") if getattr(steering, name) is not None]


_JSON = ("json_schema", "tool_schema", "json_mode", "required_fields")


def _check(policy: Policy, name: str) -> None:
    """Raise where fields that are right by themselves are wrong together, or ask for what only the hosted API has."""
    hosted = {
        "steering.file_url": (policy.steering.file_url, "Load the file with mx.steering.load_vectors, and give vector_id."),
        "model.base_url": (policy.model.base_url, "Name a model that is loaded as model.model."),
        "optimization.branch_and_prune": (policy.optimization.branch_and_prune, "Use optimization.best_of_n."),
    }
    for path, (value, action) in hosted.items():
        if value:
            raise NotLocalError(f"{name}.{path}: not available locally. {action}")
    steering = policy.steering
    sources = _sources(steering)
    if steering.enabled and not sources:
        raise expected(f"{name}.steering.enabled", True, "a preset, vector or vector_id with it")
    if {"vector", "vector_id"} <= set(sources):
        raise expected(f"{name}.steering", Verbatim("vector and vector_id"), "one of the two", "Add the vectors up.")
    start, end = steering.token_start or 0, steering.token_end
    if end is not None and end <= start:
        raise expected(f"{name}.steering.token_end", end, f"more than token_start, {start}", "The end is not included.")
    _check_constraints(policy.constraints, f"{name}.constraints")
    criteria = criteria_for(policy)
    for verifier in policy.verifiers.enabled:
        if not VERIFIERS[verifier].equipped(criteria):
            raise expected(f"{name}.verifiers.enabled", verifier, f"{VERIFIERS[verifier].needs} with it")


def _check_constraints(constraints: ConstraintControls, name: str) -> None:
    json = [field for field in _JSON if getattr(constraints, field)]
    json += [] if constraints.json_schema is None or json else ["json_schema"]  # {} is a schema too
    kinds = [*json[:1], *(field for field in ("regex_pattern", "grammar") if getattr(constraints, field) is not None)]
    if len(kinds) > 1:
        names = " and ".join(f"{name}.{kind}" for kind in kinds)
        raise expected(names, Verbatim(f"{len(kinds)} constraints"), "one at most", "Put them into one.")
    effective_schema(constraints)


def read(policy: object, name: str = "policy") -> Policy:
    """Read a policy from a mapping, checked in full before anything runs.

    A section that is None is left out, as is None where a field's default is None. What fields imply about each other is
    written out: a schedule sets its adaptive flag; a preset, vector or vector_id enables steering; tests enable their verifier;
    and presets bring their `PRESET_EXTRAS`.

    Args:
      policy: a mapping of sections and fields; a `Policy` comes back as it is.
      name: what errors call it.

    Raises:
      ArgumentError: a field by its dotted path: unknown (with the closest name), of a wrong type, out of range, an empty
        schedule, a test that does not compile, two constraints, a verifier with nothing to check against.
      NotLocalError: `steering.file_url`, `model.base_url` or `optimization.branch_and_prune`.
    """
    if isinstance(policy, Policy):
        return policy
    check_nesting(name, policy)
    checked = _implied(dataclasses.replace(read_section(Policy, name, policy), given=copied(policy)))
    _check(checked, name)
    return checked


def to_dict(policy: object) -> dict[str, JsonValue]:
    """Write out all fields of a policy, or of a section, as JSON has them; `read` gives an equal policy again.

    Left out are a schedule without values, which would be an error if it were given, and a None in a field that the hosted API
    lacks.
    """
    data = {}
    for name, control in controls_of(type(policy)).items():
        value = getattr(policy, name)
        if control.section is not None:
            data[name] = to_dict(value)
        elif not (value == () and name.endswith("_schedule")) and not (control.extension and value is None):
            data[name] = copied(value)
    return data
