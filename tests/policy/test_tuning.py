"""The search for a policy: what it tries, what it never sees, and what it returns."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from sessions import services, undecodable

from mechanex_jax.errors import ArgumentError
from mechanex_jax.policy import tuning, validate

GRID = {  # 200 settings
    "sampling.temperature": [0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5],
    "sampling.method": ["top-k", "top-p", "min-p", "typical", "greedy"],
    "optimization.best_of_n": [1, 2, 3, 4, 5],
}
SMALL = {"sampling.temperature": [0.2, 0.7], "optimization.best_of_n": [1, 2, 3]}
AXES = [list(values) for values in GRID.values()]


def fields(policy):
    return policy.sampling.temperature, policy.sampling.method, policy.optimization.best_of_n


class Evaluation:
    """A toy: `worth(policy)` is every prompt's score, but for what `luck(policy, prompt)` adds. Remembers what it was asked."""

    def __init__(self, worth, luck=lambda policy, prompt: 0.0, breaks_at=None):
        self.worth, self.luck, self.breaks_at = worth, luck, breaks_at
        self.calls = []

    def __call__(self, policy, chosen):
        if len(self.calls) == self.breaks_at:
            raise KeyboardInterrupt
        self.calls.append((policy, list(chosen)))
        scores = [self.worth(policy) + self.luck(policy, prompt) for prompt in chosen]
        tokens = 10 if policy.sampling.temperature > 0.5 else 20
        return tuning.figures([{"accepted": s >= 0.5, "score": s, "latency_ms": 5, "tokens": tokens} for s in scores])


def search(toy, space=None, max_trials=24, *, base=None, prompts=1, seed=0, report=lambda done, total: None, **more):
    return tuning.search(validate.read(base or {}), space, max_trials, prompts, seed, toy, report, **more)


def planted(seed, kind="match"):
    """(the best setting, a worth that is a sum of one effect for each value, largest there)."""
    rng = np.random.default_rng(1000 + seed)
    best = [int(rng.integers(len(axis))) for axis in AXES]
    if kind == "match":
        effects = [np.eye(len(axis))[at] / 3 for axis, at in zip(AXES, best, strict=True)]
    else:
        effects = [-np.abs(np.arange(len(axis)) - at) / len(axis) for axis, at in zip(AXES, best, strict=True)]
    planted_values = tuple(axis[at] for axis, at in zip(AXES, best, strict=True))
    worth = lambda policy: sum(
        effect[axis.index(value)] for effect, axis, value in zip(effects, AXES, fields(policy), strict=True)
    )
    return planted_values, worth


@pytest.mark.parametrize("kind", ["match", "near"])
def test_a_planted_best_setting_of_200_is_found_in_24_trials(kind):
    for seed in range(12):
        best, worth = planted(seed, kind)
        toy = Evaluation(worth)
        tuned = search(toy, GRID, seed=seed)
        assert fields(validate.read(tuned["best_policy"])) == best, seed
        assert len(tuned["trials"]) == len(toy.calls) == 24


def test_it_is_found_with_noise_too_and_far_more_often_than_by_chance():
    hits = 0
    for seed in range(20):
        best, worth = planted(seed)
        rng = np.random.default_rng(seed)
        toy = Evaluation(worth, luck=lambda policy, prompt, rng=rng: rng.normal(0, 0.1))
        hits += fields(validate.read(search(toy, GRID, seed=seed, prompts=16)["best_policy"])) == best
    assert hits >= 16  # by chance 24 of 200: 2.4


@pytest.mark.parametrize("max_trials", [8, 9, 24, 60])
def test_every_value_is_tried_as_soon_as_can_be_and_no_setting_twice(max_trials):
    for seed in range(5):
        toy = Evaluation(lambda policy: policy.sampling.temperature)
        search(toy, GRID, max_trials, seed=seed)
        tried = [fields(policy) for policy, _ in toy.calls]
        assert len(set(tried)) == len(tried) == max_trials
        for axis, values in enumerate(AXES):
            assert {setting[axis] for setting in tried[:8]} == set(values)


@pytest.mark.slow
def test_a_grid_too_large_to_list_is_covered_and_climbed():
    names = ("temperature", "diversity_strength", "repetition_penalty", "ads_beta", "min_p", "typical_p", "top_p")
    space = {f"sampling.{name}": [(1 + i) / 20 for i in range(19)] for name in names}
    worth = lambda policy: sum(getattr(policy.sampling, name) for name in names) / len(names)
    reached = []
    for seed in range(3):
        toy = Evaluation(worth)
        reached.append(search(toy, space, 40, seed=seed)["best_trial"]["avg_score"])
        settings = [tuple(getattr(policy.sampling, name) for name in names) for policy, _ in toy.calls]
        assert len(set(settings)) == 40
        assert all(len({setting[axis] for setting in settings[:19]}) == 19 for axis in range(len(names)))
    rng = np.random.default_rng(0)
    chance = np.mean([(rng.integers(1, 20, (40, len(names))) / 20).mean(1).max() for _ in range(200)])
    assert np.mean(reached) > chance + 0.05  # 0.87 against 0.72; the best there is has 0.95


def test_a_small_grid_is_tried_in_full_and_in_its_order():
    toy, seen = Evaluation(lambda policy: policy.optimization.best_of_n), []
    tuned = search(toy, SMALL, report=lambda done, total: seen.append((done, total)))
    expected = [dict(zip(SMALL, values, strict=True)) for values in itertools.product(*SMALL.values())]
    assert [trial["values"] for trial in tuned["trials"]] == expected
    assert seen == [(done, 6) for done in range(7)]
    assert tuned["best_trial"]["values"] == {"sampling.temperature": 0.7, "optimization.best_of_n": 3}  # by fewer tokens
    assert len(search(Evaluation(lambda policy: 1.0), SMALL, 4)["trials"]) == 4


def test_without_a_space_the_base_alone_is_tried():
    base = {"id": "mine", "name": "base", "sampling": {"temperature": 0.4}}
    for space in (None, {}):
        tuned = search(Evaluation(lambda policy: 1.0), space, base=base)
        assert [trial["policy"] for trial in tuned["trials"]] == [tuned["best_policy"]]
        assert tuned["best_policy"] == {"name": "base", "sampling": {"temperature": 0.4}}
        assert not tuned["interrupted"]


def test_the_best_policy_is_the_base_with_the_values_and_the_figures_are_those_of_the_trial():
    base = {"name": "b", "sampling": {"method": "top-p"}, "verifiers": None, "constraints": {"stop_sequences": ["x"]}}
    space = {"verifiers.max_retries": [3], "steering.vector": [{"3": np.array([0.5, 1.0])}], "name": ["n"]}
    tuned = search(Evaluation(lambda policy: 0.25), space, base=base, prompts=3)
    vector = {"3": [0.5, 1.0]}
    assert tuned["best_policy"] == {
        "name": "n",
        "sampling": {"method": "top-p"},
        "verifiers": {"max_retries": 3},
        "steering": {"vector": vector},
        "constraints": {"stop_sequences": ["x"]},
    }
    validate.read(tuned["best_policy"])
    assert json.loads(json.dumps(tuned)) == tuned
    figures = {"num_prompts": 3, "success_rate": 0.0, "avg_score": 0.25, "avg_latency_ms": 5.0, "avg_tokens": 10.0}
    values = {"verifiers.max_retries": 3, "steering.vector": vector, "name": "n"}
    counts = {"pass_count": 0, "fail_count": 3}
    assert tuned["best_trial"] == {
        **figures,
        **counts,
        "policy": tuned["best_policy"],
        "values": values,
        "held_out": None,
    }


@pytest.mark.parametrize(("prompts", "held"), [(1, 0), (3, 0), (4, 1), (7, 1), (12, 3), (64, 16)])
def test_a_quarter_of_four_prompts_or_more_is_seen_by_no_trial_and_by_the_best_three_alone(prompts, held):
    toy = Evaluation(lambda policy: policy.sampling.temperature / 2 + policy.optimization.best_of_n / 10)
    tuned = search(toy, SMALL, prompts=prompts, seed=5)
    trials, again = toy.calls[:6], toy.calls[6:]
    assert len({tuple(chosen) for _, chosen in trials}) == 1
    seen = trials[0][1]
    assert len(seen) == prompts - held
    assert len(again) == (3 if held else 0)
    for _, chosen in again:
        assert sorted([*seen, *chosen]) == list(range(prompts))
    ranked = sorted(tuned["trials"], key=lambda trial: (trial["success_rate"], trial["avg_score"]), reverse=True)
    assert [trial["held_out"] is not None for trial in ranked] == [bool(held)] * 3 + [False] * 3
    if held:
        assert tuned["best_trial"]["held_out"]["num_prompts"] == held


def test_what_is_held_out_depends_on_the_seed():
    chosen = {tuple(_last_chosen(seed)) for seed in range(8)}
    assert len(chosen) > 2


def _last_chosen(seed):
    toy = Evaluation(lambda policy: 1.0)
    search(toy, {}, prompts=8, seed=seed)
    return toy.calls[-1][1]


def test_a_lucky_trial_loses_to_the_one_that_is_best_on_prompts_held_out():
    held = set(_last_chosen(0))
    # best_of_n = 3 is overfitted: far ahead on the prompts of the trials, behind on the others
    luck = lambda policy, prompt: (-0.6 if prompt in held else 0.4) * (policy.optimization.best_of_n == 3)
    tuned = search(Evaluation(lambda policy: 0.5 + policy.sampling.temperature / 10, luck), SMALL, prompts=8)
    ahead = max(tuned["trials"], key=lambda trial: trial["avg_score"])
    assert ahead["values"]["optimization.best_of_n"] == 3
    assert tuned["best_trial"]["values"]["optimization.best_of_n"] != 3
    assert tuned["best_trial"]["held_out"]["success_rate"] == 1.0


def test_success_comes_before_score_and_a_policy_that_minimises_prefers_low_scores():
    worth = lambda policy: {1: 0.9, 2: 0.4, 3: 0.6}[policy.optimization.best_of_n]
    lowest = search(Evaluation(worth), SMALL, base={"objective": {"maximize": False}})
    assert lowest["best_trial"]["avg_score"] == 0.6  # accepted, at least
    assert search(Evaluation(worth), SMALL)["best_trial"]["avg_score"] == 0.9


def test_a_seed_gives_the_same_search():
    def run(seed):
        tuned = search(Evaluation(planted(1, "near")[1]), GRID, seed=seed, prompts=8)
        return tuned

    assert run(7) == run(7)
    assert [t["values"] for t in run(7)["trials"]] != [t["values"] for t in run(8)["trials"]]


def test_control_c_ends_the_search_with_what_it_has():
    worth = lambda policy: policy.sampling.temperature
    for at in (1, 10, 23, 24, 26):  # 24 trials, then the best three on what is held out
        tuned = search(Evaluation(worth, breaks_at=at), GRID, prompts=8)
        assert tuned["interrupted"] and len(tuned["trials"]) == min(at, 24)
        assert tuned["best_trial"] == max(tuned["trials"], key=lambda trial: trial["avg_score"])
        validate.read(tuned["best_policy"])
    assert not search(Evaluation(worth, breaks_at=27), GRID, prompts=8)["interrupted"]
    with pytest.raises(KeyboardInterrupt):
        search(Evaluation(worth, breaks_at=0), GRID)


# --- what is refused, and what is passed over ---

NEVER = Evaluation(lambda policy: pytest.fail("a trial was run"))
BAD = {
    r"'sampling.temprature'.*Did you mean 'sampling.temperature'": {"sampling.temprature": [1.0]},
    "Did you mean 'sampling.top_p'": {"top_p": [0.5]},
    "Did you mean 'constraints.stop_sequences'": {"stop": [["a"]]},
    "Did you mean 'optimization.best_of_n'": {"best_of": [2]},
    "got 'sampling'; expected dotted": {"sampling": [{"temperature": 1.0}]},
    "got 3; expected dotted": {3: [1]},
    r"search_space\['sampling.top_p'\]: got no values": {"sampling.top_p": []},
    r"search_space\['sampling.method'\].*a list": {"sampling.method": "top-k"},
    r"search_space.sampling.top_p: got 1.5": {"sampling.temperature": [0.1, 0.2], "sampling.top_p": [0.5, 0.9, 1.5]},
    "'topk'.*Did you mean 'top-k'": {"sampling.method": ["top-p", "topk"]},
    "search_space.sampling.adaptive_top_p_schedule": {"sampling.adaptive_top_p_schedule": [[0.9], []]},
    "search_space.verifiers.enabled.*json_schema": {"verifiers.enabled": [[], ["json_schema"]]},
    "base_url": {"model.base_url": ["http://127.0.0.1"]},
    "got \\['a'\\]; expected a mapping": ["a"],
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_path_or_value_is_refused_before_the_first_trial(words):
    error = ArgumentError if words != "base_url" else Exception
    with pytest.raises(error, match=words):
        search(NEVER, BAD[words])


def test_a_value_that_needs_another_axis_is_tried_with_it_and_never_without():
    space = {
        "verifiers.enabled": [[], ["regex"]],
        "constraints.regex_pattern": [None, "a+"],
        "optimization.best_of_n": list(range(1, 7)),
    }
    for max_trials, expected in ((100, 18), (12, 12)):
        toy = Evaluation(lambda policy: 1.0)
        assert len(search(toy, space, max_trials)["trials"]) == expected
        assert all(policy.constraints.regex_pattern for policy, _ in toy.calls if "regex" in policy.verifiers.enabled)
        assert any("regex" in policy.verifiers.enabled for policy, _ in toy.calls)
        assert {policy.optimization.best_of_n for policy, _ in toy.calls} == set(range(1, 7))


def test_what_cannot_run_is_passed_over_or_refused_though_it_can_be_read():
    def check(policy):
        if policy.sampling.temperature == 0.7 and policy.optimization.best_of_n == 2:
            raise ArgumentError("cannot run")

    assert len(search(Evaluation(lambda policy: 1.0), SMALL, check=check)["trials"]) == 5

    def never(policy):
        if policy.sampling.temperature == 0.7:
            raise ArgumentError("too hot")

    with pytest.raises(ArgumentError, match="too hot"):
        search(NEVER, SMALL, check=never)
    with pytest.raises(ArgumentError, match="too hot"):
        search(NEVER, {}, check=never)


def test_values_of_which_none_go_together_are_refused():
    space = {
        "constraints.regex_pattern": ["a", "b"],
        "constraints.grammar": ['root ::= "a"', 'root ::= "b"'],
        "sampling.top_k": [*range(1, 9)],
    }
    for max_trials in (3, 100):
        with pytest.raises(ArgumentError, match=r"none of 32 settings|2 constraints"):
            search(NEVER, space, max_trials)


def test_a_value_that_is_given_twice_is_tried_once():
    tuned = search(Evaluation(lambda policy: 1.0), {"sampling.temperature": [0.2, 0.5, 0.2], "sampling.top_k": [5, 5]})
    assert [trial["values"]["sampling.temperature"] for trial in tuned["trials"]] == [0.2, 0.5]


# --- on the model ---


def test_on_the_model_the_planted_setting_wins_on_prompts_it_was_not_tuned_on(mx):
    """Texts are to be JSON, and one of three patterns allows nothing else."""
    base = {
        "sampling": {"temperature": 1.0},
        "verifiers": {"enabled": ["syntax"], "repair_on_failure": False, "rerank": False},
        "optimization": {"retry_on_failure": 0},
    }
    space = {"constraints.regex_pattern": ["[a-z]{2}", "[0-9]{2} ?[a-z]", "[1-9][0-9]"], "sampling.top_k": [20, 50]}
    prompts = ["One", "The number", "Tell me:", "3 and"]
    tuned = mx.policy.auto_tune(prompts, base, search_space=space, max_new_tokens=4, seed=2)
    assert tuned["best_policy"]["constraints"] == {"regex_pattern": "[1-9][0-9]"} and len(tuned["trials"]) == 6
    assert tuned["best_trial"]["success_rate"] == tuned["best_trial"]["held_out"]["success_rate"] == 1.0
    assert tuned["best_trial"]["num_prompts"] == 3
    rates = {trial["values"]["constraints.regex_pattern"]: trial["success_rate"] for trial in tuned["trials"]}
    assert rates == {"[a-z]{2}": 0.0, "[0-9]{2} ?[a-z]": 0.0, "[1-9][0-9]": 1.0}
    assert mx.policy.run("Once", tuned["best_policy"], max_new_tokens=4, seed=1)["accepted"]


def test_what_the_model_cannot_do_is_refused_before_anything_is_decoded(loaded):
    policies = services(undecodable(loaded)).policy
    for words, arguments in {
        "steering_vector": {"search_space": {"steering.vector": [None, {"3": [1.0]}]}},
        "json_schema, regex_pattern, grammar or choices": {"search_space": {"sampling.method": ["guided-generation"]}},
        "max_trials": {"max_trials": 0},
        "max_new_tokens": {"max_new_tokens": 0},
        "seed": {"seed": -1},
        "both": {"base_policy": {}, "base_policy_id": "x"},
        r"prompts\[1\]": {"prompts": ["a", "word " * 9000]},
        "prompts": {"prompts": []},
    }.items():
        with pytest.raises(ArgumentError, match=words):
            policies.auto_tune(**{"prompts": ["a"], **arguments})
