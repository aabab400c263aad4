"""Long batches: what is refused, and that nothing is lost wherever one is stopped."""

from __future__ import annotations

import tracemalloc

import pytest
from jobfiles import Machine, read, work, write

from mechanex_jax.cli.job import Job
from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.errors import ArgumentError, MechanexError


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
        ('{"prompt": "a", "best_of_n": 0}', "best_of_n"),
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
