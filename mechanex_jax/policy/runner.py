"""`PolicyRunner`: many runs in step; the candidates of a round of all of them decode as rows of one batch."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mechanex_jax import loops
from mechanex_jax.edits import Edit
from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.engine.request import Completion, Prompt, Request
from mechanex_jax.engine.run import MICRO_BATCH, OnRows, ignore, run
from mechanex_jax.errors import ArgumentError
from mechanex_jax.policy.criteria import criteria_for
from mechanex_jax.policy.plan import Plan
from mechanex_jax.policy.rounds import Candidate, Outcome, Run, Slot, report_failures
from mechanex_jax.policy.sandbox.runner import TestResult, UnitTestRunner, run_unit_tests
from mechanex_jax.policy.verifiers import broken_constraint, verify
from mechanex_jax.rows import take_rows
from mechanex_jax.steering.requests import RequestBuilder
from mechanex_jax.transforms import LogitsTransform


@dataclasses.dataclass(frozen=True)
class _Decoded:
    """A candidate before it is judged."""

    row: int
    slot: Slot
    completion: Completion
    latency_ms: int
    likelihood: float | None


class PolicyRunner:
    """Prompts under policies: all that can be checked is checked when it is made, then `run` or `outcomes` decodes.

    Args:
      requests: makes the requests of the one model.
      prompts: one per run.
      plans: how each of them is run.
      seeds: of each run's first candidate.
      names: what errors call each prompt.
      transform, edits: the caller's own; their fields hold one value, or one per prompt.
      run_tests: runs generated code.

    Raises:
      ArgumentError: a prompt, or what a plan asks of any of its rounds, cannot be served.
    """

    def __init__(
        self,
        requests: RequestBuilder,
        prompts: Sequence[Prompt],
        plans: Sequence[Plan],
        seeds: Sequence[int],
        names: Sequence[str],
        *,
        transform: LogitsTransform | None = None,
        edits: tuple[Edit, ...] = (),
        run_tests: UnitTestRunner = run_unit_tests,
    ):
        self._requests, self._loaded = requests, requests.loaded
        self._prompts, self.plans, self._seeds, self._names = prompts, list(plans), seeds, names
        self._transform, self._edits = transform, edits
        configs = [plan.config(plan.policy.sampling.method, 0, 0) for plan in self.plans]
        columns = enumerate(zip(prompts, configs, strict=True))
        self._first = [self._request(row, prompt, config) for row, (prompt, config) in columns]
        for row, plan in {id(plan): (row, plan) for row, plan in enumerate(self.plans)}.values():
            for name in dict.fromkeys(plan.policy.optimization.fallback_methods):
                self._request(row, prompts[row], plan.config(name, 0, 0))
        self._criteria = {id(plan): criteria_for(plan.policy, run_tests) for plan in self.plans}

    def _request(self, row: int, prompt: Prompt, config: GenerationConfig, seed: int = 0) -> Request:
        return self._requests.build(prompt, config, seed=seed, name=self._names[row])

    def outcomes(
        self, *, micro_batch: int = MICRO_BATCH, on_done: Callable[[int, Outcome], None] = lambda row, outcome: None
    ) -> list[Outcome]:
        """Run all to their ends; `on_done` is called with each run that ends."""
        ended: dict[int, Outcome] = {}
        runs = enumerate(zip(self._prompts, self.plans, self._seeds, strict=True))
        active = {row: Run(prompt, plan, seed, self._fits(row)).rounds() for row, (prompt, plan, seed) in runs}
        waiting = {row: next(run) for row, run in active.items()}
        while waiting:
            judged = self._round([(row, slot) for row, slots in waiting.items() for slot in slots], micro_batch)
            for row in list(waiting):
                try:
                    waiting[row] = active[row].send([candidate for owner, candidate in judged if owner == row])
                except StopIteration as end:
                    ended[row] = end.value
                    del waiting[row]
                    on_done(row, end.value)
        return [ended[row] for row in range(len(self.plans))]

    def run(self, *, micro_batch: int = MICRO_BATCH, on_rows: OnRows = ignore) -> list[Completion]:
        """The winners' completions, each with its run's trace.

        Where nothing is accepted, the plan's `on_failure` decides, see `report_failures`.
        """
        done = lambda row, outcome: on_rows([row], [outcome.winner.completion])
        outcomes = self.outcomes(micro_batch=micro_batch, on_done=done)
        choices = [str(plan.others.get("on_failure", "warn")) for plan in self.plans]
        report_failures(dict(zip(self._names, outcomes, strict=True)), dict(zip(self._names, choices, strict=True)))
        return [dataclasses.replace(outcome.winner.completion, trace=outcome.trace()) for outcome in outcomes]

    def _fits(self, row: int) -> Callable[[Prompt, GenerationConfig], bool]:
        def fits(prompt: Prompt, config: GenerationConfig) -> bool:
            try:
                self._request(row, prompt, config)
            except ArgumentError:
                return False
            return True

        return fits

    def _round(self, order: Sequence[tuple[int, Slot]], micro_batch: int) -> list[tuple[int, Candidate]]:
        """Decode and judge slots."""
        begun = time.perf_counter()
        rows = [row for row, _ in order]
        requests = [self._request(row, slot.prompt, slot.config, slot.seed) for row, slot in order]
        transform, edits = take_rows((self._transform, self._edits), rows, len(self.plans))
        completions = run(self._loaded, requests, transform=transform, edits=edits, micro_batch=micro_batch)
        latency = round(1000 * (time.perf_counter() - begun))
        likelihoods = self._likelihoods(rows, requests, completions)
        columns = zip(order, completions, likelihoods, strict=True)
        decoded = [_Decoded(row, slot, completion, latency, likelihood) for (row, slot), completion, likelihood in columns]
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

    def _likelihoods(
        self, rows: Sequence[int], requests: Sequence[Request], completions: Sequence[Completion]
    ) -> list[float | None]:
        """Mean log-likelihood per token after the run's prompt, under the loaded model alone, where a plan reranks."""
        likelihoods: list[float | None] = [None] * len(rows)
        again: list[tuple[int, int, Sequence[int]]] = []
        for at, (row, completion) in enumerate(zip(rows, completions, strict=True)):
            if not self.plans[row].policy.verifiers.rerank or not completion.tokens:
                continue
            request = requests[at]
            unsteered = request.tokens == self._first[row].tokens and request.steering is None and not self._edits
            if unsteered and request.config.method.loop != "ensemble":
                likelihoods[at] = float(np.mean(completion.logprobs))
            else:
                # A member of an ensemble may have spelt its text in tokens of its own.
                spelt = self._loaded.tokenizer.encode(completion.text, add_special_tokens=False)
                again.append((at, row, spelt if request.members else completion.tokens))
        again = [text for text in again if text[2]]
        if again:
            for (at, _, _), value in zip(again, self._scored([text[1:] for text in again]), strict=True):
                likelihoods[at] = value
        return likelihoods

    def _scored(self, texts: Sequence[tuple[int, Sequence[int]]]) -> list[float]:
        """The mean log-likelihoods of ids that follow a run's prompt, as far as they fit the context."""
        prompts, context = [self._first[row].tokens for row, _ in texts], self._loaded.model.spec.context
        whole = [(*prompt, *ids)[:context] for prompt, (_, ids) in zip(prompts, texts, strict=True)]
        lengths = np.array(list(map(len, whole)), np.int32)
        tokens = np.zeros((len(whole), lengths.max()), np.int32)
        for at, ids in enumerate(whole):
            tokens[at, : len(ids)] = ids
        begun = np.array(list(map(len, prompts)), np.int32)
        return (loops.score(self._loaded, tokens, lengths, begun) / (lengths - begun)).tolist()
