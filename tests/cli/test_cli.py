"""The command line: what is printed where, what is refused, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from jobfiles import COMMAND, ENVIRONMENT, read, work, write
from typer.testing import CliRunner

from mechanex_jax import cli, loading
from mechanex_jax.cli import base, options
from mechanex_jax.cli.job import DEFAULTS

# ---- the command line, in this process


def run(*arguments, **more):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], **more)


def test_every_shared_option_is_an_argument_of_generate_with_its_default():
    assert {p.name: p.default for p in options.ARGUMENTS} == {p.name: DEFAULTS[p.name] for p in options.ARGUMENTS}


def test_the_printed_seed_repeats_the_text_and_streaming_gives_the_same(smollm2_folder):
    options = ("generate", "Roses are [bold]red[/bold]", "--max-tokens", 8, "--temperature", 1.5)
    drawn = run(*options, "--json")
    assert drawn.exit_code == 0
    assert drawn.stderr == ""
    result = json.loads(drawn.stdout)
    assert set(result) == {*("prompt", "text", "tokens", "logprobs", "finish_reason", "model", "method", "seed", "seconds")}
    assert len(result["tokens"]) == len(result["logprobs"]) == 8
    again = run(*options, "--seed", result["seed"])
    assert (again.exit_code, again.stdout) == (0, result["text"] + "\n")


def test_a_prompt_comes_from_standard_input_without_its_last_newline(smollm2_folder):
    given = run("generate", "-", "--json", "--max-tokens", 2, input="one\ntwo\n")
    assert json.loads(given.stdout)["prompt"] == "one\ntwo"


def test_the_known_question_has_the_known_answer(smollm2_folder):
    asked = run("generate", "What is the capital of France?", "--chat", "--method", "greedy", "--max-tokens", 12)
    assert asked.stdout == "The capital of France is Paris.\n"


def test_every_option_reaches_generate(monkeypatch, tmp_path):
    seen = {}

    class Session:
        generation = property(lambda self: self)

        def stream(self, prompt, **arguments):
            seen.update(arguments)
            yield from ("[red]", " and blue")

    monkeypatch.setattr(base, "start", lambda session: seen.update(session) or Session())
    wanted = {
        "max_tokens": 9,
        "min_tokens": 2,
        "stop": ["a", "b"],
        "chat": True,
        "sampling_method": "min-p",
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.8,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "beam_width": 3,
        "length_penalty": 0.5,
        "steering_preset": "brevity",
        "steering_vector": "sv_12345678",
        "steering_strength": 1.5,
        "best_of_n": 2,
        "on_failure": "raise",
        "forbidden_terms": ["c", "d"],
        "seed": 5,
        "model": "m",
        "dtype": "t",
        "device": "d",
    }
    words = ["--method", "min-p", "--chat", "--stop", "a", "--stop", "b", "--forbidden-term", "c", "--forbidden-term", "d"]
    for name, value in wanted.items():
        if name not in ("sampling_method", "chat", "stop", "forbidden_terms"):
            words += [f"--{name.replace('_', '-')}", value]
    assert run("generate", "a", *words).stdout == "[red] and blue\n"
    rest = dict.fromkeys(["typical_p", "epsilon_cutoff", "json_schema", "regex_pattern", "grammar", "policy", "policy_id"])
    assert seen == {**wanted, **rest}
    schema, grammar = tmp_path / "a.json", tmp_path / "a.gbnf"
    schema.write_text('{"type": "integer"}')
    grammar.write_text('root ::= "a"')
    for option, given, name, value in (
        ("--json-schema", schema, "json_schema", {"type": "integer"}),
        ("--grammar", grammar, "grammar", 'root ::= "a"'),
        ("--regex", "[ab]+", "regex_pattern", "[ab]+"),
    ):
        run("generate", "a", option, given)
        assert seen[name] == value


def test_constraint_check_reports_size_and_time_or_what_is_unsupported(tmp_path, smollm2_folder):
    schema = tmp_path / "a.json"
    schema.write_text('{"type": "array", "items": {"type": "integer"}, "minItems": 2}')
    found = json.loads(run("constraint", "check", schema, "--json").stdout)
    assert found["least_max_tokens"] == 5 and found["states"] > 3 and found["seconds_for_the_vocabulary"] > 0
    assert "least max tokens" in run("constraint", "check", "--regex", "[0-9]{4}").stdout
    schema.write_text('{"properties": {"a": {"type": "array", "uniqueItems": true}}}')
    refused = run("constraint", "check", schema)
    assert refused.exit_code == 2 and "uniqueItems" in refused.stderr and "/properties/a" in refused.stderr
    schema.write_text("{")
    assert "line 1" in run("constraint", "check", schema).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate", "a", "--top-p", "0"], 2, "top_p: got 0.0"),
        (["generate", "a", "--temperature", "nan"], 2, "temperature"),
        (["generate", "a", "--method", "top[b]"], 2, "'top[b]'"),
        (["generate", "a", "--min-p", "0.1"], 2, "min_p"),
        (["generate", "a", "--seed", "-1"], 2, "seed"),
        (["generate", "a", "--max-tokens", "many"], 2, "max-tokens"),
        (["generate", "a", "--device", "abacus"], 2, "device"),
        (["generate", "a", "--model", "no[/b]pe"], 1, "'no[/b]pe'"),
        (["generate"], 2, "PROMPT"),
        (["pull", "nope"], 1, "'nope'"),
        (["batch", "nowhere.jsonl", "out.jsonl"], 2, "nowhere.jsonl"),
        (["wrong"], 2, "wrong"),
    ],
)
def test_errors_are_one_clear_message_on_standard_error(arguments, code, words):
    result = run(*arguments, env={"COLUMNS": "200"})
    assert result.exit_code == code
    assert words in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_standard_input_that_is_no_text_is_refused():
    result = run("generate", "-", input=b"\xff\xfe\xfa")
    assert result.exit_code == 2
    assert "UTF-8" in result.stderr


def test_a_finished_batch_runs_nothing_again(source, target):
    work(source, target, seed=1)
    before = target.read_bytes()
    result = run("batch", source, target, "--model", "smollm2", "--device", "abacus")  # a load would fail
    assert result.exit_code == 0
    assert "10 rows" in result.stderr
    assert target.read_bytes() == before


def test_models_lists_the_catalogue_and_what_is_here(smollm2_folder):
    listed = json.loads(run("models", "--json").stdout)
    assert listed[0]["name"] == "smollm2-135m-instruct"
    assert listed[0]["cached"]
    size = sum(path.stat().st_size for path in smollm2_folder.iterdir())
    assert listed[0]["bytes"] == size
    table = run("models").stdout
    assert all(entry["name"] in table and entry["licence"] in table for entry in listed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_tells_the_memory_that_a_model_takes_once_loaded(mx, dtype):
    entry = json.loads(run("models", "--json").stdout)[0]
    weights = loading.load(entry["name"], dtype=dtype).model.params
    assert entry["memory"][dtype] == sum(np.asarray(array).nbytes for array in weights)
    line = next(line for line in run("models").stdout.splitlines() if entry["name"] in line)
    assert "538.1 MB (16-bit: 269.0 MB)" in line and entry["description"] in line


def test_pull_prints_the_folder_and_nothing_else(smollm2_folder):
    assert run("pull").stdout == f"{smollm2_folder}\n"


def test_help_explains_every_command():
    for arguments in ([], ["generate"], ["batch"], ["models"], ["pull"]):
        result = run(*arguments, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.stdout
    assert run("--version").stdout.startswith("mechanex-jax ")


# ---- the command line, in processes of its own


def start(*arguments) -> subprocess.Popen[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def drain(screen: int, shown: bytearray) -> None:
    """All that appears on a terminal, until nobody writes to it any more."""
    with contextlib.suppress(OSError):
        while piece := os.read(screen, 4096):
            shown += piece
    os.close(screen)


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_killed_and_an_interrupted_batch_go_on_to_the_texts_of_an_unbroken_one(smollm2_folder, tmp_path):
    rows = [{"prompt": f"Number {i} is" + " very" * (i % 5)} for i in range(16)]
    source, broken, whole = write(tmp_path / "in.jsonl", rows), tmp_path / "broken.jsonl", tmp_path / "whole.jsonl"
    options = ("--batch-size", 1, "--max-tokens", 12, "--seed", 1)
    killed = start("batch", source, broken, *options)
    wait_for_lines(broken, 2, killed)
    killed.kill()
    killed.communicate()
    after_kill = len(read(broken))
    assert 2 <= after_kill < 16
    interrupted = start("batch", source, broken, *options)
    wait_for_lines(broken, after_kill + 1, interrupted)
    interrupted.send_signal(signal.SIGINT)
    output, errors = interrupted.communicate()
    assert interrupted.returncode == 130, errors
    done = len(read(broken))
    assert after_kill + 1 <= done < 16
    assert output == ""
    assert errors.strip() == f"Interrupted. {done} of 16 rows are in {broken}; the same command goes on from there."
    with broken.open("ab") as file:
        file.write(b'{"index": 15, "prompt": "Numb')
    assert run("batch", source, broken, *options).exit_code == 0
    assert run("batch", source, whole, *options).exit_code == 0
    assert broken.read_bytes() == whole.read_bytes()
    assert [row["prompt"] for row in read(broken)] == [row["prompt"] for row in rows]


def test_on_a_terminal_there_are_bars_and_control_c_ends_a_long_text_quietly(smollm2_folder):
    screen, terminal = os.openpty()
    command = [*COMMAND, "generate", "One, two, three,", "--max-tokens", "500", "--min-tokens", "500"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=terminal, stdin=subprocess.DEVNULL, text=True, env=ENVIRONMENT
    )
    os.close(terminal)
    shown = bytearray()
    reader = threading.Thread(target=drain, args=(screen, shown))
    reader.start()  # a full terminal would block the process
    assert process.stdout is not None
    assert process.stdout.read(1)  # the first piece of the text, long before the last
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert process.wait() == 130
    assert time.monotonic() - begun < 10
    reader.join()
    assert b"Loading smollm2" in shown
    assert b"Interrupted." in shown
    assert b"Traceback" not in shown


def test_a_reader_that_leaves_is_no_error(smollm2_folder):
    process = start("generate", "One, two, three,", "--max-tokens", 500, "--min-tokens", 500)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 1
