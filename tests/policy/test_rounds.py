"""What a policy does between two decodings: plans, rounds, budgets and who wins. Texts come from the tests, judged by hand."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

from mechanex_jax.engine.request import Completion
from mechanex_jax.engine.seeds import candidate_seed
from mechanex_jax.errors import ArgumentError, NotLocalError
from mechanex_jax.policy import controls, validate
from mechanex_jax.policy.plan import Plan
from mechanex_jax.policy.rounds import Candidate, Run

NO_RETRY = {"retry_on_failure": 0}


def plan(policy, **others):
    return Plan(validate.read(policy), others)


def judged(slot, score=1.0, text="text", confidence=0.5, tokens=4, **more):
    completion = Completion(text, tuple(range(tokens)), (math.log(confidence),) * tokens, "length")
    reasons = () if score == 1.0 else ("regex: wrong",)
    return Candidate(slot, completion, 1, more.pop("constraints_ok", True), not reasons, score, reasons, **more)


def drive(policy, answer, prompt="prompt ", fits=lambda prompt, config: True, **others):
    """Run a policy; `answer(slot)` is each slot's candidate. Returns the outcome and the rounds' slots."""
    run, rounds = Run(prompt, plan(policy, **others), 7, fits).rounds(), []
    slots = next(run)
    while True:
        rounds.append(slots)
        try:
            slots = run.send([answer(slot) for slot in slots])
        except StopIteration as ended:
            return ended.value, rounds


# --- how many rounds, of what ---


@pytest.mark.parametrize(
    ("policy", "rounds"),
    [
        ({}, 2),  # verifiers.max_retries and retry_on_failure are 1
        ({"optimization": {"retry_on_failure": 4}}, 5),
        ({"optimization": NO_RETRY, "verifiers": {"max_retries": 3}}, 4),
        ({"optimization": NO_RETRY, "verifiers": {"max_retries": 3, "repair_on_failure": False}}, 1),
        ({"optimization": NO_RETRY, "verifiers": {"max_retries": 0}}, 1),
        ({"sampling": {"adaptive_temperature_schedule": [1, 0.5, 0.2, 0.1]}}, 4),
        ({"sampling": {"adaptive_top_p_schedule": [1, 0.5, 0.2]}}, 3),
        ({"optimization": {"retry_on_failure": 2, "fallback_methods": ["greedy", "min-p"]}}, 5),
    ],
)
def test_as_many_rounds_as_the_policy_says_while_nothing_is_accepted(policy, rounds):
    outcome, rounds_run = drive(policy, lambda slot: judged(slot, 0.3))
    assert len(rounds_run) == rounds and not outcome.winner.accepted
    assert [event["round"] for event in outcome.events] == list(range(1, rounds))
    assert all(event["winner_score"] == 0.3 for event in outcome.events)


def test_a_round_that_is_accepted_is_the_last():
    _, rounds = drive({"optimization": {"retry_on_failure": 9}}, lambda slot: judged(slot, 1.0 if slot.round == 2 else 0.1))
    assert len(rounds) == 3


def test_fallback_methods_come_in_order_after_the_retries_one_round_each():
    policy = {"optimization": {"retry_on_failure": 1, "fallback_methods": ["greedy", "min-p"]}}
    outcome, rounds = drive(policy, lambda slot: judged(slot, 0.2))
    assert [slots[0].config.sampling_method for slots in rounds] == ["top-k", "top-k", "greedy", "min-p"]
    assert [event["trigger"] for event in outcome.events] == [
        "not accepted",
        "not accepted, fallback greedy",
        "not accepted, fallback min-p",
    ]


@pytest.mark.parametrize(("threshold", "rounds"), [(0.9, 2), (0.5, 1), (0.1, 1)])
def test_an_unsure_winner_is_tried_again_where_the_policy_says_so(threshold, rounds):
    policy = {
        "optimization": {**NO_RETRY, "confidence_triggered_regeneration": True, "confidence_threshold": threshold},
        "verifiers": {"max_retries": 0},
    }
    outcome, rounds_run = drive(policy, lambda slot: judged(slot, confidence=0.5 + 0.1 * slot.round))
    assert len(rounds_run) == rounds and outcome.winner.slot.round == rounds - 1
    policy["optimization"]["confidence_triggered_regeneration"] = False
    assert len(drive(policy, lambda slot: judged(slot))[1]) == 1


def test_a_round_has_as_many_candidates_as_the_larger_of_the_two_numbers():
    for best, several in itertools.product([1, 3], [1, 2]):
        policy = {"optimization": {"best_of_n": best}, "sampling": {"num_candidates": several}}
        assert len(drive(policy, judged)[1][0]) == max(best, several)


def test_a_retry_has_one_candidate_more_which_is_shown_what_failed():
    policy = {"optimization": {"best_of_n": 2}}
    _, rounds = drive(policy, lambda slot: judged(slot, 0.2, text=f"wrong {slot.index}"))
    assert [slot.prompt for slot in rounds[0]] == ["prompt "] * 2
    assert [slot.prompt for slot in rounds[1][:2]] == ["prompt "] * 2 and len(rounds[1]) == 3
    assert "wrong 0" in rounds[1][2].prompt and "regex: wrong" in rounds[1][2].prompt
    _, rounds = drive(policy, lambda slot: judged(slot, 0.2), fits=lambda prompt, config: False)
    assert [len(slots) for slots in rounds] == [2, 2]  # no room to show it
    _, rounds = drive({**policy, "verifiers": {"repair_on_failure": False}}, lambda slot: judged(slot, 0.2))
    assert [len(slots) for slots in rounds] == [2, 2]


def test_in_a_chat_what_failed_is_shown_as_messages():
    _, rounds = drive({}, lambda slot: judged(slot, 0.2), chat=True)
    assert rounds[0][0].prompt == [{"role": "user", "content": "prompt "}]
    assert [message["role"] for message in rounds[1][1].prompt] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("scores", "kept"), [([0.8, 0.9, 1.0], 2), ([0.8, 0.7, 0.9], 2), ([0.8, 0.8, 0.3], 1), ([0.8, 0.1, 0.2], 0)]
)
def test_a_revision_is_shown_the_winner_and_kept_if_it_scores_no_less(scores, kept):
    policy = {"optimization": {"self_revision_loops": 2}}
    outcome, rounds = drive(policy, lambda slot: judged(slot, scores[slot.round], text=f"text {slot.round}"))
    assert [len(slots) for slots in rounds] == [1, 1, 1] and "text 0" in rounds[1][0].prompt
    assert outcome.winner.completion.text == f"text {kept}"
    assert [event["trigger"] for event in outcome.events] == ["self revision"] * 2


@pytest.mark.parametrize(("budget", "rounds"), [(3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_a_token_budget_stops_new_rounds(budget, rounds):
    policy = {
        "objective": {"token_budget": budget},
        "optimization": {"retry_on_failure": 5, "self_revision_loops": 5},
        "verifiers": {"repair_on_failure": False},
    }
    assert len(drive(policy, lambda slot: judged(slot, 0.2))[1]) == rounds


def test_a_latency_budget_stops_new_rounds():
    policy = {"objective": {"latency_budget_ms": 0}, "optimization": {"retry_on_failure": 5, "self_revision_loops": 5}}
    assert len(drive(policy, lambda slot: judged(slot, 0.2))[1]) == 1


# --- who wins ---


@pytest.mark.parametrize(
    ("candidates", "winner", "minimal"),
    [
        ([{"score": 0.4}, {"score": 0.6}], 1, 1),
        ([{"score": 0.9, "constraints_ok": False}, {"score": 0.5}], 1, 1),  # accepted before score
        ([{"score": 0.9}, {"score": 1.0}], 1, 0),
        ([{"confidence": 0.2}, {"confidence": 0.6}, {"confidence": 0.5}], 1, 0),
        ([{"confidence": 0.6, "likelihood": -2.0}, {"confidence": 0.5, "likelihood": -1.0}], 1, 0),  # reranked first
        ([{}, {}], 0, 0),  # the first among equals
    ],
)
def test_the_best_accepted_then_the_highest_score_then_the_likeliest_wins(candidates, winner, minimal):
    policy = {"optimization": {**NO_RETRY, "best_of_n": len(candidates)}, "verifiers": {"max_retries": 0}}
    outcome, _ = drive(policy, lambda slot: judged(slot, **candidates[slot.index]))
    assert outcome.winner.slot.index == winner
    low, _ = drive({**policy, "objective": {"maximize": False}}, lambda slot: judged(slot, **candidates[slot.index]))
    assert low.winner.slot.index == minimal


def test_with_factuality_the_answer_that_most_candidates_give_wins():
    texts = ["Rome", "paris.", " Paris", "Madrid"]
    policy = {"optimization": {"best_of_n": 4}, "verifiers": {"enabled": ["factuality"]}}
    answer = lambda slot: judged(slot, text=texts[slot.index], confidence=0.9 - 0.1 * slot.index)
    outcome, _ = drive(policy, answer)
    assert outcome.winner.slot.index == 1
    assert [candidate.agreement for candidate in outcome.candidates] == [0.25, 0.5, 0.5, 0.25]
    assert drive({"optimization": {"best_of_n": 4}}, answer)[0].winner.slot.index == 0


def test_a_score_of_one_half_is_accepted_and_less_is_not():
    slot = drive({}, judged)[1][0][0]
    assert judged(slot, 0.5).accepted and not judged(slot, 0.499).accepted
    assert not judged(slot, 1.0, constraints_ok=False).accepted


def test_confidence_is_the_geometric_mean_of_the_probabilities():
    slot = drive({}, judged)[1][0][0]
    completion = Completion("x", (1, 2), (math.log(0.9), math.log(0.4)), "eos")
    assert dataclasses.replace(judged(slot), completion=completion).confidence == pytest.approx(0.6)
    assert dataclasses.replace(judged(slot), completion=Completion("", (), (), "dead_end")).confidence == 0.0


# --- what candidates are asked for ---


def test_schedules_count_rounds_and_their_last_value_repeats():
    planned = plan({"sampling": {"adaptive_temperature_schedule": [0.9, 0.3], "adaptive_top_p_schedule": [1.0, 0.5, 0.4]}})
    assert [planned.temperature(r, 0) for r in range(4)] == [0.9, 0.3, 0.3, 0.3]
    assert [planned.top_p(r) for r in range(4)] == [1.0, 0.5, 0.4, 0.4]


def test_adaptive_values_without_a_schedule_fall_to_their_floors():
    planned = plan({"sampling": {"adaptive_temperature": True, "adaptive_top_p": True, "temperature": 0.2, "top_p": 0.27}})
    assert [planned.temperature(r, 0) for r in range(4)] == pytest.approx([0.2, 0.12, 0.05, 0.05])
    assert [planned.top_p(r) for r in range(3)] == pytest.approx([0.27, 0.23, 0.2])
    assert plan({"sampling": {"adaptive_temperature": True, "temperature": 0}}).temperature(3, 0) == 0
    assert plan({}).temperature(3, 0) == 0.7 and plan({}).top_p(3) == 0.9


def test_diversity_spreads_temperatures_over_slots_up_to_two():
    planned = plan({"sampling": {"diversity_strength": 0.5, "temperature": 0.9}})
    assert [planned.temperature(0, slot) for slot in range(5)] == pytest.approx([0.9, 0.95, 1.0, 0.9, 0.95])
    assert plan({"sampling": {"diversity_strength": 99, "temperature": 0.9}}).temperature(0, 1) == 2.0


def test_seeds_of_candidates_differ_and_the_first_is_the_runs_own():
    seeds = {candidate_seed(7, round, slot) for round in range(9) for slot in range(9)}
    assert len(seeds) == 81 and candidate_seed(7, 0, 0) == 7 and all(0 <= seed < 2**32 for seed in seeds)


# One line for every field: a policy with it, and what is other than without. Fields that only describe are told of in traces.
TOOL = {"name": "f", "parameters": {"type": "object"}}
config = lambda policy: plan(policy).config(plan(policy).policy.sampling.method, 0, 0)
trace = lambda policy: drive(policy, judged)[0].trace()
kept = lambda policy: validate.to_dict(validate.read(policy))
rounds_of = lambda policy: [len(slots) for slots in drive(policy, lambda slot: judged(slot, 0.2))[1]]
winner_of = lambda policy: (
    drive(policy, lambda s: judged(s, text="aab"[s.index], confidence=0.1 * (s.index + 1)))[0].winner.slot.index
)
SAMPLED = {
    "method": "greedy",
    "temperature": 0.1,
    "top_k": 3,
    "top_p": 0.3,
    "beam_width": 2,
    "draft_model": "x",
    "speculative_steps": 2,
    "voting": "mean",
    "repetition_penalty": 1.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "adaptive_temperature_schedule": [0.3],
    "adaptive_top_p_schedule": [0.3],
}
METHODS = {
    "min_p": ("min-p", 0.3),
    "typical_p": ("typical", 0.3),
    "epsilon_cutoff": ("epsilon", 0.3),
    "ads_beta": ("ads", 0.4),
    "ads_subset_size": ("ads", 3),
}
RETRIED = {"adaptive_temperature": True, "adaptive_top_p": True}
CONSTRAINED = {
    "json_mode": True,
    "json_schema": {"type": "integer"},
    "json_closed": True,
    "required_fields": ["a"],
    "tool_schema": TOOL,
    "regex_pattern": "a+",
    "grammar": "root ::= [a]",
    "forbidden_terms": ["x"],
    "stop_sequences": ["."],
}
VECTOR = {"vector": {"3": [1.0]}}
STEERED = {"preset": "brevity", "vector": {"3": [1.0]}, "vector_id": "sv_00000000"}
WITHIN = {"strength": 3.0, "layer_scope": ["2-4"], "token_start": 1, "token_end": 9}
UNSURE = {"confidence_triggered_regeneration": True, "confidence_threshold": 0.99}
EFFECTS = {
    **{
        name: (kept, {name: value})
        for name, value in {"id": "p", "name": "n", "description": "d", "metadata": {"a": 1}}.items()
    },
    "model.model": (kept, {"model": {"model": "other"}}),  # which model runs: in test_policy.py
    "task_profile.name": (trace, {"task_profile": {"name": "x"}}),
    "task_profile.category": (kept, {"task_profile": {"category": "x"}}),
    "task_profile.description": (kept, {"task_profile": {"description": "x"}}),
    "objective.name": (trace, {"objective": {"name": "x"}}),
    "objective.latency_budget_ms": (rounds_of, {"objective": {"latency_budget_ms": 0}}),
    "objective.token_budget": (rounds_of, {"objective": {"token_budget": 1}}),
    "objective.maximize": (winner_of, {"objective": {"maximize": False}, "optimization": {"best_of_n": 3}}),
    **{f"sampling.{name}": (config, {"sampling": {name: value}}) for name, value in SAMPLED.items()},
    **{f"sampling.{name}": (config, {"sampling": {"method": m, name: value}}) for name, (m, value) in METHODS.items()},
    **{
        f"sampling.{name}": (lambda p: (plan(p).temperature(1, 0), plan(p).top_p(1)), {"sampling": {name: value}})
        for name, value in RETRIED.items()
    },
    "sampling.ensemble_models": (config, {"sampling": {"method": "ensemble-sampling", "ensemble_models": ["x"]}}),
    "sampling.num_candidates": (rounds_of, {"sampling": {"num_candidates": 3}}),
    "sampling.diversity_strength": (lambda p: plan(p).temperature(0, 1), {"sampling": {"diversity_strength": 1}}),
    **{f"constraints.{name}": (config, {"constraints": {name: value}}) for name, value in CONSTRAINED.items()},
    **{f"steering.{name}": (config, {"steering": {name: value}}) for name, value in STEERED.items()},
    **{f"steering.{name}": (config, {"steering": {**VECTOR, name: value}}) for name, value in WITHIN.items()},
    "steering.enabled": (config, {"steering": {"enabled": True, **VECTOR}}),
    "steering.method": (kept, {"steering": {"method": "few-shot", **VECTOR}}),  # who makes the vector: in test_policy.py
    "verifiers.enabled": (winner_of, {"verifiers": {"enabled": ["factuality"]}, "optimization": {"best_of_n": 3}}),
    "verifiers.max_retries": (rounds_of, {"verifiers": {"max_retries": 3}}),
    "verifiers.repair_on_failure": (rounds_of, {"verifiers": {"repair_on_failure": False}}),
    **{  # what these do to a text is in test_verifiers.py and test_policy.py
        f"verifiers.{name}": (kept, {"verifiers": {name: value}})
        for name, value in {"code_unit_tests": ["assert 1"], "unit_test_timeout_ms": 9, "rerank": False}.items()
    },
    "optimization.best_of_n": (rounds_of, {"optimization": {"best_of_n": 3}}),
    "optimization.retry_on_failure": (rounds_of, {"optimization": {"retry_on_failure": 3}}),
    "optimization.fallback_methods": (rounds_of, {"optimization": {"fallback_methods": ["greedy"]}}),
    "optimization.self_revision_loops": (rounds_of, {"optimization": {"self_revision_loops": 2}}),
    **{f"optimization.{name}": (lambda p: len(drive(p, judged)[1]), {"optimization": UNSURE}) for name in UNSURE},
}
REFUSED = {
    "steering.file_url": {"steering": {"file_url": "x"}},
    "model.base_url": {"model": {"base_url": "x"}},
    "optimization.branch_and_prune": {"optimization": {"branch_and_prune": True}},
}


@pytest.mark.parametrize("field", sorted(EFFECTS))
def test_every_field_has_an_effect(field):
    effect, policy = EFFECTS[field]
    plain = {"verifiers": {"max_retries": 1}}
    if field == "sampling.ensemble_models":
        plain = {"sampling": {"method": "ensemble-sampling", "ensemble_models": ["y"]}}
    if field == "objective.maximize" or field == "verifiers.enabled":
        plain = {"optimization": {"best_of_n": 3}}
    assert effect(policy) != effect(plain)


def test_no_field_is_forgotten():
    one_value = {"verifiers.code_language"}  # of which "python" is the one value there is
    assert {*EFFECTS, *REFUSED, *one_value} == set(controls.fields())


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_what_is_not_served_locally_is_refused_by_name(field):
    with pytest.raises(NotLocalError, match=field):
        validate.read(REFUSED[field])


def test_what_a_method_cannot_use_is_left_out_of_a_fallback_and_refused_in_the_policys_own():
    policy = {"sampling": {"method": "min-p", "min_p": 0.2}, "optimization": {"fallback_methods": ["top-k"]}}
    assert plan(policy).config("top-k", 1, 0).min_p is None and plan(policy).config("min-p", 0, 0).min_p == 0.2
    with pytest.raises(ArgumentError, match="sampling_method"):
        plan({"sampling": {"method": "guided-generation"}}).config("guided-generation", 0, 0)
