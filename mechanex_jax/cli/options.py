"""The options that commands share: arguments of the library's `generate`, and of the session."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mechanex_jax.cli.base import json_file, text_file
from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.engine.methods import METHODS

_EVERY_SEED = {"min": 0, "max": 2**32 - 1}


def _option(annotation: Any, name: str, help: str, panel: str, *flags: str, **more: Any) -> inspect.Parameter:
    option = typer.Option(*flags, help=help, rich_help_panel=panel, **more)
    default = getattr(GenerationConfig, name, None)  # its own defaults; None for what belongs to the session
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option])


_SERVED = ", ".join(METHODS)
_WHAT, _HOW, _LESS, _MUST, _STEER, _WHERE = "Text", "Sampling", "Penalties", "Constraints", "Steering", "Model"
_BEST = "Policies"
# The options that `generate` and `batch` share, by the names that the library gives them.
ARGUMENTS = (
    _option(int, "max_tokens", "Most tokens to generate.", _WHAT),
    _option(int, "min_tokens", "No end of the text before this many tokens.", _WHAT),
    _option(list[str] | None, "stop", "End before this string; give it again for more.", _WHAT, metavar="TEXT"),
    _option(bool, "chat", "Wrap the prompt in the model's chat template, as a user's message.", _WHAT, "--chat"),
    _option(str, "sampling_method", f"{_SERVED}.", _HOW, "--method", metavar="NAME"),
    _option(float, "temperature", "Below 1 safer, above 1 more varied; 0 always takes the likeliest token.", _HOW),
    _option(int, "top_k", "For top-k: choose among this many of the likeliest tokens.", _HOW),
    _option(float, "top_p", "For top-p: choose among the likeliest tokens that together reach this probability.", _HOW),
    _option(
        float | None,
        "min_p",
        "For min-p: choose among tokens at least this share as likely as the likeliest; 0.05.",
        _HOW,
    ),
    _option(
        float | None,
        "typical_p",
        "For typical: choose among the most typical tokens up to this probability; 0.95.",
        _HOW,
    ),
    _option(float | None, "repetition_penalty", "Above 1: what prompt and text hold becomes less likely.", _LESS),
    _option(float | None, "presence_penalty", "Taken off the logit of every token generated before.", _LESS),
    _option(float | None, "frequency_penalty", "Taken off as often as the token was generated.", _LESS),
    _option(Path | None, "json_schema", "The text is JSON that this schema accepts.", _MUST, metavar="FILE"),
    _option(str | None, "regex_pattern", "The text matches this regular expression.", _MUST, "--regex", metavar="PATTERN"),
    _option(Path | None, "grammar", "The text is a sentence of this grammar, GBNF or Lark.", _MUST, metavar="FILE"),
    _option(
        list[str] | None,
        "forbidden_terms",
        "The text never holds this term, in either case; give it again for more.",
        _MUST,
        "--forbidden-term",
        metavar="TEXT",
    ),
    _option(int, "beam_width", "For constrained-beam-search: hypotheses kept side by side.", _HOW),
    _option(float, "length_penalty", "For constrained-beam-search: above 0 favours longer texts.", _HOW),
    _option(str | None, "steering_preset", "Steer by a preset, such as brevity.", _STEER, metavar="NAME"),
    _option(str | None, "steering_vector", "Steer by a stored vector, see `steer list`.", _STEER, metavar="ID"),
    _option(float, "steering_strength", "How strongly; 0 leaves a preset at its own strength.", _STEER),
    _option(int, "best_of_n", "The best of this many texts.", _BEST),
    _option(Path | None, "policy", "Run through this policy, as JSON; see `policy`.", _BEST, metavar="FILE"),
    _option(str | None, "policy_id", "Run through a saved policy, see `policy list`.", _BEST, metavar="ID"),
)


def _policy(path: Path) -> Any:
    """A policy in a file, found right before a model is fetched for nothing."""
    from mechanex_jax.policy import controls

    return controls.read(json_file(path)).given


def _saved(id: str) -> str:
    """The id of a policy that is there."""
    from mechanex_jax.policy import Policies

    Policies().get(id)
    return id


def _several(given: list[str]) -> list[str] | None:
    """What an option that may be repeated was given; if it was not, typer says []."""
    return given or None


# Options that name a file where the library takes what is in it, and others that are no argument as they are.
_READ: dict[str, Callable[[Any], Any]] = {
    "json_schema": json_file,
    "grammar": text_file,
    "stop": _several,
    "forbidden_terms": _several,
    "policy": _policy,
    "policy_id": _saved,
}
_SESSION = (
    _option(int | None, "seed", "The same seed gives the same text; otherwise one is drawn.", _HOW, **_EVERY_SEED),
    _option(
        str | None,
        "model",
        "A name from `models`, a hub id or a folder; otherwise the small default.",
        _WHERE,
        metavar="NAME",
    ),
    _option(str | None, "dtype", "float32, bfloat16 or float16; otherwise what suits the device.", _WHERE, metavar="TYPE"),
    _option(str | None, "device", "cpu, gpu, gpu:1, ...; otherwise the fastest there is.", _WHERE, metavar="DEVICE"),
)


def shares_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all shared options: the session's as its `session`, the arguments of `generate` as its `arguments`."""
    return _sharing(command, ARGUMENTS)


def shares_session(command: Callable[..., None]) -> Callable[..., None]:
    """The same without what a policy says: of the arguments `max_tokens` and `chat`."""
    return _sharing(command, [p for p in ARGUMENTS if p.name in ("max_tokens", "chat")])


def _sharing(command: Callable[..., None], shared: Sequence[inspect.Parameter]) -> Callable[..., None]:
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.annotation != dict[str, Any]]
    parameters = [*own, *shared, *_SESSION]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        arguments = {p.name: given.pop(p.name) for p in shared}
        for name, read in _READ.items():
            if arguments.get(name) is not None:
                arguments[name] = read(arguments[name])
        session = {p.name: given.pop(p.name) for p in _SESSION}
        command(**given, arguments=arguments, session=session)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
