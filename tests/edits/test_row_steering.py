"""`steering_vector` as generation takes it, and the edits of a batch whose rows are steered one by one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import edit_oracles as oracle
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import torch
from edit_oracles import PROMPTS, D, H, vectors
from oracles import gpt2

import mechanex_jax as mechanex
from mechanex_jax import edits
from mechanex_jax.edits import GatedVector, RowSteering, parse_steering
from mechanex_jax.errors import ArgumentError


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> mechanex.Mechanex:
    """Small, and with a tokenizer."""
    folder = oracles.saved(gpt2(vocab_size=320), tmp_path_factory.mktemp("small"))
    oracles.save_tokenizer(folder)
    session = mechanex.Mechanex()
    session.set_execution_mode("local")
    session.load(folder)
    return session


# --- steering_vector -------------------------------------------------------------------------------------------------

VALUES = vectors(4)
FORMS = {
    "list": VALUES.tolist(),
    "nested list": [VALUES.tolist()],
    "numpy": VALUES,
    "numpy float64": VALUES.astype(np.float64),
    "numpy [1, D]": VALUES[None],
    "numpy [1, 1, D]": VALUES[None, None],
    "jax": jnp.asarray(VALUES),
    "jax [1, D]": jnp.asarray(VALUES)[None],
    "torch": torch.tensor(VALUES),
    "torch [1, D]": torch.tensor(VALUES)[None],
    "torch [1, 1, D]": torch.tensor(VALUES)[None, None],
    "torch with a gradient": torch.tensor(VALUES, requires_grad=True),
    "torch in strides": torch.tensor(np.repeat(VALUES, 2))[::2],
}


@pytest.mark.parametrize("form", FORMS)
def test_parse_steering_takes(form: str) -> None:
    parsed = parse_steering({1: FORMS[form]}, 4, 3)
    assert parsed.gates == ()
    assert list(parsed.additions) == ["resid_pre"]
    assert list(parsed.additions["resid_pre"]) == [1]
    assert parsed.additions["resid_pre"][1].dtype == np.float32
    np.testing.assert_array_equal(parsed.additions["resid_pre"][1], VALUES)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(VALUES).bfloat16()[None],
        jnp.asarray(VALUES).astype(jnp.bfloat16),
        np.asarray(jnp.asarray(VALUES).astype(jnp.bfloat16)),
    ],
    ids=["torch", "jax", "ml_dtypes"],
)
def test_parse_steering_takes_bfloat16(value: Any) -> None:
    rounded = torch.tensor(VALUES).bfloat16().float().numpy()
    np.testing.assert_array_equal(parse_steering({0: value}, 4, 3).additions["resid_pre"][0], rounded)


@pytest.mark.parametrize(
    ("key", "site", "layer"),
    [
        (11, "resid_pre", 11),
        (np.int64(11), "resid_pre", 11),
        ("11", "resid_pre", 11),
        (0, "resid_pre", 0),
        ("blocks.11.hook_resid_pre", "resid_pre", 11),
        ("blocks.11.hook_mlp_out", "mlp_out", 11),
        ("blocks.3.attn_out", "attn_out", 3),
        ("blocks.0.hook_resid_mid", "resid_mid", 0),
        ("blocks.0.hook_resid_post", "resid_post", 0),
    ],
)
def test_parse_steering_takes_the_layer(key: Any, site: str, layer: int) -> None:
    parsed = parse_steering({key: VALUES}, 4, 12)
    assert {site: [layer]} == {name: list(by_layer) for name, by_layer in parsed.additions.items()}


NAN = [0.0, float("nan"), 0.0, 0.0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ("steering_vector", "{}", "at least one layer")),
        ([VALUES], ("steering_vector", "{layer: vector}")),
        ({1: vectors(5)}, ("steering_vector[1]", "(5,)", "4 numbers")),
        ({1: vectors(1, 5)}, ("(1, 5)", "4 numbers")),
        ({1: vectors(4, 1)}, ("(4, 1)", "4 numbers")),
        ({1: vectors(2, 4)}, ("(2, 4)", "4 numbers")),
        ({1: 3.0}, ("()", "4 numbers")),
        ({1: []}, ("(0,)", "4 numbers")),
        ({1: "north"}, ("steering_vector[1]", "'north'", "numbers")),
        ({1: None}, ("steering_vector[1]",)),
        ({1: [[1.0], [1.0, 2.0]]}, ("steering_vector[1]", "numbers")),
        ({1: NAN}, ("steering_vector[1]", "NaN", "finite")),
        ({1: torch.tensor(NAN)}, ("steering_vector[1]", "NaN", "finite")),
        ({1: [np.inf, 0, 0, 0]}, ("infinity", "finite")),
        ({3: VALUES}, ("3", "0 to 2")),
        ({-1: VALUES}, ("-1", "0 to 2")),
        ({"³": VALUES}, ("³", "0 to 2")),
        ({1.5: VALUES}, ("1.5", "0 to 2")),
        ({True: VALUES}, ("True", "0 to 2")),
        ({"blocks.3.hook_resid_pre": VALUES}, ("blocks.3", "0 to 2")),
        ({"blocks.1.hook_q": VALUES}, ("blocks.1.hook_q", "blocks.0.hook_resid_pre")),
        ({"layer 1": VALUES}, ("layer 1", "0 to 2")),
        ({1: VALUES, "1": VALUES}, ("layer 1 twice", "as 1", "as '1'")),
        ({"01": VALUES, "blocks.1.resid_pre": VALUES}, ("'01'", "'blocks.1.resid_pre'", "Add the two up")),
        ({1: ["1", "2", "3", "4"]}, ("steering_vector[1]", "numbers")),
        ({1: [1j, 0, 0, 0]}, ("steering_vector[1]", "numbers")),
    ],
)
def test_parse_steering_refuses(given: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_steering(given, 4, 3)
    assert all(word in str(caught.value) for word in words), str(caught.value)


# --- RowSteering -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Any:
    return oracle.pair("llama", tmp_path_factory.mktemp("llama"))[0]


def gated(layer: int, seed: int, hidden: int = H, site: str = "resid_pre") -> GatedVector:
    p = oracle.CASES["gate, perceptron"].draw(seed, 1)
    extra = vectors(D, hidden - H, seed=seed + 9), vectors(hidden - H, seed=seed), vectors(hidden - H, seed=seed + 1)
    parts = (np.hstack([p["w1"][0], extra[0]]), np.hstack([p["b1"][0], extra[1]]), np.hstack([p["w2"][0], extra[2]]))
    return GatedVector(site, layer, p["v"][0], (*parts, p["b2"][0]))


def alone(steering: RowSteering) -> tuple[Any, ...]:
    """The same by one edit per vector."""
    adds = [edits.add(v, layer, site=site) for site, found in steering.additions.items() for layer, v in found.items()]
    return (*adds, *(edits.gate(g.vector, g.layer, perceptron=g.perceptron, site=g.site) for g in steering.gates))


@pytest.mark.slow
def test_a_batch_equals_its_rows_one_by_one(model) -> None:
    """Rows with several sites, with gates of different sizes, with two gates at one layer, and with nothing."""
    given = [
        RowSteering({"resid_pre": {0: vectors(D), 1: vectors(D, seed=1)}, "mlp_out": {1: vectors(D, seed=2)}}),
        None,
        RowSteering({"resid_pre": {1: vectors(D, seed=3)}}, (gated(0, 4), gated(1, 5, hidden=7))),
        RowSteering({}, (gated(1, 6), gated(1, 7), gated(0, 8, site="resid_post"))),
    ]
    prompts = np.concatenate([PROMPTS, PROMPTS[:1]])
    together = mechanex.forward(model, prompts, edits=edits.steering(given, D)).logits
    plain = mechanex.forward(model, prompts).logits
    for row, steering in enumerate(given):
        expected = mechanex.forward(model, prompts[row], edits=() if steering is None else alone(steering)).logits
        np.testing.assert_allclose(together[row], expected, rtol=0, atol=2e-5)
        assert (np.abs(plain[row] - expected).max() > 0.1) == (steering is not None)


def test_steering_scales_and_adds_up() -> None:
    a = RowSteering({"resid_pre": {0: vectors(D), 1: vectors(D, seed=1)}}, (gated(0, 2),))
    b = RowSteering({"resid_pre": {1: vectors(D, seed=3)}, "mlp_out": {0: vectors(D, seed=4)}}, (gated(0, 5),))
    total = a.scaled(-2) + b.scaled(0.5)
    expected = {
        ("resid_pre", 0): -2 * vectors(D),
        ("resid_pre", 1): -2 * vectors(D, seed=1) + 0.5 * vectors(D, seed=3),
        ("mlp_out", 0): 0.5 * vectors(D, seed=4),
    }
    got = {(site, layer): v for site, found in total.additions.items() for layer, v in found.items()}
    assert got.keys() == expected.keys()
    for place, vector in got.items():
        np.testing.assert_allclose(vector, expected[place], rtol=1e-6)
        assert vector.dtype == np.float32
    np.testing.assert_allclose(total.gates[0].vector, -2 * gated(0, 2).vector)
    np.testing.assert_allclose(total.gates[1].vector, 0.5 * gated(0, 5).vector)
    np.testing.assert_array_equal(total.gates[0].perceptron[0], gated(0, 2).perceptron[0])
    np.testing.assert_array_equal(a.additions["resid_pre"][1], vectors(D, seed=1))  # nothing is changed in place


def test_strength_and_choice_of_rows_keep_the_shapes_of_the_edits() -> None:
    def shapes(*rows: RowSteering | None) -> Any:
        leaves, structure = jax.tree.flatten(edits.steering(rows, D))
        return [np.shape(leaf) for leaf in leaves], structure

    def layers(count: int) -> RowSteering | None:
        return RowSteering({"resid_pre": {layer: vectors(D) for layer in range(count)}}) if count else None

    assert shapes(layers(3), None) == shapes(layers(4), layers(1)) == shapes(layers(1), layers(4))
    assert shapes(layers(4), None) != shapes(layers(5), None)
    assert edits.steering([None, None], D) == ()
    full = RowSteering({"resid_pre": {0: vectors(D)}}, (gated(0, 1, hidden=5), gated(1, 2, hidden=6)))
    assert shapes(full, None) == shapes(None, full.scaled(0)) == shapes(full, full.scaled(-3))
    assert shapes(full) == shapes(RowSteering(full.additions, (gated(1, 3, hidden=8), gated(0, 4))))


@pytest.mark.slow
def test_a_row_of_strength_zero_is_unsteered_bit_for_bit(model) -> None:
    full = RowSteering({"resid_pre": {0: vectors(D)}}, (gated(1, 1),))
    zero = mechanex.forward(model, PROMPTS, edits=edits.steering([full, full.scaled(0), full], D)).logits[1]
    none = mechanex.forward(model, PROMPTS, edits=edits.steering([full, None, full], D)).logits[1]
    np.testing.assert_array_equal(np.asarray(zero).view(np.uint32), np.asarray(none).view(np.uint32))


def test_a_vector_of_another_width_is_refused_in_a_batch() -> None:
    with pytest.raises(ArgumentError, match=rf"\(65,\).*{D}"):
        edits.steering([RowSteering({"resid_pre": {0: vectors(D + 1)}})], D)
    with pytest.raises(ArgumentError, match=rf"\(65,\).*{D}"):
        edits.steering([RowSteering({}, (gated(0, 1)._replace(vector=vectors(D + 1)),))], D)


# --- generate --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_documented_example(tmp_path: Path) -> None:
    """GPT-2 with its 12 layers, 768 wide; narrow only where the example does not look."""
    folder = oracles.saved(gpt2(vocab_size=320, n_embd=768, n_layer=12, n_head=12, n_inner=64), tmp_path)
    oracles.save_tokenizer(folder)
    mx = mechanex.Mechanex()
    mx.set_execution_mode("local")
    loaded = mx.load(folder)
    torch.manual_seed(0)
    text = mx.generation.generate(
        "The future of artificial intelligence is",
        max_tokens=8,
        steering_vector={11: torch.randn(1, 768)},
        steering_strength=1.5,
    )
    assert isinstance(text, str)

    torch.manual_seed(0)
    vector = torch.randn(1, 768)
    prompt = "The future of artificial intelligence is"
    arguments: dict[str, Any] = {"max_tokens": 8, "sampling_method": "greedy", "details": True}
    steered: Any = mx.generation.generate(prompt, steering_vector={11: vector}, steering_strength=1.5, **arguments)
    tokens = np.array([*loaded.tokenizer.encode(prompt), *steered.tokens])
    hf = oracles.theirs(folder)
    with oracles.edited(hf, "resid_pre", 11, lambda x: x + 1.5 * vector):
        oracle.assert_greedy(hf, tokens, len(tokens) - 8, steered.logprobs)
    plain = oracles.logits_of(hf, tokens[None])[0, len(tokens) - 9 : -1]
    assert (plain.argmax(-1) != steered.tokens).any()


@pytest.mark.slow
def test_each_prompt_of_a_batch_has_its_own_vector(session) -> None:
    prompts, strong = ["the future", "of", "in the hands"], 4.0
    arguments: dict[str, Any] = {"max_tokens": 6, "sampling_method": "greedy"}
    given = [None, {1: vectors(D)}, {0: vectors(D, seed=1), "blocks.1.hook_mlp_out": vectors(D, seed=2)}]
    together = session.generation.generate_batch(
        prompts, steering_vector=given, steering_strength=[0, strong, -strong], **arguments
    )
    alone = [
        session.generation.generate(prompt, steering_vector=steering, steering_strength=strength, **arguments)
        for prompt, steering, strength in zip(prompts, given, [0, strong, -strong], strict=True)
    ]
    plain = [session.generation.generate(prompt, **arguments) for prompt in prompts]
    assert together == alone
    assert [a == b for a, b in zip(together, plain, strict=True)] == [True, False, False]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_strength_zero_is_unsteered(session) -> None:
    plain: Any = session.generation.generate("the future", 8, seed=1, details=True)
    zero: Any = session.generation.generate("the future", 8, seed=1, details=True, steering_vector={0: vectors(D)})
    assert zero.tokens == plain.tokens
    np.testing.assert_allclose(zero.logprobs, plain.logprobs, rtol=0, atol=1e-5)


def test_a_vector_without_strength_warns(session) -> None:
    """The documented default of `steering_strength` is 0: whoever passes a vector only would see nothing happen."""
    with pytest.warns(UserWarning, match="steering_strength"):
        session.generation.generate("the future", 1, steering_vector={0: vectors(D)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.generation.generate("the future", 1, steering_vector={0: vectors(D)}, steering_strength=1)
        session.generation.generate("the future", 1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({0: torch.randn(1, 768)}, ("steering_vector[0]", "(1, 768)", "64 numbers")),
        ({2: vectors(D)}, ("steering_vector", "2", "0 to 1")),
        ({}, ("steering_vector", "{}")),
    ],
)
def test_generate_refuses_before_anything_compiles(given: Any, words: tuple[str, ...], session, compilations) -> None:
    def call() -> None:
        with pytest.raises(ArgumentError) as caught:
            session.generation.generate("the future", 3, steering_vector=given, steering_strength=1)
        assert all(word in str(caught.value) for word in words), str(caught.value)

    assert compilations(call) == 0


def test_values_never_recompile_generation(session, compilations) -> None:
    def generate(steering: Any, strength: float) -> None:
        session.generation.generate("the future", 4, seed=0, steering_vector=steering, steering_strength=strength)

    generate({0: vectors(D)}, 1)
    values = [
        ({1: vectors(D, seed=1)}, 1),
        ({"0": [1.0] * D}, -2.5),
        ({"blocks.1.hook_resid_pre": torch.ones(1, D)}, 7),
    ]
    assert compilations(lambda: [generate(*value) for value in values]) == 0
