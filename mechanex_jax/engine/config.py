"""The arguments of one row, validated once, on the host, before anything compiles.

An argument of `generate` is declared here and nowhere else: see `mechanex_jax.engine.parameters`.
"""

# ruff: noqa: RUF009  (the calls make dataclass fields)

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechanex_jax.constraints.sources import JsonOptions
from mechanex_jax.edits import Scope
from mechanex_jax.engine import checks
from mechanex_jax.engine.methods import METHODS, SamplingMethod, Sources, method
from mechanex_jax.engine.parameters import Option, parameter, parameters_of
from mechanex_jax.errors import ArgumentError, Verbatim, expected
from mechanex_jax.representation import changed_repr
from mechanex_jax.validation import check_nesting, flag, integer, number, text

_MOST_TOKENS = 1024  # of determinantal sampling
MOST_CANDIDATES, MOST_BEAMS = 10_000, 1024  # lists of so many are made

# Headings of the command line's help.
_TEXT, _SAMPLING, _PENALTIES, _CONSTRAINTS, _STEERING = "Text", "Sampling", "Penalties", "Constraints", "Steering"
_POLICIES = "Policies"

_probability = number(0.0, 1.0, open_low=True)
_any_number = number(-math.inf)


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """One row's arguments. Names and defaults are those of `generate`, where they are described."""

    __repr__ = changed_repr

    max_tokens: int = parameter(128, integer(1), option=Option("Most tokens to generate.", _TEXT))
    min_tokens: int = parameter(0, integer(0), option=Option("No end of the text before this many tokens.", _TEXT))
    stop: str | Sequence[str] | None = parameter(
        None,
        checks.stop_strings,
        listed=True,
        policy="constraints.stop_sequences",
        option=Option("End before this string; give it again for more.", _TEXT, metavar="TEXT", type=list[str] | None),
    )
    chat: bool = parameter(
        False, flag, option=Option("Wrap the prompt in the model's chat template, as a user's message.", _TEXT, "--chat")
    )

    sampling_method: str = parameter(
        "top-k", policy="sampling.method", option=Option(f"{', '.join(METHODS)}.", _SAMPLING, "--method", "NAME")
    )
    temperature: float = parameter(
        0.7,
        number(0.0),
        policy="sampling.temperature",
        option=Option("Below 1 safer, above 1 more varied; 0 always takes the likeliest token.", _SAMPLING),
    )
    top_k: int = parameter(
        50,
        integer(1),
        policy="sampling.top_k",
        option=Option("For top-k: choose among this many of the likeliest tokens.", _SAMPLING),
    )
    top_p: float = parameter(
        0.9,
        _probability,
        policy="sampling.top_p",
        option=Option("For top-p: choose among the likeliest tokens that together reach this probability.", _SAMPLING),
    )
    min_p: float | None = parameter(
        None,
        number(0.0, 1.0),
        none_means=0.05,
        policy="sampling.min_p",
        option=Option("For min-p: choose among tokens at least this share as likely as the likeliest; 0.05.", _SAMPLING),
    )
    typical_p: float | None = parameter(
        None,
        _probability,
        none_means=0.95,
        policy="sampling.typical_p",
        option=Option("For typical: choose among the most typical tokens up to this probability; 0.95.", _SAMPLING),
    )
    epsilon_cutoff: float | None = parameter(
        None,
        number(0.0, 1.0),
        none_means=3e-4,
        policy="sampling.epsilon_cutoff",
        option=Option("For epsilon: choose among tokens of at least this probability; 0.0003.", _SAMPLING),
    )
    ads_subset_size: int | None = parameter(None, integer(1), none_means=8, policy="sampling.ads_subset_size")
    ads_beta: float | None = parameter(
        None, number(0.0, 1.0, open_low=True, open_high=True), none_means=0.3, policy="sampling.ads_beta"
    )
    beam_width: int = parameter(
        4,
        integer(1, MOST_BEAMS),
        policy="sampling.beam_width",
        option=Option("For constrained-beam-search: hypotheses kept side by side.", _SAMPLING),
    )
    length_penalty: float = parameter(
        1.0, _any_number, option=Option("For constrained-beam-search: above 0 favours longer texts.", _SAMPLING)
    )
    early_stopping: bool | str = parameter(False, checks.early_stopping)
    draft_model: str | None = parameter(None, text, policy="sampling.draft_model")
    speculative_steps: int = parameter(4, integer(1, 8), policy="sampling.speculative_steps")
    ensemble_models: Sequence[str] | None = parameter(None, checks.model_names, listed=True, policy="sampling.ensemble_models")
    ensemble_weights: Sequence[float] | None = parameter(None, checks.weights, listed=True)
    voting: str = parameter("majority", checks.voting, policy="sampling.voting")

    repetition_penalty: float | None = parameter(
        None,
        number(0.0, open_low=True),
        policy="sampling.repetition_penalty",
        option=Option("Above 1: what prompt and text hold becomes less likely.", _PENALTIES),
    )
    presence_penalty: float | None = parameter(
        None,
        _any_number,
        policy="sampling.presence_penalty",
        option=Option("Taken off the logit of every token generated before.", _PENALTIES),
    )
    frequency_penalty: float | None = parameter(
        None,
        _any_number,
        policy="sampling.frequency_penalty",
        option=Option("Taken off as often as the token was generated.", _PENALTIES),
    )
    logit_bias: Mapping[int, float] | None = parameter(None, checks.token_biases)

    json_schema: object = parameter(
        None,
        checks.json_schema,
        constraint="json_schema",
        policy="constraints.json_schema",
        option=Option("The text is JSON that this schema accepts.", _CONSTRAINTS, metavar="FILE", type=Path | None),
    )
    regex_pattern: str | re.Pattern[str] | None = parameter(
        None,
        checks.regex_pattern,
        constraint="regex",
        policy="constraints.regex_pattern",
        option=Option("The text matches this regular expression.", _CONSTRAINTS, "--regex", "PATTERN", str | None),
    )
    grammar: str | Path | None = parameter(
        None,
        checks.grammar,
        constraint="grammar",
        policy="constraints.grammar",
        option=Option("The text is a sentence of this grammar, GBNF or Lark.", _CONSTRAINTS, metavar="FILE", type=Path | None),
    )
    constraint: object = parameter(None, checks.compiled_constraint, constraint="compiled")
    forbidden_terms: Sequence[str] | None = parameter(
        None,
        checks.terms,
        listed=True,
        policy="constraints.forbidden_terms",
        option=Option(
            "The text never holds this term, in either case; give it again for more.",
            _CONSTRAINTS,
            "--forbidden-term",
            "TEXT",
            list[str] | None,
        ),
    )
    json_whitespace: bool = parameter(False, flag)
    json_closed: bool | None = parameter(None, flag, policy="constraints.json_closed")
    json_numbers: str = parameter("short", checks.json_numbers)
    choices: Sequence[str] | type[enum.Enum] | None = parameter(None, checks.choices, listed=True, constraint="choices")

    steering_preset: str | None = parameter(
        None,
        text,
        policy="steering.preset",
        option=Option("Steer by a preset, such as brevity.", _STEERING, metavar="NAME"),
    )
    steering_vector: object = parameter(
        None,
        policy="steering.vector",
        option=Option("Steer by a stored vector, see `steer list`.", _STEERING, metavar="ID", type=str | None),
    )
    steering_strength: float = parameter(
        0,
        _any_number,
        policy="steering.strength",
        option=Option("How strongly; 0 leaves a preset at its own strength.", _STEERING),
    )
    steering_layers: Sequence[object] | None = parameter(None, checks.layers, listed=True)
    steering_scope: str | slice | Scope = parameter("all", checks.positions)

    best_of_n: int = parameter(
        1,
        integer(1, MOST_CANDIDATES),
        policy="optimization.best_of_n",
        needs_policy=True,
        option=Option("The best of this many texts.", _POLICIES),
    )
    adaptive_temperature: bool = parameter(False, flag, policy="sampling.adaptive_temperature", needs_policy=True)
    adaptive_temperature_schedule: Sequence[float] | None = parameter(
        None,
        checks.schedule(number(0.0)),
        listed=True,
        policy="sampling.adaptive_temperature_schedule",
        needs_policy=True,
    )
    adaptive_top_p: bool = parameter(False, flag, policy="sampling.adaptive_top_p", needs_policy=True)
    adaptive_top_p_schedule: Sequence[float] | None = parameter(
        None, checks.schedule(_probability), listed=True, policy="sampling.adaptive_top_p_schedule", needs_policy=True
    )
    confidence_triggered_regeneration: bool = parameter(
        False, flag, policy="optimization.confidence_triggered_regeneration", needs_policy=True
    )
    confidence_threshold: float = parameter(0.5, number(0.0, 1.0), policy="optimization.confidence_threshold")
    code_unit_tests: Sequence[str] | None = parameter(
        None, checks.strings("pieces of Python"), listed=True, policy="verifiers.code_unit_tests", needs_policy=True
    )
    policy: Mapping[str, object] | None = parameter(
        None,
        checks.policy,
        needs_policy=True,
        option=Option("Run through this policy, as JSON; see `policy`.", _POLICIES, metavar="FILE", type=Path | None),
    )
    policy_id: str | None = parameter(
        None,
        text,
        needs_policy=True,
        option=Option("Run through a saved policy, see `policy list`.", _POLICIES, metavar="ID"),
    )
    include_trace: bool = parameter(False, flag)
    on_failure: str = parameter(
        "warn",
        checks.on_failure,
        option=Option('Where no candidate is accepted: "warn" prints the best all the same, "raise" fails.', _POLICIES),
    )

    def __post_init__(self) -> None:
        for name in _SINGLE:
            if isinstance(value := getattr(self, name), (list, tuple)):
                raise one_value(name, value)
        chosen = self.method
        for name, declared in PARAMETERS.items():
            value = getattr(self, name)
            if isinstance(value, (Mapping, list, tuple)):
                check_nesting(name, value)
            if declared.check is not None and value is not declared.default:
                declared.check(name, value)
        if self.policy is not None and self.policy_id is not None:
            raise expected("policy and policy_id", Verbatim("both"), "one at most", "Leave out the other.")
        if self.names_policy:  # then the method is the policy's, and so is what goes with it
            return
        for name in sorted(METHOD_ARGUMENTS - chosen.reads):
            if getattr(self, name) is not None:
                users = [m.name for m in METHODS.values() if name in m.reads]
                raise expected(
                    name,
                    getattr(self, name),
                    f"None, because {chosen.name} does not use it",
                    f"Leave it out, or use sampling_method={users[0]!r}.",
                )
        if chosen.subset and self.top_k > _MOST_TOKENS:
            raise expected("top_k", self.top_k, f"at most {_MOST_TOKENS} candidates for {chosen.name}")
        if self.min_tokens > self.max_tokens:
            raise expected("min_tokens", self.min_tokens, f"at most max_tokens, {self.max_tokens}")
        constraints = [name for name in _CONSTRAINT_KINDS if getattr(self, name) is not None]
        if len(constraints) > 1:
            count = Verbatim(f"{len(constraints)} constraints")
            raise expected(" and ".join(constraints), count, "one at most", "Put them into one.")
        if chosen.constrained and not constraints:
            raise expected(
                "sampling_method",
                chosen.name,
                "json_schema, regex_pattern, grammar or choices with it",
                "Say what the text must be.",
            )
        self._check_ensemble()

    def _check_ensemble(self) -> None:
        """Raise unless an ensemble has members, and a weight for the loaded model and each of them."""
        if self.method.loop != "ensemble":
            return
        if not self.ensemble_models:
            raise expected("ensemble_models", self.ensemble_models, "the names of one or more models", "Or use another method.")
        weights = self.ensemble_weights
        if weights is not None and len(weights) != len(self.ensemble_models) + 1:
            members = 1 + len(self.ensemble_models)
            raise expected(
                "ensemble_weights", list(weights), f"{members} numbers: the loaded model's, then one for each member"
            )

    @property
    def names_policy(self) -> bool:
        """Whether the row names a policy, given or saved."""
        return self.policy is not None or self.policy_id is not None

    @property
    def needs_policy(self) -> bool:
        """Whether the row runs through a policy: one that is named, or one made from its arguments."""
        return any(getattr(self, name) != declared.default for name, declared in PARAMETERS.items() if declared.needs_policy)

    @functools.cached_property
    def method(self) -> SamplingMethod:
        """The row's sampling method."""
        return method(self.sampling_method)

    def values(self, sources: Sources) -> dict[str, float]:
        """Fields of a transform from the arguments that a method reads them from."""
        values = {}
        for field, source in sources.items():
            value = getattr(self, source) if isinstance(source, str) else source
            values[field] = PARAMETERS[str(source)].none_means if value is None else value
        return values

    @property
    def partner_names(self) -> tuple[str, ...]:
        """The other models that the row asks for; "default" is the loaded model itself."""
        named = tuple(self.ensemble_models or ()) or ((self.draft_model,) if self.draft_model is not None else ())
        return tuple(name for name in named if name != "default")

    @functools.cached_property
    def constraint_source(self) -> tuple[str, Any, JsonOptions] | None:
        """(kind, source, how JSON is written) of the row's constraint, if it has one."""
        for name, kind in _CONSTRAINT_KINDS.items():
            if (value := getattr(self, name)) is not None:
                return kind, value, JsonOptions(self.json_whitespace, self.json_closed, self.json_numbers)
        return None

    @functools.cached_property
    def stops(self) -> tuple[str, ...]:
        """The row's stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


PARAMETERS = parameters_of(GenerationConfig)

# Arguments that are lists for one row already: in a batch, a list of lists (or of None) gives every row its own.
LIST_TYPED = frozenset(name for name, declared in PARAMETERS.items() if declared.listed)

# Arguments with default None that belong to methods (the others, None too, go with every method).
METHOD_ARGUMENTS = frozenset(name for m in METHODS.values() for name in m.reads if PARAMETERS[name].default is None)

# Arguments that constrain a text, and what kind of constraint each is.
_CONSTRAINT_KINDS = {name: declared.constraint for name, declared in PARAMETERS.items() if declared.constraint}


@functools.cache
def argument_types() -> Mapping[str, Any]:
    """The types of all arguments, by name."""
    return typing.get_type_hints(GenerationConfig)


_SINGLE = tuple(field.name for field in dataclasses.fields(GenerationConfig) if field.name not in LIST_TYPED)


def one_value(name: str, value: Any) -> ArgumentError:
    """The error for a list where one row has one value."""
    return expected(name, value, "one value", "Use generate_batch for one value per prompt.")


def per_row(arguments: Mapping[str, Any], rows: int) -> list[GenerationConfig]:
    """Make one configuration per row from arguments of which each is one value for all rows, or a list with one per row.

    Raises:
      ArgumentError: a list of another length; or what `GenerationConfig` refuses, with the row's number.
    """
    columns: dict[str, Sequence[Any]] = {}
    common: dict[str, Any] = {}
    for name, value in arguments.items():
        varies = isinstance(value, (list, tuple))
        if varies and name in LIST_TYPED:
            varies = any(item is None or isinstance(item, (list, tuple)) for item in value)
        if not varies:
            common[name] = value
        elif len(value) == rows:
            columns[name] = value
        else:
            raise expected(name, Verbatim(f"{len(value)} values"), f"one value, or a list of {rows} (one per prompt)")
    if not columns:  # the usual case: validate once
        return [GenerationConfig(**common)] * rows
    return [_row(index, {**common, **{name: column[index] for name, column in columns.items()}}) for index in range(rows)]


def _row(index: int, arguments: dict[str, Any]) -> GenerationConfig:
    try:
        return GenerationConfig(**arguments)
    except (ValueError, NotImplementedError) as error:
        error.args = (f"Row {index}: {error.args[0]}",)
        error.message = error.args[0]  # type: ignore[attr-defined]
        raise
