"""A model's files on disk, ready to be read."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechanex_jax.checkpoints.safetensors import TensorReader
from mechanex_jax.errors import CheckpointError
from mechanex_jax.storage.json_values import parse_json
from mechanex_jax.tokenization.tokenizer import Tokenizer

# What a config says about its own history, not about the model.
_HISTORY = ("transformers_version", "_name_or_path")


@dataclass(frozen=True)
class Checkpoint:
    """A folder in the Hugging Face layout: `config.json`, safetensors, tokenizer.

    Attributes:
      name: as the user asked for it: a catalogue name, a hub id or the folder's name.
      folder: where the files are.
      config: the content of `config.json`.
    """

    name: str
    folder: Path
    config: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], name: str | None = None) -> Checkpoint:
        """Open a folder.

        Raises:
          CheckpointError: there is no readable `config.json` that names a model.
        """
        folder = Path(folder)
        path = folder / "config.json"
        if not path.is_file():
            names = sorted(item.name for item in folder.iterdir())[:12] if folder.is_dir() else []
            raise CheckpointError(
                f"{folder} is not a model: found {', '.join(names) or 'no files'}; expected config.json, "
                "model.safetensors (or shards with their index) and tokenizer.json. Pass the folder that directly "
                "holds them."
            )
        try:
            config = parse_json(path.read_bytes())
        except ValueError as error:
            raise CheckpointError(f"{path} is not JSON ({error}); the file is corrupt: fetch the model again.") from error
        if not isinstance(config, dict) or not ("model_type" in config or "architectures" in config):
            raise CheckpointError(f"{path} names no model: expected the keys model_type or architectures.")
        return cls(name or folder.resolve().name, folder, config)

    def tensors(self) -> TensorReader:
        """The weights; opening checks all files' headers."""
        return TensorReader(self.folder)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer with its chat template and special ids."""
        return Tokenizer.from_folder(self.folder)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A SHA-256 of what the model computes: configuration and a sample of every weight. Takes milliseconds.

        It does not depend on the folder's place or on how the weights are split into files.
        """
        config = {key: value for key, value in self.config.items() if key not in _HISTORY}
        return hashlib.sha256((json.dumps(config, sort_keys=True) + self.tensors().digest()).encode()).hexdigest()
