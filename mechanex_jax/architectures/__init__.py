"""Flax NNX model families, and the way from a checkpoint to a `Model`."""

from __future__ import annotations

from collections.abc import Callable

import jax

from mechanex_jax.architectures import gpt2, llama
from mechanex_jax.architectures.config import CheckpointConfig, Config
from mechanex_jax.architectures.model import Family, Model, ModelOutput, Static, parameter_shapes
from mechanex_jax.architectures.weights import Tensors, parameter
from mechanex_jax.errors import CheckpointError

_LLAMA = Family(llama.configure, llama.Llama, llama.weights)
FAMILIES = {"llama": _LLAMA, "mistral": _LLAMA, "gpt2": Family(gpt2.configure, gpt2.GPT2, gpt2.weights)}


def build(
    config: CheckpointConfig,
    tensors: Tensors,
    *,
    dtype: str,
    device: jax.Device,  # pyright: ignore[reportInvalidTypeForm]  # no class to a type checker
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Model:
    """Build a `Model` from HF's `config.json` (as a dict) and the checkpoint's tensors.

    Args:
      config: the content of `config.json`.
      tensors: where to read from.
      dtype: of the parameters, by name, such as "float32".
      device: where to put them.
      report: called after each parameter with the bytes that are on the device, and those that will be in the end.

    Raises:
      CheckpointError: a model type that no family covers, a missing key, tensors that are missing or of another shape.
    """
    kind = config.get("model_type")
    family = FAMILIES.get(kind or "")
    if family is None:
        raise CheckpointError(
            f"config.json: got model_type {kind!r}; expected one of {', '.join(FAMILIES)}. "
            "Other architectures are added as one file in mechanex_jax/architectures."
        )
    try:
        static = Static(family, family.configure(config), dtype)
    except KeyError as error:
        raise CheckpointError(f"config.json: missing {error.args[0]!r}, which a {kind} model needs.") from error
    plan = family.weights(static.config, tensors.names)
    shapes = parameter_shapes(static)
    params = []
    total, done = sum(shape.size * shape.dtype.itemsize for shape in shapes.values()), 0
    for path, shape in shapes.items():
        names, layout = plan[path]
        params.append(jax.device_put(parameter(path, shape.shape, shape.dtype, names, layout, tensors), device))
        done += params[-1].nbytes
        report(done, total)
    return Model(tuple(params), static)


__all__ = ["FAMILIES", "Config", "Family", "Model", "ModelOutput", "build"]
