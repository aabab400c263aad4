"""Flax NNX model families, and the way from a checkpoint to a `Model`."""

from __future__ import annotations

from collections.abc import Callable

import jax

from mechanex_jax.architectures import gpt2, llama
from mechanex_jax.architectures.config import CheckpointConfig, Config
from mechanex_jax.architectures.hf_config import refuse_quantization
from mechanex_jax.architectures.model import Family, Model, ModelOutput, Static, parameter_shapes
from mechanex_jax.architectures.weights import Tensors, check_tensors, parameter, resolve_tying
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
      CheckpointError: a model type that no family covers, missing keys, values that are refused, quantised weights,
        tensors that don't fit, that nothing reads, or that hold NaN or infinity.
    """
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise CheckpointError(
            f"config.json: got model_type {kind!r}; expected one of {', '.join(FAMILIES)}. "
            "Other architectures are added as one file in mechanex_jax/architectures."
        )
    refuse_quantization(config)
    try:
        spec = family.configure(config)
    except KeyError as error:
        raise CheckpointError(f"config.json: missing {error.args[0]!r}, which a {kind} model needs.") from error
    spec, plan, unneeded = resolve_tying(spec, family.weights, tensors)
    check_tensors(plan, tensors, unneeded)
    static = Static(family, spec, dtype)
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
