"""`models` and `pull`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from mechanex_jax.cli.base import print_json

if TYPE_CHECKING:
    from mechanex_jax.checkpoints import Entry


_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a number


def models(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """List the models that have a name here, which are on this machine, and the memory that their weights take once loaded.

    On CPUs models load as float32, on accelerators as bfloat16; `--dtype` chooses.
    """
    from rich.filesize import decimal
    from rich.table import Table

    from mechanex_jax.checkpoints import catalogue

    entries = [_describe(entry) for entry in catalogue()]
    if as_json:
        print_json(entries)
        return
    table = Table("Name", "Architecture", "Context", "Licence", "On disk", "Memory", "Description", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for entry in entries:
        size = decimal(entry["bytes"]) if entry["cached"] else "-"
        cells = [
            entry["name"],
            entry["architecture"],
            f"{entry['context']:,}",
            entry["licence"],
            size,
            f"{decimal(entry['memory']['float32'])} (16-bit: {decimal(entry['memory']['bfloat16'])})",
            entry["description"],
        ]
        table.add_row(*map(Text, cells))
    # In a pipe every model stays on one line, for grep.
    Console(width=None if sys.stdout.isatty() else 220).print(table)


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


def _describe(entry: Entry) -> dict[str, Any]:
    from mechanex_jax.checkpoints import kept

    folder = kept(entry)
    fields = ("name", "aliases", "architecture", "context", "parameters", "licence", "default", "description")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder else 0
    return {name: getattr(entry, name) for name in fields} | {
        "cached": folder is not None,
        "bytes": size,
        "memory": {dtype: width * entry.parameters for dtype, width in _WIDTHS.items()},
    }
