"""Loading a model by name: its files, its weights on a device, its tokenizer."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mechanex_jax import checkpoints
from mechanex_jax.errors import CheckpointError, expected
from mechanex_jax.progress import bar as progress_bar
from mechanex_jax.storage.paths import cache_folder

if TYPE_CHECKING:
    from jax.typing import DTypeLike

    from mechanex_jax import loops, transforms
    from mechanex_jax.architectures import Model

    Device: TypeAlias = Any  # a jax.Device, which is no class to a type checker

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that is ready to generate.

    Attributes:
      name: the name or path it was loaded by.
      model: weights and pure functions, for `mx.loops` and `mx.forward`.
      tokenizer: text to ids and back.
      config: the checkpoint's `config.json`.
      fingerprint: identifies weights and configuration.
      folder: where the files are.
      device: the jax.Device that holds the weights.
      draft_lengths: what speculation has measured, by batch size and draft (see `loops.DraftLengthController`).
    """

    name: str
    model: Model
    tokenizer: checkpoints.Tokenizer
    config: dict[str, Any] = dataclasses.field(repr=False)
    fingerprint: str = dataclasses.field(repr=False)
    folder: Path
    device: Device
    draft_lengths: dict[Hashable, loops.DraftLengthController] = dataclasses.field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        family, size = self.config.get("model_type", "unknown family"), f"{self.model.size:,} parameters"
        place = f"{getattr(self.device, 'platform', '?')}:{getattr(self.device, 'id', '?')}"
        return f"LoadedModel({self.name!r}, {family}, {size}, {self.model.dtype}, {place})"

    @property
    def bytes(self) -> int:
        """Memory that the weights take."""
        return sum(array.nbytes for array in self.model.params)

    @functools.cached_property
    def directions(self) -> transforms.Directions:
        """The unembedding's directions, for `transforms.determinantal`; a copy of its size, made on first use."""
        from mechanex_jax import transforms

        return transforms.directions(self.model.unembedding().T)

    @functools.cached_property
    def token_bytes(self) -> tuple[jax.Array, jax.Array]:
        """(offsets int32 [V + 1], data uint8) for `loops.stops`, V being the number of logits, on the device."""
        vocabulary = self.tokenizer.vocabulary
        offsets = np.full(self.model.spec.vocabulary + 1, vocabulary.offsets[-1], np.int32)
        known = min(len(offsets), len(vocabulary.offsets))
        offsets[:known] = vocabulary.offsets[:known]
        return jax.device_put((offsets, vocabulary.bytes), self.device)


def _device(device: str | Device | None) -> Device:
    if device is None:
        return jax.devices()[0]
    if isinstance(device, jax.Device):
        return device
    platform, _, index = str(device).partition(":")
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
        raise expected("device", device, f"one of {', '.join(str(d) for d in jax.devices())}, or 'cpu'") from error


def _dtype(dtype: DTypeLike | None, device: Device) -> str:
    """bfloat16 on accelerators; float32 on CPUs, where XLA's bfloat16 matrix-vector product is many times slower."""
    if dtype is None:
        return "float32" if device.platform == "cpu" else "bfloat16"
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise expected("dtype", dtype, f"one of {', '.join(DTYPES)}")
    return name


def _enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, unless the user has chosen a place (or none) already."""
    chosen = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is not None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    # Small programs too: a cold process otherwise spends longer on dozens of those than on the large ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def load(
    name: str | os.PathLike[str] | None = None,
    *,
    dtype: DTypeLike | None = None,
    device: str | Device | None = None,
    progress: bool | None = None,
) -> LoadedModel:
    """Fetch a model if need be and put it on a device. See `Mechanex.load`."""
    place = _device(device)
    kind = _dtype(dtype, place)
    shown = sys.stderr.isatty() if progress is None else progress
    checkpoint = checkpoints.resolve(name, progress=shown)
    _enable_compilation_cache()
    from mechanex_jax import architectures  # Flax takes half a second to import

    tokenizer = checkpoint.tokenizer()
    with progress_bar(f"Loading {checkpoint.name}", enabled=shown) as report:
        model = architectures.build(checkpoint.config, checkpoint.tensors(), dtype=kind, device=place, report=report)
    if tokenizer.size > model.spec.vocabulary:
        raise CheckpointError(
            f"{checkpoint.folder}: got a tokenizer of {tokenizer.size} ids; expected at most {model.spec.vocabulary}, the "
            "model's number of logits. The tokenizer belongs to another model."
        )
    return LoadedModel(checkpoint.name, model, tokenizer, checkpoint.config, checkpoint.fingerprint, checkpoint.folder, place)
