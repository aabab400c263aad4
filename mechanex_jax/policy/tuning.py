"""What many runs come to, and the search for the policy that does best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mechanex_jax.policy.schema import Policy


def evaluation(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of runs as `policy.run` returns them, at least one."""
    passed, total = sum(output["accepted"] for output in outputs), len(outputs)
    mean = lambda name: sum(output[name] for output in outputs) / total
    return {
        "num_prompts": total,
        "success_rate": passed / total,
        "avg_score": mean("score"),
        "avg_latency_ms": mean("latency_ms"),
        "avg_tokens": mean("tokens"),
        "pass_count": passed,
        "fail_count": total - passed,
        "outputs": list(outputs),
    }


def search(
    base: Policy,
    space: Mapping[str, Sequence[Any]],
    max_trials: int,
    prompts: int,
    seed: int,
    tried: Callable[[Policy, Sequence[int]], dict[str, Any]],
    report: Callable[[int, int], None],
) -> dict[str, Any]:
    raise NotImplementedError
