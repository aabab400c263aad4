"""What one row is asked for: all arguments of `generate`, validated once, on the host, before anything compiles."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from mechanex_jax.edits import Scope, scope
from mechanex_jax.engine.methods import METHODS, SamplingMethod, method
from mechanex_jax.errors import Verbatim, expected
from mechanex_jax.validation import Check, flag, integer, number, text

# Arguments whose documented default is None and that belong to a method (the others, None too, go with every method).
_OF_METHODS = frozenset().union(*(m.reads for m in METHODS.values()))


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """One row's arguments. Names and defaults are those of `generate`, where they are described."""

    max_tokens: int = 128
    sampling_method: str = "top-k"
    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 0.9
    min_p: float | None = None
    typical_p: float | None = None
    ads_subset_size: int | None = None
    ads_beta: float | None = None
    steering_vector: Any = None
    steering_strength: float = 0
    steering_preset: str | None = None
    json_schema: Any = None
    regex_pattern: str | None = None
    grammar: str | None = None
    draft_model: str | None = None
    ensemble_models: Sequence[str] | None = None
    best_of_n: int = 1
    adaptive_temperature: bool = False
    adaptive_temperature_schedule: Sequence[float] | None = None
    adaptive_top_p: bool = False
    adaptive_top_p_schedule: Sequence[float] | None = None
    confidence_triggered_regeneration: bool = False
    confidence_threshold: float = 0.5
    code_unit_tests: Sequence[str] | None = None
    policy: Any = None
    policy_id: str | None = None
    include_trace: bool = False
    stop: str | Sequence[str] | None = None
    chat: bool = False
    min_tokens: int = 0
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    constraint: Any = None
    json_whitespace: bool = False
    forbidden_terms: Sequence[str] | None = None
    steering_layers: Sequence[Any] | None = None
    steering_scope: Any = "all"
    beam_width: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    speculative_steps: int = 4
    voting: str = "majority"
    ensemble_weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        chosen = method(self.sampling_method)
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None:
                check(name, value)
        if self.policy is not None and self.policy_id is not None:
            raise expected("policy and policy_id", Verbatim("both"), "one at most", "Leave out the other.")
        if self.names_policy:  # then the method is the policy's, and so is what goes with it
            return
        for name in sorted(_OF_METHODS - chosen.reads):
            if getattr(self, name) is not None:
                users = [m.name for m in METHODS.values() if name in m.reads]
                raise expected(
                    name,
                    getattr(self, name),
                    f"None, because {chosen.name} does not use it",
                    f"Leave it out, or use sampling_method={users[0]!r}.",
                )
        if "ads_beta" in chosen.reads and self.top_k > _MOST_CANDIDATES:
            raise expected("top_k", self.top_k, f"at most {_MOST_CANDIDATES} candidates for {chosen.name}")
        if self.min_tokens > self.max_tokens:
            raise expected("min_tokens", self.min_tokens, f"at most max_tokens, {self.max_tokens}")
        given = [name for name in _CONSTRAINTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise expected(" and ".join(given), Verbatim(f"{len(given)} constraints"), "one at most", "Put them into one.")
        if chosen.constrained and not given:
            raise expected(
                "sampling_method", chosen.name, "json_schema, regex_pattern or grammar with it", "Say what the text must be."
            )
        self._check_ensemble()

    def _check_ensemble(self) -> None:
        """An ensemble has members, and a weight for the loaded model and each of them."""
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
        return self.policy is not None or self.policy_id is not None

    @property
    def needs_policy(self) -> bool:
        """Whether the row runs through a policy: one that is named, or one made from its arguments."""
        return any(getattr(self, name) != getattr(GenerationConfig, name) for name in _OF_POLICIES)

    @property
    def method(self) -> SamplingMethod:
        return method(self.sampling_method)

    @property
    def loop(self) -> str:
        """Which of `mechanex_jax.engine.runners` runs the row: a draft model speculates with any method's distribution."""
        return "speculative" if self.draft_model is not None else self.method.loop

    @property
    def partner_names(self) -> tuple[str, ...]:
        """The other models that the row asks for; "default" is the loaded model itself."""
        named = tuple(self.ensemble_models or ()) or ((self.draft_model,) if self.draft_model is not None else ())
        return tuple(name for name in named if name != "default")

    @property
    def constraint_source(self) -> tuple[str, Any, bool] | None:
        """(kind, source, whitespace) of the row's constraint, if it has one."""
        for argument, kind in _CONSTRAINTS.items():
            if (value := getattr(self, argument)) is not None:
                return kind, value, self.json_whitespace
        return None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


_MOST_CANDIDATES = 1024  # of determinantal sampling

# Arguments that constrain a text, and what kind of constraint each is.
_CONSTRAINTS = {"json_schema": "json_schema", "regex_pattern": "regex", "grammar": "grammar", "constraint": "compiled"}

# Arguments that take more than one decoding of the prompt.
_OF_POLICIES = (
    "best_of_n",
    "adaptive_temperature_schedule",
    "adaptive_top_p_schedule",
    "confidence_triggered_regeneration",
    "code_unit_tests",
    "policy",
    "policy_id",
    "adaptive_temperature",
    "adaptive_top_p",
)


def _stop(name: str, value: Any) -> None:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not all(isinstance(s, str) and s for s in strings):
        raise expected(name, value, "a string or a list of strings, none of them empty")


def _bias(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise expected(name, value, "a mapping of token ids to numbers, such as {50256: -100}")
    for token, bias in value.items():
        whole = isinstance(token, numbers.Integral) or (isinstance(token, str) and token.isdigit())
        if not whole or not isinstance(bias, numbers.Real) or math.isnan(bias) or bias == math.inf:
            raise expected(name, {str(token): bias}, "token ids mapped to finite numbers, or -inf for never")


def _schema(name: str, value: Any) -> None:
    if not (isinstance(value, (Mapping, bool, str)) or hasattr(value, "model_json_schema")):
        raise expected(name, value, "a JSON Schema: a dict, or True, or a JSON text")


def _compiled(name: str, value: Any) -> None:
    if not hasattr(value, "compiled"):
        raise expected(
            name, value, "what mx.constraints.compile returns", "Give texts as json_schema, regex_pattern or grammar."
        )


def _strings(what: str) -> Check:
    """A list of strings, none of them empty; `what` they are."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, (list, tuple)) or not value or not all(isinstance(item, str) and item for item in value):
            raise expected(name, value, f"a list of {what}, at least one, none of them empty")

    return check


def _schedule(value_check: Check) -> Check:
    """A list of values, one for each round."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, (list, tuple)) or not value:
            raise expected(name, value, "a list of numbers, one for each round, at least one")
        for index, item in enumerate(value):
            value_check(f"{name}[{index}]", item)

    return check


def _policy(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise expected(name, value, "a mapping with the sections of a policy", "A saved one goes by policy_id.")


def _layers(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)) or not value:
        raise expected(name, value, "a list of layers, at least one")


def _where(name: str, value: Any) -> None:
    if isinstance(value, slice):
        ends = [end for end in (value.start, value.stop) if end is not None]
        if value.step is not None or not all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in ends):
            raise expected(name, value, "slice(start, end) of positions from 0 on")
    elif not isinstance(value, Scope):
        scope(value)


def _members(name: str, value: Any) -> None:
    names = [value] if isinstance(value, str) else value
    if isinstance(value, str) or not isinstance(names, (list, tuple)) or not all(isinstance(n, str) and n for n in names):
        raise expected(name, value, "a list of names of models")


def _weights(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)) or not value:
        raise expected(name, value, "a list of numbers, one for each member")
    for weight in value:
        number(0.0)(name, weight)
    if not any(value):
        raise expected(name, list(value), "a weight above 0")


def _vote(name: str, value: Any) -> None:
    if value not in ("majority", "mean", "product"):
        raise expected(name, value, "majority, mean or product")


def _drafted(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 8:
        raise expected(name, value, "1 to 8 drafted tokens a round")


def _early(name: str, value: Any) -> None:
    if value not in (True, False, "never"):
        raise expected(name, value, 'True, False or "never"')


_CHECKS: dict[str, Check] = {
    "max_tokens": integer(1),
    "min_tokens": integer(0),
    "temperature": number(0.0),
    "top_k": integer(1),
    "top_p": number(0.0, 1.0, open_low=True),
    "min_p": number(0.0, 1.0),
    "typical_p": number(0.0, 1.0, open_low=True),
    "ads_subset_size": integer(1),
    "ads_beta": number(0.0, 1.0, open_low=True, open_high=True),
    "steering_strength": number(-math.inf),
    "confidence_threshold": number(0.0, 1.0),
    "best_of_n": integer(1),
    "stop": _stop,
    "chat": flag,
    "include_trace": flag,
    "adaptive_temperature": flag,
    "adaptive_top_p": flag,
    "confidence_triggered_regeneration": flag,
    "repetition_penalty": number(0.0, open_low=True),
    "presence_penalty": number(-math.inf),
    "frequency_penalty": number(-math.inf),
    "logit_bias": _bias,
    "json_schema": _schema,
    "regex_pattern": text,
    "grammar": text,
    "constraint": _compiled,
    "draft_model": text,
    "forbidden_terms": _strings("terms"),
    "steering_layers": _layers,
    "steering_scope": _where,
    "adaptive_temperature_schedule": _schedule(number(0.0)),
    "adaptive_top_p_schedule": _schedule(number(0.0, 1.0, open_low=True)),
    "code_unit_tests": _strings("pieces of Python"),
    "policy": _policy,
    "policy_id": text,
    "ensemble_models": _members,
    "ensemble_weights": _weights,
    "voting": _vote,
    "speculative_steps": _drafted,
    "json_whitespace": flag,
    "beam_width": integer(1),
    "length_penalty": number(-math.inf),
    "early_stopping": _early,
}


# Arguments that are lists for one row already: in a batch, a list of lists (or of None) gives every row its own.
LIST_TYPED = frozenset(
    {
        "ensemble_models",
        "ensemble_weights",
        "adaptive_temperature_schedule",
        "adaptive_top_p_schedule",
        "code_unit_tests",
        "forbidden_terms",
        "steering_layers",
        "stop",
    }
)


def per_row(arguments: Mapping[str, Any], rows: int) -> list[GenerationConfig]:
    """One configuration per row from arguments of which each is one value for all rows, or a list with one per row.

    Raises:
      ArgumentError: a list of another length; or what `GenerationConfig` finds wrong, with the row's number.
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
