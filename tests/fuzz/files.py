"""Targets that read a model's files: every one of them is a folder of a tiny model, or a GGUF file, with one file changed."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ggufs import EXTRA, byte_tokens, random_weights, write_gguf

from mechanex_jax import loading
from mechanex_jax.architectures.model import Model
from mechanex_jax.checkpoints import gguf, safetensors
from mechanex_jax.errors import CheckpointError

from .target import Target
from .values import damaged, dumped, mutated, wild

JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")
TEMPLATES = [
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}", "{% for i in range(10**9) %}x{% endfor %}",
    "{{ 'a'.center(10**9) }}", "{{ lipsum(10000) }}", "{{ messages[0]['nothing'].at }}", "{{ 'a' * 10**9 }}",
    "{{ 2 ** 10**7 }}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "{{ raise_exception('no') }}", "{{ ''.__class__.__mro__ }}",
]  # fmt: skip


@functools.cache
def folder() -> Path:
    """A folder for the files of this process."""
    made = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@functools.cache
def gguf_file() -> tuple[bytes, int]:
    """A tiny GGUF file, and the length of its header."""
    from gguf import GGUFReader

    path = write_gguf(folder() / "tiny.gguf", random_weights(tied=True), "F32")
    return path.read_bytes(), GGUFReader(path).data_offset


def _gpt2_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    width, rng = config["n_embd"], np.random.default_rng(0)
    matrices = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
    matrices |= {"mlp.c_fc": (width, 4 * width), "mlp.c_proj": (4 * width, width)}
    shapes = {"wte.weight": (config["vocab_size"], width), "wpe.weight": (config["n_positions"], width)}
    shapes |= {f"ln_f.{name}": (width,) for name in ("weight", "bias")}
    for layer in range(config["n_layer"]):
        shapes |= {f"h.{layer}.ln_{i}.{name}": (width,) for i in (1, 2) for name in ("weight", "bias")}
        for matrix, shape in matrices.items():
            shapes |= {f"h.{layer}.{matrix}.weight": shape, f"h.{layer}.{matrix}.bias": shape[1:]}
    return {name: rng.standard_normal(shape).astype(np.float32) / 8 for name, shape in shapes.items()}


@functools.cache
def family(name: str) -> Path:
    """The folder of a tiny, whole model of a family."""
    made = folder() / name
    made.mkdir()
    whole = folder() / f"{name}.gguf"
    whole.write_bytes(gguf_file()[0])
    gguf.convert(whole, made)
    config = json.loads((made / "config.json").read_text())
    if name == "gpt2":
        vocabulary = len(byte_tokens()) + len(EXTRA)
        config = {"model_type": "gpt2", "vocab_size": vocabulary, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        arrays = _gpt2_tensors(config)
        safetensors.write(made / "model.safetensors", [(key, a.shape) for key, a in arrays.items()], arrays.values())
    (made / "config.json").write_text(json.dumps(config | {"model_type": name}))
    return made


class Loadable(NamedTuple):
    """A model that equals all others with the same programs."""

    model: Model

    def __hash__(self) -> int:
        return hash(self.model.static)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loadable) and self.model.static == other.model.static


@functools.lru_cache(maxsize=256)
def traced(loadable: Loadable) -> None:
    """Trace a forward pass: what loads must be able to run."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    jax.eval_shape(lambda m, t: m.extend(m.init_cache(1, 4), t, jnp.full(1, 2, jnp.int32)), loadable.model, tokens)


def load(path: Path) -> loading.LoadedModel:
    """Load a model, with all of it that is read late."""
    loaded = loading.load(path, device="cpu", progress=False)
    assert loaded.token_bytes and loaded.fingerprint
    traced(Loadable(loaded.model))
    ids = loaded.tokenizer.encode("hello <s> 12 é\n")
    assert isinstance(loaded.tokenizer.decode(ids), str)
    if loaded.tokenizer.chat_template:
        loaded.tokenizer.encode_chat([{"role": "user", "content": "hello"}])
    return loaded


def _load_changed(name: str, changes: dict[str, bytes]) -> None:
    """Load the model of a family with other contents of some files."""
    path = folder() / "case"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(family(name), path)
    for file, content in changes.items():
        (path / file).write_bytes(content)
    load(path)


# --- cases ---------------------------------------------------------------------------------------------------------------


def _configuration(name: str) -> Target:
    """`config.json` with one to three fields of the family changed."""

    def draw(rng: Random) -> bytes:
        from mechanex_jax.architectures import gpt2, llama

        fields = {"llama": llama.LLAMA_FIELDS, "mistral": llama.MISTRAL_FIELDS, "gpt2": gpt2.FIELDS}[name]
        config = json.loads((family(name) / "config.json").read_text())
        if rng.random() < 0.5:
            return dumped(mutated(rng, config))
        beside = [
            "layer_types",
            "rope_theta",
            "partial_rotary_factor",
            "original_max_position_embeddings",
            "quantization_config",
        ]
        known = sorted({*fields.used, *fields.fixed, *fields.without_effect, *fields.aliases, *beside})
        for field in rng.sample(known, rng.choice([1, 1, 2])):
            config[field] = _rope(rng) if field in ("rope_scaling", "rope_parameters") else wild(rng)
        return dumped(config)

    return Target(draw, lambda content: _load_changed(name, {"config.json": content}), (CheckpointError,))


def _rope(rng: Random) -> Any:
    rope = {"rope_type": rng.choice(["default", "linear", "llama3"]), "rope_theta": 1e4, "factor": 2.0}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    return mutated(rng, rope)


def _json_file(rng: Random) -> dict[str, bytes]:
    name = rng.choice(JSON_FILES)
    path = family("llama") / name
    whole = path.read_bytes() if path.is_file() else b'{"eos_token": "</s>", "unk_token": {"content": "<s>"}}'
    if rng.random() < 0.5:
        return {name: damaged(rng, whole, len(whole))}
    content = mutated(rng, json.loads(whole))
    if name == "tokenizer_config.json" and isinstance(content, dict) and rng.random() < 0.4:
        content["chat_template"] = rng.choice([*TEMPLATES, wild(rng), [{"name": "default", "template": wild(rng)}]])
    return {name: dumped(content)}


def _safetensors_header(rng: Random) -> dict[str, bytes]:
    whole = (family("llama") / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    if rng.random() < 0.5:
        return {"model.safetensors": damaged(rng, whole, 8 + length)}
    header = dumped(mutated(rng, json.loads(whole[8 : 8 + length])))
    return {"model.safetensors": len(header).to_bytes(8, "little") + header + whole[8 + length :]}


def load_gguf(content: bytes) -> None:
    """Convert a GGUF file and load what came of it."""
    path, made = folder() / "case.gguf", folder() / "converted"
    path.write_bytes(content)
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    gguf.convert(path, made)
    load(made)


TARGETS = {
    **{f"config_{name}": _configuration(name) for name in ("llama", "mistral", "gpt2")},
    "tokenizer_files": Target(_json_file, lambda changes: _load_changed("llama", changes)),
    "safetensors_header": Target(_safetensors_header, lambda changes: _load_changed("llama", changes), (CheckpointError,)),
    "gguf_header": Target(lambda rng: damaged(rng, *gguf_file()), load_gguf, (CheckpointError,)),
}
