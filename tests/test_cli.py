"""The command line and the long batches behind it: what is printed where, what is refused, and that nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from mechanex_jax import cli
from mechanex_jax.config import GenerationConfig, per_row
from mechanex_jax.engine import Completion
from mechanex_jax.errors import ArgumentError, MechanexError
from mechanex_jax.jobs import DEFAULTS, Job

COMMAND = [sys.executable, "-m", "mechanex_jax.cli"]
ROOT = Path(cli.__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


class Machine:
    """A session without a model: a row's text tells its prompt and seed. Remembers its calls; may break down at one."""

    def __init__(self, breaks_at: int | None = None, context: int = 100):
        self.calls: list[dict] = []
        self.breaks_at = breaks_at
        self.context = context
        self.generation = self

    def local_model(self, name):
        tokenizer = SimpleNamespace(encode=list, encode_chat=lambda prompt: [0], bos_id=0)
        spec = SimpleNamespace(context=self.context, vocabulary=9, width=4, layers=2)
        return SimpleNamespace(name="machine", tokenizer=tokenizer, model=SimpleNamespace(spec=spec))

    def generate_batch(self, prompts, *, seed, batch_size, details, **arguments):
        if len(self.calls) == self.breaks_at:
            raise KeyboardInterrupt
        self.calls.append({"prompts": prompts, "seeds": seed, "configs": per_row(arguments, len(prompts))})
        return [
            Completion(f"{prompt}\u2028{key} \N{SNOWMAN}", (1, 2), (0.0, 0.0), "length")
            for prompt, key in zip(prompts, seed, strict=True)
        ]


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def work(source, target, machine=None, **options):
    with Job(source, target, **{"batch_size": 4, **options}) as job:
        job.run(machine or Machine())
        job.finish()


@pytest.fixture
def source(tmp_path):
    """Ten rows of falling length, so that the order of work is not that of the file."""
    return write(tmp_path / "in.jsonl", [{"prompt": "x" * (10 - i), "id": f"row {i}"} for i in range(10)])


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out.jsonl"


# ---- jobs


def test_a_job_writes_a_line_for_every_row_in_the_inputs_order(source, target):
    work(source, target, seed=1, defaults={"temperature": 0.5})
    rows = read(target)
    assert [row["index"] for row in rows] == list(range(10))
    assert [(row["id"], row["prompt"]) for row in rows] == [(f"row {i}", "x" * (10 - i)) for i in range(10)]
    assert all(row["arguments"] == {"temperature": 0.5} and row["finish_reason"] == "length" for row in rows)
    assert all(row["text"] == f"{row['prompt']}\u2028{row['seed']} \N{SNOWMAN}" and row["tokens"] == 2 for row in rows)
    assert len({row["seed"] for row in rows}) == 10


def test_a_job_cut_at_any_byte_is_completed_to_the_same_file(source, target):
    work(source, target, seed=1)
    whole = target.read_bytes()
    for cut in range(0, len(whole), 37):
        target.write_bytes(whole[:cut])
        work(source, target, seed=1)
        assert target.read_bytes() == whole


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_job_that_breaks_down_keeps_all_micro_batches_before(source, target, broken):
    with pytest.raises(KeyboardInterrupt):
        work(source, target, Machine(breaks_at=broken), seed=1)
    assert len(read(target) if target.exists() else []) == 4 * broken
    rest = Machine()
    work(source, target, rest, seed=1)
    assert sum(len(call["prompts"]) for call in rest.calls) == 10 - 4 * broken
    resumed = target.read_bytes()
    work(source, target, seed=1, overwrite=True)
    assert resumed == target.read_bytes()


def test_rows_of_like_length_decode_together_and_short_texts_before_long_ones(tmp_path, target):
    lengths = [(steps, size) for size in (5, 9, 2, 7) for steps in (3, 30)]
    rows = [{"prompt": "x" * size, "max_tokens": steps} for steps, size in lengths]
    machine = Machine()
    work(write(tmp_path / "in.jsonl", rows), target, machine, batch_size=2)
    order = [(c.max_tokens, len(p)) for call in machine.calls for p, c in zip(call["prompts"], call["configs"], strict=True)]
    assert order == sorted(lengths)


def test_the_rest_decodes_in_the_same_company_as_without_the_stop(source, target):
    straight, first, second = Machine(), Machine(breaks_at=1), Machine()
    work(source, target, straight, seed=1)
    with pytest.raises(KeyboardInterrupt):
        work(source, target, first, seed=1, overwrite=True)
    work(source, target, second, seed=1)
    assert [call["prompts"] for call in first.calls + second.calls] == [call["prompts"] for call in straight.calls]


def test_without_a_seed_the_output_keeps_the_one_drawn(source, target):
    with pytest.raises(KeyboardInterrupt):
        work(source, target, Machine(breaks_at=1))
    drawn = read(target)[0]["batch_seed"]
    work(source, target)
    resumed = target.read_bytes()
    work(source, target, seed=drawn, overwrite=True)
    assert resumed == target.read_bytes()


def test_a_row_has_its_own_arguments_and_seed(tmp_path, target):
    rows = [
        {"prompt": "a", "stop": "x", "seed": 7},
        {"prompt": "b", "stop": ["y", "z"], "sampling_method": "min-p", "min_p": 0.1},
        {"prompt": "c", "temperature": 0, "max_tokens": 128},
        {"prompt": [{"role": "user", "content": "d"}], "chat": True, "logit_bias": {"3": -1}},
    ]
    machine = Machine()
    work(write(tmp_path / "in.jsonl", rows), target, machine, defaults={"temperature": 0.9})
    configs = {str(p): c for call in machine.calls for p, c in zip(call["prompts"], call["configs"], strict=True)}
    assert configs["a"] == GenerationConfig(temperature=0.9, stop=["x"])
    assert configs["b"] == GenerationConfig(temperature=0.9, stop=["y", "z"], sampling_method="min-p", min_p=0.1)
    assert configs["c"] == GenerationConfig(temperature=0)
    assert configs[str(rows[3]["prompt"])] == GenerationConfig(temperature=0.9, chat=True, logit_bias={"3": -1})
    assert read(target)[0]["seed"] == 7
    assert read(target)[2]["arguments"] == {"temperature": 0}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "JSON"),
        ('["a"]', "prompt"),
        ('{"text": "a"}', "prompt"),
        ('{"prompt": 3}', "prompt"),
        ('{"prompt": "a", "temprature": 1}', "Did you mean 'temperature'"),
        ('{"prompt": "a", "temperature": -1}', "temperature"),
        ('{"prompt": "a", "min_p": 0.1}', "min_p"),
        ('{"prompt": "a", "regex_pattern": "a+"}', "not available"),
        ('{"prompt": "a", "model": "gpt2"}', "model"),
        ('{"prompt": "a", "seed": -1}', "seed"),
        ('{"prompt": "\\ud800"}', "Unicode"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_bad_lines_are_named_before_anything_is_written(tmp_path, target, line, words):
    source = tmp_path / "in.jsonl"
    source.write_text(f'{{"prompt": "fine"}}\n\n{line}\n')
    with pytest.raises(ArgumentError, match=r"in\.jsonl, line 3: ") as caught:
        Job(source, target)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not target.exists()


def test_many_bad_lines_are_counted_and_the_first_ones_shown(tmp_path, target):
    source = write(tmp_path / "in.jsonl", [{"prompt": "a", "top_k": 0}] * 9)
    with pytest.raises(ArgumentError, match=r"9 lines cannot(.|\n)*line 5: (.|\n)*and 4 more"):
        Job(source, target)


def test_rows_that_the_model_cannot_serve_are_named_before_any_runs(source, target):
    machine = Machine(context=10)
    with pytest.raises(ArgumentError, match=r"in\.jsonl, line 1: prompt: got '?10 tokens"):
        work(source, target, machine)
    assert not machine.calls
    assert not target.exists()


def _other_prompt(rows):
    rows[3]["prompt"] = "other"


def _other_options(rows):
    rows[3]["arguments"] = {"temperature": 0.2}


def _other_seed(rows):
    rows[3]["batch_seed"] = 5


def _twice(rows):
    rows.append(rows[0])


def _too_many(rows):
    rows.append({**rows[0], "index": 10})


def _something_else(rows):
    rows[:] = [{"name": "a recipe"}]


@pytest.mark.parametrize("change", [_other_prompt, _other_options, _other_seed, _twice, _too_many, _something_else])
def test_an_output_of_another_job_is_refused_and_left_alone(source, target, change):
    work(source, target, seed=1)
    rows = read(target)
    change(rows)
    before = write(target, rows).read_bytes()
    with pytest.raises(ArgumentError, match=r"out\.jsonl.*overwrite"):
        work(source, target, seed=1)
    assert target.read_bytes() == before
    work(source, target, seed=1, overwrite=True)
    assert len(read(target)) == 10


@pytest.mark.parametrize("content", ["a diary", "a diary\n", '{"name": "a recipe"}'])
def test_a_file_that_is_no_output_is_refused_and_left_alone(source, target, content):
    target.write_text(content)
    with pytest.raises(ArgumentError, match="no line of a batch"):
        Job(source, target)
    assert target.read_text() == content


def test_nothing_is_overwritten_before_the_model_is_there(source, target):
    target.write_text("precious")
    Job(source, target, overwrite=True).close()
    assert target.read_text() == "precious"


def test_the_input_is_never_the_output(source):
    before = source.read_bytes()
    with pytest.raises(ArgumentError, match="another file"):
        Job(source, source, overwrite=True)
    assert source.read_bytes() == before


def test_two_jobs_never_write_one_output(source, target):
    with Job(source, target), pytest.raises(MechanexError, match="another process"):
        Job(source, target)


def test_rows_stay_in_the_file_until_their_turn(tmp_path, target):
    class Forgetful(Machine):
        def generate_batch(self, *args, **kwargs):
            self.calls.clear()
            return super().generate_batch(*args, **kwargs)

    source = write(tmp_path / "in.jsonl", ({"prompt": "x" * 50_000} for _ in range(400)))
    tracemalloc.start()
    work(source, target, Forgetful(context=10**6), batch_size=8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < source.stat().st_size / 3


# ---- the command line, in this process


def run(*arguments, **more):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], **more)


def test_every_shared_option_is_an_argument_of_generate_with_its_default():
    assert {p.name: p.default for p in cli._ARGUMENTS} == {p.name: DEFAULTS[p.name] for p in cli._ARGUMENTS}


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


def test_every_option_reaches_generate(monkeypatch):
    seen = {}

    class Session:
        generation = property(lambda self: self)

        def stream(self, prompt, **arguments):
            seen.update(arguments)
            yield from ("[red]", " and blue")

    monkeypatch.setattr(cli, "_start", lambda session: seen.update(session) or Session())
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
        "seed": 5,
        "model": "m",
        "dtype": "t",
        "device": "d",
    }
    words = ["--method", "min-p", "--chat", "--stop", "a", "--stop", "b"]
    for name, value in wanted.items():
        if name not in ("sampling_method", "chat", "stop"):
            words += [f"--{name.replace('_', '-')}", value]
    assert run("generate", "a", *words).stdout == "[red] and blue\n"
    assert seen == {**wanted, "typical_p": None}


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
