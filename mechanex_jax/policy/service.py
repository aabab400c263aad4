"""`mx.policy`: how a text is to come about, as data; run on a prompt or many, compared, evaluated, tuned and kept."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence

from mechanex_jax.edits import Edit, RowSteering, parse_steering
from mechanex_jax.engine.checks import on_failure as check_on_failure
from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.engine.request import Prompt
from mechanex_jax.engine.run import MICRO_BATCH
from mechanex_jax.engine.seeds import as_seed, fresh, row_seeds, text_seed
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.loading import LoadedModel
from mechanex_jax.policy import merge, tuning, validate
from mechanex_jax.policy.controls import Policy
from mechanex_jax.policy.plan import Plan, preset_strength, vector_of
from mechanex_jax.policy.rounds import Outcome, RunResult, report_failures, warn_of_failures
from mechanex_jax.policy.runner import PolicyRunner
from mechanex_jax.policy.sandbox.runner import UnitTestRunner, run_unit_tests
from mechanex_jax.policy.saved import SavedPolicies
from mechanex_jax.policy.tuning import Evaluation, Figures, SearchResult
from mechanex_jax.progress import bar as progress_bar
from mechanex_jax.session import Session
from mechanex_jax.signatures import suggests_arguments
from mechanex_jax.steering.methods import METHODS as STEERING_METHODS
from mechanex_jax.steering.presets import PRESETS
from mechanex_jax.steering.service import Steering
from mechanex_jax.storage.json_store import JsonStore
from mechanex_jax.transforms import LogitsTransform
from mechanex_jax.validation import integer

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(GenerationConfig)} | {"model": None}
_ANYWHERE = ("default", None)
_OF_THE_CALL = ("policy", "policy_id", "include_trace")  # of no candidate's


class Policies(SavedPolicies):
    """Policies of one session: run, compared, evaluated, tuned, kept.

    Args:
      session: holds the models to run on.
      steering: knows vectors and presets by name.
      store, presets: see `SavedPolicies`.

    Attributes:
      run_tests: runs generated code with unit tests, see `UnitTestRunner`; one's own may take its place.
    """

    def __init__(self, session: Session, steering: Steering, store: JsonStore | None = None, presets: JsonStore | None = None):
        super().__init__(store, presets)
        self.session, self.steering = session, steering
        self.run_tests: UnitTestRunner = run_unit_tests

    def __repr__(self) -> str:
        return f"Policies({self.session!r})"

    # --- run ---

    @suggests_arguments
    def run(
        self,
        prompt: str,
        policy: Mapping[str, object] | Policy | None = None,
        policy_id: str | None = None,
        model: str = "default",
        max_new_tokens: int = 128,
        include_trace: bool = False,
        *,
        seed: int | None = None,
        chat: bool = False,
        on_failure: str = "warn",
    ) -> RunResult:
        """Run a policy on a prompt.

        Args:
          prompt: text to continue; with `chat=True` a user's message, or a list of messages.
          policy: a mapping of sections and fields, see `mechanex_jax.policy.controls`.
          policy_id: a saved one instead.
          model: which loaded model; "default" is the policy's, or else the one loaded last.
          max_new_tokens: most tokens of a candidate.
          include_trace: tell of every candidate and round.
          seed: the same candidates each time; None draws one.
          chat: wrap the prompt in the model's chat template.
          on_failure: where no candidate is accepted: "warn" returns the best of them with a warning, "raise" raises.

        Returns:
          output, accepted, score, confidence, latency_ms, tokens (of the output), constraints_ok, verifier_ok, policy_id and
          trace.

        Raises:
          ArgumentError: a bad argument or policy, before anything is decoded.
          NotLocalError: a field that only the hosted API serves.
          NotAcceptedError: no candidate was accepted, with `on_failure="raise"`; `details` holds the trace.
        """
        check_on_failure("on_failure", on_failure)
        resolved = self._resolve(policy, policy_id)
        (outcome,) = self._outcomes([prompt], [resolved], model, max_new_tokens, seed, chat)
        report_failures({"prompt": outcome}, {"prompt": on_failure})
        return outcome.result(include_trace)

    @suggests_arguments
    def compare(
        self,
        prompt: str,
        policies: Sequence[Mapping[str, object] | Policy],
        max_new_tokens: int = 128,
        *,
        model: str = "default",
        seed: int | None = None,
        chat: bool = False,
    ) -> dict[str, list[RunResult]]:
        """Run several policies on one prompt, with the same seed; returns {"results": [as `run`, with traces]}.

        Warns of policies under which nothing was accepted; `failure` in their traces says why.

        Raises:
          ArgumentError: no policies, or as `run`.
        """
        if isinstance(policies, (str, Mapping)) or not isinstance(policies, Sequence) or not policies:
            raise expected("policies", policies, "a list of policies, at least one")
        parsed = [self._read(policy, f"policies[{i}]") for i, policy in enumerate(policies)]
        seed = fresh(as_seed(seed))
        outcomes = self._outcomes([prompt] * len(parsed), parsed, model, max_new_tokens, [seed] * len(parsed), chat)
        warn_of_failures({f"policies[{i}]": outcome.failure for i, outcome in enumerate(outcomes)})
        return {"results": [outcome.result(True) for outcome in outcomes]}

    @suggests_arguments
    def evaluate(
        self,
        prompts: Sequence[str],
        policy: Mapping[str, object] | Policy | None = None,
        policy_id: str | None = None,
        max_new_tokens: int = 128,
        *,
        model: str = "default",
        seed: int | None = None,
        chat: bool = False,
        progress: bool | None = None,
        batch_size: int = MICRO_BATCH,
    ) -> Evaluation:
        """Run a policy on many prompts, which decode in batches.

        Args:
          prompts: at least one.
          policy, policy_id, model, max_new_tokens, chat: as for `run`.
          seed: of the first prompt; each further one has a seed of its own that follows from it.
          progress: show a bar; None does so on a terminal.
          batch_size: most rows that decode together.

        Returns:
          num_prompts, success_rate, avg_latency_ms (from the start of all to the end of each), avg_tokens, pass_count,
          fail_count, outputs (as `run`, in order), and failures: for each prompt why nothing was accepted, or None. A warning
          tells of prompts with a failure.

        Raises:
          ArgumentError: as `run`, or no prompts.
        """
        resolved = self._resolve(policy, policy_id)
        texts = self._prompts(prompts)
        shown = sys.stderr.isatty() if progress is None else progress
        outcomes = self._outcomes(texts, [resolved] * len(texts), model, max_new_tokens, seed, chat, shown, batch_size)
        failures = [outcome.failure for outcome in outcomes]
        warn_of_failures(dict(zip(_names(len(texts)), failures, strict=True)))
        return tuning.evaluation([outcome.result(False) for outcome in outcomes], failures)

    @suggests_arguments
    def auto_tune(
        self,
        prompts: Sequence[str],
        base_policy: Mapping[str, object] | Policy | None = None,
        base_policy_id: str | None = None,
        search_space: Mapping[str, Sequence[object]] | None = None,
        max_trials: int = 24,
        max_new_tokens: int = 128,
        *,
        model: str = "default",
        seed: int | None = None,
        chat: bool = False,
        progress: bool | None = None,
        batch_size: int = MICRO_BATCH,
    ) -> SearchResult:
        """Look for the policy that does best on prompts; see `mechanex_jax.policy.tuning` for how.

        Args:
          prompts: at least one. With four or more, a quarter of them is held out: no trial sees it, and the best trials are
            compared on it.
          base_policy, base_policy_id: where to start; neither is the default policy.
          search_space: {dotted path of a field: values}, such as {"sampling.temperature": [0.2, 0.7]}; without it the base
            alone is tried. A setting whose values are right by themselves but not together is passed over.
          max_trials: most settings to try; a larger grid is sampled so that every value is tried.
          max_new_tokens, model, chat, progress, batch_size: as for `evaluate`.
          seed: of the sampling and of every trial's texts.

        Returns:
          best_policy (without an id: to save it makes a new one), best_trial, trials, and interrupted: Ctrl-C ends the search
          with what it has, once a trial is complete. A trial has policy, values ({path: value}), num_prompts, success_rate,
          avg_score, avg_latency_ms, avg_tokens, pass_count, fail_count, and held_out: the figures on the prompts held out,
          or None. A warning tells where the best trial has no accepted text.

        Raises:
          ArgumentError: as `run`; an unknown path, a bad value, no values, or no trials; before anything is decoded.
        """
        neither = base_policy is None and base_policy_id is None
        base = validate.read({}) if neither else self._resolve(base_policy, base_policy_id)
        texts = self._prompts(prompts)
        integer(1)("max_trials", max_trials)
        integer(1)("max_new_tokens", max_new_tokens)
        seed = fresh(as_seed(seed))
        shown = sys.stderr.isatty() if progress is None else progress

        def evaluate(policy: Policy, chosen: Sequence[int]) -> Figures:
            seeds = [text_seed(seed, index) for index in chosen]
            own = [texts[index] for index in chosen]
            outcomes = self._outcomes(own, [policy] * len(own), model, max_new_tokens, seeds, chat, False, batch_size)
            return tuning.figures([outcome.result(False) for outcome in outcomes])

        names, others = _names(len(texts)), {"max_tokens": max_new_tokens, "chat": chat}

        def check(policy: Policy) -> None:
            loaded = self.session.local_model(self._model_of(policy, model))
            plans = [Plan(policy, others)] * len(texts)
            PolicyRunner(self.steering.requests(loaded), texts, plans, [0] * len(texts), names)

        with progress_bar("Tuning", enabled=shown, unit="trials") as report:
            return tuning.search(base, search_space, max_trials, len(texts), seed, evaluate, report, check)

    # --- for generate ---

    def prepare(
        self,
        loaded: LoadedModel,
        prompts: Sequence[Prompt],
        configs: Sequence[GenerationConfig],
        seeds: Sequence[tuple[int, int]],
        names: Sequence[str],
        transform: LogitsTransform | None,
        edits: tuple[Edit, ...],
    ) -> PolicyRunner:
        """A runner of rows of `generate` that go through a policy: their own, or one made of their arguments.

        Args:
          loaded: the model.
          prompts, configs, names: of each row; `names` are what errors call the prompts.
          seeds: (seed, index) of each row.
          transform, edits: the caller's own; their fields hold one value, or one per row.

        Raises:
          ArgumentError: an argument and the policy disagree, or as `run`.
        """
        plans = [self._plan_of(config, loaded) for config in configs]
        first = [text_seed(seed, index) for seed, index in seeds]
        own = {"transform": transform, "edits": edits, "run_tests": self.run_tests}
        return PolicyRunner(self.steering.requests(loaded), prompts, plans, first, names, **own)

    def _plan_of(self, config: GenerationConfig, loaded: LoadedModel) -> Plan:
        """A row's policy, with what it leaves out filled by the row's arguments."""
        named = self.get(config.policy_id) if config.policy_id is not None else config.policy
        own = {name: getattr(config, name) for name in _DEFAULTS if hasattr(config, name)}
        fields = dict.fromkeys(merge.FIELDS)
        if not isinstance(config.steering_vector, (str, Mapping)):  # steering that is ready: no field could hold it
            del fields["steering_vector"]
        merged = validate.read(merge.merge(named, {name: own[name] for name in fields if name in own}, _DEFAULTS))
        if merged.model.model not in (*_ANYWHERE, loaded.name):
            accepted = f"{loaded.name!r}, which the call runs on"
            raise expected("policy.model.model", merged.model.model, accepted, "Give it as model=.")
        others = {name: value for name, value in own.items() if name not in (*fields, *_OF_THE_CALL)}
        return Plan(merged, others, self._steering(merged, loaded))

    def _steering(self, policy: Policy, loaded: LoadedModel) -> RowSteering | None:
        """What steers, where the policy names a method that is not what it would be without; else None.

        Raises:
          ArgumentError: the stored vector was made by another method.
        """
        steering, store = policy.steering, self.steering
        if "method" not in (policy.given.get("steering") or {}):
            return None
        if steering.vector_id is not None:
            method = store.describe(steering.vector_id)["method"]
            if method in STEERING_METHODS and method != steering.method:
                raise expected("policy.steering.method", steering.method, f"{method!r}, by which {steering.vector_id} was made")
        if steering.preset is None or steering.method == PRESETS[steering.preset].method:
            return None
        preset = store.preset(steering.preset, preset_strength(policy), loaded, steering.method)
        vector = vector_of(steering)
        if isinstance(vector, str):
            return preset + store.resolve(vector, loaded).scaled(steering.strength)
        spec = loaded.model.spec
        return preset if vector is None else preset + parse_steering(vector, spec.width, spec.layers).scaled(steering.strength)

    # --- helpers ---

    def _read(self, policy: object, name: str = "policy") -> Policy:
        return validate.read(policy, name)

    def _resolve(self, policy: object, policy_id: str | None) -> Policy:
        if (policy is None) == (policy_id is None):
            said = Verbatim("neither" if policy is None else "both")
            raise expected("policy and policy_id", said, "one of them", "Give a mapping, or the id of a saved policy.")
        return self._read(policy if policy_id is None else self.get(policy_id))

    @staticmethod
    def _prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
        if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
            raise expected("prompts", prompts, "a list of prompts, at least one")
        return [*prompts]

    def _outcomes(
        self,
        prompts: Sequence[Prompt],
        policies: Sequence[Policy],
        model: str | None,
        max_new_tokens: int,
        seed: int | Sequence[int] | None,
        chat: bool,
        progress: bool = False,
        batch_size: int = MICRO_BATCH,
    ) -> list[Outcome]:
        """Each prompt under its policy; those of one model in step."""
        integer(1)("max_new_tokens", max_new_tokens)
        integer(1)("batch_size", batch_size)
        seeds = [text_seed(*pair) for pair in row_seeds(seed, len(prompts))]
        others = {"max_tokens": max_new_tokens, "chat": chat}
        groups: dict[int, tuple[LoadedModel, list[int]]] = {}
        for row, policy in enumerate(policies):
            loaded = self.session.local_model(self._model_of(policy, model))
            groups.setdefault(id(loaded), (loaded, []))[1].append(row)
        names = _names(len(prompts))
        runners = []
        for loaded, rows in groups.values():
            distinct = {id(policies[row]): policies[row] for row in rows}
            plans = {key: Plan(policy, others, self._steering(policy, loaded)) for key, policy in distinct.items()}
            columns = zip(*((prompts[row], plans[id(policies[row])], seeds[row], names[row]) for row in rows), strict=True)
            runners.append((rows, PolicyRunner(self.steering.requests(loaded), *columns, run_tests=self.run_tests)))
        outcomes: dict[int, Outcome] = {}
        with progress_bar("Running", enabled=progress, unit="prompts") as report:

            def done(row: int, outcome: Outcome) -> None:
                nonlocal finished
                finished += 1
                report(finished, len(prompts))

            finished = 0
            for rows, runner in runners:
                outcomes |= dict(zip(rows, runner.outcomes(micro_batch=batch_size, on_done=done), strict=True))
        return [outcomes[row] for row in range(len(prompts))]

    @staticmethod
    def _model_of(policy: Policy, model: str | None) -> str | None:
        """The name of the model to run on, None being the one loaded last."""
        named = {name for name in (policy.model.model, model) if name not in _ANYWHERE}
        if len(named) > 1:
            raise expected("model", model, f"{policy.model.model!r}, as the policy's model.model", "Leave one of them out.")
        return next(iter(named), None)


def _names(count: int) -> list[str]:
    """What errors call each of several prompts."""
    return [f"prompts[{row}]" for row in range(count)] if count > 1 else ["prompt"]
