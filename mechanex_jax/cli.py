"""The command line `mechanex-jax`. Results go to standard output; progress, notes and errors to standard error."""

from __future__ import annotations

import functools
import inspect
import io
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from mechanex_jax.config import GenerationConfig
from mechanex_jax.errors import ArgumentError, MechanexError, expected
from mechanex_jax.methods import METHODS

if TYPE_CHECKING:
    from mechanex_jax.checkpoints import Entry
    from mechanex_jax.runtime import Mechanex

_INTERRUPTED = 130  # a shell's code for a process that SIGINT ended
_EVERY_SEED = {"min": 0, "max": 2**32 - 1}


def _note(message: str, label: str = "") -> None:
    """A message for the person, never read as markup and never wrapped."""
    Console(stderr=True, highlight=False).print(Text.assemble((label, "bold red"), message), soft_wrap=True)


class _Commands(TyperGroup):
    """What a command may end with, turned into an exit code and one clear message."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError as error:
            # Nobody reads on, as behind `| head`. Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            _note("\nInterrupted.")
            raise typer.Exit(_INTERRUPTED) from error
        except (MechanexError, OSError) as error:
            _note(str(error), "Error: ")
            raise typer.Exit(2 if isinstance(error, ArgumentError) else 1) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _option(annotation: Any, name: str, help: str, panel: str, *flags: str, **more: Any) -> inspect.Parameter:
    option = typer.Option(*flags, help=help, rich_help_panel=panel, **more)
    default = getattr(GenerationConfig, name, None)  # its own defaults; None for what belongs to the session
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option])


_SERVED = ", ".join(method.name for method in METHODS.values() if method.loop)
_WHAT, _HOW, _LESS, _WHERE = "Text", "Sampling", "Penalties", "Model"
# The options that `generate` and `batch` share, by the names that the library gives them.
_ARGUMENTS = (
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
)
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


def _shares_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options: the session's by name, the arguments of `generate` as its `arguments`."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.annotation != dict[str, Any]]
    parameters = [*own, *_ARGUMENTS, *_SESSION]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        arguments = {p.name: given.pop(p.name) for p in _ARGUMENTS}
        arguments["stop"] = arguments["stop"] or None  # not given is an empty list
        session = {p.name: given.pop(p.name) for p in _SESSION}
        command(**given, arguments=arguments, session=session)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _version(wanted: bool) -> None:
    if wanted:
        from mechanex_jax import __version__

        typer.echo(f"mechanex-jax {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Controllable text generation in JAX, on this machine.

    \b
      mechanex-jax generate "Once upon a time"
      mechanex-jax generate --chat "What is the capital of France?"
      mechanex-jax batch prompts.jsonl texts.jsonl

    The first run fetches a small model; `models` lists others.
    `COMMAND --help` explains a command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may know fewer characters than the model
            stream.reconfigure(errors="replace")


@app.command()
@_shares_options
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from standard input.")],
    arguments: dict[str, Any],
    session: dict[str, Any],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end, with tokens, logprobs and the seed.")
    ] = False,
) -> None:
    """Continue a PROMPT; the text appears as it is generated.

    \b
      mechanex-jax generate "Once upon a time" --method top-p --top-p 0.9
      mechanex-jax generate "Roses are red," --seed 1 --stop "." --stop "!"
      mechanex-jax generate --chat "Tell me a joke." --temperature 1
      cat letter.txt | mechanex-jax generate - --json | jq -r .text
    """
    GenerationConfig(**arguments)  # before a model is fetched for nothing
    text = _stdin() if prompt == "-" else prompt
    from mechanex_jax.jobs import check_text

    check_text("prompt", text)
    seed = secrets.randbits(32) if session["seed"] is None else session["seed"]
    running = _start(session)
    if not as_json:
        for piece in running.generation.stream(text, seed=seed, **arguments):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    begun = time.perf_counter()
    completion: Any = running.generation.generate(text, seed=seed, details=True, **arguments)
    result = {
        "prompt": text,
        "text": completion.text,
        "tokens": completion.tokens,
        "logprobs": completion.logprobs,
        "finish_reason": completion.finish_reason,
        "model": running.local_model().name,
        "method": arguments["sampling_method"],
        "seed": seed,
        "seconds": round(time.perf_counter() - begun, 3),
    }
    _print_json(result)


@app.command()
@_shares_options
def batch(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Prompts, one JSON object a line.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Texts, one JSON object a line.")],
    arguments: dict[str, Any],
    session: dict[str, Any],
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that decode together; fewer take less memory.")] = 32,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew, whatever OUT holds.")] = False,
) -> None:
    """Continue all prompts of a file IN, into a file OUT.

    Each line of IN is an object with a "prompt". It may have an "id", a "seed",
    and arguments of its own under the library's names ("temperature", "stop",
    "max_tokens", "sampling_method", ...); the options below are for the others.

    \b
      {"prompt": "Once upon a time"}
      {"prompt": "Roses are red,", "id": "poem", "temperature": 0.2}

    Each line of OUT has index, id, prompt, text, finish_reason, tokens (how
    many), seed and arguments. Rows are written as they finish, and put in IN's
    order at the end. The same command goes on where it was stopped or killed,
    with the same texts; OUT keeps the seed if none was given.

    \b
      mechanex-jax batch prompts.jsonl texts.jsonl --max-tokens 64 --seed 1
    """
    from mechanex_jax.checkpoints.progress import bar
    from mechanex_jax.jobs import Job

    options = {"model": session["model"], "seed": session["seed"], "batch_size": batch_size, "overwrite": overwrite}
    with Job(source, target, defaults=arguments, **options) as job:
        before = job.done
        try:
            if before < job.total:
                running = _start(session)
                with bar("Generating", enabled=sys.stderr.isatty(), unit="rows") as report:
                    job.run(running, report)
            job.finish()
        except KeyboardInterrupt as error:
            _note(f"\nInterrupted. {job.done} of {job.total} rows are in {target}; the same command goes on from there.")
            raise typer.Exit(_INTERRUPTED) from error
        _note(f"{job.total} rows are in {target}" + (f", {before} of them from before." if before else "."))


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """List the models that have a name here, and which are on this machine."""
    from rich.filesize import decimal
    from rich.table import Table

    from mechanex_jax.checkpoints import catalogue

    entries = [_describe(entry) for entry in catalogue()]
    if as_json:
        _print_json(entries)
        return
    table = Table("Name", "Architecture", "Context", "Licence", "On disk", "Description", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for entry in entries:
        size = decimal(entry["bytes"]) if entry["cached"] else "-"
        cells = [
            entry["name"],
            entry["architecture"],
            f"{entry['context']:,}",
            entry["licence"],
            size,
            entry["description"],
        ]
        table.add_row(*map(Text, cells))
    # In a pipe every model stays on one line, for grep.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@app.command()
def pull(
    name: Annotated[str | None, typer.Argument(help="A name from `models`, or a hub id; otherwise the default model.")] = None,
) -> None:
    """Fetch a model now, so that it loads without a network later; prints its folder.

    \b
      mechanex-jax pull
      mechanex-jax pull smollm2-360m-instruct
    """
    from mechanex_jax import checkpoints

    typer.echo(checkpoints.pull(name, progress=sys.stderr.isatty()).folder)


def _start(session: dict[str, Any]) -> Mechanex:
    from mechanex_jax.runtime import Mechanex

    started = Mechanex()
    started.set_execution_mode("local")  # --model and --device are about this machine
    started.load(session["model"], dtype=session["dtype"], device=session["device"], progress=sys.stderr.isatty())
    return started


def _stdin() -> str:
    """All of standard input, but for the newline that ends its last line."""
    given = sys.stdin.buffer.read()
    try:
        return given.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise expected("prompt", given[:40], f"UTF-8 text on standard input ({error.reason})") from error


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value))  # in ASCII, so that no terminal's encoding can spoil it


def _describe(entry: Entry) -> dict[str, Any]:
    from mechanex_jax.checkpoints import kept

    folder = kept(entry)
    fields = ("name", "aliases", "architecture", "context", "licence", "default", "description")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder else 0
    return {name: getattr(entry, name) for name in fields} | {"cached": folder is not None, "bytes": size}


if __name__ == "__main__":
    app()
