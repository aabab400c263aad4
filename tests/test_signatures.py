"""What a function says of keyword arguments that it does not have."""

from __future__ import annotations

import inspect

import pytest

import mechanex_jax as mx
from mechanex_jax.errors import MechanexError, UnexpectedArgumentError
from mechanex_jax.signatures import similar_argument

GENERATE = [mx.generation.generate, mx.generation.generate_batch, mx.generation.stream]
POLICY = [mx.policy.run, mx.policy.compare, mx.policy.evaluate, mx.policy.auto_tune]
STEERING = [getattr(mx.steering, name) for name in ("generate_vectors", "generate_pairs", "evaluate", "texts")]

CASES = [
    *[
        (function, wrong, right)
        for function in GENERATE
        for wrong, right in [
            ("max_new_tokens", "max_tokens"),
            ("max_new_token", "max_tokens"),
            ("temprature", "temperature"),
            ("num_beams", "beam_width"),
            ("stop_sequences", "stop"),
            ("method", "sampling_method"),
            ("schema", "json_schema"),
            ("self", None),
            ("xyzzy", None),
        ]
    ],
    *[(function, "max_tokens", "max_new_tokens") for function in POLICY],
    *[(function, "modle", "model") for function in STEERING],
    (mx.generation.generate, "messages", "prompt"),
    (mx.generation.generate_batch, "prompt", "prompts"),
    (mx.generation.generate, "progress", None),
    (mx.constraints.compile, "regex_pattern", "regex"),
    (mx.load, "torch_dtype", "dtype"),
    (mx.load, "model", "name"),
]


@pytest.mark.parametrize(("function", "wrong", "right"), CASES, ids=[f"{f.__name__} {wrong}" for f, wrong, _ in CASES])
def test_an_unknown_keyword_is_answered_with_the_argument_that_was_meant(function, wrong, right):
    with pytest.raises(TypeError) as caught:
        function(*("x", ["x"]) if function is mx.steering.texts else ("x",), **{wrong: 1})
    hint = f" Did you mean {right}?" if right else ""
    assert str(caught.value) == f"{function.__name__}() got an unexpected keyword argument {wrong!r}.{hint}"
    assert isinstance(caught.value, UnexpectedArgumentError) and isinstance(caught.value, MechanexError)


@pytest.mark.parametrize("function", [*GENERATE, *POLICY, *STEERING[:-1], mx.load], ids=lambda function: function.__name__)
def test_the_signature_shows_all_arguments_by_name(function):
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    assert inspect.getdoc(function)


def test_too_many_or_missing_arguments_stay_a_type_error():
    for call in (mx.generation.generate, lambda: mx.generation.stream(), lambda: mx.policy.run("x", *range(9))):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize("name", ["schema", "schemas", "json_schema", "max_new_token", "keys", "zzz"])
def test_the_search_for_a_like_name_ends(name: str) -> None:
    assert similar_argument(name, ["nothing_like_it_at_all"]) is None
