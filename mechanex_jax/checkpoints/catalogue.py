"""The catalogue: which names `mx.load` knows, and where their files come from."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechanex_jax.errors import CheckpointError
from mechanex_jax.storage.json_values import parse_json

_PACKAGE = Path(__file__).resolve().parent.parent
# An installed wheel carries the catalogue inside the package; a checkout has it beside the package.
_PLACES = (_PACKAGE / "_models", _PACKAGE.parent / "models")


@dataclass(frozen=True)
class WheelSource:
    """A GGUF file inside a wheel of a package index."""

    package: str
    version: str
    file: str
    sha256: str


@dataclass(frozen=True)
class HubSource:
    """A repository of the Hugging Face hub."""

    repo_id: str
    revision: str | None = None


@dataclass(frozen=True)
class FolderSource:
    """A folder of safetensors, relative to the catalogue's own folder unless absolute."""

    path: str


Source = WheelSource | HubSource | FolderSource
_KINDS: Mapping[str, type] = {"wheel": WheelSource, "hub": HubSource, "folder": FolderSource}


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue.

    Attributes:
      name: the argument of `mx.load`; `aliases` are further names for it.
      source: where the files come from.
      context: the longest sequence in tokens.
      parameters: how many numbers the weights are; a matrix used twice counts once.
      default: whether `mx.load()` without a name means this one.
    """

    name: str
    aliases: tuple[str, ...]
    source: Source
    licence: str
    architecture: str
    context: int
    parameters: int
    description: str
    default: bool = False


def models_folder() -> Path:
    """The folder that holds the catalogue and the cards."""
    for place in _PLACES:
        if (place / "catalogue.json").is_file():
            return place
    raise CheckpointError(
        f"No catalogue.json in {' or '.join(map(str, _PLACES))}; expected one of them. Reinstall the package, or "
        "load a model by its folder or hub id."
    )


def catalogue() -> tuple[Entry, ...]:
    """All models that have a name here, the default first."""
    return _read(models_folder() / "catalogue.json")


def default_name() -> str:
    """The name of the model that `mx.load()` means."""
    return catalogue()[0].name


def find(name: str) -> Entry | None:
    """The entry of a name or alias, in upper or lower case; None if there is none."""
    key = name.strip().lower()
    return next((entry for entry in catalogue() if key in (entry.name, *entry.aliases)), None)


@functools.cache
def _read(path: Path) -> tuple[Entry, ...]:
    try:
        entries = [_entry(item) for item in parse_json(path.read_text("utf-8"))["models"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"The catalogue {path} cannot be read: {error!r}. Compare it with models/README.md.") from error
    defaults = [entry.name for entry in entries if entry.default]
    if len(defaults) != 1:
        raise CheckpointError(f"The catalogue {path} marks {defaults} as default; expected exactly one model.")
    names = [name for entry in entries for name in (entry.name, *entry.aliases)]
    if len(set(names)) != len(names):
        raise CheckpointError(f"The catalogue {path} uses a name twice: {sorted(names)}; expected each only once.")
    return tuple(sorted(entries, key=lambda entry: not entry.default))


def _entry(item: dict[str, Any]) -> Entry:
    source = dict(item["source"])
    kind = source.pop("kind")
    if kind not in _KINDS:
        raise ValueError(f"source kind {kind!r} of {item['name']!r}; expected one of {sorted(_KINDS)}")
    return Entry(**{**item, "aliases": tuple(item.get("aliases", ())), "source": _KINDS[kind](**source)})
