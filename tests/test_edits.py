"""Edits against hooks on PyTorch's modules, with the same random weights; rows of a batch; arguments."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import torch
from oracles import VOCABULARY, gpt2, llama

import mechanex_jax as mechanex
from mechanex_jax import edits, rows
from mechanex_jax.edits import SITES, Where, parse_steering
from mechanex_jax.errors import ArgumentError

TOLERANCE = 1e-4
D, L = 64, 2
GREEDY = mechanex.transforms.temperature(0.0)
PROMPTS = np.random.default_rng(0).integers(0, VOCABULARY, (3, 12)).astype(np.int32)
LENGTHS = np.array([12, 7, 1], np.int32)
NEW = 6


@rows.row_tree
class Scale:
    """factor * h at one layer: unlike an addition, it tells `resid_mid` from `attn_out`."""

    site: str = rows.static()
    at: Any = rows.row(0, jnp.int32)
    factor: Any = rows.row()

    def apply(self, x: jax.Array, layer: jax.Array, where: Where) -> jax.Array:
        return jnp.where(layer == self.at, self.factor * x, x)


@rows.row_tree
class AfterPrompt:
    """h + vector where tokens have been generated, in all layers."""

    site: str = rows.static()
    vector: Any = rows.row(1)

    def apply(self, x: jax.Array, layer: jax.Array, where: Where) -> jax.Array:
        return x + jnp.where(where.positions >= where.prompt_length, 1.0, 0.0)[:, None] * self.vector


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Callable[[str], tuple[Any, Any]]:
    """Our model and transformers', by family."""

    @functools.cache
    def make(family: str) -> tuple[Any, Any]:
        folder = oracles.saved({"llama": llama, "gpt2": gpt2}[family](), tmp_path_factory.mktemp(family))
        return oracles.ours(folder), oracles.theirs(folder)

    return make


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> mechanex.Mechanex:
    """Small, and with a tokenizer."""
    folder = oracles.saved(gpt2(vocab_size=320), tmp_path_factory.mktemp("small"))
    oracles.save_tokenizer(folder)
    session = mechanex.Mechanex()
    session.set_execution_mode("local")
    session.load(folder)
    return session


def vectors(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def decode(model: Any, edit: Any) -> Any:
    key = jax.random.key(0)
    return mechanex.loops.decode(model, PROMPTS, LENGTHS, GREEDY, edits=edit, key=key, max_new_tokens=NEW)


def text_of(result: Any, row: int) -> np.ndarray:
    return np.concatenate([PROMPTS[row, : LENGTHS[row]], result.tokens[row]])


def assert_greedy(hf: Any, tokens: np.ndarray, prompt: int, logprobs: Any) -> None:
    """Each token behind the prompt is the likeliest, and has this log-probability, by PyTorch without a cache."""
    logits = oracles.logits_of(hf, tokens[None])[0, prompt - 1 : -1].astype(np.float64)
    new = tokens[prompt:]
    np.testing.assert_array_equal(logits.argmax(-1), new)
    expected = logits[range(len(new)), new] - np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(logprobs, expected, rtol=0, atol=TOLERANCE)


# --- against hooks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_site_equals_a_hook(family: str, site: str, both) -> None:
    """Two edits in their order, at one layer of two; captures come after the edits."""
    model, hf = both(family)
    vector = vectors(D)
    two = (edits.add(vector, 1, 1.5, site=site), Scale(site, np.int32(1), np.float32(0.5)))
    out = mechanex.forward(model, PROMPTS, edits=two, capture=site)

    def change(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x + 1.5 * torch.tensor(vector))

    plain = oracles.activations(hf, PROMPTS)[site]
    with oracles.edited(hf, site, 1, change):
        expected = oracles.logits_of(hf, PROMPTS)
    np.testing.assert_allclose(out.logits, expected, rtol=0, atol=TOLERANCE)
    assert np.abs(expected - oracles.logits_of(hf, PROMPTS)).max() > 0.1
    np.testing.assert_allclose(out.activations[site][:, 0], plain[:, 0], rtol=0, atol=TOLERANCE)
    edited = 0.5 * (plain[:, 1] + 1.5 * vector)
    np.testing.assert_allclose(out.activations[site][:, 1], edited, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_decoding_with_every_row_steered_in_its_own_way(family: str, both) -> None:
    """Prompt and generated positions, over the cache: other layers, vectors and strengths for each row."""
    model, hf = both(family)
    matrix = vectors(3, 2, D)
    layers = np.array([[0, 1], [1, -1], [-1, 0]])
    strengths = [1.0, -2.0, 0.5]
    result = decode(model, edits.add(matrix, layers, strengths))
    plain = decode(model, None)
    for row in range(3):
        with contextlib.ExitStack() as hooks:
            for layer, vector in zip(layers[row], matrix[row], strict=True):
                if layer >= 0:
                    shift = strengths[row] * torch.tensor(vector)
                    hooks.enter_context(oracles.edited(hf, "resid_pre", layer, lambda x, v=shift: x + v))
            assert_greedy(hf, text_of(result, row), LENGTHS[row], result.logprobs[row])
        assert np.abs(result.logprobs[row] - plain.logprobs[row]).max() > 0.05


def test_an_edit_of_ones_own_sees_where_each_prompt_ends(both) -> None:
    model, hf = both("llama")
    vector = vectors(D)
    result = decode(model, AfterPrompt("resid_post", vector))
    for row, length in enumerate(LENGTHS):
        mask = torch.arange(length + NEW)[:, None] >= length
        with contextlib.ExitStack() as hooks:
            for layer in range(L):
                shift = mask * torch.tensor(vector)
                hooks.enter_context(oracles.edited(hf, "resid_post", layer, lambda x, v=shift: x + v))
            assert_greedy(hf, text_of(result, row), length, result.logprobs[row])


# --- rows of a batch -------------------------------------------------------------------------------------------------


def test_a_steered_row_changes_no_other(both) -> None:
    """Bit for bit, in one executable; and an unsteered row is what it is without any edit, up to float noise."""
    model, _ = both("llama")
    vector = vectors(D)
    calm, steered = (decode(model, edits.add(vector, 1, strength)) for strength in ([0, 0, 0], [0, 9, 0]))
    without = decode(model, None)
    for row in (0, 2):
        np.testing.assert_array_equal(steered.tokens[row], calm.tokens[row])
        np.testing.assert_array_equal(steered.logprobs[row], calm.logprobs[row])
    assert (steered.tokens[1] != calm.tokens[1]).any()
    np.testing.assert_array_equal(calm.tokens, without.tokens)
    np.testing.assert_allclose(calm.logprobs, without.logprobs, rtol=0, atol=1e-5)

    logits = [mechanex.forward(model, PROMPTS, edits=edits.add(vector, 1, s)).logits for s in ([0, 0, 0], [0, 9, 0])]
    np.testing.assert_array_equal(logits[0][::2], logits[1][::2])
    assert np.abs(logits[0][1] - logits[1][1]).max() > 0.1


@pytest.mark.parametrize(
    "noop",
    [
        edits.add(vectors(D), -1),
        edits.add(vectors(D), 1, strength=0),
        edits.add(np.zeros(D), 1),
        edits.add(vectors(1, D), [L]),
    ],
    ids=["layer -1", "strength 0", "zero vector", "a layer beyond the last"],
)
def test_no_ops(noop: Any, both) -> None:
    model, _ = both("llama")
    reference = mechanex.forward(model, PROMPTS, edits=edits.add(np.zeros((3, 1, D)), [[-1]] * 3, np.zeros(3))).logits
    np.testing.assert_array_equal(mechanex.forward(model, PROMPTS, edits=noop).logits, reference)
    np.testing.assert_allclose(mechanex.forward(model, PROMPTS).logits, reference, rtol=0, atol=1e-5)


def test_values_never_recompile(both, session, compilations) -> None:
    model, _ = both("llama")

    def run(edit: Any) -> None:
        mechanex.forward(model, PROMPTS, edits=edit)
        decode(model, edit)

    changed = [
        edits.add(vectors(D, seed=1), 0),
        edits.add(vectors(D, seed=2), 1, 3),
        edits.add(vectors(1, D), [-1], [1.0, 0.0, -2.5]),
        edits.add(vectors(3, 1, D), [[0], [1], [-1]], np.float64(0.1)),
        edits.add(torch.ones(D), np.int64(1), torch.tensor(2.0)),
        edits.add(jnp.ones(D, jnp.bfloat16), 1, jnp.float32(2)),
    ]
    run(edits.add(vectors(D), 1))
    assert compilations(lambda: [run(edit) for edit in changed]) == 0

    def generate(steering: Any, strength: float) -> None:
        session.generation.generate("the future", 4, seed=0, steering_vector=steering, steering_strength=strength)

    generate({0: vectors(D)}, 1)
    values = [
        ({1: vectors(D, seed=1)}, 1),
        ({"0": [1.0] * D}, -2.5),
        ({"blocks.1.hook_resid_pre": torch.ones(1, D)}, 7),
    ]
    assert compilations(lambda: [generate(*value) for value in values]) == 0


def test_the_number_of_layers_seldom_recompiles() -> None:
    def shapes(*layers: int) -> Any:
        rows_of = [{"resid_pre": {layer: vectors(D) for layer in range(count)}} if count else None for count in layers]
        return jax.tree.map(np.shape, jax.tree.leaves(edits.steering(rows_of, [1.0] * len(rows_of), D)))

    assert shapes(3, 0) == shapes(4, 1) == shapes(1, 4) != shapes(5, 0)
    assert shapes(0, 0) == []


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
    assert list(parsed) == ["resid_pre"]
    assert list(parsed["resid_pre"]) == [1]
    assert parsed["resid_pre"][1].dtype == np.float32
    np.testing.assert_array_equal(parsed["resid_pre"][1], VALUES)


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
    np.testing.assert_array_equal(parse_steering({0: value}, 4, 3)["resid_pre"][0], rounded)


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
    assert {site: [layer]} == {name: list(by_layer) for name, by_layer in parsed.items()}


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
    ],
)
def test_parse_steering_refuses(given: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_steering(given, 4, 3)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"vector": vectors(D), "layer": 0, "site": "resid"}, ("site", "'resid'", "resid_pre")),
        ({"vector": vectors(2, D), "layer": 0}, ("vector", f"(2, {D})", "[0]")),
        ({"vector": vectors(D), "layer": [0, 1]}, ("vector", f"(1, {D})", "[0, 1]")),
        ({"vector": 1.0, "layer": 0}, ("vector", "()")),
        ({"vector": [np.nan], "layer": 0}, ("vector", "NaN", "finite")),
        ({"vector": "north", "layer": 0}, ("vector", "'north'", "numbers")),
        ({"vector": vectors(D), "layer": 0.5}, ("layer", "0.5", "whole")),
        ({"vector": vectors(D), "layer": 0, "strength": np.inf}, ("strength", "infinity", "finite")),
    ],
)
def test_add_refuses(arguments: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ArgumentError) as caught:
        edits.add(**arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_one_value_per_row_means_as_many_as_rows(both) -> None:
    with pytest.raises(ArgumentError, match="strength") as caught:
        mechanex.forward(both("llama")[0], PROMPTS, edits=edits.add(vectors(D), 0, [1.0, 2.0]))
    assert "3 rows" in str(caught.value)


# --- generate --------------------------------------------------------------------------------------------------------


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
    steered = mx.generation.generate(prompt, steering_vector={11: vector}, steering_strength=1.5, **arguments)
    tokens = np.array([*loaded.tokenizer.encode(prompt), *steered.tokens])
    hf = oracles.theirs(folder)
    with oracles.edited(hf, "resid_pre", 11, lambda x: x + 1.5 * vector):
        assert_greedy(hf, tokens, len(tokens) - 8, steered.logprobs)
    plain = oracles.logits_of(hf, tokens[None])[0, len(tokens) - 9 : -1]
    assert (plain.argmax(-1) != steered.tokens).any()


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


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_strength_zero_is_unsteered(session) -> None:
    plain = session.generation.generate("the future", 8, seed=1, details=True)
    zero = session.generation.generate("the future", 8, seed=1, details=True, steering_vector={0: vectors(D)})
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
