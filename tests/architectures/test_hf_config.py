"""Every field of `config.json` and every tensor is used, known to change nothing, or refused; the truth is `transformers`."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import oracles
import pytest
import torch
from model_table import LLAMA3, TOLERANCE, whole
from oracles import VOCABULARY, gpt2, llama, mistral
from transformers import GPT2Config, LlamaConfig, MistralConfig

from mechanex_jax import architectures, checkpoints
from mechanex_jax.architectures import gpt2 as our_gpt2
from mechanex_jax.architectures import llama as our_llama
from mechanex_jax.checkpoint_fields import Fields
from mechanex_jax.errors import CheckpointError

MAKE = {"llama": llama, "mistral": mistral, "gpt2": gpt2}
FAMILIES = {
    "llama": (LlamaConfig, our_llama.LLAMA_FIELDS, {"rope_scaling"}),
    "mistral": (MistralConfig, our_llama.MISTRAL_FIELDS, {"rope_scaling"}),
    "gpt2": (GPT2Config, our_gpt2.FIELDS, set()),
}
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    return {name: oracles.saved(make(), tmp_path_factory.mktemp(name)) for name, make in MAKE.items()}


@pytest.fixture
def altered(saved, tmp_path: Path):
    """A copy of a family's checkpoint with changes to its configuration and its tensors."""

    def make(family: str, config: Change | dict[str, Any], tensors: Change = lambda tensors: None) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(saved[family], folder)
        oracles.rewrite_config(folder, config if callable(config) else lambda c: c.update(config))
        oracles.rewrite_tensors(folder, tensors)
        return folder

    return make


def message(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        oracles.ours(folder)
    return str(caught.value)


def assert_same_logits(folder: Path) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (1, 100)).astype(np.int32)
    logits = whole(oracles.ours(folder), tokens, [100]).logits
    np.testing.assert_allclose(logits, oracles.logits_of(oracles.theirs(folder), tokens), rtol=0, atol=TOLERANCE)
    return np.asarray(logits)


# --- every field ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_the_configuration_class_is_in_exactly_one_table(family: str) -> None:
    theirs, fields, beside = FAMILIES[family]
    tables = [set(fields.used) - beside, set(fields.without_effect), set(fields.fixed) - {"per_layer_config"}]
    names = sorted(name for table in tables for name in table)
    assert names == sorted(field.name for field in dataclasses.fields(theirs))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_defaults_of_the_configuration_class_are_accepted(family: str) -> None:
    theirs, fields, _ = FAMILIES[family]
    defaults = {field.name: field.default for field in dataclasses.fields(theirs)}
    assert fields.check(defaults) == defaults


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, (_, fields, _) in FAMILIES.items() for name in fields.fixed]
)
def test_a_field_that_is_fixed_is_refused_with_another_value(family: str, name: str) -> None:
    fields: Fields = FAMILIES[family][1]
    value = not fields.fixed[name][0] if isinstance(fields.fixed[name][0], bool) else "another"
    with pytest.raises(CheckpointError, match=f"got {name} {value!r}; expected {fields.fixed[name][0]!r}"):
        fields.check({name: value})


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_said_to_change_nothing_changes_nothing(family: str, altered) -> None:
    values = {
        "initializer_range": 0.5, "use_cache": False, "pad_token_id": 3, "attention_dropout": 0.5, "pretraining_tp": 2,
        "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5, "summary_type": "last", "reorder_and_upcast_attn": True,
        "chunk_size_feed_forward": 7, "id2label": {"0": "a"}, "problem_type": "regression", "output_hidden_states": True,
        "label2id": {"a": 0}, "summary_first_dropout": 0.5, "summary_use_proj": False, "transformers_version": "4.0.0",
    }  # fmt: skip
    changes = {name: values[name] for name in FAMILIES[family][1].without_effect & set(values)}
    np.testing.assert_array_equal(assert_same_logits(altered(family, changes)), assert_same_logits(altered(family, {})))


# --- values that no model has --------------------------------------------------------------------------------------------

WILD = {
    "num_hidden_layers": [10**9, -1, 0, "3", None, 2.5, True, float("nan"), [2], {}],
    "hidden_size": [-64, 0, 64.5, "64", 10**30],
    "intermediate_size": [-80, None],
    "vocab_size": [-97, 10**12, 97.0],
    "num_attention_heads": [0, -4],
    "num_key_value_heads": [0, -2, 1.5],
    "head_dim": [0, -16, 15],
    "max_position_embeddings": [1e12, 10**12, -1, float("nan"), float("inf")],
    "rms_norm_eps": [10**400, 1e308, float("nan"), float("inf"), -1e-5, "1e-5"],
    "eos_token_id": [2.5, -2, "2", [2, 2.5], True, 2**31],
    "bos_token_id": [2.5],
    "tie_word_embeddings": ["false", 0, None],
    "rope_parameters": [[], "default", {"rope_theta": float("nan")}, {"rope_theta": -1.0}, {"rope_theta": None}],
    "rope_scaling": [{"type": "linear", "factor": 0}, {"type": "linear", "factor": None}, {"type": ["linear"]}],
    "model_type": [["llama"], {}, 3],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WILD.items() for value in values], ids=repr)
def test_a_wild_value_is_refused_at_once(name: str, value: Any, saved) -> None:
    config = {**oracles.read_config(saved["llama"]), name: value}
    tensors = checkpoints.TensorReader(saved["llama"])
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"config\.json: got .*; expected "):
        architectures.build(config, tensors, dtype="float32", device=jax.devices("cpu")[0])
    assert time.monotonic() - start < 1


def test_more_layers_than_the_file_has_are_refused_before_they_are_built(altered) -> None:
    start = time.monotonic()
    assert "Missing tensors for blocks.2." in message(altered("llama", {"num_hidden_layers": 10_000}))
    assert time.monotonic() - start < 5


# --- quantised weights, and tensors that nothing reads -------------------------------------------------------------------

QUANTIZED = [
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config with quant_method 'gptq'"),
    ({"quantization_config": {"quant_method": "fp8"}}, "'fp8'"),
    ({"quantization_config": {}}, "quantization_config with quant_method None"),
    ({"compression_config": {"quant_method": "compressed-tensors"}}, "'compressed-tensors'"),
]


@pytest.mark.parametrize("family", MAKE)
@pytest.mark.parametrize(("change", "words"), QUANTIZED)
def test_a_quantization_config_is_refused(family: str, change: dict[str, Any], words: str, altered) -> None:
    assert words in message(altered(family, change))


Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "float8_e4m3fn", "float8_e5m2", "bool"])
def test_a_weight_that_is_not_of_floating_point_is_refused(dtype: str, altered) -> None:
    kind = getattr(torch, dtype)
    text = message(altered("llama", {}, lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ].to(kind)})))
    assert f"{Q_PROJ}: got a tensor of type {dtype}" in text


UNREAD = {
    "scales": ("llama", "model.layers.0.mlp.up_proj.weight_scale_inv", torch.ones(1), "float32"),
    "packed weights": ("llama", "model.layers.0.mlp.up_proj.qweight", torch.ones(2, 2, dtype=torch.int32), "int32"),
    "a bias": ("mistral", "model.layers.0.self_attn.q_proj.bias", torch.ones(64), "float32"),
    "norms of queries": ("llama", "model.layers.0.self_attn.q_norm.weight", torch.ones(16), "float32"),
    "another layer": ("llama", "model.layers.2.input_layernorm.weight", torch.ones(64), "float32"),
    "cross-attention": ("gpt2", "transformer.h.0.crossattention.c_attn.weight", torch.ones(64, 128), "float32"),
    "a classifier": ("gpt2", "score.weight", torch.ones(2, 64), "float32"),
}


@pytest.mark.parametrize("case", UNREAD)
def test_a_tensor_that_nothing_reads_is_refused_by_name(case: str, altered) -> None:
    family, name, tensor, dtype = UNREAD[case]
    text = message(altered(family, {"attention_bias": True} if case == "a bias" else {}, lambda t: t.update({name: tensor})))
    assert f"got 1, {name} ({dtype}); expected" in text


BUFFERS = {
    "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"],
    "gpt2": ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
}


@pytest.mark.parametrize("family", BUFFERS)
def test_buffers_of_older_versions_are_passed_over(family: str, altered) -> None:
    assert_same_logits(altered(family, {}, lambda tensors: tensors.update({name: torch.ones(2) for name in BUFFERS[family]})))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [Q_PROJ, "lm_head.weight", "model.norm.weight"])
def test_weights_that_are_not_finite_are_refused_by_name(name: str, value: float, dtype: str, altered) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[-1] = value

    folder = altered("llama", {}, spoil)
    with pytest.raises(CheckpointError, match=f"got NaN or infinity as {dtype} in .*{name}"):
        oracles.ours(folder, dtype)


def test_weights_beyond_the_range_of_half_precision_are_refused_there_alone(altered) -> None:
    folder = altered("llama", {}, lambda tensors: {**tensors, "model.norm.weight": torch.full((64,), 70_000.0)})
    oracles.ours(folder, "float32")
    with pytest.raises(CheckpointError, match=r"as float16 in .*model\.norm\.weight.*float32"):
        oracles.ours(folder, "float16")


# --- tied embeddings -----------------------------------------------------------------------------------------------------

EMBEDDING = {"llama": "model.embed_tokens.weight", "gpt2": "transformer.wte.weight"}


def _other_head(tensors: dict[str, torch.Tensor], family: str) -> None:
    tensors["lm_head.weight"] = tensors[EMBEDDING[family]].flip(0).clone()


def _same_head(tensors: dict[str, torch.Tensor], family: str) -> None:
    tensors["lm_head.weight"] = tensors[EMBEDDING[family]].clone()


def _head_alone(tensors: dict[str, torch.Tensor], family: str) -> None:
    tensors["lm_head.weight"] = tensors.pop(EMBEDDING[family])


@pytest.mark.parametrize("said", [True, False], ids=["said", "by default"])
@pytest.mark.parametrize("family", EMBEDDING)
@pytest.mark.parametrize(("head", "tied"), [(_other_head, False), (_same_head, True), (_head_alone, True)])
def test_a_head_beside_tied_embeddings_counts_as_in_transformers(
    head: Callable[..., None], tied: bool, family: str, said: bool, altered
) -> None:
    def config(hf: dict[str, Any]) -> None:
        hf.pop("tie_word_embeddings", None)
        if said or family == "llama":  # whose default is untied
            hf["tie_word_embeddings"] = True

    folder = altered(family, config, lambda tensors: head(tensors, family))
    assert_same_logits(folder)
    assert oracles.ours(folder).spec.tied == tied


# --- rotary positions and windows ----------------------------------------------------------------------------------------

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
SPELLINGS = {
    "rope_scaling replaces rope_parameters": (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": LINEAR},
    ),
    "with a theta beside them": (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": LINEAR, "rope_theta": 300.0},
    ),
    "an empty rope_scaling": ("llama", {"rope_scaling": {}, "rope_parameters": LINEAR}),
    "theta inside wins": ("llama", {"rope_parameters": LINEAR, "rope_theta": 300.0}),
    "both kinds, rope_type wins": ("llama", {"rope_parameters": LINEAR | {"type": "llama3"}}),
    "original positions inside": ("llama", {"rope_parameters": LLAMA3}),
    "original positions beside": ("llama", {"rope_parameters": LLAMA3, "original_max_position_embeddings": 16}),
    "original positions nowhere": (
        "llama",
        {"rope_parameters": {k: v for k, v in LLAMA3.items() if not k.startswith("original")}},
    ),
    "a null window": ("mistral", {"sliding_window": None}),
    "all layers full": ("mistral", {"sliding_window": 9, "layer_types": ["full_attention"] * 2}),
    "all layers sliding": ("mistral", {"sliding_window": 9, "layer_types": ["sliding_attention"] * 2}),
    "null layer types": ("mistral", {"sliding_window": 9, "layer_types": None}),
    "layer types of a Llama": ("llama", {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 9}),
    "attention_bias of a Mistral": ("mistral", {"attention_bias": True, "mlp_bias": True}),
    "aliases of GPT-2": ("gpt2", {"hidden_size": 64, "num_hidden_layers": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SPELLINGS)
def test_what_can_be_read_in_two_ways_is_read_as_in_transformers(case: str, altered) -> None:
    family, changes = SPELLINGS[case]
    assert_same_logits(altered(family, changes))


REFUSED = {
    "mixed layers": ("mistral", {"sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    "other layers": ("mistral", {"layer_types": ["linear_attention"] * 2}, "layer_types linear_attention"),
    "too few layer types": ("mistral", {"layer_types": ["full_attention"]}, "all 2 layers"),
    "layer types that are none": ("mistral", {"layer_types": 3}, "layer_types 3"),
    "sliding without a window": ("mistral", {"layer_types": ["sliding_attention"] * 2, "sliding_window": None}, "None"),
    "a window of nothing": ("mistral", {"sliding_window": 0}, "sliding_window 0"),
    "rotation by layer type": ("mistral", {"rope_parameters": {"full_attention": LINEAR}}, "full_attention"),
    "low above high": ("llama", {"rope_parameters": LLAMA3 | {"low_freq_factor": 5.0}}, "low_freq_factor 5.0"),
    "fractional original": ("llama", {"rope_parameters": LLAMA3, "original_max_position_embeddings": 1.5}, "1.5"),
    "aliases that differ": ("gpt2", {"hidden_size": 32}, "n_embd 64 and hidden_size 32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_computed_in_no_way_here_is_refused(case: str, altered) -> None:
    family, changes, words = REFUSED[case]
    text = message(altered(family, changes))
    assert words in text and "got" in text and "expected" in text
