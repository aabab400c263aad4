"""`generate` and `batch`."""

from __future__ import annotations

import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mechanex_jax.cli import base
from mechanex_jax.cli.options import Arguments, shares_options
from mechanex_jax.engine.config import GenerationConfig

if TYPE_CHECKING:
    from mechanex_jax.generation import Completion


@shares_options
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from standard input.")],
    arguments: Arguments,
    session: Arguments,
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
    text = base.stdin() if prompt == "-" else prompt
    from mechanex_jax.cli.job import check_text

    check_text("prompt", text)
    seed = secrets.randbits(32) if session["seed"] is None else session["seed"]
    running = base.start(session)
    if not as_json:
        for piece in running.generation.stream(text, seed=seed, **arguments):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    begun = time.perf_counter()
    completion = cast("Completion", running.generation.generate(text, seed=seed, details=True, **arguments))
    selection = cast("dict[str, object]", completion.trace.get("selection", {}))  # a policy's winner
    result = {
        "prompt": text,
        "text": completion.text,
        "tokens": completion.tokens,
        "logprobs": completion.logprobs,
        "finish_reason": completion.finish_reason,
        "model": running.local_model().name,
        "method": selection.get("sampling_method", arguments["sampling_method"]),
        "seed": seed,
        "seconds": round(time.perf_counter() - begun, 3),
    }
    base.print_json(result)


@shares_options
def batch(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Prompts, one JSON object a line.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Texts, one JSON object a line.")],
    arguments: Arguments,
    session: Arguments,
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
    from mechanex_jax.cli.job import Job
    from mechanex_jax.progress import bar

    options = {"model": session["model"], "seed": session["seed"], "batch_size": batch_size, "overwrite": overwrite}
    with Job(source, target, defaults=arguments, **options) as job:
        before = job.done
        base.interrupt.describe = lambda: base.visible(
            f"{job.done} of {job.total} rows are in {target}; the same command goes on from there."
        )
        if before < job.total:
            running = base.start(session)
            with bar("Generating", enabled=sys.stderr.isatty(), unit="rows") as report:
                job.run(running, report)
        job.finish()
        base.note(f"{job.total} rows are in {target}" + (f", {before} of them from before." if before else "."))
