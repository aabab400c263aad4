"""Plans: the arguments of every candidate that a policy asks for, by round and slot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mechanex_jax.edits import RowSteering
from mechanex_jax.engine.config import METHOD_ARGUMENTS, PARAMETERS, GenerationConfig
from mechanex_jax.engine.methods import method
from mechanex_jax.policy.controls import Policy, SteeringControls, effective_schema
from mechanex_jax.policy.field_readers import layers

_ALL_TOKENS = 2**31 - 1  # top_k: no truncation
# Arguments that have their own name among a policy's sampling fields, and that each decoding takes as they are.
_SAMPLING = tuple(
    name for name, declared in PARAMETERS.items() if declared.policy == f"sampling.{name}" and not declared.needs_policy
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A policy, with the arguments of the call that runs it.

    Attributes:
      policy: read and checked.
      others: arguments of `generate` for which a policy has no field: max_tokens, chat, ...
      steering: vectors with their strengths, in place of those that the policy's fields name; None: the fields say it all.
    """

    policy: Policy
    others: Mapping[str, object]
    steering: RowSteering | None = None

    @property
    def candidates(self) -> int:
        """Number of candidates in one round, a repair not counted."""
        return max(self.policy.optimization.best_of_n, self.policy.sampling.num_candidates)

    @property
    def retries(self) -> int:
        """Number of rounds after the first, those of the fallback methods not counted."""
        sampling, verifiers, optimization = self.policy.sampling, self.policy.verifiers, self.policy.optimization
        return max(
            optimization.retry_on_failure,
            verifiers.max_retries if verifiers.repair_on_failure else 0,
            len(sampling.adaptive_temperature_schedule) - 1,
            len(sampling.adaptive_top_p_schedule) - 1,
            1 if optimization.confidence_triggered_regeneration else 0,
        )

    def methods(self) -> list[str]:
        """Sampling method of each round: the policy's own for the first and the retries, then each fallback."""
        return [self.policy.sampling.method] * (1 + self.retries) + list(self.policy.optimization.fallback_methods)

    def temperature(self, round: int, slot: int) -> float:
        """Temperature of a candidate: scheduled by round, and spread over slots in proportion to `diversity_strength`."""
        sampling = self.policy.sampling
        base = _scheduled(
            sampling.temperature, sampling.adaptive_temperature, sampling.adaptive_temperature_schedule, round, 0.08, 0.05
        )
        spread = (slot % 3) * 0.1 * sampling.diversity_strength
        return min(base + spread, max(2.0, base)) if spread > 0 else base

    def top_p(self, round: int) -> float:
        """Top-p of a round's candidates, scheduled by round; 1 is the identity."""
        sampling = self.policy.sampling
        base = 1.0 if sampling.top_p is None else sampling.top_p
        return _scheduled(base, sampling.adaptive_top_p, sampling.adaptive_top_p_schedule, round, 0.04, 0.2)

    def config(self, name: str, round: int, slot: int) -> GenerationConfig:
        """Arguments of one candidate, for the sampling method `name`.

        Raises:
          ArgumentError: the policy asks for what the method cannot do.
        """
        sampling, chosen = self.policy.sampling, method(name)
        usable = [field for field in _SAMPLING if field not in METHOD_ARGUMENTS or field in chosen.reads]
        arguments: dict[str, Any] = {**self.others, **{field: getattr(sampling, field) for field in usable}}
        arguments |= {
            "sampling_method": name,
            "temperature": self.temperature(round, slot),
            "top_p": self.top_p(round),
            "top_k": sampling.top_k or (50 if chosen.subset else _ALL_TOKENS),
            "ensemble_models": (sampling.ensemble_models or None) if "ensemble_models" in usable else None,
        }
        return GenerationConfig(**{**arguments, **self._constraints(), **self._steering()})

    def _constraints(self) -> dict[str, object]:
        constraints = self.policy.constraints
        return {
            "json_schema": effective_schema(constraints),
            **{field: getattr(constraints, field) for field in ("json_closed", "regex_pattern", "grammar")},
            "forbidden_terms": list(constraints.forbidden_terms) or None,
            "stop": list(constraints.stop_sequences) or None,
        }

    def _steering(self) -> dict[str, object]:
        steering = self.policy.steering
        if not steering.enabled:
            return {}
        where: dict[str, object] = {}
        if steering.layer_scope:
            where["steering_layers"] = sorted(layers(steering.layer_scope))
        if steering.token_start is not None or steering.token_end is not None:
            where["steering_scope"] = slice(steering.token_start, steering.token_end)
        if self.steering is not None:
            return {"steering_vector": self.steering, "steering_strength": 1.0, **where}
        vector = vector_of(steering)
        return {
            "steering_vector": vector,
            "steering_preset": steering.preset,
            "steering_strength": preset_strength(self.policy) if vector is None else steering.strength,
            **where,
        }


def vector_of(steering: SteeringControls) -> Mapping[str, object] | str | None:
    """The policy's own vector, {layer: vector}, or the id of a stored one, or None."""
    return steering.vector if steering.vector is not None else steering.vector_id


def preset_strength(policy: Policy) -> float:
    """The strength that a policy gives its preset; 0, the preset's own, where it gives none."""
    return policy.steering.strength if "strength" in (policy.given.get("steering") or {}) else 0.0


def _scheduled(base: float, adaptive: bool, schedule: Sequence[float], round: int, step: float, floor: float) -> float:
    """A round's value: from the schedule, whose last one repeats; else `base`, lowered by `step` a round if `adaptive`."""
    if schedule:
        return schedule[min(round, len(schedule) - 1)]
    return max(min(base, floor), base - step * round) if adaptive else base
