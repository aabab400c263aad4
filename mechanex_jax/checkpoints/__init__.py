"""Where models come from: names, files, weights and tokenizers. NumPy only; nothing here knows JAX."""

from mechanex_jax.checkpoints.catalogue import Entry, catalogue, default_name
from mechanex_jax.checkpoints.checkpoint import Checkpoint
from mechanex_jax.checkpoints.safetensors import TensorReader
from mechanex_jax.checkpoints.sources import kept, pull, resolve
from mechanex_jax.storage.build_folder import build_folder
from mechanex_jax.tokenization.tokenizer import Tokenizer

__all__ = [
    "Checkpoint",
    "Entry",
    "TensorReader",
    "Tokenizer",
    "build_folder",
    "catalogue",
    "default_name",
    "kept",
    "pull",
    "resolve",
]
