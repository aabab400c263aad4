"""`mechanex-jax models` and `pull`: the catalogue, and fetching a model from it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from mechanex_jax.cli import base

if TYPE_CHECKING:
    from mechanex_jax.checkpoints import Entry


_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a number


class _Description(TypedDict):
    """A model of the catalogue as `models --json` prints it.

    Attributes:
      cached: whether its files are on this machine.
      bytes: size of its files here; 0 if it isn't cached.
      memory: bytes that its weights take once loaded, by dtype.
    """

    name: str
    aliases: tuple[str, ...]
    architecture: str
    context: int
    parameters: int
    licence: str
    default: bool
    description: str
    cached: bool
    bytes: int
    memory: dict[str, int]


def models(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """List the models that have a name here, which are on this machine, and the memory that their weights take once loaded.

    On CPUs models load as float32, on accelerators as bfloat16; `--dtype` chooses.
    """
    from rich.filesize import decimal

    from mechanex_jax.checkpoints import catalogue

    entries = [_describe(entry) for entry in catalogue()]
    if as_json:
        base.print_json(entries)
        return
    table = base.table("Name", "Architecture", "Context", "Licence", "On disk", "Memory", "Description")
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
        table.add_row(*map(base.cell, cells))
    base.print_table(table, width=220)


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


def _describe(entry: Entry) -> _Description:
    from mechanex_jax.checkpoints import kept

    folder = kept(entry)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder else 0
    return {
        "name": entry.name,
        "aliases": entry.aliases,
        "architecture": entry.architecture,
        "context": entry.context,
        "parameters": entry.parameters,
        "licence": entry.licence,
        "default": entry.default,
        "description": entry.description,
        "cached": folder is not None,
        "bytes": size,
        "memory": {dtype: width * entry.parameters for dtype, width in _WIDTHS.items()},
    }
