"""Many runs in step: the candidates of a round of all of them decode as rows of one batch."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from mechanex_jax import loops
from mechanex_jax.engine.batch import Completion
from mechanex_jax.engine.calls import Given, OnRows, Plain, ignore
from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.engine.run import MICRO_BATCH
from mechanex_jax.errors import ArgumentError
from mechanex_jax.policy.criteria import criteria_for
from mechanex_jax.policy.plan import Plan
from mechanex_jax.policy.rounds import Candidate, Outcome, Run, Slot
from mechanex_jax.policy.sandbox.runner import TestResult, UnitTestRunner, run_unit_tests
from mechanex_jax.policy.verifiers import broken_constraint, verify


class Generation(Protocol):
    """What the driver asks of generation."""

    def rows(self, given: Given) -> Plain:
        """Rows that decode once, checked and tokenised."""
        ...


@dataclasses.dataclass(frozen=True)
class _Decoded:
    """A candidate that nobody has judged yet."""

    row: int
    slot: Slot
    completion: Completion
    latency_ms: int
    likelihood: float | None


class Driver:
    """Prompts under policies, as `calls.Rows`: checked when it is made, run by `run`.

    Args:
      generation: decodes.
      given: the prompts, one per run, with seeds; all of one model.
      plans: how each of them is run.
      run_tests: runs generated code.

    Raises:
      ArgumentError: a prompt, or what a plan asks of any of its rounds, cannot be served.
    """

    def __init__(self, generation: Generation, given: Given, plans: Sequence[Plan], run_tests: UnitTestRunner = run_unit_tests):
        self.generation, self.plans = generation, list(plans)
        first = [plan.config(plan.policy.sampling.method, 0, 0) for plan in self.plans]
        self.given = dataclasses.replace(given, configs=first, indices=[0] * len(first))
        self._first = generation.rows(self.given)
        for row, plan in {id(plan): (row, plan) for row, plan in enumerate(self.plans)}.values():
            for name in dict.fromkeys(plan.policy.optimization.fallback_methods):
                generation.rows(dataclasses.replace(self.given.take([row]), configs=[plan.config(name, 0, 0)]))
        self._criteria = {id(plan): criteria_for(plan.policy, run_tests) for plan in self.plans}

    def outcomes(
        self, *, micro_batch: int = MICRO_BATCH, on_done: Callable[[int, Outcome], None] = lambda row, outcome: None
    ) -> list[Outcome]:
        """Run all to their ends; `on_done` is told of each run that ends."""
        found: dict[int, Outcome] = {}
        pairs = enumerate(zip(self.given.prompts, self.plans, self.given.seeds, strict=True))
        active = {row: Run(prompt, plan, seed, self._fits(row)).rounds() for row, (prompt, plan, seed) in pairs}
        wanted = {row: next(run) for row, run in active.items()}
        while wanted:
            judged = self._round([(row, slot) for row, slots in wanted.items() for slot in slots], micro_batch)
            for row in list(wanted):
                try:
                    wanted[row] = active[row].send([candidate for owner, candidate in judged if owner == row])
                except StopIteration as ended:
                    found[row] = ended.value
                    del wanted[row]
                    on_done(row, ended.value)
        return [found[row] for row in range(len(self.plans))]

    def run(self, *, micro_batch: int = MICRO_BATCH, on_rows: OnRows = ignore) -> list[Completion]:
        """The winners' completions, each with its run's trace."""
        done = lambda row, outcome: on_rows([row], [outcome.winner.completion])
        found = self.outcomes(micro_batch=micro_batch, on_done=done)
        return [dataclasses.replace(outcome.winner.completion, trace=outcome.trace()) for outcome in found]

    def stream(self) -> Iterator[str]:
        """The first run's text, in one piece: which candidate wins is known at the end."""
        if text := self.run()[0].text:
            yield text

    def trace(self, row: int, completion: Completion) -> dict[str, Any]:
        """Of a run."""
        return dict(completion.trace)

    def _fits(self, row: int) -> Callable[[Any, GenerationConfig], bool]:
        def fits(prompt: Any, config: GenerationConfig) -> bool:
            try:
                self.generation.rows(dataclasses.replace(self.given.take([row]), prompts=[prompt], configs=[config]))
            except ArgumentError:
                return False
            return True

        return fits

    def _round(self, order: Sequence[tuple[int, Slot]], micro_batch: int) -> list[tuple[int, Candidate]]:
        """Decode and judge slots."""
        begun = time.perf_counter()
        rows, slots = [row for row, _ in order], [slot for _, slot in order]
        prepared = self.generation.rows(
            dataclasses.replace(
                self.given.take(rows),
                prompts=[slot.prompt for slot in slots],
                configs=[slot.config for slot in slots],
                seeds=[slot.seed for slot in slots],
            )
        )
        completions = prepared.run(micro_batch=micro_batch)
        latency = round(1000 * (time.perf_counter() - begun))
        likelihoods = self._likelihoods(rows, prepared, completions)
        columns = zip(rows, slots, completions, likelihoods, strict=True)
        decoded = [_Decoded(row, slot, completion, latency, likelihood) for row, slot, completion, likelihood in columns]
        # Verifiers that run code wait for other processes.
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            try:
                return list(zip(rows, pool.map(self._judge, decoded), strict=True))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _judge(self, decoded: _Decoded) -> Candidate:
        plan, completion = self.plans[decoded.row], decoded.completion
        criteria, uncontained = self._criteria[id(plan)], set[str]()

        def run_tests(code: str, tests: Sequence[str], timeout_ms: int) -> TestResult:
            result = criteria.run_tests(code, tests, timeout_ms)
            uncontained.update(result.uncontained)
            return result

        verdict = verify(completion.text, dataclasses.replace(criteria, run_tests=run_tests))
        broken = broken_constraint(completion.text, criteria)
        if completion.finish_reason == "dead_end":
            broken = broken or "constraint: no token was allowed"
        return Candidate(
            slot=decoded.slot,
            completion=completion,
            latency_ms=decoded.latency_ms,
            constraints_ok=broken is None,
            verifier_ok=verdict.ok,
            score=1.0 - verdict.penalty - (1.0 if broken else 0.0),
            reasons=(*([broken] if broken else []), *verdict.reasons),
            likelihood=decoded.likelihood,
            uncontained=tuple(sorted(uncontained)),
        )

    def _likelihoods(self, rows: Sequence[int], prepared: Plain, completions: Sequence[Completion]) -> list[float | None]:
        """Mean log-likelihood per token after the run's prompt, under the loaded model alone, where a plan reranks."""
        found: list[float | None] = [None] * len(rows)
        again: list[tuple[int, int, Sequence[int]]] = []
        for at, (row, completion) in enumerate(zip(rows, completions, strict=True)):
            if not self.plans[row].policy.verifiers.rerank or not completion.tokens:
                continue
            request = prepared.requests[at]
            own = request.tokens == self._first.requests[row].tokens and request.steering is None and not self.given.edits
            if own and request.config.method.loop != "ensemble":
                found[at] = float(np.mean(completion.logprobs))
            else:
                # A member of an ensemble may have spelt its text in tokens of its own.
                spelt = self.given.loaded.tokenizer.encode(completion.text, add_special_tokens=False)
                again.append((at, row, spelt if request.members else completion.tokens))
        again = [text for text in again if text[2]]
        if again:
            for (at, _, _), value in zip(again, self._scored([text[1:] for text in again]), strict=True):
                found[at] = value
        return found

    def _scored(self, texts: Sequence[tuple[int, Sequence[int]]]) -> list[float]:
        """Of ids behind a run's prompt, as far as they fit the context."""
        prompts, context = [self._first.requests[row].tokens for row, _ in texts], self.given.loaded.model.spec.context
        whole = [(*prompt, *ids)[:context] for prompt, (_, ids) in zip(prompts, texts, strict=True)]
        lengths = np.array(list(map(len, whole)), np.int32)
        tokens = np.zeros((len(whole), lengths.max()), np.int32)
        for at, ids in enumerate(whole):
            tokens[at, : len(ids)] = ids
        begun = np.array(list(map(len, prompts)), np.int32)
        return (loops.score(self.given.loaded, tokens, lengths, begun) / (lengths - begun)).tolist()
