"""Policies on the real model: the same texts as `generate`, whatever the batch, and clear errors before decoding."""

from __future__ import annotations

import dataclasses
import json
import re
import threading

import numpy as np
import pytest
from sessions import observed, services, undecodable

from mechanex_jax import loops
from mechanex_jax.edits import parse_steering
from mechanex_jax.errors import ArgumentError, ModelNotFoundError, NotAcceptedError, NotLocalError
from mechanex_jax.policy.sandbox.runner import TestResult
from mechanex_jax.steering import Steering, activations

PROMPT = "The capital of France is"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]}
VECTOR = {"12": [0.3 * (-1) ** i for i in range(576)]}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHANEX_DATA", str(tmp_path))


@pytest.fixture(scope="module")
def two(loaded):
    """Services with a second model of the same tokenizer beside the default one: its last layers, by the name of "small"."""
    small = dataclasses.replace(loaded, name="small", model=activations.tail(loaded.model, 26), fingerprint="small")
    return services(small, loaded)


@pytest.fixture(scope="module")
def undecoded(loaded):
    """Services with a model that fails the test when it decodes."""
    return services(undecodable(loaded))


def leaves(value, path=""):
    """The parts of a trace by place, without its clock; floats may differ in their last digits with the batch around them."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for name, part in items if name != "latency_ms" for k, v in leaves(part, f"{path}/{name}").items()}
    return {path: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value}


# A policy, and the arguments of `generate` that mean the same.
SAME = {
    "top-p": ({"sampling": {"method": "top-p", "top_p": 0.8, "temperature": 1.1}}, {"top_p": 0.8, "temperature": 1.1}),
    "ads": ({"sampling": {"method": "ads", "ads_subset_size": 4, "ads_beta": 0.4}}, {"ads_subset_size": 4, "ads_beta": 0.4}),
    "speculative-decoding": ({"sampling": {"method": "ssd", "speculative_steps": 2}}, {"speculative_steps": 2}),
    "ensemble-sampling": (
        {"sampling": {"method": "ensemble-sampling", "ensemble_models": ["small"], "voting": "mean"}},
        {"ensemble_models": ["small"], "voting": "mean"},
    ),
    "constrained-beam-search": (
        {"sampling": {"method": "constrained-beam-search", "beam_width": 2}, "constraints": {"json_schema": SCHEMA}},
        {"beam_width": 2, "json_schema": SCHEMA},
    ),
    "guided-generation": (
        {"sampling": {"method": "guided-generation"}, "constraints": {"regex_pattern": "[A-Z][a-z]+"}},
        {"regex_pattern": "[A-Z][a-z]+"},
    ),
    "top-k": ({"steering": {"vector": VECTOR, "strength": 2.0}}, {"steering_vector": VECTOR, "steering_strength": 2.0}),
    "min-p": (
        {"sampling": {"method": "min-p", "min_p": 0.1, "repetition_penalty": 1.3}, "constraints": {"stop_sequences": [","]}},
        {"min_p": 0.1, "repetition_penalty": 1.3, "stop": [","]},
    ),
}


@pytest.mark.parametrize("method", SAME)
def test_a_policy_decodes_as_generate_does(two, method):
    policy, arguments = SAME[method]
    text = two.generation.generate(PROMPT, sampling_method=method, max_tokens=12, seed=9, **arguments)
    result = two.policy.run(PROMPT, policy, max_new_tokens=12, seed=9)
    assert result["output"] == text and result["accepted"] and result["score"] == 1.0 and result["trace"] is None
    assert two.generation.generate(PROMPT, max_tokens=12, seed=9, policy=policy) == text


def test_every_candidate_is_what_generate_returns_with_its_seed_and_values(mx):
    policy = {"sampling": {"diversity_strength": 1.0, "num_candidates": 4, "method": "top-p"}}
    result = mx.policy.run(PROMPT, policy, max_new_tokens=8, seed=4, include_trace=True)
    candidates = result["trace"]["candidates"]
    assert [c["temperature"] for c in candidates] == pytest.approx([0.7, 0.8, 0.9, 0.7]) and candidates[0]["seed"] == 4
    for candidate in candidates:
        values = {name: candidate[name] for name in ("sampling_method", "temperature", "top_p", "seed")}
        one = mx.generation.generate(PROMPT, max_tokens=8, details=True, **values)
        assert one.text == candidate["output"]
        assert candidate["confidence"] == pytest.approx(np.exp(np.mean(one.logprobs)), rel=1e-3)
        assert candidate["tokens"] == len(one.tokens)
    assert result["output"] == max(candidates, key=lambda c: c["confidence"])["output"]
    json.dumps(result)


def test_a_seed_gives_the_same_trace_whatever_the_batch(mx):
    policy = {"optimization": {"best_of_n": 2, "retry_on_failure": 1}, "verifiers": {"enabled": ["syntax"]}}
    alone = mx.policy.run(PROMPT, policy, max_new_tokens=6, seed=11, include_trace=True)
    assert len(alone["trace"]["candidates"]) == 5  # no text is JSON: a retry, with a repair
    compared = mx.policy.compare(PROMPT, [{"optimization": {"best_of_n": 3}}, policy], max_new_tokens=6, seed=11)
    assert leaves(compared["results"][1]["trace"]) == leaves(alone["trace"])
    many = mx.policy.evaluate([PROMPT, "Once", "Two and"], policy, max_new_tokens=6, seed=11)
    assert many["outputs"][0]["output"] == alone["output"] and many["num_prompts"] == 3
    assert many["pass_count"] + many["fail_count"] == 3 and many["success_rate"] == many["pass_count"] / 3
    assert many["avg_tokens"] == np.mean([output["tokens"] for output in many["outputs"]])


def test_the_prompt_of_a_round_is_prefilled_once(loaded):
    shapes = []
    services(observed(loaded, shapes.append)).generation.generate(PROMPT, max_tokens=3, best_of_n=8, seed=0)
    assert {rows for rows, positions in shapes if positions > 1} == {1} and (8, 1) in shapes


def test_candidates_are_ranked_under_the_model_without_steering(mx, loaded):
    policy = {"steering": {"vector": VECTOR, "strength": 4.0}, "optimization": {"best_of_n": 3}}
    trace = mx.policy.run(PROMPT, policy, max_new_tokens=6, seed=2, include_trace=True)["trace"]
    prompt = loaded.tokenizer.encode(PROMPT)
    for candidate in trace["candidates"]:
        steered = mx.generation.generate(
            PROMPT, max_tokens=6, seed=candidate["seed"], steering_vector=VECTOR, steering_strength=4.0, details=True
        )
        ids = np.array([[*prompt, *steered.tokens]], np.int32)
        expected = loops.score(loaded, ids, [ids.shape[1]], [len(prompt)])[0] / len(steered.tokens)
        assert candidate["likelihood"] == pytest.approx(expected, abs=1e-3)
        assert abs(candidate["likelihood"] - np.log(candidate["confidence"])) > 1e-3
    assert trace["selection"]["likelihood"] == max(candidate["likelihood"] for candidate in trace["candidates"])
    off = mx.policy.run(PROMPT, {**policy, "verifiers": {"rerank": False}}, max_new_tokens=6, seed=2, include_trace=True)[
        "trace"
    ]
    assert "likelihood" not in off["selection"]


def test_unit_tests_reject_accept_and_time_out_through_a_runner_of_ones_own(loaded):
    policies, seen = services(loaded).policy, []

    def runner(code, tests, timeout_ms):
        seen.append((code, tuple(tests), timeout_ms))
        return TestResult(len(seen) == 3, "not yet", False, ("network",))

    policies.run_tests = runner
    policy = {
        "verifiers": {"code_unit_tests": ["assert f() == 1"], "unit_test_timeout_ms": 70, "repair_on_failure": False},
        "optimization": {"retry_on_failure": 5},
    }
    result = policies.run(PROMPT, policy, max_new_tokens=4, seed=0, include_trace=True)
    assert result["accepted"] and result["verifier_ok"] and len(result["trace"]["candidates"]) == len(seen) == 3
    assert [event["winner_score"] for event in result["trace"]["retry_events"]] == pytest.approx([0.1, 0.1])
    assert result["trace"]["selection"]["uncontained"] == ["network"]
    assert all(tests == ("assert f() == 1",) and ms == 70 for _, tests, ms in seen)


@pytest.fixture(scope="module")
def failing(loaded):
    """Services whose unit tests always fail."""
    made = services(loaded)
    made.policy.run_tests = lambda code, tests, timeout_ms: TestResult(False, "not right", False, ())
    return made


TESTED = {"code_unit_tests": ["assert f()"]}
FAILING = {
    "run": lambda made, **more: made.policy.run(PROMPT, {"verifiers": TESTED}, max_new_tokens=2, seed=0, **more)["output"],
    "generate": lambda made, **more: made.generation.generate(PROMPT, 2, seed=0, **TESTED, **more),
    "policy": lambda made, **more: made.generation.generate(PROMPT, 2, seed=0, policy={"verifiers": TESTED}, **more),
    "stream": lambda made, **more: "".join(made.generation.stream(PROMPT, 2, seed=0, **TESTED, **more)),
    "batch": lambda made, **more: made.generation.generate_batch([PROMPT] * 3, 2, seed=0, **TESTED, **more)[0],
}


@pytest.mark.parametrize("call", FAILING.values(), ids=FAILING)
def test_a_call_in_which_nothing_passed_warns_or_raises(failing, call):
    with pytest.warns(UserWarning, match=r"accepted; of the .*: unit_tests: not right.*on_failure=\"raise\"") as caught:
        assert call(failing)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.raises(NotAcceptedError, match="unit_tests: not right") as error:
        call(failing, on_failure="raise")
    assert all("not right" in trace["failure"] for trace in error.value.details)
    with pytest.raises(ArgumentError, match=r'on_failure: got .* expected "warn" or "raise"'):
        call(failing, on_failure="ignore")


def test_a_trace_says_whether_nothing_passed(failing, mx):
    with pytest.warns(UserWarning, match=r"prompts\[0\]: None of 3 candidates was accepted.*and 1 more of 3 prompts"):
        failing.generation.generate_batch(
            [PROMPT] * 3, 2, best_of_n=[1, 1, 2], code_unit_tests=[["x"], ["x"], None], include_trace=True
        )
    failures = [trace["failure"] for trace in failing.generation.last_trace]
    assert failures == ["None of 3 candidates was accepted; of the best: unit_tests: not right"] * 2 + [None]


def test_only_the_rows_that_ask_for_an_error_raise(failing):
    with pytest.raises(NotAcceptedError, match=r"prompts\[1\]") as error:
        failing.generation.generate_batch([PROMPT] * 2, 2, on_failure=["warn", "raise"], **TESTED)
    assert len(error.value.details) == 1


def test_comparisons_evaluations_and_searches_say_in_which_runs_nothing_passed(failing):
    policies = [{}, {"verifiers": TESTED}]
    with pytest.warns(UserWarning, match=r"^policies\[1\]: .*unit_tests: not right\. The result has") as caught:
        compared = failing.policy.compare(PROMPT, policies, 2, seed=0)["results"]
    assert [bool(result["trace"]["failure"]) for result in compared] == [False, True]
    with pytest.warns(UserWarning, match=r"^prompts\[0\]: .*not right \(and 1 more of 2 prompts\)\.") as evaluated:
        result = failing.policy.evaluate([PROMPT] * 2, policies[1], max_new_tokens=2, seed=0)
    assert result["fail_count"] == 2 and all("not right" in why for why in result["failures"])
    with pytest.warns(UserWarning, match=r"auto_tune: no text of the best trial was accepted \(1 prompts, 1 trials\)") as tuned:
        failing.policy.auto_tune([PROMPT], policies[1], max_new_tokens=2, seed=0)
    assert {warning.filename for seen in (caught, evaluated, tuned) for warning in seen} == {__file__}


def test_where_all_passes_nothing_is_warned_of(failing, recwarn):
    failing.policy.compare(PROMPT, [{}], 2, seed=0)
    assert failing.policy.evaluate([PROMPT], {}, max_new_tokens=2, seed=0)["failures"] == [None]
    failing.policy.auto_tune([PROMPT], {}, max_new_tokens=2, seed=0)
    assert not [warning for warning in recwarn if "accepted" in str(warning.message)]


def test_code_from_generate_meets_its_tests_in_the_sandbox(mx):
    text = mx.generation.generate(
        "x = 1\ny = ", regex_pattern="[0-9]{2}", code_unit_tests=["assert True"], max_tokens=4, seed=1
    )
    assert re.fullmatch("[0-9]{2}", text)
    arguments = {"regex_pattern": "[0-9]{2}", "code_unit_tests": ["assert False, 'no'"], "include_trace": True}
    mx.generation.generate("x = 1\ny = ", max_tokens=4, seed=1, **arguments)
    selection = mx.generation.last_trace["selection"]
    assert not selection["accepted"] and "no" in selection["reason"] and selection["score"] == pytest.approx(0.1)


def test_last_trace_is_of_the_thread_and_only_where_it_was_asked_for(mx):
    mx.generation.generate(PROMPT, max_tokens=3, best_of_n=2, include_trace=True, seed=1)
    mine = mx.generation.last_trace
    assert len(mine["candidates"]) == 2 and json.loads(json.dumps(mine)) == mine
    mx.generation.generate(PROMPT, max_tokens=3, best_of_n=3, seed=1)
    assert mx.generation.last_trace is mine
    seen = []
    thread = threading.Thread(target=lambda: seen.append(mx.generation.last_trace))
    thread.start()
    thread.join()
    assert seen == [None]


def test_rows_with_and_without_a_policy_share_a_batch_and_keep_their_order(mx):
    texts = mx.generation.generate_batch([PROMPT, "One two"], max_tokens=5, seed=[3, 4], best_of_n=[1, 2])
    assert texts[0] == mx.generation.generate(PROMPT, max_tokens=5, seed=3)
    assert texts[1] == mx.generation.generate("One two", max_tokens=5, seed=4, best_of_n=2)
    assert "".join(mx.generation.stream("One two", max_tokens=5, seed=4, best_of_n=2)) == texts[1]
    detailed = mx.generation.generate("One two", max_tokens=5, seed=4, best_of_n=2, details=True)
    assert detailed.text == texts[1] and len(detailed.trace["candidates"]) == 2


# --- generate and a policy ---


def test_the_policys_fields_win_and_arguments_fill_what_it_leaves_out(mx):
    policy = {"sampling": {"temperature": 0.0}}
    filled = mx.generation.generate(PROMPT, max_tokens=6, policy=policy, regex_pattern="[a-z ]+")
    assert re.fullmatch("[a-z ]+", filled)
    assert filled == mx.generation.generate(PROMPT, max_tokens=6, temperature=0, regex_pattern="[a-z ]+")
    saved = mx.policy.save({"name": "cold", **policy})
    assert mx.generation.generate(PROMPT, max_tokens=6, policy_id=saved, regex_pattern="[a-z ]+") == filled
    assert mx.policy.run(PROMPT, policy_id=saved, max_new_tokens=2)["policy_id"] == saved


def test_forbidden_terms_are_never_generated_whatever_else_holds(mx):
    greedy = mx.generation.generate(PROMPT, max_tokens=16, temperature=0)
    assert "Paris" in greedy
    text = mx.generation.generate(PROMPT, max_tokens=16, temperature=0, forbidden_terms=["PARIS", "city"])
    assert "paris" not in text.lower() and "city" not in text.lower() and len(text) > 20
    regex = {"regex_pattern": "(paris|rome)", "max_tokens": 6, "temperature": 0}
    first = mx.generation.generate(PROMPT, **regex)
    assert {first, mx.generation.generate(PROMPT, **regex, forbidden_terms=[first.upper()])} == {"paris", "rome"}
    batch = mx.generation.generate_batch([PROMPT] * 2, max_tokens=16, temperature=0, forbidden_terms=[["paris"], None])
    assert "paris" not in batch[0].lower() and batch[1] == greedy
    ended = mx.generation.generate(PROMPT, **{**regex, "regex_pattern": "paris"}, forbidden_terms=["Paris"], details=True)
    assert ended.finish_reason == "dead_end"
    result = mx.policy.run(PROMPT, {"constraints": {"regex_pattern": "paris", "forbidden_terms": ["par"]}}, max_new_tokens=6)
    assert not result["accepted"] and not result["constraints_ok"]


def test_steering_acts_at_the_layers_and_positions_that_the_policy_names(mx, loaded):
    run = lambda **where: mx.policy.run(
        PROMPT,
        {"sampling": {"temperature": 0}, "steering": {"vector": {**VECTOR, "20": VECTOR["12"]}, "strength": 9.0, **where}},
        max_new_tokens=8,
    )["output"]
    plain = mx.generation.generate(PROMPT, max_tokens=8, temperature=0)
    only = mx.generation.generate(PROMPT, max_tokens=8, temperature=0, steering_vector=VECTOR, steering_strength=9.0)
    assert run(layer_scope=["10-14"]) == only != plain
    assert run(token_start=500) == plain != run()
    prompt = len(loaded.tokenizer.encode(PROMPT))
    generated = mx.generation.generate(
        PROMPT,
        max_tokens=8,
        temperature=0,
        steering_vector={**VECTOR, 20: VECTOR["12"]},
        steering_strength=9.0,
        steering_scope="generated",
    )
    assert run(token_start=prompt) == generated
    with pytest.raises(ArgumentError, match=r"steering_layers.*12"):
        run(layer_scope=["3"])


def test_the_method_that_a_policy_names_makes_its_presets_vector(mx, loaded):
    asked = []

    class Presets(Steering):
        def preset(self, name, strength=0.0, model=None, method=None):
            asked.append((name, strength, method))
            return parse_steering(VECTOR, 576, 30).scaled(9.0)

    policy = {"sampling": {"temperature": 0}, "steering": {"preset": "brevity", "method": "few-shot"}}
    text = services(loaded, steering=Presets).policy.run(PROMPT, policy, max_new_tokens=6)["output"]
    assert asked == [("brevity", 0.0, "few-shot")]
    assert text == mx.generation.generate(PROMPT, max_tokens=6, temperature=0, steering_vector=VECTOR, steering_strength=9.0)


def test_a_stored_vector_of_another_method_than_the_policy_names_is_refused(mx, loaded):
    vector_id = mx.steering.generate_vectors(["a"], [" b"], [" c"], layer_idxs=[3], method="caa")
    policy = {"steering": {"vector_id": vector_id, "method": "caa"}}
    assert mx.policy.run(PROMPT, policy, max_new_tokens=2)["accepted"]
    with pytest.raises(ArgumentError, match="'caa', by which"):
        mx.policy.run(PROMPT, {"steering": {"vector_id": vector_id, "method": "few-shot"}}, max_new_tokens=2)


# --- wrong input ---

BOTH = {"policy": {}, "policy_id": "x"}
RUNS = {
    "policy and policy_id": [BOTH, {}],
    "policy id": [{"policy_id": "pol_00000000"}, {"policy_id": "../etc"}],
    "Did you mean 'temperature'": [{"policy": {"sampling": {"temprature": 1}}}],
    r"sampling\.temperature": [{"policy": {"sampling": {"temperature": "hot"}}}],
    "schedule": [
        {"policy": {"sampling": {"adaptive_temperature_schedule": []}}},
        {"policy": {"sampling": {"adaptive_top_p_schedule": [0.5, 1.5]}}},
    ],
    "best_of_n": [{"policy": {"optimization": {"best_of_n": 0}}}],
    "code_unit_tests": [{"policy": {"verifiers": {"code_unit_tests": ["assert ("]}}}],
    "max_new_tokens": [{"policy": {}, "max_new_tokens": 0}],
    "seed": [{"policy": {}, "seed": -1}],
    "steering_vector": [
        {"policy": {"steering": {"vector_id": "sv_00000000"}}},
        {"policy": {"steering": {"vector": {"3": [1.0]}}}},
    ],
    "prompt": [{"prompt": 3, "policy": {}}, {"prompt": "word " * 9000, "policy": {}}],
    "sampling_method": [{"policy": {"optimization": {"fallback_methods": ["guided-generation"]}}}],
    "max_tokens": [{"policy": {"constraints": {"json_schema": SCHEMA}}, "max_new_tokens": 1}],
}


@pytest.mark.parametrize(("words", "arguments"), [(words, case) for words, cases in RUNS.items() for case in cases])
def test_a_bad_run_is_refused_before_anything_is_decoded(undecoded, words, arguments):
    with pytest.raises(ArgumentError, match=words):
        undecoded.policy.run(**{"prompt": PROMPT, **arguments})


GENERATED = {
    "policy and policy_id": BOTH,
    "temperature.*policy.sampling.temperature": {"policy": {"sampling": {"temperature": 0.2}}, "temperature": 0.3},
    "best_of_n": {"best_of_n": 0},
    "adaptive_temperature_schedule": {"adaptive_temperature_schedule": []},
    "adaptive_top_p_schedule": {"adaptive_top_p_schedule": [2.0]},
    "code_unit_tests": {"code_unit_tests": ["def ("]},
    "policy: got 'x'": {"policy": "x"},
    "policy id": {"policy_id": "nowhere"},
    "forbidden_terms": {"forbidden_terms": [""]},
    "steering_scope": {"steering_scope": slice(3, None, 2)},
    "Prompts|prompt": {"prompt": 3, "best_of_n": 2},
}


@pytest.mark.parametrize("words", GENERATED)
def test_bad_arguments_of_generate_are_refused_before_anything_is_decoded(undecoded, words):
    with pytest.raises(ArgumentError, match=words):
        undecoded.generation.generate(**{"prompt": PROMPT, **GENERATED[words]})


def test_lists_that_must_not_be_empty_and_models_that_are_not_there(mx):
    with pytest.raises(ArgumentError, match="prompts"):
        mx.policy.evaluate([], {})
    with pytest.raises(ArgumentError, match="policies"):
        mx.policy.compare(PROMPT, [])
    with pytest.raises(ModelNotFoundError):
        mx.policy.run(PROMPT, {"model": {"model": "nobody"}})
    with pytest.raises(ArgumentError, match="model"):
        mx.policy.run(PROMPT, {"model": {"model": "one"}}, model="other")
    with pytest.raises(NotLocalError, match="base_url"):
        mx.policy.run(PROMPT, {"model": {"base_url": "http://127.0.0.1"}})


# --- kept ---


def test_policies_and_presets_are_kept_as_they_were_given(mx):
    policy = {"name": "mine", "sampling": {"temperature": 0.3}, "optimization": {"best_of_n": 2}}
    saved = mx.policy.save(policy)
    assert mx.policy.get(saved) == {**policy, "id": saved} and [p["id"] for p in mx.policy.list()] == [saved]
    assert mx.policy.save({**policy, "id": saved, "name": "new"}) == saved and mx.policy.get(saved)["name"] == "new"
    preset = mx.policy.publish_preset("shared", policy, visibility="public", tags=["a"], description="d")
    hidden = mx.policy.publish_preset("own", policy)
    assert {p["id"] for p in mx.policy.list_presets()} == {preset, hidden}
    assert [p["id"] for p in mx.policy.list_presets(include_public=False)] == [hidden]
    clone = mx.policy.clone_preset(preset)
    assert clone != saved and mx.policy.get(clone) == {**policy, "id": clone}
    mx.policy.delete(saved)
    with pytest.raises(ArgumentError, match=clone):
        mx.policy.get(saved)
    for bad in ({"sampling": {"temprature": 1}}, {"id": "../x"}):
        with pytest.raises(ArgumentError):
            mx.policy.save(bad)
    assert [p["id"] for p in mx.policy.list()] == [clone]


@pytest.mark.parametrize(
    "built", ["strict_json_extraction", "fast_tool_router", "diverse_chatbot", "steering_preset", "ensemble_vote"]
)
def test_the_builders_policies_run(mx, two, built):
    arguments = {"strict_json_extraction": [SCHEMA], "steering_preset": ["brevity"], "ensemble_vote": [["small"]]}
    policy = getattr(mx.policy, built)(*arguments.get(built, []))
    result = two.policy.run("Call a tool, as JSON: ", policy, max_new_tokens=40, seed=1, include_trace=True)
    assert result["trace"]["policy_name"] == policy["name"]
    assert result["constraints_ok"], result
    # Without a tool_schema the model may put anything under "tool_name", and the verifier says so.
    assert result["accepted"] or built == "fast_tool_router", result
