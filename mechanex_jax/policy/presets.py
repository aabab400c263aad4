"""Ready-made policies: plain dicts for `mx.policy.run`, `save` and `generate(policy=...)`, which a user may change freely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from mechanex_jax.errors import expected
from mechanex_jax.policy.tool_schema import as_schema
from mechanex_jax.steering import presets
from mechanex_jax.storage.json_values import plain

PolicyDict: TypeAlias = dict[str, Any]
"""A policy as a user writes it: sections of fields, to be read by `mechanex_jax.policy.controls`, which checks every part."""


def strict_json_extraction(schema: object, name: str = "strict_json_small_v1") -> PolicyDict:
    """Ask for JSON that a schema accepts: the better of two candidates at low temperature, with repair and two retries.

    Objects have no keys but those that the schema lists; set `constraints.json_closed` to None to change that.

    Args:
      schema: in any form that `json_schema` of `generate` takes.
      name: of the policy.

    Raises:
      ArgumentError: no JSON Schema.
    """
    return {
        "name": name,
        "task_profile": {"name": "Strict JSON extraction"},
        "objective": {"name": "maximize json validity"},
        "sampling": {"method": "guided-generation", "temperature": 0.2, "top_p": 0.9},
        "constraints": {
            "json_mode": True,
            "json_schema": plain("schema", as_schema("schema", schema)),
            "json_closed": True,
        },
        "verifiers": {"enabled": ["syntax", "json_schema"], "repair_on_failure": True},
        "optimization": {"best_of_n": 2, "retry_on_failure": 2},
    }


def fast_tool_router(name: str = "fast_tool_router_qwen") -> PolicyDict:
    """Ask for a tool call, {"tool_name": ..., "arguments": {...}}, within 1.2 seconds, by speculative decoding.

    Set `constraints.tool_schema` to hold it to your tools, and `sampling.draft_model` to draft with a model of yours.
    """
    return {
        "name": name,
        "task_profile": {"name": "Reliable tool router"},
        "objective": {"name": "maximize correctness under latency budget", "latency_budget_ms": 1200},
        "sampling": {"method": "speculative-decoding", "temperature": 0.1, "top_k": 30, "speculative_steps": 6},
        "constraints": {"json_mode": True, "required_fields": ["tool_name", "arguments"]},
        "verifiers": {"enabled": ["syntax", "tool_args"], "repair_on_failure": True},
        "optimization": {"best_of_n": 1, "retry_on_failure": 1, "fallback_methods": ["top-k"]},
    }


def diverse_chatbot(name: str = "diverse_chatbot_ads") -> PolicyDict:
    """Ask for the likeliest of three answers, which determinantal sampling makes differ."""
    return {
        "name": name,
        "task_profile": {"name": "Concise customer support"},
        "objective": {"name": "maximize quality"},
        "sampling": {
            "method": "ads",
            "temperature": 0.9,
            "top_p": 0.95,
            "ads_subset_size": 16,
            "ads_beta": 0.35,
            "num_candidates": 3,
            "diversity_strength": 0.7,
        },
        "optimization": {"best_of_n": 3, "retry_on_failure": 0},
    }


def ensemble_vote(models: Sequence[str], name: str = "ensemble_vote_v1") -> PolicyDict:
    """Let several models vote on each token.

    Args:
      models: names of models that vote with the loaded one, at least one.
      name: of the policy.

    Raises:
      ArgumentError: no list of names.
    """
    if isinstance(models, str) or not models or not all(isinstance(model, str) and model for model in models):
        raise expected("models", models, "a list of names of models", "Name one or more that vote with the loaded one.")
    return {
        "name": name,
        "task_profile": {"name": "Low-hallucination analyst mode"},
        "objective": {"name": "reduce hallucinations"},
        "sampling": {
            "method": "ensemble-sampling",
            "ensemble_models": list(models),
            "voting": "majority",
            "temperature": 0.4,
            "top_p": 0.9,
        },
        "verifiers": {"enabled": ["factuality"], "repair_on_failure": False},
        "optimization": {"best_of_n": 1},
    }


def steering_preset(preset: str, name: str | None = None, sampling_method: str = "top-k") -> PolicyDict:
    """Steer answers by a preset at strength 0.35.

    Args:
      preset: one of `mx.steering.PRESETS`.
      name: of the policy; None is "steering_" and the preset's name.
      sampling_method: as in `generate`.

    Raises:
      ArgumentError: an unknown preset.
    """
    preset = presets.find(preset).name
    return {
        "name": name or f"steering_{preset}",
        "task_profile": {"name": "Steering preset policy"},
        "objective": {"name": "quality"},
        "sampling": {"method": sampling_method, "temperature": 0.7, "top_p": 0.9},
        "steering": {"enabled": True, "preset": preset, "strength": 0.35},
        "optimization": {"best_of_n": 1, "retry_on_failure": 1},
    }
