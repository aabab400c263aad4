"""Keyword arguments that a function does not have: the error says which one was probably meant."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import ParamSpec, TypeVar

from mechanex_jax.errors import UnexpectedArgumentError

P = ParamSpec("P")
R = TypeVar("R")

# Names that other libraries and other functions here give to one and the same argument.
_SYNONYMS = (
    ("max_tokens", "max_new_tokens", "max_length", "max_completion_tokens"),
    ("min_tokens", "min_new_tokens", "min_length"),
    ("sampling_method", "method", "do_sample", "sampler", "strategy"),
    ("stop", "stop_strings", "stop_sequences", "stop_words"),
    ("best_of_n", "n", "num_return_sequences", "num_candidates"),
    ("beam_width", "num_beams", "beams"),
    ("seed", "random_seed", "random_state", "key"),
    ("json_schema", "schema", "response_format"),
    ("regex_pattern", "regex", "pattern"),
    ("draft_model", "assistant_model"),
    ("speculative_steps", "num_assistant_tokens"),
    ("policy", "base_policy"),
    ("policy_id", "base_policy_id"),
    ("prompts", "prompt", "messages", "text"),
    ("model", "model_name", "model_id"),
    ("name", "model", "model_name", "model_id", "path"),
    ("dtype", "torch_dtype"),
)


def similar_argument(name: str, known: Collection[str]) -> str | None:
    """The one of `known` names that a wrong name probably stands for, or None."""
    for group in _SYNONYMS:
        if name in group:
            for synonym in group:
                if synonym in known:
                    return synonym
    near = difflib.get_close_matches(name, list(known), n=1)
    if near:
        return near[0]
    # A misspelt synonym: "max_new_token".
    others = sorted({synonym for group in _SYNONYMS for synonym in group} - {name})
    for synonym in difflib.get_close_matches(name, others, n=1) if not any(name in group for group in _SYNONYMS) else ():
        return similar_argument(synonym, known)
    return None


def check_keywords(function: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise where a keyword argument is none that the function has.

    Raises:
      UnexpectedArgumentError: with the argument that was probably meant.
    """
    for name in names:
        if name not in known:
            similar = similar_argument(name, known)
            hint = f" Did you mean {similar}?" if similar else ""
            raise UnexpectedArgumentError(f"{function}() got an unexpected keyword argument {name!r}.{hint}")


def suggests_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that a keyword argument which it does not have is answered with the one probably meant."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return function  # it checks the names itself, or passes them on to what does
    known = [name for name in parameters if name != "self"]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        check_keywords(function.__name__, kwargs, known)
        return function(*args, **kwargs)

    return checked
