"""The folders of the library's files: those that can be fetched or made again, and those that cannot."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of models, compiled programs and constraints: `MECHANEX_CACHE`, else the platform's own place."""
    return _folder("MECHANEX_CACHE", "user_cache_dir")


def data_folder() -> Path:
    """The folder of what the user makes, such as steering vectors: `MECHANEX_DATA`, else the platform's own place."""
    return _folder("MECHANEX_DATA", "user_data_dir")


def _folder(environment: str, place: str) -> Path:
    if chosen := os.environ.get(environment):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(getattr(platformdirs, place)("mechanex_jax", appauthor=False))
