"""What edits refuse, on the host and before anything compiles: by which words, and that nothing slips through."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from edit_oracles import CASES, SCOPES, D, H, L, R, vectors

from mechanex_jax import edits, rows
from mechanex_jax.errors import ArgumentError, MechanexError

V, NAN = vectors(D), [np.nan] * D
LOW = vectors(R, D)
NETWORK = (vectors(D, H), vectors(H), vectors(H), np.float32(0))


def refused(call: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(ArgumentError) as caught:
        call()
    assert isinstance(caught.value, (MechanexError, ValueError))
    message = str(caught.value)
    assert all(word in message for word in (*words, "got", "expected")), message


# What all operations take, with one vector at one layer.
COMMON = [
    ({"site": "resid"}, ("site", "'resid'", "resid_pre")),
    ({"layer": [0, 1]}, (f"({D},)", "[0, 1]")),
    ({"layer": 0.5}, ("layer", "0.5", "whole")),
    ({"layer": True}, ("layer", "True", "whole")),
    ({"layer": []}, ("layer", "[]")),
    ({"layer": "11"}, ("layer", "'11'")),
    ({"layer": -2}, ("layer", "-2", "from 0")),
    ({"layer": [[[0]]]}, ("layer", "[B, N]")),
    ({"strength": np.inf}, ("strength", "infinity", "finite")),
    ({"strength": "3"}, ("strength", "'3'", "numbers")),
    ({"strength": None}, ("strength", "None")),
    ({"strength": []}, ("strength", "(0,)")),
    ({"strength": [[1.0, 2.0]]}, ("strength", "(1, 2)", "[B]")),
    ({"decay": 0}, ("decay", "0", "at most 1")),
    ({"decay": 1.01}, ("decay", "1.01", "at most 1")),
    ({"decay": [0.5, -1]}, ("decay", "-1", "more than 0")),
    ({"decay": np.nan}, ("decay", "NaN")),
    ({"scope": "everything"}, ("scope", "'everything'", "all, prompt, generated")),
    ({"scope": None}, ("scope", "None", "generated")),
    ({"scope": 3}, ("scope", "3", "generated")),
    ({"scope": []}, ("scope", "[]")),
    ({"scope": ["all", "end"]}, ("scope", "'end'")),
]
OPERATIONS = {
    "add": lambda vector=V, layer=0, strength=1.0, **k: edits.add(vector, layer, strength, **k),
    "ablate": lambda vector=V, layer=0, strength=1.0, **k: edits.ablate(vector, layer, strength, **k),
    "clamp": lambda vector=V, layer=0, strength=1.0, **k: edits.clamp(vector, layer, 1.0, strength, **k),
    "affine": lambda vector=V, layer=0, strength=1.0, **k: edits.affine(
        np.broadcast_to(LOW, (np.size(layer), R, D)),
        np.broadcast_to(LOW, (np.size(layer), R, D)),
        layer,
        strength,
        vector=vector,
        **k,
    ),
    "gate": lambda vector=V, layer=0, strength=1.0, **k: edits.gate(vector, layer, strength, **k),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_refuses(name: str) -> None:
    OPERATIONS[name]()
    for arguments, words in COMMON:
        refused(lambda a=arguments: OPERATIONS[name](**a), words)
    for vector, words in [
        (vectors(2, D), (f"(2, {D})", "[0]")),
        (vectors(1, 1, 1, D), (f"(1, 1, 1, {D})",)),
        (1.0, ("()", "[D]")),
        ([], ("(0,)", "[D]")),
        (NAN, ("NaN", "finite")),
        ([np.inf] * D, ("infinity", "finite")),
        ([1e300] * D, ("infinity", "finite")),
        ("north", ("'north'", "numbers")),
        (torch.full((D,), torch.nan), ("NaN", "finite")),
    ]:
        refused(lambda v=vector: OPERATIONS[name](vector=v), ("vector", *words))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: edits.add(vectors(2, D), [1, 1]), ("layer", "[1, 1]", "once", "two edits")),
        (lambda: edits.add(vectors(2, 2, D), [[0, 1], [2, 2]]), ("layer", "[2, 2]")),
        (lambda: edits.add(vectors(3, 1, D), [[0], [1]]), ("vector", "3 rows", "2")),
        (lambda: edits.ablate(np.zeros(D), 0), ("vector", "length 0", "direction")),
        (lambda: edits.clamp(np.zeros((2, D)), [0, -1], 1.0), ("vector", "length 0")),
        (lambda: edits.clamp(V, 0, np.nan), ("value", "NaN")),
        (lambda: edits.clamp(V, 0, "high"), ("value", "'high'")),
        (lambda: edits.clamp(V, 0, vectors(3, 2)), ("value", "(3, 2)", "[B, N]")),
        (lambda: edits.clamp(vectors(2, 1, D), 0, vectors(3)), ("value", "3 rows", "2")),
        (lambda: edits.affine(V, LOW, 0), ("a", f"({D},)", "[R, D]")),
        (lambda: edits.affine(LOW, vectors(R + 1, D), 0), ("b", f"R = {R + 1}", str(R))),
        (lambda: edits.affine(LOW, vectors(R, D + 1), 0), ("b", f"D = {D + 1}", str(D))),
        (lambda: edits.affine(LOW, LOW, 0, vector=vectors(D + 1)), ("vector", f"D = {D + 1}")),
        (lambda: edits.affine(LOW, NAN * R, 0), ("b", "NaN")),
        (lambda: edits.gate(V, 0, threshold=1.5), ("threshold", "1.5", "-1 to 1")),
        (lambda: edits.gate(V, 0, threshold="high"), ("threshold", "'high'")),
        (lambda: edits.gate(V, 0, direction=np.zeros(D)), ("direction", "length 0")),
        (lambda: edits.gate(np.zeros(D), 0), ("direction", "length 0")),
        (lambda: edits.gate(V, 0, direction=vectors(D + 1)), ("direction", f"D = {D + 1}", str(D))),
        (lambda: edits.gate(V, 0, sharpness=0), ("sharpness", "0", "None")),
        (lambda: edits.gate(V, 0, sharpness=-1), ("sharpness", "-1")),
        (lambda: edits.gate(V, 0, perceptron=NETWORK, threshold=0.5), ("threshold", "0.5", "perceptron")),
        (lambda: edits.gate(V, 0, perceptron=NETWORK, direction=V), ("direction", "perceptron")),
        (lambda: edits.gate(V, 0, perceptron=NETWORK, sharpness=3), ("sharpness", "perceptron")),
        (lambda: edits.gate(V, 0, perceptron=NETWORK[:3]), ("perceptron", "w1, b1, w2, b2")),
        (lambda: edits.gate(V, 0, perceptron="mlp"), ("perceptron", "'mlp'")),
        (lambda: edits.gate(V, 0, perceptron=(vectors(D + 1, H), *NETWORK[1:])), ("perceptron.w1", f"D = {D + 1}")),
        (lambda: edits.gate(V, 0, perceptron=(*NETWORK[:2], vectors(H + 1), 0.0)), ("perceptron.w2", f"H = {H + 1}")),
        (lambda: edits.gate(V, 0, perceptron=(*NETWORK[:3], vectors(2))), ("perceptron.b2", "(2,)", "a number")),
        (lambda: edits.gate(V, 0, perceptron=(*NETWORK[:3], np.nan)), ("perceptron.b2", "NaN")),
        (lambda: edits.norm_preserving(None), ("edit", "None")),
        (lambda: edits.norm_preserving([edits.add(V, 0)] * 2), ("edit", "one edit")),
        (lambda: edits.norm_preserving("add"), ("edits", "'add'")),
        (lambda: edits.compose([edits.add(V, 0), 3]), ("edits", "3")),
        (lambda: edits.scope("middle"), ("scope", "'middle'", "generated")),
        (lambda: edits.scope("all", last=4), ("last", "4", "prompt")),
        (lambda: edits.scope("generated", last=4), ("last", "4", "prompt")),
        (lambda: edits.scope("prompt", first=1, last=4), ("scope", "first=1, last=4", "one window")),
        (lambda: edits.scope("prompt", first=0), ("first", "0", "1 or more")),
        (lambda: edits.scope("prompt", last=-4), ("last", "-4", "1 or more")),
        (lambda: edits.scope("prompt", last=2.0), ("last", "2.0", "1 or more")),
        (lambda: edits.scope("prompt", first=True), ("first", "True")),
    ],
)
def test_refuses(call: Any, words: tuple[str, ...]) -> None:
    refused(call, words)


@pytest.mark.parametrize("name", CASES)
def test_check_holds_an_edit_against_a_model(name: str) -> None:
    case = CASES[name]
    edit = case.make(case.draw(0, 2), [-1, L - 1], 1.0)
    edits.check([edit, edit], L, D)
    edits.check(None, L, D)
    refused(lambda: edits.check(edit, L - 1, D), ("layer", str(L - 1), f"0 to {L - 2}"))
    refused(lambda: edits.check((edit,), L, D + 1), ("vector", f"width {D}", str(D + 1)))
    refused(lambda: edits.check(case.make(case.draw(0, 2), [[0, 1], [L, -1]], 1.0), L, D), ("layer", str(L)))


def test_check_lets_edits_of_ones_own_pass() -> None:
    @rows.row_tree
    class Double:
        site: str = rows.static()

        def apply(self, x: Any, layer: Any, where: Any) -> Any:
            return 2 * x

    edits.check((Double("mlp_out"), edits.norm_preserving(Double("mlp_out"))), 1, 3)


@pytest.mark.parametrize("name", CASES)
def test_one_layer_may_come_without_its_axis_and_rows_with_theirs(name: str) -> None:
    """[D], [1, D] and [B, 1, D] are one vector at one layer: the same edit once broadcast."""
    case = CASES[name]
    p = case.draw(0, 1)
    made = [
        case.make({key: value[0] for key, value in p.items()}, 0, 2),
        case.make(p, [0], [2.0, 2.0]),
        case.make({key: np.stack([value] * 2) for key, value in p.items()}, [[0], [0]], np.float64(2)),
        case.make({key: torch.tensor(value) for key, value in p.items()}, np.int64(0), jnp.float32(2)),
    ]
    first, *others = ([np.asarray(leaf) for leaf in _leaves(edit)] for edit in made)
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


def _leaves(edit: Any) -> list[Any]:
    return jax.tree.leaves(rows.broadcast_rows(edit, 2))


def test_a_word_is_a_scope() -> None:
    for arguments, _ in SCOPES.values():
        if len(arguments) == 1:
            word = edits.add(V, 0, scope=arguments["part"]).schedule
            made = edits.add(V, 0, scope=edits.scope(**arguments)).schedule
            assert [word.below, word.since, word.until] == [made.below, made.since, made.until]
