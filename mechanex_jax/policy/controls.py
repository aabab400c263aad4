"""What a policy is: its sections and fields, with the names and defaults of the hosted API, read and checked on the host.

A field is one line below: its type, default and reader. A new field needs no more than that, and somebody who honours it.
"""

# ruff: noqa: RUF009  (the calls make dataclass fields)

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from mechanex_jax.engine.methods import ALIASES, METHODS
from mechanex_jax.errors import NotLocalError, Verbatim, expected
from mechanex_jax.policy import field_readers as r
from mechanex_jax.policy.criteria import criteria_for
from mechanex_jax.policy.tool_schema import effective_schema
from mechanex_jax.policy.verifiers import VERIFIERS
from mechanex_jax.steering.methods import METHODS as STEERING_METHODS
from mechanex_jax.steering.presets import PRESETS
from mechanex_jax.storage.json_values import copied


def _field(reader: r.Reader, default: Any = None, *, null: bool = False) -> Any:
    """A field of a section: None is accepted, and kept, where `null` says so or None is the default."""
    metadata = {"read": reader, "null": null or default is None}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_METHOD = r.choice(METHODS, ALIASES)
_TOP_P = r.real(0.0, 1.0, open_low=True)
_ANY = r.real(-float("inf"))


@dataclasses.dataclass(frozen=True)
class ModelTarget:
    """Which model: a name that `mx.load` was given; "default" is the one loaded last."""

    base_url: str | None = _field(r.text)
    model: str | None = _field(r.filled, "default", null=True)


@dataclasses.dataclass(frozen=True)
class TaskProfile:
    """What the policy is for, in words; kept for readers."""

    category: str | None = _field(r.text)
    description: str | None = _field(r.text)
    name: str = _field(r.text, "general")


@dataclasses.dataclass(frozen=True)
class Objective:
    """Which candidate is best, and what may be spent: milliseconds, and model tokens over all candidates."""

    latency_budget_ms: int | None = _field(r.whole(0))
    maximize: bool = _field(r.flag, True)
    name: str = _field(r.text, "quality")
    token_budget: int | None = _field(r.whole(0))


@dataclasses.dataclass(frozen=True)
class SamplingControls:
    """How tokens are drawn, as in `generate`; schedules have one value per retry round, the last repeating."""

    adaptive_temperature: bool = _field(r.flag, False)
    adaptive_temperature_schedule: tuple[float, ...] = _field(r.items(r.real(0.0), empty=False), ())
    adaptive_top_p: bool = _field(r.flag, False)
    adaptive_top_p_schedule: tuple[float, ...] = _field(r.items(_TOP_P, empty=False), ())
    ads_beta: float | None = _field(r.real(0.0, 1.0, open_low=True, open_high=True))
    ads_subset_size: int | None = _field(r.whole(1))
    beam_width: int = _field(r.whole(1), 4)
    diversity_strength: float = _field(r.real(0.0), 0.0)
    draft_model: str | None = _field(r.filled)
    ensemble_models: tuple[str, ...] = _field(r.items(r.filled), ())
    frequency_penalty: float | None = _field(_ANY)
    method: str = _field(_METHOD, "top-k")
    min_p: float | None = _field(r.real(0.0, 1.0))
    num_candidates: int = _field(r.whole(1), 1)
    presence_penalty: float | None = _field(_ANY)
    repetition_penalty: float | None = _field(r.real(0.0, open_low=True))
    speculative_steps: int = _field(r.whole(1, 8), 4)
    temperature: float = _field(r.real(0.0), 0.7)
    top_k: int | None = _field(r.whole(1), 50, null=True)
    top_p: float | None = _field(_TOP_P, 0.9, null=True)
    typical_p: float | None = _field(_TOP_P)
    voting: str = _field(r.choice(("majority", "mean", "product")), "majority")


@dataclasses.dataclass(frozen=True)
class SteeringControls:
    """What steers: a preset, and a vector or the id of a stored one. Any of them sets `enabled`.

    `layer_scope` restricts layers ("11", "8-15", "blocks.11"; see `readers.layers`); `token_start` and `token_end`
    restrict positions, the end not included.
    """

    enabled: bool = _field(r.flag, False)
    file_url: str | None = _field(r.text)
    layer_scope: tuple[str, ...] = _field(r.items(r.layer), ())
    method: str = _field(r.choice(STEERING_METHODS), "caa")
    preset: str | None = _field(r.choice(PRESETS))
    strength: float = _field(_ANY, 1.0)
    token_end: int | None = _field(r.whole(0))
    token_start: int | None = _field(r.whole(0))
    vector: dict[str, Any] | None = _field(r.vector)
    vector_id: str | None = _field(r.filled)


@dataclasses.dataclass(frozen=True)
class ConstraintControls:
    """What the text must be. The fields about JSON go together, see `effective_schema`; a pattern or a grammar goes alone."""

    forbidden_terms: tuple[str, ...] = _field(r.items(r.filled, distinct=True), ())
    grammar: str | None = _field(r.filled)
    json_mode: bool = _field(r.flag, False)
    json_schema: dict[str, Any] | None = _field(r.json_schema)
    regex_pattern: str | None = _field(r.pattern)
    required_fields: tuple[str, ...] = _field(r.items(r.text, distinct=True), ())
    stop_sequences: tuple[str, ...] = _field(r.items(r.filled, distinct=True), ())
    tool_schema: dict[str, Any] | None = _field(r.mapping)


@dataclasses.dataclass(frozen=True)
class VerifierControls:
    """Who looks at finished texts: names of `VERIFIERS`. Tests that are given enable "unit_tests"."""

    code_language: str = _field(r.choice(("python",)), "python")
    code_unit_tests: tuple[str, ...] = _field(r.tests, ())
    enabled: tuple[str, ...] = _field(r.items(r.choice(VERIFIERS), distinct=True), ())
    max_retries: int = _field(r.whole(0), 1)
    repair_on_failure: bool = _field(r.flag, True)
    rerank: bool = _field(r.flag, True)
    unit_test_timeout_ms: int = _field(r.whole(1), 1500)


@dataclasses.dataclass(frozen=True)
class OptimizationControls:
    """How many candidates, how many rounds, and what else is tried."""

    best_of_n: int = _field(r.whole(1), 1)
    branch_and_prune: bool = _field(r.flag, False)
    confidence_threshold: float = _field(r.real(0.0, 1.0), 0.5)
    confidence_triggered_regeneration: bool = _field(r.flag, False)
    fallback_methods: tuple[str, ...] = _field(r.items(_METHOD), ())
    retry_on_failure: int = _field(r.whole(0), 1)
    self_revision_loops: int = _field(r.whole(0), 0)


def _section(cls: type) -> Any:
    """A field of the policy that holds fields itself; None is one left out."""
    reader = lambda name, value: cls() if value is None else _read(cls, name, value)
    return dataclasses.field(default_factory=cls, metadata={"read": reader, "null": False, "section": cls})


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy that `read` found right.

    Attributes:
      given: the mapping that it was read from, which knows what was left out. No part of what makes two policies equal.
    """

    id: str | None = _field(r.text)
    name: str | None = _field(r.text)
    description: str | None = _field(r.text)
    metadata: dict[str, Any] = _field(r.mapping, {})
    model: ModelTarget = _section(ModelTarget)
    task_profile: TaskProfile = _section(TaskProfile)
    objective: Objective = _section(Objective)
    sampling: SamplingControls = _section(SamplingControls)
    steering: SteeringControls = _section(SteeringControls)
    constraints: ConstraintControls = _section(ConstraintControls)
    verifiers: VerifierControls = _section(VerifierControls)
    optimization: OptimizationControls = _section(OptimizationControls)
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)


@functools.cache
def _controls(cls: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls) if field.metadata}


def fields() -> list[str]:
    """The dotted paths of all fields, such as "name" and "sampling.temperature"."""
    found = []
    for name, field in _controls(Policy).items():
        section = field.metadata.get("section")
        found += [name] if section is None else [f"{name}.{inner}" for inner in _controls(section)]
    return found


def _read(cls: type, name: str, value: Any) -> Any:
    """A section, or the policy itself, from a mapping of its fields."""
    controls = _controls(cls)
    if not isinstance(value, Mapping):
        raise expected(name, value, f"a mapping of {', '.join(controls)}")
    found = {}
    for key, given in value.items():
        field = controls.get(key) if isinstance(key, str) else None
        if field is None:
            elsewhere = [f"Did you mean {path!r}?" for path in fields() if path.endswith(f".{key}")]
            advice = elsewhere[0] if elsewhere else r.hint(key, controls)
            raise expected(f"{name}.{key}", Verbatim("an unknown field"), f"one of {', '.join(controls)}", advice)
        if given is not None or not field.metadata["null"]:
            given = field.metadata["read"](f"{name}.{key}", given)
        found[key] = given
    return cls(**found)


@dataclasses.dataclass(frozen=True)
class Extras:
    """What a steering preset asks for besides steering.

    Attributes:
      json_mode: any JSON object, where no pattern or grammar says what the text is.
      verifiers: each, and the constraint that it goes with; None is enabled in any case.
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
    free = constraints.regex_pattern is None and constraints.grammar is None
    wanted = [name for name, source in extras.verifiers.items() if source is None or getattr(constraints, source) is not None]
    wanted += ["unit_tests"] if verifiers.code_unit_tests else []
    return dataclasses.replace(
        policy,
        sampling=dataclasses.replace(
            sampling,
            adaptive_temperature=sampling.adaptive_temperature or bool(sampling.adaptive_temperature_schedule),
            adaptive_top_p=sampling.adaptive_top_p or bool(sampling.adaptive_top_p_schedule),
        ),
        steering=dataclasses.replace(steering, enabled=steering.enabled or bool(_sources(steering))),
        constraints=dataclasses.replace(constraints, json_mode=constraints.json_mode or (extras.json_mode and free)),
        verifiers=dataclasses.replace(verifiers, enabled=tuple(dict.fromkeys((*verifiers.enabled, *wanted)))),
    )


def _sources(steering: SteeringControls) -> list[str]:
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


def read(policy: Any, name: str = "policy") -> Policy:
    """A policy from a mapping, checked in full before anything runs.

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
    found = _implied(dataclasses.replace(_read(Policy, name, policy), given=copied(policy)))
    _check(found, name)
    return found


def to_dict(policy: Any) -> dict[str, Any]:
    """All fields of a policy, or of a section, as JSON has them; `read` gives an equal policy again.

    A schedule without values is left out: an empty one that is given is an error.
    """
    found = {}
    for name, field in _controls(type(policy)).items():
        value = getattr(policy, name)
        if "section" in field.metadata:
            found[name] = to_dict(value)
        elif value != () or not name.endswith("_schedule"):
            found[name] = copied(value)
    return found
