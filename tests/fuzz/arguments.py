"""Targets that take arguments: `generate` and policies."""

from __future__ import annotations

import dataclasses
import functools
import math
from random import Random
from typing import Any

from sessions import Services, observed, services_of

from mechanex_jax import edits, transforms
from mechanex_jax.engine.config import PARAMETERS, GenerationConfig
from mechanex_jax.engine.methods import METHODS
from mechanex_jax.loading import LoadedModel
from mechanex_jax.policy import validate
from mechanex_jax.session import Session

from .constraints import GRAMMARS, SCHEMAS
from .files import family, load
from .target import Target
from .values import TEXTS, anything, foreign, mutated, spliced, wild, wild_key


class Accepted(Exception):
    """A request that was accepted: the model is about to be called."""


def _accept(shape: tuple[int, ...]) -> None:
    raise Accepted


def _services(loaded: LoadedModel) -> Services:
    """The services of a real session in which this model is loaded."""
    session = Session()
    session.set_execution_mode("local")
    session._models["tiny"] = loaded
    return services_of(session)


@functools.cache
def refusing() -> Services:
    """Services over a tiny model that no request reaches."""
    return _services(observed(load(family("llama")), _accept))


@functools.cache
def decoding() -> Services:
    """Services over a tiny model that decodes."""
    return _services(load(family("llama")))


_OF_THE_CALL = ("model", "seed", "transform", "edits", "details")
LIKELY: dict[str, list[Any]] = {
    "sampling_method": [*METHODS],
    "max_tokens": [1, 2, 5],
    "temperature": [0, 1e-38, 0.5, 1e30],
    "top_k": [1, 2, 10**12],
    "top_p": [1.2e-38, 0.5, 1.0],
    "min_p": [0.0, 1.0],
    "typical_p": [1e-30, 1.0],
    "epsilon_cutoff": [0.0, 1.0],
    "ads_subset_size": [1, 10**12],
    "repetition_penalty": [1e-30, 1.0, 1e30],
    "presence_penalty": [-1e38, 3e38],
    "frequency_penalty": [-1e38, 3e38],
    "logit_bias": [{}, {0: -math.inf}, {"3": 3e38}, {261: -3e38, 5: 1.0}, dict.fromkeys(range(262), -math.inf)],
    "stop": ["a", ["he", "é"], ["x" * 3_000], [chr(200 + i) for i in range(300)]],
    "forbidden_terms": [["e"], ["🙂", "he"]],
    "min_tokens": [0, 1],
    "regex_pattern": ["a+", "[0-9]{2}", "(?i)he|é"],
    "json_schema": [True, *SCHEMAS[:3]],
    "grammar": GRAMMARS[:2],
    "seed": [0, 2**32 - 1, None],
    "steering_vector": [{0: [1.0] * 64}, {1: [0.0] * 64}],
    "steering_strength": [1.0, -1e30],
    "beam_width": [1, 2],
    "speculative_steps": [1, 8],
    "draft_model": ["default"],
    "steering_scope": ["all", "prompt", "generated", slice(0, 3)],
    "best_of_n": [1, 2],
    "edits": [edits.add([1.0] * 64, layer=1)],
    "transform": [transforms.temperature(0.5), transforms.chain()],
}


def _prompt(rng: Random) -> Any:
    return "hello" if rng.random() < 0.7 else rng.choice([*TEXTS, foreign(rng), [{"role": "user", "content": wild(rng)}]])


def _wild_arguments(rng: Random) -> dict[str, Any]:
    """One to three arguments with wild values, among others that are right."""
    names = [*PARAMETERS, *_OF_THE_CALL]
    arguments = {name: rng.choice(LIKELY[name]) for name in rng.sample(sorted(LIKELY), rng.randrange(3))}
    for name in rng.sample(names, rng.choice([1, 1, 2, 3])):
        arguments[name] = _value(rng, name)
    return {"prompt": _prompt(rng), **arguments}


def _value(rng: Random, name: str) -> Any:
    kind = rng.randrange(6)
    if kind == 0 and name in LIKELY:
        return rng.choice(LIKELY[name])
    if kind == 1 and name in ("logit_bias", "steering_vector"):
        return {wild_key(rng): anything(rng) for _ in range(rng.choice([1, 3]))}
    if kind == 2:
        return [anything(rng) for _ in range(rng.choice([1, 2]))]
    if kind == 3 and isinstance(text := rng.choice(LIKELY.get(name, [None])), str):
        return spliced(rng, text)
    if kind == 4 and name in ("policy", "json_schema"):
        return mutated(rng, rng.choice(POLICIES if name == "policy" else SCHEMAS))
    return anything(rng)


def _right_arguments(rng: Random) -> dict[str, Any]:
    """Arguments at the ends of what they may be."""
    names = rng.sample(sorted(LIKELY), rng.choice([1, 2, 4]))
    return {"prompt": "hello", "max_tokens": 3, **{name: rng.choice(LIKELY[name]) for name in names}}


def _ask(arguments: dict[str, Any]) -> None:
    try:
        refusing().generation.generate(**arguments)
    except Accepted:
        return


def _decode(arguments: dict[str, Any]) -> None:
    text = decoding().generation.generate(**arguments)
    assert isinstance(text, str)
    text.encode()


def _configure(values: dict[str, Any]) -> None:
    config = GenerationConfig(**values)
    assert isinstance(repr(config), str)
    assert config.needs_policy in (True, False)
    assert isinstance(config.stops, tuple)


# --- policies ------------------------------------------------------------------------------------------------------------

POLICIES: list[Any] = [
    {"sampling": {"method": "top-p", "top_p": 0.5, "num_candidates": 2}, "optimization": {"best_of_n": 2}},
    {"constraints": {"json_schema": SCHEMAS[0], "stop_sequences": ["a"]}, "verifiers": {"enabled": ["json_schema"]}},
    {"constraints": {"regex_pattern": "a+"}, "sampling": {"adaptive_temperature_schedule": [0.9, 0.5]}, "metadata": {"a": [1]}},
    {"steering": {"preset": "brevity", "strength": 2.0, "token_start": 1, "token_end": 5}, "model": {"model": "default"}},
    {"verifiers": {"code_unit_tests": ["assert True"]}, "objective": {"latency_budget_ms": 100, "token_budget": 50}},
    {"name": "a", "description": None, "task_profile": {"category": "code"}, "constraints": {"forbidden_terms": ["e"]}},
]


@functools.cache
def _sections() -> dict[str, Any]:
    """A policy with all its fields."""
    return validate.to_dict(validate.read(POLICIES[0]))


def _policy(rng: Random) -> Any:
    kind = rng.randrange(8)
    if kind == 0:
        return foreign(rng)
    base = rng.choice([_sections(), *POLICIES])
    if kind == 1:
        base = {**base, **rng.choice(POLICIES)}
    return mutated(rng, base)


def _read_policy(policy: Any) -> None:
    parsed = validate.read(policy)
    written = validate.to_dict(parsed)
    assert validate.to_dict(validate.read(written)) == written or "nan" in repr(written).lower()
    assert isinstance(repr(parsed), str)


FIELDS = sorted(field.name for field in dataclasses.fields(GenerationConfig))


def _fields(rng: Random) -> dict[str, Any]:
    """Values of one or two fields."""
    return {name: _value(rng, name) for name in rng.sample(FIELDS, rng.choice([1, 2]))}


TARGETS = {
    "generation_config": Target(_fields, _configure),
    "generate_arguments": Target(_wild_arguments, _ask, seconds=20.0),
    "generate": Target(_right_arguments, _decode, seconds=90.0),
    "policy": Target(_policy, _read_policy),
}
