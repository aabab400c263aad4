"""`mechanex-jax policy`, and the options of `generate` that go through a policy."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mechanex_jax import cli, policy
from mechanex_jax.cli import base
from mechanex_jax.policy import Policies, presets, tuning, validate
from mechanex_jax.session import Session

TWO = {"name": "two digits", "constraints": {"regex_pattern": "[1-9][0-9]"}, "optimization": {"retry_on_failure": 0}}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def run(*arguments, **more):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "200"}, **more)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHANEX_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def two(tmp_path):
    (tmp_path / "two.json").write_text(json.dumps(TWO))
    return "two.json"


def outcome(policy, prompt, seed):
    """What a session without a model makes of a prompt: its temperature is its score."""
    score = policy.sampling.temperature
    judged = {"output": f"[b]{prompt}[/b]", "accepted": score >= 0.5, "score": score, "confidence": 0.25, "tokens": 7}
    candidate = {**judged, "reason": "none", "sampling_method": policy.sampling.method, "temperature": score, "top_p": 0.9}
    candidate |= {"seed": seed, "round": 0, "slot": 0, "latency_ms": 3}
    trace = {"policy_name": policy.name, "candidates": [candidate], "selection": candidate, "retry_events": []}
    return {**judged, "latency_ms": 3, "constraints_ok": True, "verifier_ok": True, "policy_id": None, "trace": trace}


class Machine(Policies):
    """A session without a model, its policies and its generation; remembers what it was asked."""

    policy = property(lambda self: self)
    generation = property(lambda self: self)
    breaks_at = None

    def start(self, session):
        self.session, self.asked, self.trials, self.partners = session, {}, 0, []
        return self

    def partner(self, name):
        self.partners.append(name)

    def run(self, prompt, policy, **more):
        self.asked = {"prompt": prompt, "policy": policy, **more}
        return outcome(policy, prompt, more["seed"])

    def compare(self, prompt, policies, **more):
        self.asked = {"prompt": prompt, **more}
        return {"results": [outcome(policy, prompt, more["seed"]) for policy in policies]}

    def evaluate(self, prompts, policy, **more):
        self.asked = {"prompts": prompts, "policy": policy, **more}
        return tuning.evaluation([outcome(policy, prompt, 0) for prompt in prompts], [None] * len(prompts))

    def auto_tune(self, prompts, base_policy, *, search_space, max_trials, seed, **more):
        self.asked = {"prompts": prompts, "base": base_policy, "space": search_space, **more}

        def tried(policy, chosen):
            self.trials += 1
            if self.trials == self.breaks_at:
                raise KeyboardInterrupt
            return tuning.figures([outcome(policy, prompts[at], 0) for at in chosen])

        start = validate.read({}) if base_policy is None else base_policy
        return tuning.search(start, search_space, max_trials, len(prompts), seed, tried, lambda done, total: None)


@pytest.fixture
def machine(monkeypatch):
    machine = Machine(Session(), policy.default.steering)
    monkeypatch.setattr(base, "start", machine.start)
    return machine


# --- commands ---


def test_run_prints_the_text_and_notes_how_it_went(machine, two):
    result = run("policy", "run", "a [red] prompt", two, "--seed", 3, "--max-tokens", 9, "--chat", "--model", "m")
    assert (result.exit_code, result.stdout) == (0, "[b]a [red] prompt[/b]\n")
    assert "Accepted: score 0.70, confidence 0.250, 7 tokens; 1 candidate in 3 ms; seed 3." in result.stderr
    assert machine.asked["max_new_tokens"] == 9 and machine.asked["chat"] is True and machine.asked["seed"] == 3
    assert machine.asked["policy"] == validate.read(TWO) and machine.session["model"] == "m"
    assert machine.asked["on_failure"] == "warn"
    run("policy", "run", "a", two, "--on-failure", "raise")
    assert machine.asked["on_failure"] == "raise"
    refused = run("policy", "run", "a", two, "--on-failure", "ignore")
    assert refused.exit_code == 2 and "--on-failure: got 'ignore'" in refused.stderr
    traced = run("policy", "run", "-", two, "--trace", input="from\nstandard input\n").stdout
    assert "Confidence" in traced and "top-k" in traced and machine.asked["prompt"] == "from\nstandard input"
    printed = json.loads(run("policy", "run", "p", two, "--json", "--seed", 3).stdout)
    assert printed["output"] == "[b]p[/b]" and printed["seed"] == 3 and printed["trace"] is None
    assert json.loads(run("policy", "run", "p", two, "--json", "--trace").stdout)["trace"]["policy_name"] == "two digits"


def test_a_policy_is_a_file_a_saved_id_or_a_builder_with_what_it_takes(machine, two, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    saved = run("policy", "save", two).stdout.strip()
    for spec, expected in {
        saved: {**TWO, "id": saved},
        "diverse_chatbot": presets.diverse_chatbot(),
        "fast_tool_router": presets.fast_tool_router(),
        "strict_json_extraction:schema.json": presets.strict_json_extraction(SCHEMA),
        "ensemble_vote:a,b": presets.ensemble_vote(["a", "b"]),
        "steering_preset:brevity": presets.steering_preset("brevity"),
    }.items():
        assert run("policy", "run", "p", spec).exit_code == 0
        assert machine.asked["policy"] == validate.read(expected)
        assert json.loads(run("policy", "show", spec).stdout) == expected


def test_the_model_that_a_policy_names_is_loaded(machine, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"model": {"model": "other"}}))
    run("policy", "run", "p", "a.json")
    assert machine.session["model"] == "other" and machine.partners == ["other"]
    run("policy", "compare", "p", "a.json", "diverse_chatbot")
    assert machine.session["model"] is None and machine.partners == ["other"]


def test_compare_shows_a_row_for_each_policy(machine, two):
    lines = run("policy", "compare", "p", two, "diverse_chatbot", "--seed", 1).stdout.splitlines()
    assert len(lines) == 3 and "two digits" in lines[1] and "0.70" in lines[1] and "diverse_chatbot_ads" in lines[2]
    printed = json.loads(run("policy", "compare", "p", two, "diverse_chatbot", "--seed", 1, "--json").stdout)
    assert [result["score"] for result in printed["results"]] == [0.7, 0.9] and printed["seed"] == 1


def test_prompts_come_from_a_file_from_standard_input_or_from_the_argument(machine, two, tmp_path):
    (tmp_path / "p.txt").write_text("one\n\n two \n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "three\\nlines"}\n\n{"prompt": "four", "id": 1}\n')
    for source, expected in {"p.txt": ["one", " two "], "p.jsonl": ["three\nlines", "four"], "a prompt": ["a prompt"]}.items():
        assert run("policy", "evaluate", source, two).exit_code == 0
        assert machine.asked["prompts"] == expected
    shown = run("policy", "evaluate", "-", two, "--batch-size", 2, input="five\nsix\n").stdout
    assert machine.asked["prompts"] == ["five", "six"] and machine.asked["batch_size"] == 2
    assert "[b]five[/b]" in shown and "2 of 2 accepted (100%)" in shown
    printed = json.loads(run("policy", "evaluate", "p.txt", two, "--json", "--seed", 4).stdout)
    assert printed["num_prompts"] == len(printed["outputs"]) == 2 and printed["seed"] == 4


def test_tune_shows_the_trials_the_best_policy_and_a_picture(machine, two, tmp_path):
    tries = ("--try", "sampling.temperature=0.2,1.0", "--try", "sampling.method=top-p,top-k")
    result = run("policy", "tune", "p", "--policy", two, *tries, "--save", "--plot", "out.png", "--seed", 1)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["1", "2", "*", "4"] and "top-p" in lines[3]
    best = json.loads(result.stdout.split("Best policy:\n")[1].split("\n\nSaved")[0])
    assert best == {**TWO, "sampling": {"temperature": 1.0, "method": "top-p"}}
    saved = result.stdout.split("Saved as ")[1].strip()
    assert policy.default.get(saved) == {**best, "id": saved}
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_search_space_comes_from_a_file_and_from_values_in_json_or_plain_words(machine, tmp_path):
    (tmp_path / "space.json").write_text('{"sampling.top_k": [5, 6]}')
    tries = ('verifiers.enabled=[],["syntax"]', "sampling.method=greedy,top-k", "optimization.best_of_n=1,2")
    options = [word for item in tries for word in ("--try", item)]
    printed = json.loads(run("policy", "tune", "p", "--space", "space.json", *options, "--max-trials", 5, "--json").stdout)
    assert machine.asked["space"] == {
        "sampling.top_k": [5, 6],
        "verifiers.enabled": [[], ["syntax"]],
        "sampling.method": ["greedy", "top-k"],
        "optimization.best_of_n": [1, 2],
    }
    assert len(printed["trials"]) == 5 and machine.asked["base"] is None
    assert len(json.loads(run("policy", "tune", "p", "--json").stdout)["trials"]) == 1


def test_control_c_shows_the_trials_until_then_and_ends_with_130(machine):
    machine.breaks_at = 3
    result = run("policy", "tune", "p", "--try", "sampling.temperature=0.2,0.4,0.6,0.8", "--json")
    assert result.exit_code == 130 and "Interrupted" in result.stderr
    assert len(json.loads(result.stdout)["trials"]) == 2
    machine.breaks_at = 1
    result = run("policy", "tune", "p")
    assert result.exit_code == 130 and result.stdout == "" and "Interrupted." in result.stderr


def test_control_c_in_any_other_command_ends_with_130_and_no_result(machine, monkeypatch, two):
    def interrupted(*given, **more):
        raise KeyboardInterrupt

    for command in ("run", "compare", "evaluate"):
        monkeypatch.setattr(machine, command, interrupted)
        result = run("policy", command, "p", two)
        assert result.exit_code == 130 and result.stdout == "" and result.stderr.strip() == "Interrupted."


def test_saved_policies_are_listed_shown_and_deleted(two, tmp_path):
    assert run("policy", "list", "--json").stdout == "[]\n"
    saved = run("policy", "save", two).stdout.strip()
    named = {**TWO, "id": "mine", "verifiers": {"enabled": ["regex"]}}
    (tmp_path / "named.json").write_text(json.dumps(named))
    assert run("policy", "save", "named.json").stdout == "mine\n"
    (tmp_path / "data" / "policies" / "odd.json").write_text(json.dumps({"format": 1, "created": 0, "record": {"sampling": 3}}))
    table = run("policy", "list").stdout.splitlines()
    assert "cannot be used" in table[1] and saved in table[2] and "two digits" in table[2] and "regex" in table[3]
    assert [item["id"] for item in json.loads(run("policy", "list", "--json").stdout)] == ["odd", saved, "mine"]
    assert json.loads(run("policy", "show", "mine").stdout) == named
    assert run("policy", "delete", "mine").exit_code == 0
    assert run("policy", "show", "mine").exit_code == 2


BAD = [
    (["run", "p", "nowhere"], "policy id: got 'nowhere'"),
    (["run", "p", "nowhere.json"], "nowhere.json"),
    (["run", "p", "typo.json"], "Did you mean 'temperature'"),
    (["run", "p", "broken.json"], "line 1"),
    (["run", "p", "strict_json_extraction"], "JSON Schema with it"),
    (["run", "p", "steering_preset:cheerful"], "cheerful"),
    (["run", "p", "diverse_chatbot:3"], "diverse_chatbot alone"),
    (["run", "p"], "POLICY"),
    (["compare", "p"], "POLICY"),
    (["evaluate", "none.txt", "diverse_chatbot"], "none.txt"),
    (["evaluate", "empty.txt", "diverse_chatbot"], "no prompt"),
    (["evaluate", "bad.jsonl", "diverse_chatbot"], "bad.jsonl, line 2"),
    (["tune", "p", "--try", "sampling.temperature"], "PATH=VALUE"),
    (["tune", "p", "--try", "sampling.temprature=1"], "Did you mean 'sampling.temperature'"),
    (["tune", "p", "--try", "sampling.temperature="], "no values"),
    (["tune", "p", "--space", "list.json"], "JSON object"),
    (["tune", "p", "--max-trials", "0"], "max-trials"),
    (["show", "../x"], "policy id"),
    (["delete", "x"], "policy id"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_errors_are_one_clear_message_with_exit_code_2(machine, tmp_path, arguments, words):
    files = {"typo.json": '{"sampling": {"temprature": 1}}', "broken.json": "{", "empty.txt": "\n", "list.json": "[]"}
    for name, text in {**files, "bad.jsonl": '{"prompt": "a"}\n{"text": "b"}\n'}.items():
        (tmp_path / name).write_text(text)
    result = run("policy", *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr and "Traceback" not in result.stderr and result.stdout == ""


def test_a_policy_that_is_wrong_is_refused_before_a_model_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(base, "start", lambda session: pytest.fail("a model was loaded"))
    (tmp_path / "typo.json").write_text('{"sampling": {"temprature": 1}}')
    for words, arguments in {
        "temprature": ["--policy", "typo.json"],
        "policy id: got 'pol_1'": ["--policy-id", "pol_1"],
        "best_of_n": ["--best-of-n", 0],
        "forbidden_terms": ["--forbidden-term", ""],
    }.items():
        result = run("generate", "p", *arguments)
        assert result.exit_code == 2 and words in result.stderr, result.output


def test_help_explains_every_command():
    for command in ("run", "compare", "evaluate", "tune", "list", "show", "save", "delete"):
        result = run("policy", command, "--help")
        assert result.exit_code == 0 and "Usage" in result.stdout and "[/" not in result.stdout


# --- on the model ---


def test_generate_runs_through_a_policy_of_a_file_or_a_saved_one(smollm2_folder, two):
    saved = run("policy", "save", two).stdout.strip()
    common = ("generate", "The number is", "--max-tokens", 4, "--seed", 2, "--json")
    texts = [json.loads(run(*common, *more).stdout)["text"] for more in (("--policy", two), ("--policy-id", saved))]
    assert texts[0] == texts[1] and 10 <= int(texts[0]) <= 99
    printed = json.loads(run("policy", "run", "The number is", two, "--max-tokens", 4, "--seed", 2, "--json").stdout)
    assert printed["output"] == texts[0] and printed["accepted"]
