"""The options that commands share: arguments of the library's `generate`, and of the session.

Those of `generate` are declared with its arguments, in `mechanex_jax.engine.config`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mechanex_jax.cli.base import json_file, text_file
from mechanex_jax.engine.config import PARAMETERS, argument_types
from mechanex_jax.engine.parameters import Option

Arguments = dict[str, Any]  # by name


def _parameter(
    name: str, annotation: object, default: object, option: Option, least: int | None = None, most: int | None = None
) -> inspect.Parameter:
    """A parameter of a command that typer reads as an option."""
    flags = [] if option.flag is None else [option.flag]
    shown = typer.Option(*flags, help=option.help, rich_help_panel=option.panel, metavar=option.metavar, min=least, max=most)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, shown])


# The options that `generate` and `batch` share, by the names that the library gives them.
ARGUMENTS = tuple(
    _parameter(name, declared.option.type or argument_types()[name], declared.default, declared.option)
    for name, declared in PARAMETERS.items()
    if declared.option is not None
)
_SESSION = (
    _parameter(
        "seed",
        int | None,
        None,
        Option("The same seed gives the same text; otherwise one is drawn.", "Sampling"),
        least=0,
        most=2**32 - 1,
    ),
    _parameter(
        "model",
        str | None,
        None,
        Option("A name from `models`, a hub id or a folder; otherwise the small default.", "Model", metavar="NAME"),
    ),
    _parameter(
        "dtype",
        str | None,
        None,
        Option("float32, bfloat16 or float16; otherwise what suits the device.", "Model", metavar="TYPE"),
    ),
    _parameter(
        "device", str | None, None, Option("cpu, gpu, gpu:1, ...; otherwise the fastest there is.", "Model", metavar="DEVICE")
    ),
)


def _policy(path: Path) -> Mapping[str, object]:
    """The policy in a file, checked before a model is fetched for nothing."""
    from mechanex_jax.policy import validate

    return validate.read(json_file(path)).given


def _saved(id: str) -> str:
    """The id of a saved policy, if there is one."""
    from mechanex_jax import policy

    policy.default.get(id)
    return id


def _repeated(values: list[str]) -> list[str] | None:
    """The values of an option that may be repeated; typer says [] where there are none."""
    return values or None


# Options that name a file where the library takes what is in it, and others that are no argument as they are.
_READERS: dict[str, Callable[[Any], object]] = {
    "json_schema": json_file,
    "grammar": text_file,
    "stop": _repeated,
    "forbidden_terms": _repeated,
    "policy": _policy,
    "policy_id": _saved,
}


def shares_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all shared options: the session's as its `session`, the arguments of `generate` as its `arguments`."""
    return _sharing(command, ARGUMENTS)


def shares_session(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the session's options, and of the arguments `max_tokens` and `chat`, which no policy says, and `names`."""
    chosen = [p for p in ARGUMENTS if p.name in ("max_tokens", "chat", *names)]
    return functools.partial(_sharing, shared=chosen)


def _sharing(command: Callable[..., None], shared: Sequence[inspect.Parameter]) -> Callable[..., None]:
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.annotation != Arguments]
    parameters = [*own, *shared, *_SESSION]

    @functools.wraps(command)
    def run(**values: object) -> None:
        arguments = {p.name: values.pop(p.name) for p in shared}
        for name, read in _READERS.items():
            if arguments.get(name) is not None:
                arguments[name] = read(arguments[name])
        session = {p.name: values.pop(p.name) for p in _SESSION}
        command(**values, arguments=arguments, session=session)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
