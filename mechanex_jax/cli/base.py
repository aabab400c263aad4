"""Helpers of all commands: showing results, notes and errors, reading files, and starting a session.

Results go to standard output; progress, notes and errors to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from mechanex_jax.errors import ArgumentError, MechanexError, expected
from mechanex_jax.storage.atomic import discard_unfinished
from mechanex_jax.storage.json_values import JsonValue, parse_json
from mechanex_jax_command import INTERRUPTED, interrupt

if TYPE_CHECKING:
    from rich.table import Table

    from mechanex_jax.runtime import Mechanex

interrupt.cleanups.append(discard_unfinished)

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    """The text with control characters spelt out: what a model or its code wrote must not drive a terminal."""
    return text.translate(_CONTROLS)


def cell(text: str) -> Text:
    """A cell of a table, never read as markup, its control characters spelt out."""
    return Text(visible(text))


def note(message: str, label: str = "") -> None:
    """Print a message to standard error, never read as markup and never wrapped."""
    Console(stderr=True, highlight=False).print(Text.assemble((label, "bold red"), visible(message)), soft_wrap=True)


def _show_warning(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
    """Show a warning as a note: where in the library it arose says nothing to who types a command."""
    note(str(message), "Warning: ")


class Commands(TyperGroup):
    """A group of commands that turns what they raise into an exit code and one clear message."""

    def invoke(self, ctx: typer.Context) -> object:
        try:
            interrupt.begin()
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError as error:
            # Nobody reads on, as behind `| head`. Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            interrupt.say(lambda message: note(message.removesuffix("\n")))
            raise typer.Exit(INTERRUPTED) from error
        except (MechanexError, OSError) as error:
            note(str(error), "Error: ")
            raise typer.Exit(2 if isinstance(error, ArgumentError) else 1) from error


def start(options: Mapping[str, str | None]) -> Mechanex:
    """A session that runs on this machine, with its model loaded.

    Args:
      options: model, dtype and device, as the command line has them.
    """
    from mechanex_jax.runtime import Mechanex

    session = Mechanex()
    session.set_execution_mode("local")  # --model and --device are about this machine
    session.load(options["model"], dtype=options["dtype"], device=options["device"], progress=sys.stderr.isatty())
    return session


def stdin() -> str:
    """All of standard input, but for the newline that ends its last line."""
    content = sys.stdin.buffer.read()
    try:
        return content.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise expected("prompt", content[:40], f"UTF-8 text on standard input ({error.reason})") from error


def text_file(path: Path) -> str:
    """The text of a file that an option names."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise expected("file", str(path), f"a file that can be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise expected("file", str(path), f"UTF-8 text ({error.reason})") from error


def json_file(path: Path) -> JsonValue:
    """The value in a JSON file that an option names."""
    try:
        return parse_json(text_file(path))
    except json.JSONDecodeError as error:
        raise expected("file", str(path), f"JSON ({error.msg}, line {error.lineno}, column {error.colno})") from error


def table(*titles: str) -> Table:
    """A table without lines, for `print_table`."""
    from rich.table import Table

    return Table(*titles, box=None, pad_edge=False)


def print_table(table: Table, width: int = 200) -> None:
    """Print a table to standard output; in a pipe, `width` columns wide, every row stays on one line, for grep."""
    Console(width=None if sys.stdout.isatty() else width).print(table)


def print_json(value: object) -> None:
    """Print a value that JSON can hold to standard output."""
    typer.echo(json.dumps(value))  # in ASCII, so that no terminal's encoding can spoil it
