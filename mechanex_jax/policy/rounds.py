"""The rounds of one run: which candidates to decode next, given those there are; which of them wins."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.engine.request import Completion
from mechanex_jax.engine.seeds import candidate_seed
from mechanex_jax.policy import repair_prompts
from mechanex_jax.policy.plan import Plan
from mechanex_jax.policy.verifiers import agreement

ACCEPTED = 0.5  # the least score


@dataclasses.dataclass(frozen=True)
class Slot:
    """A candidate to be.

    Attributes:
      prompt: what it continues; another than the run's where it repairs or revises a text.
      config: its arguments.
      seed: its own.
      round, slot: its place.
    """

    prompt: Any
    config: GenerationConfig
    seed: int
    round: int
    slot: int


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A text, judged.

    Attributes:
      slot: what it was asked for.
      completion: what came of it.
      latency_ms: of its round.
      constraints_ok: no constraint is broken.
      verifier_ok: no verifier complains.
      score: 1 less what the complaints cost.
      reasons: the complaints.
      likelihood: mean log-likelihood of its tokens after the run's prompt, under the untempered, unsteered model; None where it
        is not reranked.
      agreement: share of its round that gives the same answer; None where nobody asks.
      uncontained: what its code could have reached while it was tested, see `mechanex_jax.policy.sandbox`.
    """

    slot: Slot
    completion: Completion
    latency_ms: int
    constraints_ok: bool
    verifier_ok: bool
    score: float
    reasons: tuple[str, ...]
    likelihood: float | None = None
    agreement: float | None = None
    uncontained: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        return self.constraints_ok and self.score >= ACCEPTED

    @property
    def confidence(self) -> float:
        """Geometric mean of the model's own probabilities of the tokens; of no tokens, 0."""
        return mean_probability(self.completion.logprobs)

    def described(self) -> dict[str, Any]:
        """As a trace has it."""
        slot, config = self.slot, self.slot.config
        found = {
            "output": self.completion.text,
            "accepted": self.accepted,
            "score": self.score,
            "confidence": self.confidence,
            "latency_ms": self.latency_ms,
            "tokens": len(self.completion.tokens),
            "constraints_ok": self.constraints_ok,
            "verifier_ok": self.verifier_ok,
            "reason": " | ".join(self.reasons) or "accepted",
            "sampling_method": config.method.name,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "seed": slot.seed,
            "round": slot.round,
            "slot": slot.slot,
            "finish_reason": self.completion.finish_reason,
        }
        weighed = {"likelihood": self.likelihood, "agreement": self.agreement}
        method = {"method": dict(self.completion.trace)} if self.completion.trace else {}
        method |= {"uncontained": list(self.uncontained)} if self.uncontained else {}
        return {**found, **{name: value for name, value in weighed.items() if value is not None}, **method}


def mean_probability(logprobs: Sequence[float]) -> float:
    """exp of the mean; 0 where there is none."""
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run comes to.

    Attributes:
      plan: how it was run.
      winner: the best candidate.
      candidates: all of them, by round and slot.
      events: what further rounds were for.
      latency_ms: of the whole run.
    """

    plan: Plan
    winner: Candidate
    candidates: tuple[Candidate, ...]
    events: tuple[Mapping[str, Any], ...]
    latency_ms: int

    def trace(self) -> dict[str, Any]:
        """What happened, as JSON has it."""
        policy = self.plan.policy
        return {
            "policy_name": policy.name,
            "task_profile": policy.task_profile.name,
            "objective": policy.objective.name,
            "candidates": [candidate.described() for candidate in self.candidates],
            "retry_events": [dict(event) for event in self.events],
            "selection": self.winner.described(),
            "total_tokens": sum(len(candidate.completion.tokens) for candidate in self.candidates),
        }

    def described(self, include_trace: bool) -> dict[str, Any]:
        """What `policy.run` returns."""
        found = self.winner.described()
        names = ("output", "accepted", "score", "confidence", "tokens", "constraints_ok", "verifier_ok")
        return {
            **{name: found[name] for name in names},
            "latency_ms": self.latency_ms,
            "policy_id": self.plan.policy.id,
            "trace": self.trace() if include_trace else None,
        }


class Run:
    """One prompt under one plan.

    Args:
      prompt: a text, or with chat messages.
      plan: how.
      seed: of the first candidate; the others' follow from it.
      fits: whether a prompt that shows a text leaves room for another; where it does not, nothing is repaired or revised.
    """

    def __init__(self, prompt: Any, plan: Plan, seed: int, fits: Callable[[Any, GenerationConfig], bool]):
        chat = plan.others.get("chat") and isinstance(prompt, str)
        self.prompt = [{"role": "user", "content": prompt}] if chat else prompt
        self.plan, self.seed, self._fits = plan, seed, fits
        self._revised: Candidate | None = None
        self._candidates: list[Candidate] = []
        self._events: list[dict[str, Any]] = []
        self._begun = time.perf_counter()

    def rounds(self) -> Generator[list[Slot], Sequence[Candidate], Outcome]:
        """Yields what to decode, is sent the candidates in this order, and returns the outcome."""
        for number, method in enumerate(self.plan.methods()):
            trigger = self._trigger(number)
            if number and (trigger is None or self._spent()):
                break
            yield from self._decode(self._slots(number, method), number, trigger)
        for _ in range(self.plan.policy.optimization.self_revision_loops):
            if self._spent():
                break
            yield from self._revise(1 + self._candidates[-1].slot.round)
        return Outcome(self.plan, self._winner(), tuple(self._candidates), tuple(self._events), self._elapsed_ms())

    def _decode(self, slots: list[Slot], number: int, trigger: str | None) -> Generator[list[Slot], Sequence[Candidate], None]:
        if number:
            self._events.append({"round": number, "trigger": trigger, "winner_score": self._winner().score})
        found = yield slots
        if "factuality" in self.plan.policy.verifiers.enabled:
            shares = agreement([candidate.completion.text for candidate in found])
            found = [dataclasses.replace(candidate, agreement=share) for candidate, share in zip(found, shares, strict=True)]
        self._candidates.extend(found)

    def _slots(self, number: int, method: str) -> list[Slot]:
        """The candidates of a round; a retry after a verifier's complaint has one more, which repairs the best text so far."""
        plan = self.plan
        own = [self._slot(self.prompt, method, number, slot) for slot in range(plan.candidates)]
        if number and plan.policy.verifiers.repair_on_failure and (failed := self._winner()).reasons:
            repair = repair_prompts.repair(self.prompt, failed.completion.text, failed.reasons)
            own += self._fitting(self._slot(repair, method, number, len(own)))
        return own

    def _fitting(self, slot: Slot) -> list[Slot]:
        return [slot] if self._fits(slot.prompt, slot.config) else []

    def _slot(self, prompt: Any, method: str, number: int, slot: int) -> Slot:
        seed = candidate_seed(self.seed, number, slot)
        return Slot(prompt, self.plan.config(method, number, slot), seed, number, slot)

    def _revise(self, number: int) -> Generator[list[Slot], Sequence[Candidate], None]:
        """One more candidate, which is shown the winner. Kept if it scores no less."""
        before = self._winner()
        prompt = repair_prompts.revision(self.prompt, before.completion.text)
        slots = self._fitting(self._slot(prompt, before.slot.config.sampling_method, number, 0))
        if not slots:
            return
        yield from self._decode(slots, number, "self revision")
        after = self._candidates[-1]
        if (after.accepted, after.score) >= (before.accepted, before.score):
            self._revised = after

    def _trigger(self, number: int) -> str | None:
        """Why a further round is wanted, if it is."""
        if not number:
            return None
        best, wanted = self._winner(), self.plan.policy.optimization
        reason = None
        if not best.accepted:
            reason = "not accepted"
        elif wanted.confidence_triggered_regeneration and best.confidence < wanted.confidence_threshold:
            reason = "confidence"
        fallback = number - 1 - self.plan.retries
        return f"{reason}, fallback {wanted.fallback_methods[fallback]}" if reason and fallback >= 0 else reason

    def _spent(self) -> bool:
        """Whether a budget forbids further rounds."""
        objective = self.plan.policy.objective
        tokens = sum(len(candidate.completion.tokens) for candidate in self._candidates)
        late = objective.latency_budget_ms is not None and self._elapsed_ms() >= objective.latency_budget_ms
        return late or (objective.token_budget is not None and tokens >= objective.token_budget)

    def _elapsed_ms(self) -> int:
        return round(1000 * (time.perf_counter() - self._begun))

    def _winner(self) -> Candidate:
        """The best so far; among equals the first."""
        if self._revised is not None:
            return self._revised
        sign = 1 if self.plan.policy.objective.maximize else -1

        def worth(candidate: Candidate) -> tuple[float, ...]:
            likelihood = -math.inf if candidate.likelihood is None else candidate.likelihood
            weighed = (candidate.score, candidate.agreement or 0.0, likelihood, candidate.confidence)
            return candidate.accepted, *(sign * value for value in weighed)

        return max(self._candidates, key=worth)
