"""The command line `mechanex-jax`: one module per group of commands, put together here."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from mechanex_jax.cli import constraint, generate, models, policy, steer
from mechanex_jax.cli.base import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


for command in (generate.generate, generate.batch, models.models, models.pull):
    app.command()(command)
app.add_typer(constraint.app, name="constraint")
app.add_typer(steer.app, name="steer")
app.add_typer(policy.app, name="policy")
