"""`mx.generation`: text from a prompt, from many prompts, or in pieces.

The functions of this module work on the default session; `Mechanex(...).generation` has the same ones for a session of its own.
"""

from __future__ import annotations

import enum
import functools
import inspect
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from mechanex_jax import policy, session
from mechanex_jax.edits import Edit, Edits, Scope, check
from mechanex_jax.engine import run as engine
from mechanex_jax.engine.config import GenerationConfig, one_value, per_row
from mechanex_jax.engine.request import Completion, Prompt, Request
from mechanex_jax.engine.run import MICRO_BATCH, OnRows, ignore
from mechanex_jax.engine.seeds import row_seeds
from mechanex_jax.errors import ArgumentError, expected
from mechanex_jax.loading import LoadedModel
from mechanex_jax.policy.runner import PolicyRunner
from mechanex_jax.policy.service import Policies
from mechanex_jax.progress import bar as progress_bar
from mechanex_jax.rows import take_rows
from mechanex_jax.session import Session
from mechanex_jax.signatures import check_keywords, suggests_arguments
from mechanex_jax.steering.service import Steering
from mechanex_jax.transforms import LogitsTransform, chain
from mechanex_jax.validation import integer

_OF_THE_CALL = ("model", "seed", "transform", "edits")  # arguments that are no row's

_INSTEAD_OF_A_LIST = {"transform": "Put several into mx.transforms.chain; a row's own values go into its fields."}

P = ParamSpec("P")
R = TypeVar("R")


def _shares_arguments(
    template: Callable[Concatenate[Any, Any, P], Any], **extra: Any
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, Any, P], R]]:
    """Give a method the arguments of `template` behind its own first one, and `extra` keyword-only ones."""

    def decorate(method: Callable[..., R]) -> Callable[Concatenate[Any, Any, P], R]:
        own = list(inspect.signature(method).parameters.values())[:2]  # self and the prompts
        shared = list(inspect.signature(template).parameters.values())[2:]
        more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in extra.items()]
        signature = inspect.Signature([*own, *[p for p in shared if p.name not in extra], *more])
        known = list(signature.parameters)[1:]

        @functools.wraps(method)
        def bound(*args: Any, **kwargs: Any) -> R:
            check_keywords(method.__name__, kwargs, known)
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            return method(*given.args[:2], **dict(list(given.arguments.items())[2:]))

        bound.__signature__ = signature  # type: ignore[attr-defined]
        return bound  # type: ignore[return-value]

    return decorate


class _Prepared(NamedTuple):
    """Rows of one call, all checked before the first is decoded.

    Attributes:
      loaded: the model.
      requests: the rows that decode once, by their number.
      runner: runs the rows that go through a policy; None where there are none.
      through: the numbers of these rows.
      transform, edits: the caller's own, for `requests`.
    """

    loaded: LoadedModel
    requests: dict[int, Request]
    runner: PolicyRunner | None
    through: list[int]
    transform: LogitsTransform | None
    edits: tuple[Edit, ...]


class Generation:
    """Text generation in one session.

    Args:
      session: holds the models.
      steering: knows vectors and presets by name.
      policy: runs rows that take more than one decoding of their prompts.
    """

    def __init__(self, session: Session, steering: Steering, policy: Policies):
        self.session, self.steering, self.policy = session, steering, policy
        self._traces = threading.local()

    def __repr__(self) -> str:
        return f"Generation({self.session!r})"

    @property
    def last_trace(self) -> dict[str, object] | list[dict[str, object] | None] | None:
        """The trace of this thread's last call with `include_trace=True`: a dict, for a batch a list; None before."""
        return getattr(self._traces, "last", None)

    def _prepare(
        self,
        prompts: Sequence[Prompt],
        configs: Sequence[GenerationConfig],
        names: Sequence[str],
        *,
        model: str | None,
        seed: int | Sequence[int | None] | None,
        transform: LogitsTransform | None,
        edits: Edits,
    ) -> _Prepared:
        """Route, validate and tokenize, in this order and before anything compiles."""
        seeds = row_seeds(seed, len(prompts))
        loaded = self.session.local_model(model)
        spec = loaded.model.spec
        user = None if transform is None else chain(transform), check(edits, spec.layers, spec.width)
        routed = list(map(attrgetter("needs_policy"), configs))
        once, through = ([row for row, needed in enumerate(routed) if needed is wanted] for wanted in (False, True))
        own_columns = _columns(once, prompts, configs, seeds, names)
        requests = dict(zip(once, self.steering.requests(loaded).build_all(*own_columns), strict=True))
        runner = None
        if through:
            user_rows = take_rows(user, through, len(prompts))
            runner = self.policy.prepare(loaded, *_columns(through, prompts, configs, seeds, names), *user_rows)
            user = take_rows(user, once, len(prompts))
        return _Prepared(loaded, requests, runner, through, *user)

    def _complete(self, prepared: _Prepared, micro_batch: int = MICRO_BATCH, on_rows: OnRows = ignore) -> list[Completion]:
        """Decode all rows and return them in order."""
        loaded, requests, runner, through, transform, edits = prepared
        done: dict[int, Completion] = {}
        if requests:
            rows = list(requests.values())
            completions = engine.run(loaded, rows, transform=transform, edits=edits, micro_batch=micro_batch, on_rows=on_rows)
            done |= zip(requests, completions, strict=True)
        if runner is not None:
            done |= zip(through, runner.run(micro_batch=micro_batch, on_rows=on_rows), strict=True)
        return [done[row] for row in range(len(done))]

    def _keep_traces(self, prepared: _Prepared, configs: Sequence[GenerationConfig], completions: Sequence[Completion]) -> None:
        """Remember what the rows that ask for a trace have to tell."""
        if not any(config.include_trace for config in configs):
            return
        traces = [
            prepared.requests[row].trace(prepared.loaded, completion) if row in prepared.requests else dict(completion.trace)
            for row, completion in enumerate(completions)
        ]
        wanted = zip(traces, configs, strict=True)
        self._traces.last = [trace if config.include_trace else None for trace, config in wanted]

    @suggests_arguments
    def generate(
        self,
        prompt: str,
        max_tokens: int = 128,
        sampling_method: str = "top-k",
        temperature: float = 0.7,
        top_k: int = 50,
        top_p: float = 0.9,
        min_p: float | None = None,
        typical_p: float | None = None,
        ads_subset_size: int | None = None,
        ads_beta: float | None = None,
        steering_vector: Any = None,
        steering_strength: float = 0,
        steering_preset: str | None = None,
        json_schema: Any = None,
        regex_pattern: str | re.Pattern[str] | None = None,
        grammar: str | Path | None = None,
        draft_model: str | None = None,
        ensemble_models: Sequence[str] | None = None,
        best_of_n: int = 1,
        adaptive_temperature: bool = False,
        adaptive_temperature_schedule: Sequence[float] | None = None,
        adaptive_top_p: bool = False,
        adaptive_top_p_schedule: Sequence[float] | None = None,
        confidence_triggered_regeneration: bool = False,
        confidence_threshold: float = 0.5,
        code_unit_tests: Sequence[str] | None = None,
        policy: Any = None,
        policy_id: str | None = None,
        include_trace: bool = False,
        *,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        chat: bool = False,
        model: str | None = None,
        min_tokens: int = 0,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        constraint: Any = None,
        json_whitespace: bool = False,
        json_closed: bool | None = None,
        json_numbers: str = "short",
        choices: Sequence[str] | type[enum.Enum] | None = None,
        forbidden_terms: Sequence[str] | None = None,
        steering_layers: Sequence[Any] | None = None,
        steering_scope: str | slice | Scope = "all",
        epsilon_cutoff: float | None = None,
        beam_width: int = 4,
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
        speculative_steps: int = 4,
        voting: str = "majority",
        ensemble_weights: Sequence[float] | None = None,
        on_failure: str = "warn",
        transform: Any = None,
        edits: Any = None,
        details: bool = False,
    ) -> str:
        """Continue `prompt`; returns the continuation only.

        The arguments up to `include_trace` are the documented API's. Only the named method's truncation is active: `top_k`
        has no effect under "top-p". An argument whose default is None is refused by a method that doesn't use it.

        Args:
          prompt: text to continue; with `chat=True` a user's message, or a list of {"role", "content"}.
          max_tokens: most tokens to generate, at least 1; what exceeds the model's context is cut.
          sampling_method: see `mechanex_jax.engine.methods`: greedy, top-k, top-p, min-p, typical, epsilon, ads,
            guided-generation (top-p under a constraint), constrained-beam-search, speculative-decoding (or ssd),
            ensemble-sampling.
          temperature: divides the logits; 1 is the model's own law, 0 is greedy.
          top_k: for "top-k"; keep the k likeliest tokens and all that tie with the last of them.
          top_p: for "top-p"; keep the smallest set of likeliest tokens whose probability reaches it; 1 is the identity.
          min_p: for "min-p"; keep tokens at least this share as likely as the likeliest; None is 0.05, 0 the identity.
          typical_p: for "typical"; keep the tokens of most typical information content up to this probability; None is
            0.95, 1 the identity.
          steering_vector: {layer: vector}, added to the residual stream where it enters the layer, times `steering_strength`.
            Or the id of a stored vector (see `mx.steering`).
          steering_strength: 0, the default, does not steer by the vector, and leaves a preset at its own strength.
          steering_preset: one of the presets of `mx.steering`, such as "brevity"; adds up with a vector.
          json_schema: the text is JSON that this schema accepts (draft 2020-12 or 07): a dict, True, a JSON text, the
            `pathlib.Path` of one, a pydantic model, dataclass, TypedDict or Enum, or OpenAI's tool (the text is its arguments)
            or `response_format`. The keys come in the schema's order.
          regex_pattern: the whole text matches it, as by `re.fullmatch`; a text, or what `re.compile` returns, with its flags.
          grammar: the text is a sentence of this grammar: GBNF, Lark, "regex:PATTERN", or the `pathlib.Path` of one. At most
            one of these and `choices`; they go with every method. The text is complete even where `max_tokens` is tight.
          include_trace: keep what the method has to tell in `last_trace` (the other hypotheses of a beam search, for one).
          ads_subset_size: for "ads"; at most so many tokens are kept; None is 8.
          ads_beta: for "ads"; weight of diversity, between 0 and 1; None is 0.3.
          draft_model: a smaller model that proposes tokens, which the loaded one checks several at a time: the same texts,
            sooner. A catalogue name, a path or a loaded alias. "default", as "speculative-decoding" without any, looks
            proposals up in the prompt and the text so far.
          ensemble_models: for "ensemble-sampling"; further members, named like `draft_model`. Members with other tokenizers
            each write a text, in their own tokens and with their own chat template, and vote on the texts.
          best_of_n: candidates that decode side by side, the prompt read once; the best is returned (see `mx.policy`).
          adaptive_temperature: lower the temperature by 0.08 in each further round, down to 0.05.
          adaptive_temperature_schedule: a temperature for each round, the last one repeating.
          adaptive_top_p, adaptive_top_p_schedule: the same for `top_p`, by 0.04, down to 0.2.
          confidence_triggered_regeneration: another round where the best text's confidence, the geometric mean of its tokens'
            probabilities, is below `confidence_threshold`.
          confidence_threshold: 0 to 1.
          code_unit_tests: pieces of Python that a text's code must pass, run in a process of its own (see `mx.policy`).
          policy: a mapping as `mx.policy` describes it. Its fields win; an argument fills what it leaves out, and is refused
            where the two disagree.
          policy_id: a saved one. At most one of the two.
          seed: 0 to 4294967295, the same text each time on one machine; None draws a fresh one.
          stop: a string or several; the text ends before the first that appears.
          chat: wrap the prompt in the model's chat template.
          model: which loaded model; None is the one loaded last.
          min_tokens: no end of sequence before this many tokens.
          repetition_penalty: above 1 makes tokens of prompt and text less likely (arXiv 1909.05858); 1 is the identity.
          presence_penalty: subtracted from the logits of tokens generated before; 0 is the identity.
          frequency_penalty: the same, times how often; 0 is the identity.
          logit_bias: {token id: added to its logit}; -inf forbids.
          constraint: one compiled by `mx.constraints.compile`, instead of the three above and `choices`.
          json_whitespace: let JSON have some whitespace between its parts; by default it has none.
          json_closed: True: objects have no keys but those that the schema lists, unless it says something about others.
            False: as JSON Schema has it. None: True for classes and for tools and response formats with `strict`.
          json_numbers: "short": numbers have at most 15 digits (more only where the schema's own have) and three digits of an
            exponent, and integers are written without a fraction. "any": any spelling of JSON.
          choices: the text is one of these strings: a list, or an Enum of strings.
          forbidden_terms: texts that must not appear, in upper or lower case, inside words neither: never generated, with any
            method or constraint. Where a constraint leaves nothing else, the text ends there ("dead_end").
          steering_layers: of vector and preset, use those at these layers only; None is all.
          steering_scope: positions to steer: "all", "prompt", "generated", `mx.edits.scope(...)`, or slice(start, end) of the
            whole text's tokens.
          epsilon_cutoff: for "epsilon"; keep tokens of at least this probability, and always the likeliest; None is 0.0003, 0
            the identity.
          beam_width: for constrained-beam-search: hypotheses kept side by side.
          length_penalty: for constrained-beam-search: a score is the sum of log p over length to this power; 0 is no penalty,
            above it favours longer texts.
          early_stopping: for constrained-beam-search, as in `transformers`: True ends with `beam_width` finished hypotheses,
            False when no better one is likely, "never" when none is possible.
          speculative_steps: the most tokens drafted in a round, 1 to 8; fewer, or none, where they are not accepted.
          voting: for "ensemble-sampling": "majority" of the members' tokens, or the "mean" or "product" of their distributions;
            between different tokenizers, of how likely each text is per byte.
          ensemble_weights: the loaded model's, then one for each of `ensemble_models`; None is equal weights.
          on_failure: where no candidate of a policy, or of a call with `code_unit_tests`, is accepted: "warn" returns the best
            of them with a warning, "raise" raises NotAcceptedError.
          transform: a LogitsTransform of your own, applied after constraint, penalties and bias, and before temperature and
            truncation (see `mx.transforms`). What is forbidden before it stays forbidden.
          edits: edits of your own, one or a list, applied in their order after the steering vectors (see `mx.edits`).
          details: return a `Completion` (text, tokens, logprobs, finish_reason) instead of the string.

        Raises:
          ArgumentError: a bad argument; a ValueError, raised before anything compiles.
          NotLocalError: not available in this version; a NotImplementedError.
          ModelNotFoundError: no model is loaded, or none of that name.
          NotAcceptedError: no candidate was accepted, with `on_failure="raise"`.
        """
        config = GenerationConfig(
            max_tokens=max_tokens,
            sampling_method=sampling_method,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            ads_subset_size=ads_subset_size,
            ads_beta=ads_beta,
            steering_vector=steering_vector,
            steering_strength=steering_strength,
            steering_preset=steering_preset,
            json_schema=json_schema,
            regex_pattern=regex_pattern,
            grammar=grammar,
            draft_model=draft_model,
            ensemble_models=ensemble_models,
            best_of_n=best_of_n,
            adaptive_temperature=adaptive_temperature,
            adaptive_temperature_schedule=adaptive_temperature_schedule,
            adaptive_top_p=adaptive_top_p,
            adaptive_top_p_schedule=adaptive_top_p_schedule,
            confidence_triggered_regeneration=confidence_triggered_regeneration,
            confidence_threshold=confidence_threshold,
            code_unit_tests=code_unit_tests,
            policy=policy,
            policy_id=policy_id,
            include_trace=include_trace,
            stop=stop,
            chat=chat,
            min_tokens=min_tokens,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
            constraint=constraint,
            json_whitespace=json_whitespace,
            json_closed=json_closed,
            json_numbers=json_numbers,
            choices=choices,
            forbidden_terms=forbidden_terms,
            steering_layers=steering_layers,
            steering_scope=steering_scope,
            epsilon_cutoff=epsilon_cutoff,
            beam_width=beam_width,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            speculative_steps=speculative_steps,
            voting=voting,
            ensemble_weights=ensemble_weights,
            on_failure=on_failure,
        )
        _refuse_lists(one_value, model=model, seed=seed, transform=transform, details=details)
        prepared = self._prepare([prompt], [config], ["prompt"], model=model, seed=seed, transform=transform, edits=edits)
        completions = self._complete(prepared)
        self._keep_traces(prepared, [config], completions)
        if include_trace:
            self._traces.last = self._traces.last[0]
        return _answers(completions, details)[0]

    @_shares_arguments(generate, batch_size=MICRO_BATCH, progress=False)
    def generate_batch(self, prompts: Sequence[str], **arguments: Any) -> list[str]:
        """Continue many prompts; returns one continuation per prompt, in order.

        Arguments as for `generate`; each is one value for all prompts or a list with one per prompt, the method too. What is
        a list for one prompt already (`stop`, ...) varies by a list of lists. Row i draws from fold_in(key(seed), i), so that
        row 0 is `generate` with the same seed; a list of seeds gives row i exactly `generate(seed=seeds[i])`. `transform` and
        `edits` vary per row through their own fields.

        Args:
          prompts: any number; they decode in micro-batches of like length.
          batch_size: rows per micro-batch (keyword-only); it bounds memory.
          progress: show a progress bar (keyword-only).

        Raises:
          As `generate`; a list of the wrong length is an ArgumentError.
        """
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise expected("prompts", prompts, "a list of strings", "Use generate for a single one.")
        batch_size, progress = arguments.pop("batch_size"), arguments.pop("progress")
        integer(1)("batch_size", batch_size)
        details, call = arguments.pop("details"), {name: arguments.pop(name) for name in _OF_THE_CALL}
        _refuse_lists(_shared_value, model=call["model"], transform=call["transform"], details=details)
        names = [f"prompts[{row}]" for row in range(len(prompts))]
        configs = per_row(arguments, len(prompts))
        prepared = self._prepare(prompts, configs, names, **call)
        with progress_bar("Generating", enabled=progress, unit="prompts") as report:
            done = 0

            def on_rows(indices: Sequence[int], completions: Sequence[Completion]) -> None:
                nonlocal done
                done += len(indices)
                report(done, len(prompts))

            completions = self._complete(prepared, micro_batch=batch_size, on_rows=on_rows)
        self._keep_traces(prepared, configs, completions)
        return _answers(completions, details)

    @_shares_arguments(generate)
    def stream(self, prompt: str, **arguments: Any) -> Iterator[str]:
        """Continue `prompt` in pieces as they come; joined, they are what `generate` returns for the same seed.

        A piece never splits a character, and never holds the beginning of a stop string. Arguments as for `generate` but for
        `details`. They are checked at the call, before the first piece is asked for.
        """
        details, call = arguments.pop("details"), {name: arguments.pop(name) for name in _OF_THE_CALL}
        config = GenerationConfig(**arguments)
        _refuse_lists(one_value, model=call["model"], seed=call["seed"], transform=call["transform"], details=details)
        if details:
            raise expected("details", True, "False, because stream yields text", "Use generate for details.")
        prepared = self._prepare([prompt], [config], ["prompt"], **call)
        if prepared.runner is not None:
            return _one_piece(prepared.runner)
        loaded, requests = prepared.loaded, prepared.requests
        return engine.stream(loaded, requests[0], transform=prepared.transform, edits=prepared.edits)


def _columns(
    chosen: Sequence[int],
    prompts: Sequence[Prompt],
    configs: Sequence[GenerationConfig],
    seeds: Sequence[tuple[int, int]],
    names: Sequence[str],
) -> tuple[list[Prompt], list[GenerationConfig], list[tuple[int, int]], list[str]]:
    """The chosen rows of what a call holds for each of its rows."""
    return (
        [prompts[row] for row in chosen],
        [configs[row] for row in chosen],
        [seeds[row] for row in chosen],
        [names[row] for row in chosen],
    )


def _refuse_lists(error: Callable[[str, object], ArgumentError], **arguments: object) -> None:
    """Raise `error(name, value)` where one of a call's own arguments is a list."""
    for name, value in arguments.items():
        if isinstance(value, (list, tuple)):
            raise error(name, value)


def _shared_value(name: str, value: object) -> ArgumentError:
    """The error for a list where all rows of a batch share one value."""
    return expected(name, value, "one value for all prompts", _INSTEAD_OF_A_LIST.get(name, ""))


def _answers(completions: list[Completion], details: bool) -> list[Any]:
    """Completions, or their texts alone."""
    return completions if details else [completion.text for completion in completions]


def _one_piece(runner: PolicyRunner) -> Iterator[str]:
    """The text of a policy's one run: which candidate wins is known at the end."""
    if text := runner.run()[0].text:
        yield text


def __getattr__(name: str) -> Any:
    if name == "last_trace":  # of the default session; an attribute of the module would not follow it
        return default.last_trace
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


default = Generation(session.default, policy.default.steering, policy.default)
generate, generate_batch, stream = default.generate, default.generate_batch, default.stream

__all__ = ["Completion", "Generation", "GenerationConfig", "generate", "generate_batch", "stream"]
