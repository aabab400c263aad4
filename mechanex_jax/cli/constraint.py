"""`mechanex-jax constraint check`: the cost of a schema, an expression or a grammar, and whether it is supported."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from mechanex_jax.cli.base import json_file, print_json, text_file
from mechanex_jax.errors import Verbatim, expected

app = typer.Typer(no_args_is_help=True, help="Look at constraints before using them.")


@app.callback()
def main() -> None:
    """Look at constraints before using them."""


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(help="A JSON Schema (.json), or a grammar in GBNF or Lark.")] = None,
    regex: Annotated[str | None, typer.Option(metavar="PATTERN", help="A regular expression instead of a file.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Whose vocabulary; otherwise the default model's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compile a constraint for a model's vocabulary; report its size and time, or what is unsupported and where.

    \b
      mechanex-jax constraint check person.schema.json
      mechanex-jax constraint check --regex "[0-9]{4}-[0-9]{2}"
    """
    if (file is None) == (regex is None):
        raise expected("constraint", Verbatim("both" if file else "nothing"), "a FILE or --regex PATTERN")
    from mechanex_jax import checkpoints
    from mechanex_jax.constraints import compiler
    from mechanex_jax.constraints.sources import JsonOptions
    from mechanex_jax.constraints.token_index import build

    if file is None:
        kind, source = "regex", regex
    elif file.suffix == ".json":
        kind, source = "json_schema", json_file(file)
    else:
        kind, source = "grammar", text_file(file)
    start = time.perf_counter()
    pushdown = compiler.FRONT_ENDS[kind](source, JsonOptions()).compile()
    seconds = time.perf_counter() - start
    checkpoint = checkpoints.resolve(model, progress=sys.stderr.isatty())
    target = compiler.Target.of(checkpoint.tokenizer())
    # Past the cache, because the time is part of the report.
    index = build.build(pushdown, target.vocabulary, eos_ids=target.eos_ids, logits=target.logits)
    stats = {name: value for name, value in index.stats.items() if name not in ("seconds", "minimum")}
    report = {
        "kind": kind,
        "vocabulary": checkpoint.name,
        **stats,
        "seconds to read it": round(seconds, 3),
        "seconds for the vocabulary": index.stats["seconds"],
        "least_max_tokens": index.minimum,
    }
    if as_json:
        print_json({name.replace(" ", "_"): value for name, value in report.items()})
        return
    width = max(map(len, report))
    for name, value in report.items():
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        typer.echo(f"{name.replace('_', ' '):{width}}  {shown}")
