"""`mechanex-jax policy`: run, compare, evaluate, tune and keep policies."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechanex_jax.cli import base
from mechanex_jax.cli import policy_inputs as inputs
from mechanex_jax.cli.options import Arguments, shares_session
from mechanex_jax.engine.checks import on_failure as check_on_failure
from mechanex_jax.errors import MechanexError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from mechanex_jax.policy import Policies
    from mechanex_jax.policy.controls import Policy
    from mechanex_jax.policy.rounds import CandidateRecord, RunResult, RunTrace
    from mechanex_jax.policy.tuning import SearchResult

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run, compare, evaluate, tune and keep policies.\n\n"
    "A POLICY is a JSON file, the id of a saved one, or a builder's name with what it takes after a colon: "
    "diverse_chatbot, fast_tool_router, strict_json_extraction:schema.json, ensemble_vote:MODEL,MODEL, "
    "steering_preset:brevity.",
)

_Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from standard input.")]
_Prompts = Annotated[
    str,
    typer.Argument(
        metavar="PROMPTS",
        help='A .txt file with one a line, a .jsonl file of objects with "prompt", - for lines on standard input, or one.',
    ),
]
_Policy = Annotated[str, typer.Argument(metavar="POLICY", help="A JSON file, a saved one's id, or a builder's name.")]
_Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a saved policy, such as pol_0123abcd.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _start(session: Arguments, policies: Sequence[Policy]) -> Policies:
    """Policies in a session with the model of --model, or of the policies, or the default one; and those that policies name."""
    named = [policy.model.model for policy in policies if policy.model.model not in (None, "default")]
    if session["model"] is None and len(set(named)) == 1 and len(named) == len(policies):
        session = {**session, "model": named[0]}
    running = base.start(session)
    for name in named:
        running.partner(name)
    return running.policy


def _seed(session: Arguments) -> int:
    return secrets.randbits(32) if session["seed"] is None else session["seed"]


# --- what is shown ---


def _line(text: str, longest: int = 60) -> Text:
    """Text as one line of a table, never read as markup."""

    shown = " ".join(text.split())
    return base.cell(shown if len(shown) <= longest else shown[: longest - 1] + "…")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _figures(result: RunResult | CandidateRecord) -> tuple[str, ...]:
    """The columns that all runs have."""
    return _yes(result["accepted"]), f"{result['score']:.2f}", f"{result['confidence']:.3f}", str(result["tokens"])


_FIGURES = ("Accepted", "Score", "Confidence", "Tokens")


def _candidates(trace: RunTrace) -> Table:
    table = base.table("Round", "Slot", "Method", "T", "Top-p", *_FIGURES, "Why", "Output")
    for candidate in trace["candidates"]:
        place = (str(candidate["round"]), str(candidate["slot"]), candidate["sampling_method"])
        values = (f"{candidate['temperature']:.2f}", f"{candidate['top_p']:.2f}")
        table.add_row(*place, *values, *_figures(candidate), _line(candidate["reason"], 40), _line(candidate["output"], 40))
    return table


def _name(policy: Policy, spec: str) -> str:
    return policy.name or policy.id or spec


# --- commands ---


@app.command()
@shares_session("on_failure")
def run(
    prompt: _Prompt,
    policy: _Policy,
    arguments: Arguments,
    session: Arguments,
    trace: Annotated[bool, typer.Option("--trace", help="Show all candidates too.")] = False,
    as_json: _Json = False,
) -> None:
    """Run a POLICY on a PROMPT; prints the text that wins.

    \b
      mechanex-jax policy run "Name three rivers." diverse_chatbot --chat
      mechanex-jax policy run - router.json --trace < question.txt
    """
    check_on_failure("--on-failure", arguments["on_failure"])
    chosen = inputs.policy(policy)
    text = inputs.checked(base.stdin() if prompt == "-" else prompt)
    seed = _seed(session)
    options = {"max_new_tokens": arguments["max_tokens"], "chat": arguments["chat"], "seed": seed}
    result = _start(session, [chosen]).run(text, chosen, include_trace=True, on_failure=arguments["on_failure"], **options)
    record = result["trace"]
    assert record is not None, "it was asked for"
    if as_json:
        base.print_json({"prompt": text, **result, "trace": record if trace else None, "seed": seed})
        return
    typer.echo(result["output"])
    if trace:
        typer.echo()
        base.print_table(_candidates(record))
    how = "Accepted" if result["accepted"] else f"Not accepted ({record['selection']['reason']})"
    count = len(record["candidates"])
    of = f"{result['tokens']} tokens; {count} candidate{'s' * (count > 1)} in {result['latency_ms']} ms; seed {seed}"
    base.note(f"{how}: score {result['score']:.2f}, confidence {result['confidence']:.3f}, {of}.")


@app.command()
@shares_session()
def compare(
    prompt: _Prompt,
    policies: Annotated[list[str], typer.Argument(metavar="POLICY...", help="JSON files, saved ones' ids, builders' names.")],
    arguments: Arguments,
    session: Arguments,
    as_json: _Json = False,
) -> None:
    """Run several policies on a PROMPT, with the same seed.

    \b
      mechanex-jax policy compare "Name three rivers." diverse_chatbot mine.json --chat
    """
    chosen = [inputs.policy(spec) for spec in policies]
    text = inputs.checked(base.stdin() if prompt == "-" else prompt)
    seed = _seed(session)
    options = {"max_new_tokens": arguments["max_tokens"], "chat": arguments["chat"], "seed": seed}
    comparison = _start(session, chosen).compare(text, chosen, **options)
    if as_json:
        base.print_json({"prompt": text, **comparison, "seed": seed})
        return
    table = base.table("Policy", *_FIGURES, "ms", "Candidates", "Output")
    for one, spec, result in zip(chosen, policies, comparison["results"], strict=True):
        more = (str(result["latency_ms"]), str(len(result["trace"]["candidates"] if result["trace"] else ())))
        table.add_row(_line(_name(one, spec), 32), *_figures(result), *more, _line(result["output"]))
    base.print_table(table)


@app.command()
@shares_session()
def evaluate(
    prompts: _Prompts,
    policy: _Policy,
    arguments: Arguments,
    session: Arguments,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that decode together; fewer take less memory.")] = 32,
    as_json: _Json = False,
) -> None:
    """Run a POLICY on many PROMPTS; prints how often it succeeds.

    \b
      mechanex-jax policy evaluate prompts.txt pol_0123abcd --seed 1
    """
    chosen, texts, seed = inputs.policy(policy), inputs.prompts(prompts), _seed(session)
    options = {"max_new_tokens": arguments["max_tokens"], "chat": arguments["chat"], "seed": seed, "batch_size": batch_size}
    evaluation = _start(session, [chosen]).evaluate(texts, chosen, **options)
    if as_json:
        base.print_json({**evaluation, "seed": seed})
        return
    table = base.table("Prompt", *_FIGURES, "Output")
    for prompt, result in zip(texts, evaluation["outputs"], strict=True):
        table.add_row(_line(prompt, 40), *_figures(result), _line(result["output"]))
    base.print_table(table)
    typer.echo(
        f"\n{evaluation['pass_count']} of {evaluation['num_prompts']} accepted ({evaluation['success_rate']:.0%}); on average "
        f"score {evaluation['avg_score']:.3f}, {evaluation['avg_tokens']:.1f} tokens, {evaluation['avg_latency_ms']:.0f} ms"
    )


@app.command()
@shares_session()
def tune(
    prompts: _Prompts,
    arguments: Arguments,
    session: Arguments,
    policy: Annotated[
        str | None, typer.Option(metavar="POLICY", help="Where to start: as for `run`; otherwise nothing.")
    ] = None,
    space: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A JSON object: for paths of fields, lists of values.")
    ] = None,
    tries: Annotated[
        list[str] | None,
        typer.Option(
            "--try", metavar="PATH=V,V", help="Values of a field, such as sampling.temperature=0.2,0.7; repeat for more."
        ),
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
        from mechanex_jax.steering.plots import figure_class

        figure_class()  # before hours of work for nothing
    start = inputs.policy(policy) if policy is not None else None
    texts, grid, seed = inputs.prompts(prompts), inputs.space(space, tries or ()), _seed(session)
    running = _start(session, [] if start is None else [start])
    options = {"max_new_tokens": arguments["max_tokens"], "chat": arguments["chat"], "seed": seed, "batch_size": batch_size}
    base.interrupt.keeps_results = True
    search = running.auto_tune(texts, start, search_space=grid, max_trials=max_trials, **options)
    saved = running.save(search["best_policy"]) if save else None
    if plot is not None:
        from mechanex_jax.policy import plots

        plots.plot(search, plot)
    if as_json:
        base.print_json({**search, "seed": seed, "saved": saved})
    else:
        _show_trials(search)
        if saved is not None:
            typer.echo(f"\nSaved as {saved}")
    if search["interrupted"]:
        base.note("Interrupted: these are the trials until then.")
        raise typer.Exit(base.INTERRUPTED)


def _show_trials(search: SearchResult) -> None:
    """Trials in their order, the best one marked; then what it sets."""
    paths = [*search["best_trial"]["values"]]
    short = [path.rpartition(".")[2] for path in paths]
    names = short if len(set(short)) == len(short) else paths
    table = base.table("", "Trial", *names, "Accepted", "Score", "Tokens", "ms", "Held out: accepted", "Score")
    for number, trial in enumerate(search["trials"], 1):
        values = [_line(value if isinstance(value, str) else json.dumps(value), 24) for value in trial["values"].values()]
        held = trial["held_out"]
        unseen = ("", "") if held is None else (f"{held['success_rate']:.0%}", f"{held['avg_score']:.3f}")
        figures = (f"{trial['success_rate']:.0%}", f"{trial['avg_score']:.3f}", f"{trial['avg_tokens']:.1f}")
        mark = "*" if trial == search["best_trial"] else ""
        table.add_row(mark, str(number), *values, *figures, f"{trial['avg_latency_ms']:.0f}", *unseen)
    base.print_table(table)
    typer.echo(f"\nBest policy:\n{json.dumps(search['best_policy'], indent=2)}")


@app.command("list")
def list_policies(as_json: _Json = False) -> None:
    """List the saved policies, oldest first."""
    from mechanex_jax.policy import default, validate

    saved = default.list()
    if as_json:
        base.print_json(saved)
        return
    table = base.table("Id", "Name", "Method", "Candidates", "Verifiers", "Description")
    for item in saved:
        try:
            policy = validate.read(item)
        except MechanexError as error:  # changed by hand, or saved by another version
            table.add_row(_line(item["id"]), "-", "-", "-", "-", _line(f"cannot be used: {error}", 100))
            continue
        candidates = max(policy.optimization.best_of_n, policy.sampling.num_candidates)
        cells = (item["id"], policy.name or "-", policy.sampling.method, str(candidates))
        table.add_row(*map(_line, (*cells, ", ".join(policy.verifiers.enabled) or "-", policy.description or "")))
    base.print_table(table)


@app.command()
def show(policy: _Policy) -> None:
    """Print a POLICY as JSON."""
    from mechanex_jax.storage.json_values import plain

    typer.echo(json.dumps(plain("policy", inputs.policy(policy).given), indent=2))


@app.command()
def save(policy: _Policy) -> None:
    """Keep a POLICY, under its "id" if it has one; prints the id."""
    from mechanex_jax.policy import default

    typer.echo(default.save(inputs.policy(policy).given))


@app.command()
def delete(id: _Id) -> None:
    """Delete a saved policy."""
    from mechanex_jax.policy import default

    default.delete(id)
