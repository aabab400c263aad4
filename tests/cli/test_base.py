"""What a model or its code wrote reaches a terminal as text, never as a command."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from mechanex_jax.cli import base
from mechanex_jax.warning import warn


@pytest.mark.parametrize("control", ["\x1b", "\x07", "\x08", "\r", "\x00", "\x9b", "\x7f"])
def test_control_characters_are_spelt_out(control: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"before{control}]0;title\n\tafter é"
    table = base.table("Why")
    table.add_row(base.cell(text))
    base.print_table(table)
    base.note(text)
    for shown in capsys.readouterr():
        assert control not in shown and f"before\\x{ord(control):02x}]0;title" in shown and "after é" in shown


def test_a_warning_is_a_note_without_the_place_of_its_code() -> None:
    app = typer.Typer(cls=base.Commands)
    app.callback()(lambda: None)
    app.command("warn")(lambda: warn("take care\x1b"))
    result = CliRunner().invoke(app, ["warn"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "Warning: take care\\x1b\n")
