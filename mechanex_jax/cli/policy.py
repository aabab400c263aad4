"""`mechanex-jax policy`: run, compare, evaluate, tune and keep policies."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mechanex_jax.cli import base
from mechanex_jax.cli.options import shares_session
from mechanex_jax.errors import ArgumentError, Said, expected

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run, compare, evaluate, tune and keep policies.\n\n"
    "A POLICY is a JSON file, the id of a saved one, or a builder's name, with what it takes after a colon: "
    "diverse_chatbot, fast_tool_router, strict_json_extraction:schema.json, ensemble_vote:MODEL,MODEL, steering_preset:brevity.",
)

_Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from standard input.")]
_Prompts = Annotated[
    str,
    typer.Argument(
        metavar="PROMPTS",
        help='A .txt file with one a line, a .jsonl file of objects with "prompt", - for lines of standard input, or one prompt.',
    ),
]
_Policy = Annotated[str, typer.Argument(metavar="POLICY", help="A JSON file, a saved one's id, or a builder's name.")]
_Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a saved policy, such as pol_0123abcd.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_Result = Mapping[str, Any]


# --- what is given ---


def _from_schema(option: str) -> Any:
    from mechanex_jax.policy import presets

    return presets.strict_json_extraction(base.json_file(Path(option)))


def _from_models(option: str) -> Any:
    from mechanex_jax.policy import presets

    return presets.ensemble_vote([name.strip() for name in option.split(",") if name.strip()])


def _from_preset(option: str) -> Any:
    from mechanex_jax.policy import presets

    return presets.steering_preset(option)


def _without_option(name: str) -> Callable[[str], Any]:
    def build(option: str) -> Any:
        from mechanex_jax.policy import presets

        if option:
            raise expected("POLICY", f"{name}:{option}", f"{name} alone", "It takes nothing after a colon.")
        return getattr(presets, name)()

    return build


# Builders: what each takes after the colon, in words, and how it is made of that.
_BUILDERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "strict_json_extraction": ("the file of a JSON Schema", _from_schema),
    "fast_tool_router": ("", _without_option("fast_tool_router")),
    "diverse_chatbot": ("", _without_option("diverse_chatbot")),
    "ensemble_vote": ("names of models, with commas between them", _from_models),
    "steering_preset": ("the name of a steering preset", _from_preset),
}


def _policy(spec: str) -> Any:
    """The policy that an argument names, found right before a model is fetched for nothing."""
    from mechanex_jax.policy import Policies, schema

    name, _, option = spec.partition(":")
    path = Path(spec)
    if name in _BUILDERS:
        takes, build = _BUILDERS[name]
        if takes and not option:
            raise expected("POLICY", spec, f"{takes} with it", f"Write {name}:...")
        found = build(option)
    elif path.suffix == ".json" or path.is_file():
        found = base.json_file(path)
    else:
        try:
            found = Policies().get(spec)
        except ArgumentError as error:
            raise ArgumentError(f"{error} Or a JSON file, or one of {', '.join(_BUILDERS)}.") from None
    return schema.read(found)


def _prompts(given: str) -> list[str]:
    """Prompts of a file, of standard input, or the one that was given."""
    path = Path(given)
    if given == "-":
        found = [line for line in base.stdin().splitlines() if line.strip()]
    elif path.suffix == ".jsonl":
        found = [*_rows(path)]
    elif path.suffix == ".txt":
        found = [line for line in base.text_file(path).splitlines() if line.strip()]
    else:
        found = [given]
    if not found:
        raise expected("PROMPTS", Said(f"no prompt in {given}"), "at least one")
    return [_checked(prompt) for prompt in found]


def _rows(path: Path) -> Iterator[str]:
    for number, line in enumerate(base.text_file(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise expected(f"{path}, line {number}", line, f"JSON ({error.msg}, column {error.colno})") from error
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise expected(f"{path}, line {number}", row, 'an object with a "prompt", a string')
        yield row["prompt"]


def _checked(prompt: str) -> str:
    from mechanex_jax.jobs import check_text

    check_text("prompt", prompt)
    return prompt


def _space(file: Path | None, tries: Sequence[str]) -> dict[str, Any]:
    """The search space of a file, and of PATH=VALUE,VALUE."""
    space = {} if file is None else base.json_file(file)
    if not isinstance(space, dict):
        raise expected("--space", space, "a JSON object of paths and lists of values")
    for item in tries:
        path, equals, values = item.partition("=")
        if not (path and equals):
            raise expected("--try", item, "PATH=VALUE,VALUE, such as sampling.temperature=0.2,0.7")
        space[path.strip()] = _values(values)
    return space


def _values(given: str) -> list[Any]:
    """JSON values with commas between them; what is no JSON is a string."""
    try:
        return json.loads(f"[{given}]")
    except ValueError:
        return [_value(part.strip()) for part in given.split(",")]


def _value(part: str) -> Any:
    try:
        return json.loads(part)
    except ValueError:
        return part


def _start(session: dict[str, Any], policies: Sequence[Any]) -> Any:
    """A session with the model of --model, or of the policies, or the default one; and those that policies name."""
    named = [policy.model.model for policy in policies if policy.model.model not in (None, "default")]
    if session["model"] is None and len(set(named)) == 1 and len(named) == len(policies):
        session = {**session, "model": named[0]}
    running = base.start(session)
    for name in named:
        running.partner(name)
    return running.policy


def _seed(session: dict[str, Any]) -> int:
    return secrets.randbits(32) if session["seed"] is None else session["seed"]


# --- what is shown ---


def _line(text: str, longest: int = 60) -> Any:
    """Text as one line of a table, never read as markup."""
    from rich.text import Text

    shown = " ".join(text.split())
    return Text(shown if len(shown) <= longest else shown[: longest - 1] + "…")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _figures(found: _Result) -> tuple[str, ...]:
    """The columns that all runs have."""
    return _yes(found["accepted"]), f"{found['score']:.2f}", f"{found['confidence']:.3f}", str(found["tokens"])


_FIGURES = ("Accepted", "Score", "Confidence", "Tokens")


def _candidates(trace: _Result) -> Any:
    table = base.table("Round", "Slot", "Method", "T", "Top-p", *_FIGURES, "Why", "Output")
    for found in trace["candidates"]:
        place = (str(found["round"]), str(found["slot"]), found["sampling_method"])
        values = (f"{found['temperature']:.2f}", f"{found['top_p']:.2f}")
        table.add_row(*place, *values, *_figures(found), _line(found["reason"], 40), _line(found["output"], 40))
    return table


def _name(policy: Any, spec: str) -> str:
    return policy.name or policy.id or spec


# --- commands ---


@app.command()
@shares_session
def run(
    prompt: _Prompt,
    policy: _Policy,
    arguments: dict[str, Any],
    session: dict[str, Any],
    trace: Annotated[bool, typer.Option("--trace", help="Show all candidates too.")] = False,
    as_json: _Json = False,
) -> None:
    """Run a POLICY on a PROMPT; prints the text that wins.

    \b
      mechanex-jax policy run "Name three rivers." diverse_chatbot --chat
      mechanex-jax policy run - router.json --trace < question.txt
    """
    chosen = _policy(policy)
    text = _checked(base.stdin() if prompt == "-" else prompt)
    seed = _seed(session)
    options = {"max_new_tokens": arguments["max_tokens"], "chat": arguments["chat"], "seed": seed}
    found = _start(session, [chosen]).run(text, chosen, include_trace=True, **options)
    if as_json:
        base.print_json({"prompt": text, **found, "trace": found["trace"] if trace else None, "seed": seed})
        return
    typer.echo(found["output"])
    if trace:
        typer.echo()
        base.print_table(_candidates(found["trace"]))
    how = "Accepted" if found["accepted"] else f"Not accepted ({found['trace']['selection']['reason']})"
    count = len(found["trace"]["candidates"])
    of = f"{found['tokens']} tokens; {count} candidate{'s' * (count > 1)} in {found['latency_ms']} ms; seed {seed}"
    base.note(f"{how}: score {found['score']:.2f}, confidence {found['confidence']:.3f}, {of}.")


@app.command()
@shares_session
def compare(
    prompt: _Prompt,
    policies: Annotated[list[str], typer.Argument(metavar="POLICY...", help="JSON files, saved ones' ids, builders' names.")],
    arguments: dict[str, Any],
    session: dict[str, Any],
    as_json: _Json = False,
) -> None:
    """Run several policies on a PROMPT, with the same seed.

    \b
      mechanex-jax policy compare "Name three rivers." diverse_chatbot mine.json --chat
    """
    chosen = [_policy(spec) for spec in policies]
    text = _checked(base.stdin() if prompt == "-" else prompt)
    seed = _seed(session)
    options = {"max_new_tokens": arguments["max_tokens"], "chat": arguments["chat"], "seed": seed}
    found = _start(session, chosen).compare(text, chosen, **options)
    if as_json:
        base.print_json({"prompt": text, **found, "seed": seed})
        return
    table = base.table("Policy", *_FIGURES, "ms", "Candidates", "Output")
    for one, spec, result in zip(chosen, policies, found["results"], strict=True):
        more = (str(result["latency_ms"]), str(len(result["trace"]["candidates"])))
        table.add_row(_line(_name(one, spec), 32), *_figures(result), *more, _line(result["output"]))
    base.print_table(table)


@app.command()
@shares_session
def evaluate(
    prompts: _Prompts,
    policy: _Policy,
    arguments: dict[str, Any],
    session: dict[str, Any],
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that decode together; fewer take less memory.")] = 32,
    as_json: _Json = False,
) -> None:
    """Run a POLICY on many PROMPTS; prints how often it succeeds.

    \b
      mechanex-jax policy evaluate prompts.txt pol_0123abcd --seed 1
    """
    chosen, given, seed = _policy(policy), _prompts(prompts), _seed(session)
    options = {"max_new_tokens": arguments["max_tokens"], "chat": arguments["chat"], "seed": seed, "batch_size": batch_size}
    found = _start(session, [chosen]).evaluate(given, chosen, **options)
    if as_json:
        base.print_json({**found, "seed": seed})
        return
    table = base.table("Prompt", *_FIGURES, "Output")
    for prompt, result in zip(given, found["outputs"], strict=True):
        table.add_row(_line(prompt, 40), *_figures(result), _line(result["output"]))
    base.print_table(table)
    typer.echo(
        f"\n{found['pass_count']} of {found['num_prompts']} accepted ({found['success_rate']:.0%}); on average score "
        f"{found['avg_score']:.3f}, {found['avg_tokens']:.1f} tokens, {found['avg_latency_ms']:.0f} ms"
    )


@app.command()
@shares_session
def tune(
    prompts: _Prompts,
    arguments: dict[str, Any],
    session: dict[str, Any],
    policy: Annotated[str | None, typer.Option(metavar="POLICY", help="Where to start: as for `run`; otherwise nothing.")] = None,
    space: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON: {path of a field: [values]}.")] = None,
    tries: Annotated[
        list[str] | None,
        typer.Option("--try", metavar="PATH=V,V", help="Values of a field, such as sampling.temperature=0.2,0.7; repeat for more."),
    ] = None,
    max_trials: Annotated[int, typer.Option(min=1, help="Most settings to try.")] = 24,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that decode together; fewer take less memory.")] = 32,
    plot: Annotated[Path | None, typer.Option(metavar="OUT", help="Draw the trials, such as tuning.png.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Keep the best policy.")] = False,
    as_json: _Json = False,
) -> None:
    """Look for the policy that does best on PROMPTS. Ctrl-C ends the search with what it has.

    \b
      mechanex-jax policy tune prompts.txt --policy extract.json \\
        --try sampling.temperature=0,0.4,0.8 --try optimization.best_of_n=1,4 --plot tuning.png
    """
    if plot is not None:
        from mechanex_jax.steering.evaluation import matplotlib

        matplotlib()  # before hours of work for nothing
    start = _policy(policy) if policy is not None else None
    given, wanted, seed = _prompts(prompts), _space(space, tries or ()), _seed(session)
    running = _start(session, [] if start is None else [start])
    options = {"max_new_tokens": arguments["max_tokens"], "chat": arguments["chat"], "seed": seed, "batch_size": batch_size}
    found = running.auto_tune(given, start, search_space=wanted, max_trials=max_trials, **options)
    saved = running.save(found["best_policy"]) if save else None
    if plot is not None:
        from mechanex_jax.policy import plots

        plots.plot(found, plot)
    if as_json:
        base.print_json({**found, "seed": seed, "saved": saved})
    else:
        _show_trials(found)
        if saved is not None:
            typer.echo(f"\nSaved as {saved}")
    if found["interrupted"]:
        base.note("Interrupted: these are the trials until then.")
        raise typer.Exit(base.INTERRUPTED)


def _show_trials(found: _Result) -> None:
    """Trials in their order, the best one marked; then what it sets."""
    paths = [*found["best_trial"]["values"]]
    short = [path.rpartition(".")[2] for path in paths]
    names = short if len(set(short)) == len(short) else paths
    table = base.table("", "Trial", *names, "Accepted", "Score", "Tokens", "ms", "Held out: accepted", "Score")
    for number, trial in enumerate(found["trials"], 1):
        values = [_line(value if isinstance(value, str) else json.dumps(value), 24) for value in trial["values"].values()]
        held = trial["held_out"]
        unseen = ("", "") if held is None else (f"{held['success_rate']:.0%}", f"{held['avg_score']:.3f}")
        figures = (f"{trial['success_rate']:.0%}", f"{trial['avg_score']:.3f}", f"{trial['avg_tokens']:.1f}")
        mark = "*" if trial == found["best_trial"] else ""
        table.add_row(mark, str(number), *values, *figures, f"{trial['avg_latency_ms']:.0f}", *unseen)
    base.print_table(table)
    typer.echo(f"\nBest policy:\n{json.dumps(found['best_policy'], indent=2)}")


@app.command("list")
def list_policies(as_json: _Json = False) -> None:
    """List the saved policies, oldest first."""
    from mechanex_jax.policy import Policies, schema

    found = Policies().list()
    if as_json:
        base.print_json(found)
        return
    table = base.table("Id", "Name", "Method", "Candidates", "Verifiers", "Description")
    for item in found:
        policy = schema.read(item)
        candidates = max(policy.optimization.best_of_n, policy.sampling.num_candidates)
        cells = (item["id"], policy.name or "-", policy.sampling.method, str(candidates))
        table.add_row(*map(_line, (*cells, ", ".join(policy.verifiers.enabled) or "-", policy.description or "")))
    base.print_table(table)


@app.command()
def show(policy: _Policy) -> None:
    """Print a POLICY as JSON."""
    from mechanex_jax.policy.plain import plain

    typer.echo(json.dumps(plain("policy", _policy(policy).given), indent=2))


@app.command()
def save(policy: _Policy) -> None:
    """Keep a POLICY, under its "id" if it has one; prints the id."""
    from mechanex_jax.policy import Policies

    typer.echo(Policies().save(_policy(policy).given))


@app.command()
def delete(id: _Id) -> None:
    """Delete a saved policy."""
    from mechanex_jax.policy import Policies

    Policies().delete(id)
