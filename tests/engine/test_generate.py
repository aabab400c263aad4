"""`mx.generation` with the real default model."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mechanex_jax
from mechanex_jax.engine.config import GenerationConfig
from mechanex_jax.engine.methods import METHODS
from mechanex_jax.engine.seeds import row_keys
from mechanex_jax.errors import ArgumentError, ModelNotFoundError
from mechanex_jax.tokenization.detokenizer import Detokenizer

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "Water boils at",
    "My favourite recipe starts with",
]
PLAIN = ["greedy", "top-k", "top-p", "min-p", "typical"]
NEEDS = {"guided-generation": {"regex_pattern": "[a-z ,.]{30,}"}, "ensemble-sampling": {"ensemble_models": ["default"]}}
WHOLE = {"constrained-beam-search", "ensemble-sampling"}  # they stream one piece


def test_greedy_chat_answers_the_capital_of_france(mx):
    answer = mx.generation.generate("What is the capital of France?", sampling_method="greedy", chat=True)
    assert answer == "The capital of France is Paris."


def test_epsilon_sampling_lies_between_greedy_and_the_models_own_law(mx):
    text = lambda **arguments: mx.generation.generate(PROMPTS[1], max_tokens=12, temperature=1.0, seed=3, **arguments)
    assert text(sampling_method="epsilon", epsilon_cutoff=1) == text(sampling_method="greedy")
    assert text(sampling_method="epsilon", epsilon_cutoff=0) == text(sampling_method="top-p", top_p=1)
    usual = text(sampling_method="epsilon")
    assert usual == text(sampling_method="epsilon", epsilon_cutoff=3e-4)
    assert usual == text(sampling_method="epsilon", policy={"sampling": {"method": "epsilon", "epsilon_cutoff": 3e-4}})


def test_the_documented_arguments_have_their_documented_order_and_defaults():
    documented = (
        "prompt, max_tokens=128, sampling_method='top-k', temperature=0.7, top_k=50, top_p=0.9, min_p=None, typical_p=None, "
        "ads_subset_size=None, ads_beta=None, steering_vector=None, steering_strength=0, steering_preset=None, "
        "json_schema=None, regex_pattern=None, grammar=None, draft_model=None, ensemble_models=None, best_of_n=1, "
        "adaptive_temperature=False, adaptive_temperature_schedule=None, adaptive_top_p=False, "
        "adaptive_top_p_schedule=None, confidence_triggered_regeneration=False, confidence_threshold=0.5, "
        "code_unit_tests=None, policy=None, policy_id=None, include_trace=False, *, seed=None, stop=None, chat=False, "
        "model=None, min_tokens=0, repetition_penalty=None, presence_penalty=None, frequency_penalty=None, "
        "logit_bias=None, constraint=None, json_whitespace=False, json_closed=None, json_numbers='short', choices=None, "
        "forbidden_terms=None, steering_layers=None, "
        "steering_scope='all', epsilon_cutoff=None, beam_width=4, length_penalty=1.0, early_stopping=False, "
        "speculative_steps=4, voting='majority', ensemble_weights=None, on_failure='warn', transform=None, "
        "edits=None, details=False"
    )
    signature = inspect.signature(mechanex_jax.generation.generate)
    bare = signature.replace(
        parameters=[p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )
    assert str(bare) == f"({documented})"


def test_the_configuration_has_the_signatures_names_and_defaults():
    shared = dict(inspect.signature(mechanex_jax.generation.generate).parameters)
    for name in ("prompt", "seed", "model", "transform", "edits", "details"):
        del shared[name]
    own = inspect.signature(GenerationConfig).parameters
    assert {n: p.default for n, p in own.items()} == {n: p.default for n, p in shared.items()}


@pytest.mark.parametrize("function", ["generate_batch", "stream"])
def test_the_other_functions_take_the_same_arguments_by_position_too(mx, function):
    template = list(inspect.signature(mx.generation.generate).parameters.values())[1:]
    own = list(inspect.signature(getattr(mx.generation, function)).parameters.values())[1:]
    assert [str(p) for p in own[: len(template)]] == [str(p) for p in template]


@pytest.mark.filterwarnings("ignore:.*one member")
@pytest.mark.parametrize("method", METHODS)
def test_a_stream_in_pieces_is_the_generated_text(mx, method):
    arguments = {"sampling_method": method, "max_tokens": 24, "seed": 5, "temperature": 1.0, **NEEDS.get(method, {})}
    pieces = list(mx.generation.stream(PROMPTS[1], **arguments))
    assert (len(pieces) == 1) == (method in WHOLE)
    assert "".join(pieces) == mx.generation.generate(PROMPTS[1], **arguments)


@pytest.mark.parametrize("stop", [" the", ["\n", ","], ["nowhere to be found"], ". "])
def test_text_ends_before_the_first_stop_string_in_every_way_of_asking(mx, stop):
    arguments = {"max_tokens": 40, "seed": 3}
    free = mx.generation.generate(PROMPTS[1], **arguments)
    strings = [stop] if isinstance(stop, str) else stop
    cut = min((at for at in map(free.find, strings) if at >= 0), default=len(free))
    assert mx.generation.generate(PROMPTS[1], stop=stop, **arguments) == free[:cut]
    assert "".join(mx.generation.stream(PROMPTS[1], stop=stop, **arguments)) == free[:cut]
    stops = [stop, None] if isinstance(stop, str) else [stop, []]
    assert mx.generation.generate_batch([PROMPTS[1]] * 2, stop=stops, **{**arguments, "seed": [3, 3]})[0] == free[:cut]


def test_rows_of_a_batch_may_differ_in_everything_and_equal_themselves_alone(mx):
    rows = {
        "sampling_method": PLAIN,
        "temperature": [0.7, 0.8, 1.0, 0.9, 0.6],
        "max_tokens": [12, 8, 16, 10, 14],
        "top_k": [5, 20, 50, 3, 4],
        "min_p": [None, None, None, 0.2, None],
        "seed": [1, 2, 3, 4, 5],
        "repetition_penalty": [None, 1.2, None, None, 1.1],
        "stop": [[","], [], ["\n", "."], ["b"], []],
        "logit_bias": [None, {11: -100}, None, None, {30: 2.5}],
    }
    together = mx.generation.generate_batch(PROMPTS, **rows, details=True)
    for index, prompt in enumerate(PROMPTS):
        alone = mx.generation.generate(prompt, details=True, **{name: column[index] for name, column in rows.items()})
        assert together[index].tokens == alone.tokens
        assert together[index].text == alone.text
        np.testing.assert_allclose(together[index].logprobs, alone.logprobs, atol=2e-3)


def test_one_seed_counts_rows_and_row_zero_is_generate(mx):
    arguments = {"max_tokens": 10, "temperature": 1.2, "top_k": 200}
    batch = mx.generation.generate_batch([PROMPTS[0]] * 4, seed=9, **arguments)
    assert batch[0] == mx.generation.generate(PROMPTS[0], seed=9, **arguments)
    assert len(set(batch)) > 1
    keys = row_keys([(9, index) for index in range(4)])
    assert (keys == jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(9, impl="threefry2x32"), np.arange(4))).all()


def test_a_fresh_seed_is_drawn_when_none_is_given(mx):
    texts = {mx.generation.generate(PROMPTS[1], max_tokens=12, temperature=1.5, top_k=1000) for _ in range(3)}
    assert len(texts) > 1


def test_batch_size_and_neighbours_change_few_tokens_and_no_more(mx):
    """Logits of another batch size differ in the last bits; Gumbel-max lets that change next to nothing."""
    prompts = [f"{prompt} {word}" for prompt in PROMPTS for word in ("and", "so", "but", "then")]
    arguments = {
        "max_tokens": 24,
        "seed": list(range(20)),
        "sampling_method": "top-p",
        "temperature": 1.0,
        "details": True,
    }
    wide = mx.generation.generate_batch(prompts, **arguments)
    narrow = mx.generation.generate_batch(prompts, batch_size=4, **arguments)
    differ = sum(a.tokens != b.tokens for a, b in zip(wide, narrow, strict=True))
    assert differ <= 1, f"{differ} of {len(prompts)} rows differ"


def test_many_prompts_run_in_micro_batches_and_keep_their_order(mx):
    numbers = [f"{number}, {number + 1}," for number in range(70)]
    lengths = [1 + number % 3 for number in range(70)]
    out = mx.generation.generate_batch(numbers, lengths, "greedy", batch_size=32, details=True)
    assert [len(completion.tokens) for completion in out] == lengths
    assert out[40].text == mx.generation.generate(numbers[40], lengths[40], "greedy")
    assert mx.generation.generate_batch([]) == []


def test_min_tokens_and_bias_and_penalties_act(mx):
    chat = {"sampling_method": "greedy", "chat": True, "max_tokens": 20}
    question = "What is the capital of France?"
    longer = mx.generation.generate(question, min_tokens=15, details=True, **chat)
    assert len(longer.tokens) >= 15
    paris = mx.runtime.default.local_model().tokenizer.encode(" Paris")
    assert len(paris) == 1
    assert "Paris" not in mx.generation.generate(question, logit_bias={paris[0]: -100}, **chat)
    repeated = "again and again and again and again and"
    plain = mx.generation.generate(repeated, 12, "greedy")
    assert "again" in plain
    assert "again" not in mx.generation.generate(repeated, 12, "greedy", repetition_penalty=3.0)


def _halve(logits, factor):
    return logits * factor


def test_a_researchers_own_transform_and_edit_run_in_the_loop(mx, loaded):
    forced = mx.transforms.logit_bias(np.where(np.arange(loaded.model.spec.vocabulary) == 42, 1e9, 0.0))
    text = mx.generation.generate(PROMPTS[0], 3, "top-p", top_p=1.0, transform=forced, details=True)
    assert text.tokens == (42, 42, 42)
    per_row = mx.transforms.chain(mx.transforms.stateless(_halve, [1.0, 0.0]), mx.transforms.temperature(0.0))
    first, _ = mx.generation.generate_batch(PROMPTS[:2], 4, "greedy", transform=per_row, details=True)
    assert first.text == mx.generation.generate(PROMPTS[0], 4, "greedy")
    vector = np.random.default_rng(0).standard_normal(loaded.model.spec.width)
    edit = mx.edits.add(vector, layer=12, strength=[0.0, 8.0])
    plain, steered = mx.generation.generate_batch([PROMPTS[0]] * 2, 8, "greedy", edits=edit)
    assert plain == mx.generation.generate(PROMPTS[0], 8, "greedy") != steered
    assert mx.generation.generate(PROMPTS[0], 8, "greedy", steering_vector={12: vector}, steering_strength=8) == steered


def test_one_edit_and_lists_of_them_are_taken_by_all_three_functions(mx, loaded):
    vectors = np.random.default_rng(0).standard_normal((2, loaded.model.spec.width))
    pair = [mx.edits.add(vector, layer=layer, strength=8.0) for vector, layer in zip(vectors, (3, 12), strict=True)]
    arguments = {"max_tokens": 6, "sampling_method": "greedy"}
    for edits in (pair[0], pair[:1], pair, tuple(pair)):
        text = mx.generation.generate(PROMPTS[0], edits=edits, **arguments)
        assert "".join(mx.generation.stream(PROMPTS[0], edits=edits, **arguments)) == text
        assert mx.generation.generate_batch([PROMPTS[0]], edits=edits, **arguments) == [text]
    assert text != mx.generation.generate(PROMPTS[0], edits=pair[0], **arguments)


@pytest.mark.parametrize("function", ["generate", "stream"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": [0.5]},
        {"max_tokens": [3]},
        {"sampling_method": ["greedy"]},
        {"seed": [1]},
        {"model": ["x"]},
        {"transform": [mechanex_jax.transforms.temperature(0.5)]},
        {"details": [False]},
        {"logit_bias": [{5: 1.0}]},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_lists_with_one_value_per_prompt_are_for_a_batch_only(mx, function, arguments):
    with pytest.raises(ArgumentError, match=r"one value\. Use generate_batch"):
        getattr(mx.generation, function)("x", **arguments)


@pytest.mark.parametrize("function", ["generate", "stream"])
def test_lists_of_lists_are_for_a_batch_only(mx, function):
    with pytest.raises(ArgumentError, match="stop: got"):
        getattr(mx.generation, function)("x", stop=[["a"]])


def test_fifty_calls_with_other_parameters_compile_nothing_after_the_first(mx, compilations):
    def call(index):
        mx.generation.generate(
            PROMPTS[index % 5] + " x" * (index % 3),
            1 + index % 4,
            PLAIN[index % 5],
            0.1 * index,
            1 + index,
            1 - index / 100,
            seed=index,
        )

    call(0)
    assert compilations(lambda: [call(index) for index in range(1, 50)]) == 0


def test_a_prompt_of_one_token_compiles_the_loop_once_however_many_chunks_follow(mx, compilations):
    mx.generation.generate("Hello", 1, "greedy")
    assert compilations(lambda: mx.generation.generate("Hello", 20, "greedy")) == 0


NAN = float("nan")
WRONG = [
    ({"max_tokens": 0}, "max_tokens: got 0"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": 2.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": NAN}, "temperature"),
    ({"temperature": "warm"}, "temperature"),
    ({"temperature": [0.5, 0.6]}, "generate_batch"),
    ({"top_k": 0}, "top_k"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"min_p": 0.1}, "min-p"),
    ({"typical_p": 0.1, "sampling_method": "min-p"}, "typical"),
    ({"min_p": 2.0, "sampling_method": "min-p"}, "min_p"),
    ({"epsilon_cutoff": 0.1}, "use sampling_method='epsilon'"),
    ({"epsilon_cutoff": 2.0, "sampling_method": "epsilon"}, "epsilon_cutoff: got 2.0"),
    ({"sampling_method": "nucleus"}, ", ".join(METHODS)),
    ({"sampling_method": "top_p"}, "Did you mean 'top-p'"),
    ({"sampling_method": None}, "sampling_method"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**32}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", 3]}, "stop"),
    ({"min_tokens": 300}, "min_tokens"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {49152: 1.0}}, "49152"),
    ({"logit_bias": {"a": 1.0}}, "logit_bias"),
    ({"transform": "warm"}, "stateless"),
    ({"edits": 3}, "edits"),
    ({"steering_vector": {0: [1.0, 2.0]}}, "576"),
    ({"steering_vector": {30: [0.0] * 576}}, "29"),
    ({"prompt": 7}, "prompt"),
    ({"prompt": "word " * 9000}, "8191"),
    ({"model": "gpt-5"}, "loaded are"),
    ({"prompt": "\ud800"}, "surrogate"),
    ({"prompt": "\ud800", "chat": True}, "surrogate"),
    ({"prompt": [{"role": "user", "content": "\ud800"}], "chat": True}, "surrogate"),
    ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}], "chat": True}, "surrogate"),
    ({"policy": {"constraints": {"stop_sequences": ["\ud800"]}}}, "surrogate"),
    ({"policy": {"constraints": {"forbidden_terms": ["\ud800"]}}}, "surrogate"),
    ({"logit_bias": {-1: 5.0}}, "token ids, 0 or more"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[str(a)[:40] for a, _ in WRONG])
def test_bad_input_is_refused_before_anything_compiles(mx, compilations, arguments, words):
    def call():
        with pytest.raises((ArgumentError, ModelNotFoundError)) as caught:
            mx.generation.generate(**{"prompt": "x", **arguments})
        assert words in str(caught.value)
        assert isinstance(caught.value, mx.errors.MechanexError)

    assert compilations(call) == 0
    assert mx.generation.generate(PROMPTS[0], 2, "greedy") == " Paris."


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"edits": mechanex_jax.edits.add(np.ones(1), layer=3)}, "width 1; expected 576"),
        ({"transform": mechanex_jax.transforms.logit_bias(np.zeros(7))}, "(49152,)"),
    ],
    ids=["edits", "transform"],
)
def test_a_researchers_parts_made_for_another_model_are_refused_by_name(mx, own, words):
    with pytest.raises(ArgumentError) as caught:
        mx.generation.generate("x", **own)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": [0.5]},
        {"seed": [1, 2, 3]},
        {"stop": [["a"], ["b"], ["c"]]},
        {"max_tokens": [3, 0]},
        {"sampling_method": ["greedy", "no"]},
        {"prompts": "one string"},
        {"prompts": ["a", None]},
        {"batch_size": 0},
        {"nonsense": 1},
        {"model": ["a", "b"]},
        {"details": [True, False]},
        {"transform": [mechanex_jax.transforms.temperature(0.5)] * 2},
    ],
    ids=str,
)
def test_a_batch_refuses_what_does_not_fit_its_rows(mx, arguments):
    with pytest.raises((ArgumentError, TypeError)):
        mx.generation.generate_batch(**{"prompts": ["a", "b"], **arguments})


# Routing, in sessions of their own and a home folder of their own.


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MECHANEX_API_KEY", raising=False)
    return mechanex_jax.Mechanex()


def test_without_a_model_or_a_key_the_error_says_both_ways_out(session):
    with pytest.raises(ModelNotFoundError, match=r"mx\.load\(\).*mx\.set_key"):
        session.generation.generate("x")


@pytest.mark.parametrize("how", ["set_key", "environment", "file", "mode"])
def test_what_resolves_to_remote_names_the_way_back_to_local(session, how, tmp_path, monkeypatch):
    if how == "set_key":
        session.set_key("ax_test")
    elif how == "environment":
        monkeypatch.setenv("MECHANEX_API_KEY", "ax_test")
    elif how == "file":
        (tmp_path / ".mechanex").mkdir()
        (tmp_path / ".mechanex" / "config.json").write_text('{"access_token": "t"}')
    else:
        session.set_execution_mode("remote")
    with pytest.raises(NotImplementedError, match=r'set_execution_mode\("local"\)'):
        session.generation.generate("x")
    session.set_execution_mode("local")
    with pytest.raises(ModelNotFoundError):
        session.generation.generate("x")


def test_an_unknown_mode_or_an_empty_key_is_refused(session):
    for call in (lambda: session.set_execution_mode("cloud"), lambda: session.set_key("")):
        with pytest.raises(ArgumentError):
            call()


def test_models_are_kept_by_name_and_freed(session, mx, loaded):
    session.session._models["first"] = loaded
    assert session.local_model() is loaded is session.local_model("first")
    session.unload("first")
    with pytest.raises(ModelNotFoundError):
        session.local_model()


# Text.


@given(st.lists(st.binary(max_size=5), max_size=12), st.lists(st.text("ab é", min_size=1, max_size=4), max_size=3))
def test_pieces_join_to_the_same_text_however_tokens_are_cut(words, stops):
    join = lambda tokens: b"".join(words[token] for token in tokens)
    whole = Detokenizer(join, stops).push(range(len(words)), last=True)
    text = b"".join(words).decode(errors="replace")
    cut = min((at for at in map(text.find, stops) if at >= 0), default=len(text))
    assert whole == text[:cut]
    one = Detokenizer(join, stops)
    pieces = [one.push([token]) for token in range(len(words))] + [one.push((), last=True)]
    assert "".join(pieces) == whole


@pytest.mark.slow
def test_ctrl_c_ends_a_long_decode_and_leaves_the_model_usable():
    code = (
        "import mechanex_jax as mx\n"
        "mx.set_execution_mode('local'); mx.load()\n"
        "ask = lambda bias: mx.generation.generate('Hello', 4000, 'greedy', logit_bias={2: bias}, details=True)\n"
        "ask(100.0)  # the end at once: compiles all that the long one needs\n"
        "print('ready', flush=True)\n"
        "try:\n"
        "    ask(-100.0)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', ask(100.0).finish_reason, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "interrupted eos\n"
    assert process.returncode == 0
