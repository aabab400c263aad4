"""Rounds of a run: which candidates to decode next, given those there are, and which of them wins."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import NotRequired, TypedDict

from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.engine.request import Completion, Prompt
from mechanex_jax.engine.seeds import candidate_seed
from mechanex_jax.errors import NotAcceptedError
from mechanex_jax.policy import repair_prompts
from mechanex_jax.policy.plan import Plan
from mechanex_jax.policy.verifiers import agreement
from mechanex_jax.warning import warn

MIN_ACCEPTED_SCORE = 0.5


class CandidateRecord(TypedDict):
    """A candidate as a trace holds it; fields as those of `Candidate`, `Slot` and its arguments."""

    output: str
    accepted: bool
    score: float
    confidence: float
    latency_ms: int
    tokens: int
    constraints_ok: bool
    verifier_ok: bool
    reason: str
    sampling_method: str
    temperature: float
    top_p: float
    seed: int
    round: int
    slot: int
    finish_reason: str
    likelihood: NotRequired[float]
    agreement: NotRequired[float]
    method: NotRequired[dict[str, object]]
    uncontained: NotRequired[list[str]]


class RoundEvent(TypedDict):
    """Why a round after the first took place, and the best score before it."""

    round: int
    trigger: str | None
    winner_score: float


class RunTrace(TypedDict):
    """All that happened in a run; `failure` says why nothing was accepted, or is None."""

    policy_name: str | None
    task_profile: str
    objective: str
    candidates: list[CandidateRecord]
    retry_events: list[RoundEvent]
    selection: CandidateRecord
    total_tokens: int
    failure: str | None


class RunResult(TypedDict):
    """What `mx.policy.run` returns: the winner's text and figures, and the trace where it is asked for."""

    output: str
    accepted: bool
    score: float
    confidence: float
    tokens: int
    constraints_ok: bool
    verifier_ok: bool
    latency_ms: int
    policy_id: str | None
    trace: RunTrace | None


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place in a round: one candidate that is to be decoded.

    Attributes:
      prompt: what the candidate continues; another than the run's where it repairs or revises a text.
      config: its arguments.
      seed: of its random draws.
      round: number of the round, from 0.
      index: number of the slot in its round, from 0.
    """

    prompt: Prompt
    config: GenerationConfig
    seed: int
    round: int
    index: int


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A text that was decoded and judged.

    Attributes:
      slot: prompt, arguments and seed that it was decoded with.
      completion: text, tokens and log-probabilities.
      latency_ms: time that its round took.
      constraints_ok: whether it breaks no constraint.
      verifier_ok: whether no verifier complains.
      score: 1 less the penalties of all complaints.
      reasons: the complaints.
      likelihood: mean log-likelihood of its tokens after the run's prompt, under the untempered, unsteered model; None where
        the policy does not rerank.
      agreement: share of its round that gives the same answer; None unless the policy enables "factuality".
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
        """Whether it holds all constraints and scores `MIN_ACCEPTED_SCORE` or more."""
        return self.constraints_ok and self.score >= MIN_ACCEPTED_SCORE

    @property
    def confidence(self) -> float:
        """Geometric mean of the model's own probabilities of the tokens; 0 where there are no tokens."""
        logprobs = self.completion.logprobs
        return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0

    def record(self) -> CandidateRecord:
        """The candidate as a trace holds it."""
        slot, config = self.slot, self.slot.config
        record: CandidateRecord = {
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
            "slot": slot.index,
            "finish_reason": self.completion.finish_reason,
        }
        if self.likelihood is not None:
            record["likelihood"] = self.likelihood
        if self.agreement is not None:
            record["agreement"] = self.agreement
        if self.completion.trace:
            record["method"] = dict(self.completion.trace)
        if self.uncontained:
            record["uncontained"] = list(self.uncontained)
        return record


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A run that has ended.

    Attributes:
      plan: how it was run.
      winner: the best candidate.
      candidates: all of them, by round and slot.
      events: one for each round after the first.
      latency_ms: time that the whole run took.
    """

    plan: Plan
    winner: Candidate
    candidates: tuple[Candidate, ...]
    events: tuple[RoundEvent, ...]
    latency_ms: int

    @property
    def failure(self) -> str | None:
        """Why nothing was accepted; None if the winner was."""
        if self.winner.accepted:
            return None
        count = len(self.candidates)
        tried = "The one candidate" if count == 1 else f"None of {count} candidates"
        why = " | ".join(self.winner.reasons) or f"score {self.winner.score:.2f}"
        return f"{tried} was {'not ' * (count == 1)}accepted; of the {'text' if count == 1 else 'best'}: {why}"

    def trace(self) -> RunTrace:
        """All that happened, in values that JSON can hold."""
        policy = self.plan.policy
        return {
            "policy_name": policy.name,
            "task_profile": policy.task_profile.name,
            "objective": policy.objective.name,
            "candidates": [candidate.record() for candidate in self.candidates],
            "retry_events": [event.copy() for event in self.events],
            "selection": self.winner.record(),
            "total_tokens": sum(len(candidate.completion.tokens) for candidate in self.candidates),
            "failure": self.failure,
        }

    def result(self, include_trace: bool) -> RunResult:
        """The winner's text and figures as `mx.policy.run` returns them."""
        winner = self.winner.record()
        return {
            "output": winner["output"],
            "accepted": winner["accepted"],
            "score": winner["score"],
            "confidence": winner["confidence"],
            "tokens": winner["tokens"],
            "constraints_ok": winner["constraints_ok"],
            "verifier_ok": winner["verifier_ok"],
            "latency_ms": self.latency_ms,
            "policy_id": self.plan.policy.id,
            "trace": self.trace() if include_trace else None,
        }


def report_failures(outcomes: Mapping[str, Outcome], on_failure: Mapping[str, str]) -> None:
    """Warn of the runs in which nothing was accepted, or raise where one of them asks for it.

    Args:
      outcomes: by what errors call each run's prompt.
      on_failure: of each run, "warn" or "raise".

    Raises:
      NotAcceptedError: a run failed that asks for an error; `details` are the traces of all such runs.
    """
    failed = {name: outcome.failure for name, outcome in outcomes.items() if outcome.failure is not None}
    raising = {name: failure for name, failure in failed.items() if on_failure[name] == "raise"}
    if raising:
        raise NotAcceptedError(_summary(raising, len(outcomes)), details=[outcomes[name].trace() for name in raising])
    if failed:
        advice = 'The best text is returned all the same; pass on_failure="raise" for an error.'
        warn(f"{_summary(failed, len(outcomes))} {advice}")


def warn_of_failures(failures: Mapping[str, str | None]) -> None:
    """Warn of the runs in which nothing was accepted, where the result counts them.

    Args:
      failures: why, or None, by what errors call each run.
    """
    failed = {name: failure for name, failure in failures.items() if failure is not None}
    if failed:
        warn(f"{_summary(failed, len(failures))} The result has its best text all the same, as not accepted.")


def _summary(failed: Mapping[str, str], total: int) -> str:
    """The first failure in full, and how many there are."""
    name, failure = next(iter(failed.items()))
    noun = "policies" if name.startswith("policies") else "prompts"
    more = f" (and {len(failed) - 1} more of {total} {noun})" if len(failed) > 1 else ""
    return f"{name}: {failure}{more}."


Decoding = Generator[list[Slot], Sequence[Candidate], None]
"""Yields the slots of a round, and is sent their candidates in this order."""


class Run:
    """One prompt under one plan.

    Args:
      prompt: a text; in a chat a user's message, or a list of messages.
      plan: how to decode it.
      seed: of the first candidate; the others' follow from it.
      fits: (prompt, arguments) -> whether they leave room in the context. Where a prompt that shows a text does not fit,
        nothing is repaired or revised.
    """

    def __init__(self, prompt: Prompt, plan: Plan, seed: int, fits: Callable[[Prompt, GenerationConfig], bool]):
        chat = plan.others.get("chat") and isinstance(prompt, str)
        self.prompt: Prompt = [{"role": "user", "content": prompt}] if chat else prompt
        self.plan, self.seed, self._fits = plan, seed, fits
        self._revised: Candidate | None = None
        self._candidates: list[Candidate] = []
        self._events: list[RoundEvent] = []
        self._begun = time.perf_counter()

    def rounds(self) -> Generator[list[Slot], Sequence[Candidate], Outcome]:
        """Run all rounds: yields the slots of each, is sent their candidates in this order, and returns the outcome."""
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

    def _decode(self, slots: list[Slot], number: int, trigger: str | None) -> Decoding:
        if number:
            self._events.append({"round": number, "trigger": trigger, "winner_score": self._winner().score})
        candidates = yield slots
        if "factuality" in self.plan.policy.verifiers.enabled:
            shares = agreement([candidate.completion.text for candidate in candidates])
            pairs = zip(candidates, shares, strict=True)
            candidates = [dataclasses.replace(candidate, agreement=share) for candidate, share in pairs]
        self._candidates.extend(candidates)

    def _slots(self, number: int, method: str) -> list[Slot]:
        """List a round's slots; a retry after a verifier's complaint has one more, which repairs the best text so far."""
        plan = self.plan
        slots = [self._slot(self.prompt, method, number, index) for index in range(plan.candidates)]
        if number and plan.policy.verifiers.repair_on_failure and (failed := self._winner()).reasons:
            repair = repair_prompts.repair(self.prompt, failed.completion.text, failed.reasons)
            slots += self._fitting(self._slot(repair, method, number, len(slots)))
        return slots

    def _fitting(self, slot: Slot) -> list[Slot]:
        return [slot] if self._fits(slot.prompt, slot.config) else []

    def _slot(self, prompt: Prompt, method: str, number: int, index: int) -> Slot:
        seed = candidate_seed(self.seed, number, index)
        return Slot(prompt, self.plan.config(method, number, index), seed, number, index)

    def _revise(self, number: int) -> Decoding:
        """Decode one more candidate, which is shown the winner and replaces it if it scores no less."""
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
        """Say why a further round is needed; None if it is not."""
        if not number:
            return None
        winner, optimization = self._winner(), self.plan.policy.optimization
        reason = None
        if not winner.accepted:
            reason = "not accepted"
        elif optimization.confidence_triggered_regeneration and winner.confidence < optimization.confidence_threshold:
            reason = "confidence"
        fallback = number - 1 - self.plan.retries
        return f"{reason}, fallback {optimization.fallback_methods[fallback]}" if reason and fallback >= 0 else reason

    def _spent(self) -> bool:
        """Whether a budget forbids further rounds."""
        objective = self.plan.policy.objective
        tokens = sum(len(candidate.completion.tokens) for candidate in self._candidates)
        late = objective.latency_budget_ms is not None and self._elapsed_ms() >= objective.latency_budget_ms
        return late or (objective.token_budget is not None and tokens >= objective.token_budget)

    def _elapsed_ms(self) -> int:
        return round(1000 * (time.perf_counter() - self._begun))

    def _winner(self) -> Candidate:
        """The best candidate so far; among equals the first."""
        if self._revised is not None:
            return self._revised
        sign = 1 if self.plan.policy.objective.maximize else -1

        def rank(candidate: Candidate) -> tuple[float, ...]:
            likelihood = -math.inf if candidate.likelihood is None else candidate.likelihood
            criteria = (candidate.score, candidate.agreement or 0.0, likelihood, candidate.confidence)
            return candidate.accepted, *(sign * value for value in criteria)

        return max(self._candidates, key=rank)
