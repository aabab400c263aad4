"""The sections and fields of a policy, with the names and defaults of the hosted API, and how each field is read.

A field is one line below: its type, default and reader, or the argument of `generate` that it says the same as. What fields
say about each other is checked in `mechanex_jax.policy.validate`.
"""

# ruff: noqa: RUF009  (the calls make dataclass fields)

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from mechanex_jax.engine.config import MOST_CANDIDATES, PARAMETERS, argument_types
from mechanex_jax.engine.methods import ALIASES, METHODS
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.policy import field_readers as r
from mechanex_jax.policy.tool_schema import JsonSchema, tools
from mechanex_jax.policy.verifiers import VERIFIERS
from mechanex_jax.steering.methods import METHODS as STEERING_METHODS
from mechanex_jax.steering.presets import PRESETS
from mechanex_jax.validation import hint

T = TypeVar("T")
D = TypeVar("D")
_KEY = "mechanex_jax.control"


@dataclasses.dataclass(frozen=True)
class Control:
    """How a field of a policy is read.

    Attributes:
      read: (dotted name, value as given) -> the value as kept; raises an ArgumentError.
      null: None is accepted, and kept.
      section: the class of the fields that the field itself holds; None if it holds a value.
      extension: the hosted API does not have the field.
    """

    read: r.Reader[object]
    null: bool = False
    section: type | None = None
    extension: bool = False


def _field(reader: r.Reader[T], default: D = None, *, null: bool = False) -> T | D:
    """A field of a section: None is accepted, and kept, where `null` says so or None is the default."""
    metadata = {_KEY: Control(reader, null or default is None)}
    make: Callable[..., Any] = dataclasses.field
    return make(default_factory=dict, metadata=metadata) if default == {} else make(default=default, metadata=metadata)


def _argument(name: str, *, null: bool = False, extension: bool = False) -> Any:
    """A field with the default and the check of an argument of `generate`, a number or a flag.

    Args:
      name: of the argument.
      null: None is accepted where it is not the default either.
      extension: the hosted API does not have the field.
    """
    declared, annotation = PARAMETERS[name], argument_types()[name]
    kind = next(kind for kind in (*typing.get_args(annotation), annotation) if kind in (bool, int, float))
    assert declared.check is not None, f"{name} is checked"
    control = Control(r.checked(declared.check, kind), null or declared.default is None, extension=extension)
    return dataclasses.field(default=declared.default, metadata={_KEY: control})


def _extended(section: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: add a field for each argument of `generate` that belongs to a section and that the class lacks.

    These are arguments of ours: the classes below name all fields of the hosted API.
    """

    def extend(cls: type[T]) -> type[T]:
        paths = {declared.policy: name for name, declared in PARAMETERS.items()}
        missing = [
            (field, "object", _argument(name, extension=True))
            for path, name in paths.items()
            for inside, _, field in [(path or "").rpartition(".")]
            if inside == section and not hasattr(cls, field)
        ]
        namespace = {"__module__": cls.__module__, "__doc__": cls.__doc__, "__qualname__": cls.__qualname__}
        return dataclasses.make_dataclass(cls.__name__, missing, bases=(cls,), namespace=namespace, frozen=True)

    return extend


_METHOD = r.choice(METHODS, ALIASES)
_TOP_P = r.real(0.0, 1.0, open_low=True)
_ANY = r.real(-float("inf"))


@dataclasses.dataclass(frozen=True)
class ModelTarget:
    """The model: a name that `mx.load` was given; "default" is the one loaded last."""

    base_url: str | None = _field(r.text)
    model: str | None = _field(r.filled, "default", null=True)


@dataclasses.dataclass(frozen=True)
class TaskProfile:
    """The purpose of the policy, in words; kept for readers."""

    category: str | None = _field(r.text)
    description: str | None = _field(r.text)
    name: str = _field(r.text, "general")


@dataclasses.dataclass(frozen=True)
class Objective:
    """The measure of the best candidate, and limits: milliseconds, and model tokens over all candidates."""

    latency_budget_ms: int | None = _field(r.whole(0))
    maximize: bool = _field(r.flag, True)
    name: str = _field(r.text, "quality")
    token_budget: int | None = _field(r.whole(0))


@_extended("sampling")
@dataclasses.dataclass(frozen=True)
class SamplingControls:
    """Sampling as in `generate`; schedules have one value per retry round, the last repeating."""

    adaptive_temperature: bool = _argument("adaptive_temperature")
    adaptive_temperature_schedule: tuple[float, ...] = _field(r.items(r.real(0.0), empty=False), ())
    adaptive_top_p: bool = _argument("adaptive_top_p")
    adaptive_top_p_schedule: tuple[float, ...] = _field(r.items(_TOP_P, empty=False), ())
    ads_beta: float | None = _argument("ads_beta")
    ads_subset_size: int | None = _argument("ads_subset_size")
    beam_width: int = _argument("beam_width")
    diversity_strength: float = _field(r.real(0.0), 0.0)
    draft_model: str | None = _field(r.filled)
    ensemble_models: tuple[str, ...] = _field(r.items(r.filled), ())
    frequency_penalty: float | None = _argument("frequency_penalty")
    method: str = _field(_METHOD, "top-k")
    min_p: float | None = _argument("min_p")
    num_candidates: int = _field(r.whole(1, MOST_CANDIDATES), 1)
    presence_penalty: float | None = _argument("presence_penalty")
    repetition_penalty: float | None = _argument("repetition_penalty")
    speculative_steps: int = _field(r.whole(1, 8), 4)
    temperature: float = _argument("temperature")
    top_k: int | None = _argument("top_k", null=True)
    top_p: float | None = _argument("top_p", null=True)
    typical_p: float | None = _argument("typical_p")
    voting: str = _field(r.choice(("majority", "mean", "product")), "majority")


@dataclasses.dataclass(frozen=True)
class SteeringControls:
    """Steering by a preset, and by a vector or the id of a stored one. Any of them sets `enabled`.

    `layer_scope` restricts layers ("11", "8-15", "blocks.11"; see `field_readers.layers`); `token_start` and `token_end`
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
    vector: dict[str, object] | None = _field(r.vector)
    vector_id: str | None = _field(r.filled)


@_extended("constraints")
@dataclasses.dataclass(frozen=True)
class ConstraintControls:
    """Constraints on the text. The fields about JSON go together, see `effective_schema`; a pattern or a grammar goes alone."""

    forbidden_terms: tuple[str, ...] = _field(r.items(r.filled, distinct=True), ())
    grammar: str | None = _field(r.filled)
    json_mode: bool = _field(r.flag, False)
    json_schema: JsonSchema | None = _field(r.json_schema)
    regex_pattern: str | None = _field(r.pattern)
    required_fields: tuple[str, ...] = _field(r.items(r.text, distinct=True), ())
    stop_sequences: tuple[str, ...] = _field(r.items(r.filled, distinct=True), ())
    tool_schema: dict[str, object] | None = _field(r.mapping)


@dataclasses.dataclass(frozen=True)
class VerifierControls:
    """Checks of finished texts: names of `VERIFIERS`. Tests that are given enable "unit_tests"."""

    code_language: str = _field(r.choice(("python",)), "python")
    code_unit_tests: tuple[str, ...] = _field(r.tests, ())
    enabled: tuple[str, ...] = _field(r.items(r.choice(VERIFIERS), distinct=True), ())
    max_retries: int = _field(r.whole(0), 1)
    repair_on_failure: bool = _field(r.flag, True)
    rerank: bool = _field(r.flag, True)
    unit_test_timeout_ms: int = _field(r.whole(1), 1500)


@dataclasses.dataclass(frozen=True)
class OptimizationControls:
    """Numbers of candidates and rounds, and what else is tried."""

    best_of_n: int = _argument("best_of_n")
    branch_and_prune: bool = _field(r.flag, False)
    confidence_threshold: float = _argument("confidence_threshold")
    confidence_triggered_regeneration: bool = _argument("confidence_triggered_regeneration")
    fallback_methods: tuple[str, ...] = _field(r.items(_METHOD), ())
    retry_on_failure: int = _field(r.whole(0), 1)
    self_revision_loops: int = _field(r.whole(0), 0)


def _section(cls: type[T]) -> T:
    """A field of the policy that holds fields itself; None is one left out."""

    def read(name: str, value: object) -> T:
        return cls() if value is None else read_section(cls, name, value)

    make: Callable[..., Any] = dataclasses.field
    return make(default_factory=cls, metadata={_KEY: Control(read, section=cls)})


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy that was read and checked, see `mechanex_jax.policy.validate.read`.

    Attributes:
      given: the mapping that it was read from, which knows what was left out. No part of what makes two policies equal.
    """

    id: str | None = _field(r.text)
    name: str | None = _field(r.text)
    description: str | None = _field(r.text)
    metadata: dict[str, object] = _field(r.mapping, {})
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
def controls_of(cls: type) -> Mapping[str, Control]:
    """How the fields of a section, or of `Policy`, are read, by their names."""
    return types.MappingProxyType({f.name: f.metadata[_KEY] for f in dataclasses.fields(cls) if _KEY in f.metadata})


def fields() -> list[str]:
    """The dotted paths of all fields, such as "name" and "sampling.temperature"."""
    paths = []
    for name, control in controls_of(Policy).items():
        paths += [name] if control.section is None else [f"{name}.{inner}" for inner in controls_of(control.section)]
    return paths


def read_section(cls: type[T], name: str, value: object) -> T:
    """A section, or the policy itself, from a mapping of its fields, each of them checked by itself.

    Args:
      cls: the section's class.
      name: its dotted name, for errors.
      value: what it is read from.

    Raises:
      ArgumentError: no mapping, an unknown field, or a bad value.
    """
    controls = controls_of(cls)
    if not isinstance(value, Mapping):
        raise expected(name, value, f"a mapping of {', '.join(controls)}")
    values = {}
    for key, item in value.items():
        control = controls.get(key) if isinstance(key, str) else None
        if control is None:
            elsewhere = [f"Did you mean {path!r}?" for path in fields() if path.endswith(f".{key}")]
            advice = elsewhere[0] if elsewhere else hint(key, controls)
            raise expected(f"{name}.{key}", Verbatim("an unknown field"), f"one of {', '.join(controls)}", advice)
        values[key] = None if item is None and control.null else control.read(f"{name}.{key}", item)
    return cls(**values)


_CALL = ("tool_name", "arguments")
_DATA = ("const", "enum", "default", "examples")  # keywords whose values are not schemas


def effective_schema(constraints: ConstraintControls) -> JsonSchema | None:
    """Combine the fields about JSON into the one schema that a text must satisfy; None if it need not be JSON.

    Args:
      constraints: of a policy. `json_mode` asks for an object, `required_fields` for an object with these fields (they join the
        root of `json_schema`, so a schema that refers to its own root asks for them there too), `tool_schema` for
        {"tool_name": ..., "arguments": ...} of one of its tools.

    Raises:
      ArgumentError: `tool_schema` with `json_schema`, or with required fields that no call has.
    """
    required = constraints.required_fields
    if constraints.tool_schema is not None:
        if constraints.json_schema is not None:
            raise expected("constraints.tool_schema", Verbatim("json_schema with it"), "one of the two", "Put them into one.")
        if extra := [field for field in required if field not in _CALL]:
            raise expected("constraints.required_fields", extra, "tool_name and arguments at most, where tool_schema is given")
        return _calls(tools(constraints.tool_schema, "constraints.tool_schema"))
    if constraints.json_mode or required:
        return _objects({"type": "object"} if constraints.json_schema is None else constraints.json_schema, required)
    return constraints.json_schema


def _calls(arguments: Mapping[str, JsonSchema]) -> JsonSchema:
    """The schema of a call of one of several tools, from the schema of each one's arguments."""
    return {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "tool_name": {"const": name},
                    "arguments": _relocated(schema, f"#/anyOf/{i}/properties/arguments"),
                },
                "required": list(_CALL),
                "additionalProperties": False,
            }
            for i, (name, schema) in enumerate(arguments.items())
        ]
    }


def _objects(schema: JsonSchema, required: Sequence[str]) -> JsonSchema:
    """The schema of objects of `schema` that have these fields. References stay what they are: the root stays the root."""
    if schema.get("type") == "object" and "$ref" not in schema:
        union = list(dict.fromkeys([*schema.get("required", ()), *required]))
        return {**schema, "required": union} if union else dict(schema)
    object_schema = {"type": "object", **({"required": list(required)} if required else {})}
    rest = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
    parts = [*schema.get("allOf", ()), *([{"$ref": schema["$ref"]}] if "$ref" in schema else ())]
    return {**rest, "allOf": [*parts, object_schema]} if rest or parts else object_schema


def _relocated(schema: object, place: str) -> object:
    """A copy of a schema in which references to its own root point to `place` of another one."""
    if isinstance(schema, Mapping):
        relocated = {key: value if key in _DATA else _relocated(value, place) for key, value in schema.items()}
        reference = schema.get("$ref")
        if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
            relocated["$ref"] = place + reference[1:]
        return relocated
    return [_relocated(part, place) for part in schema] if isinstance(schema, (list, tuple)) else schema
