"""What all commands share: how results, notes and errors are shown, and how a session starts.

Results go to standard output; progress, notes and errors to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from mechanex_jax.errors import ArgumentError, MechanexError, expected

if TYPE_CHECKING:
    from mechanex_jax.runtime import Mechanex

INTERRUPTED = 130  # a shell's code for a process that SIGINT ended


def note(message: str, label: str = "") -> None:
    """A message for the person, never read as markup and never wrapped."""
    Console(stderr=True, highlight=False).print(Text.assemble((label, "bold red"), message), soft_wrap=True)


class Commands(TyperGroup):
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
            note("\nInterrupted.")
            raise typer.Exit(INTERRUPTED) from error
        except (MechanexError, OSError) as error:
            note(str(error), "Error: ")
            raise typer.Exit(2 if isinstance(error, ArgumentError) else 1) from error


def start(session: dict[str, Any]) -> Mechanex:
    from mechanex_jax.runtime import Mechanex

    started = Mechanex()
    started.set_execution_mode("local")  # --model and --device are about this machine
    started.load(session["model"], dtype=session["dtype"], device=session["device"], progress=sys.stderr.isatty())
    return started


def stdin() -> str:
    """All of standard input, but for the newline that ends its last line."""
    given = sys.stdin.buffer.read()
    try:
        return given.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise expected("prompt", given[:40], f"UTF-8 text on standard input ({error.reason})") from error


def text_file(path: Path) -> str:
    """The text of a file that an option names."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise expected("file", str(path), f"a file that can be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise expected("file", str(path), f"UTF-8 text ({error.reason})") from error


def json_file(path: Path) -> Any:
    """The value in a JSON file that an option names."""
    try:
        return json.loads(text_file(path))
    except json.JSONDecodeError as error:
        raise expected("file", str(path), f"JSON ({error.msg}, line {error.lineno}, column {error.colno})") from error


def table(*titles: str) -> Any:
    """A table without lines, to be shown by `print_table`."""
    from rich.table import Table

    return Table(*titles, box=None, pad_edge=False)


def print_table(shown: Any) -> None:
    # In a pipe every row stays on one line, for grep.
    Console(width=None if sys.stdout.isatty() else 200).print(shown)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value))  # in ASCII, so that no terminal's encoding can spoil it
