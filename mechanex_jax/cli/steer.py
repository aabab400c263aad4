"""`mechanex-jax steer`: make, list, show, try, plot and delete steering vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mechanex_jax.cli import base
from mechanex_jax.errors import expected

if TYPE_CHECKING:
    from mechanex_jax.steering import Steering

T = TypeVar("T", int, float)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make, keep, measure and try steering vectors.",
)

_Model = Annotated[str | None, typer.Option(metavar="NAME", help="A name from `models`, a hub id or a folder.")]
_Dtype = Annotated[str | None, typer.Option(metavar="TYPE", help="float32, bfloat16 or float16.")]
_Device = Annotated[str | None, typer.Option(metavar="DEVICE", help="cpu, gpu, gpu:1, ...")]
_Chat = Annotated[bool, typer.Option("--chat", help="Prompts are a user's messages, in the model's chat template.")]
_Id = Annotated[str, typer.Argument(metavar="VECTOR", help="The id or the name of a stored vector.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Strengths = Annotated[str, typer.Option("--strength", metavar="S,S,...", help="Strengths, with commas between them.")]


def _parse(argument: str, text: str, parse: Callable[[str], list[T]], example: str) -> list[T]:
    """The numbers in a list with commas; `parse` reads one item of it.

    Raises:
      ArgumentError: an item that `parse` refuses; the message shows the example.
    """
    try:
        return [number for item in text.split(",") for number in parse(item)]
    except ValueError:
        raise expected(argument, text, f"numbers with commas between them, such as {example}") from None


def _layers(item: str) -> list[int]:
    """The layer 10, or the layers 10-14."""
    first, dash, last = item.strip().partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(first)]


def _parse_strengths(text: str) -> list[float]:
    return _parse("--strength", text, lambda item: [float(item)], "-2,0,2")


def _steering(model: str | None, dtype: str | None, device: str | None) -> Steering:
    """The steering of a local session with a model loaded."""
    return base.start({"model": model, "dtype": dtype, "device": device}).steering


def _found(vector: str, model: str | None) -> tuple[str, str | None]:
    """The id of a vector, and the model to load for it: the one that the command names, else the one that it was made for."""
    from mechanex_jax.steering import default

    id = default.find(vector)
    return id, default.store.get(id).model if model is None else model


@app.command()
def make(
    source: Annotated[Path, typer.Argument(metavar="DATA", help="JSON lines with prompt, positive and negative.")],
    method: Annotated[str, typer.Option(metavar="NAME", help="few-shot, caa or steering-perceptrons.")] = "few-shot",
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="A name of yours for the vector.")] = None,
    label: Annotated[str | None, typer.Option(metavar="TEXT", help="A note of yours.")] = None,
    layers: Annotated[str | None, typer.Option(metavar="L,L-L", help="Layers, such as 10-14; otherwise eight.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same vector.")] = 0,
    chat: _Chat = False,
    model: _Model = None,
    dtype: _Dtype = None,
    device: _Device = None,
) -> None:
    """Make a vector from contrastive DATA and keep it; prints its id.

    \b
      mechanex-jax steer make pairs.jsonl --method caa --name honesty --chat
    """
    from mechanex_jax.steering import methods
    from mechanex_jax.steering.examples import read_rows

    read_rows(source, negatives=methods.find_method(method).negatives or None)  # before a model is fetched for nothing
    chosen = None if layers is None else _parse("--layers", layers, _layers, "10-14 or 10,12,14")
    steering = _steering(model, dtype, device)
    typer.echo(steering.generate_from_jsonl(source, chosen, method, name, label, chat=chat, seed=seed))


@app.command("list")
def list_vectors(as_json: _Json = False) -> None:
    """List the stored vectors, oldest first."""

    from mechanex_jax.steering import default

    vectors = default.list()
    if as_json:
        base.print_json(vectors)
        return
    table = base.table("Id", "Name", "Method", "Model", "Layers", "Made")
    for vector in vectors:
        layers = ",".join(map(str, vector["layers"]))
        made = vector["created"][:19]
        cells = (vector["id"], vector["name"] or "-", vector["method"], vector["model"], layers, made)
        table.add_row(*map(base.cell, cells))
    base.print_table(table)


@app.command()
def show(vector: _Id, as_json: _Json = False) -> None:
    """Show what is known of a vector."""

    from mechanex_jax.steering import default

    summary = default.describe(default.find(vector))
    if as_json:
        base.print_json(summary)
        return
    table = base.table("", "")
    table.show_header = False
    fields = {name: value for name, value in summary.items() if name != "metrics"}
    metrics = {f"metrics.{name}": value for name, value in summary["metrics"].items()}
    for name, value in (fields | metrics).items():
        table.add_row(base.cell(name), base.cell(_short(value)))
    base.print_table(table)


def _short(value: object) -> str:
    """A value in one cell of a table; of a long list the ends."""
    if isinstance(value, list):
        shown = [f"{item:.4g}" if isinstance(item, float) else str(item) for item in value]
        return " ".join(shown if len(shown) <= 12 else [*shown[:6], "...", *shown[-5:]])
    return "-" if value is None else str(value)


@app.command("try")
def try_vector(
    vector: _Id,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue.")],
    strength: _Strengths = "-2,0,2",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 64,
    chat: _Chat = False,
    as_json: _Json = False,
    model: _Model = None,
    dtype: _Dtype = None,
    device: _Device = None,
) -> None:
    """Continue PROMPT at several strengths, side by side.

    \b
      mechanex-jax steer try honesty --strength -2,0,2 "How was your day?"
    """

    from mechanex_jax.steering.evaluation import check_strengths

    strengths = check_strengths(_parse_strengths(strength))
    id, model = _found(vector, model)
    steering = _steering(model, dtype, device)
    texts = steering.texts(id, [prompt], strengths, chat=chat, max_tokens=max_tokens)[0]
    if as_json:
        listed = [{"strength": value, "text": text} for value, text in zip(strengths, texts, strict=True)]
        base.print_json({"id": id, "prompt": prompt, "texts": listed})
        return
    table = base.table(*(f"{value:+g}" for value in strengths))
    for column in table.columns:
        column.overflow, column.ratio = "fold", 1
    table.padding = (0, 3, 0, 0)
    table.add_row(*(base.cell(text.strip()) for text in texts))
    base.print_table(table)


@app.command()
def plot(
    vector: _Id,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The picture, such as steering.png.")],
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="Held-out pairs, as for `make`.")] = None,
    strength: _Strengths = "-2,-1,0,1,2",
    chat: _Chat = False,
    model: _Model = None,
    dtype: _Dtype = None,
    device: _Device = None,
) -> None:
    """Draw the effect of a vector against its cost, over its layers and strengths.

    The effect is the difference in likelihood between the answers of --data,
    or without it how far the vector moves activations along itself.
    """
    from mechanex_jax.steering.examples import read_rows

    strengths = _parse_strengths(strength)
    held_out = None if data is None else read_rows(data, negatives=True)
    id, model = _found(vector, model)
    steering = _steering(model, dtype, device)
    if held_out is None:
        evaluations = steering.plot(id, target, strengths=strengths)
    else:
        answers = (held_out.positives, held_out.negatives)
        evaluations = steering.plot(id, target, *answers, prompts=held_out.prompts, chat=chat, strengths=strengths)
    typer.echo(next(iter(evaluations.values())).table())


@app.command()
def delete(vector: _Id) -> None:
    """Delete a vector."""
    from mechanex_jax.steering import default

    default.delete(default.find(vector))
