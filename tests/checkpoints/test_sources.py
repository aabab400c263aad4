"""Checkpoints by name, the cache that keeps them whole or not at all, and the wheels they come in."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import time
import zipfile
from pathlib import Path
from unittest import mock

import pytest
import safetensors.numpy
from files import save_sharded, save_single, some_arrays
from ggufs import random_weights, write_gguf

from mechanex_jax import checkpoints
from mechanex_jax.checkpoints import Checkpoint, TensorReader, build_folder, sources, wheel
from mechanex_jax.checkpoints.catalogue import FolderSource, HubSource, WheelSource, find, models_folder
from mechanex_jax.errors import CheckpointError, ModelNotFoundError

# --- checkpoints and names -----------------------------------------------------------------------------------------


def _model(folder: Path, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_single(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


def test_a_folder_that_is_no_model_says_what_was_found(tmp_path: Path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"found holiday\.jpg; expected config\.json"):
        checkpoints.resolve(tmp_path)
    for content, message in (("{", "not JSON"), ("[]", "names no model"), ("{}", "names no model")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            checkpoints.resolve(tmp_path)


def test_the_fingerprint_is_of_the_content_alone(tmp_path: Path):
    first = Checkpoint.from_folder(_model(tmp_path / "a", transformers_version="4"))
    second = Checkpoint.from_folder(_model(tmp_path / "b", transformers_version="5"))
    sharded = _model(tmp_path / "c")
    (sharded / "model.safetensors").unlink()
    save_sharded(sharded)
    assert first.fingerprint == second.fingerprint == Checkpoint.from_folder(sharded).fingerprint
    changed = some_arrays()
    changed["b.matrix"] = changed["b.matrix"] * 2
    safetensors.numpy.save_file(changed, tmp_path / "b" / "model.safetensors")
    other_config = Checkpoint.from_folder(_model(tmp_path / "d", rope_theta=5.0))
    prints = {first.fingerprint, Checkpoint.from_folder(tmp_path / "b").fingerprint, other_config.fingerprint}
    assert len(prints) == 3


def test_an_unknown_name_lists_what_would_be_known(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"Did you mean 'smollm2-135m-instruct'.*gpt2.*folder.*hub id"):
        checkpoints.resolve("smollm2-135m-instrct")
    for name in ("", "zzz", "./no/such/folder", "no/such.gguf"):
        with pytest.raises(ModelNotFoundError, match="Expected a name of the catalogue"):
            checkpoints.resolve(name)
    (tmp_path / "weights.txt").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        checkpoints.resolve("weights.txt")


def test_every_catalogue_entry_has_a_source_and_the_default_a_card():
    entries = checkpoints.catalogue()
    assert [entry.default for entry in entries].count(True) == 1 and entries[0].default
    assert entries[0].name == checkpoints.default_name()
    assert (models_folder() / "cards" / f"{entries[0].name}.md").is_file()
    for entry in entries:
        assert isinstance(entry.source, WheelSource | HubSource | FolderSource) and entry.licence and entry.context > 0
        assert all(find(name.upper()) is entry for name in (entry.name, *entry.aliases))
    assert isinstance(entries[0].source, WheelSource)
    assert entries[0].source.sha256 in (models_folder() / "cards" / f"{entries[0].name}.md").read_text()


def test_the_hub_is_asked_for_safetensors_only_and_its_errors_say_what_to_do(tmp_path: Path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    asked = {}

    def answer(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(_model(tmp_path / "hub"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    checkpoint = checkpoints.resolve("some-org/some-model")
    assert checkpoint.name == asked["repo_id"] == "some-org/some-model"
    kept = huggingface_hub.utils.filter_repo_objects(
        ["model-1.safetensors", "config.json", "tokenizer.model", "pytorch_model.bin", "onnx/config.json", "README.md"],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(kept) == ["model-1.safetensors", "config.json", "tokenizer.model"]

    response = mock.MagicMock(status_code=404)  # of whichever HTTP library the hub's client uses
    for error, kind, message in (
        (errors.RepositoryNotFoundError("no", response=response), ModelNotFoundError, "hub has no such model"),
        (errors.GatedRepoError("no", response=response), CheckpointError, "accept"),
        (errors.LocalEntryNotFoundError("no"), CheckpointError, "cannot be reached.*pull some-org/some-model"),
        (OSError("no space left"), CheckpointError, "no space left"),
    ):

        def fail(*args, error=error, **options):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(kind, match=message):
            checkpoints.resolve("some-org/some-model")


# --- the cache -----------------------------------------------------------------------------------------------------


def _whole(folder: Path) -> None:
    (folder / "whole").write_text("whole")


class _Interrupt(BaseException):
    """Stands for Ctrl-C, which pytest would take for its own."""


@pytest.mark.parametrize("error", [_Interrupt, ValueError])
def test_an_interrupted_build_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path, error):
    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise error

    with pytest.raises(error):
        build_folder(tmp_path / "sub" / "target", interrupted)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == [".target.lock"]
    build_folder(tmp_path / "sub" / "target", _whole)
    assert [path.name for path in (tmp_path / "sub" / "target").iterdir()] == ["whole"]


@pytest.mark.slow
def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_build_forever, args=(tmp_path / "target", started))
    process.start()
    assert started.wait(60)
    process.kill()
    process.join()
    assert not (tmp_path / "target").exists() and list(tmp_path.glob(".target.tmp-*"))
    build_folder(tmp_path / "target", _whole)
    assert {path.name for path in tmp_path.iterdir()} == {"target", ".target.lock"}


def _build_forever(target: Path, started) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        started.set()
        time.sleep(600)

    build_folder(target, build)


@pytest.mark.slow
def test_two_processes_build_once_and_both_see_all_of_it(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        seen = pool.starmap(_build_slowly, [(tmp_path, "first"), (tmp_path, "second")], chunksize=1)
    assert seen == [20, 20]
    assert len((tmp_path / "builds").read_text().splitlines()) == 1


def _build_slowly(place: Path, name: str) -> int:
    # Both are here before either begins.
    (place / f"ready-{name}").touch()
    while len(list(place.glob("ready-*"))) < 2:
        time.sleep(0.01)

    def build(folder: Path) -> None:
        with open(place / "builds", "a") as log:
            log.write(f"{name}\n")
        for index in range(20):
            (folder / str(index)).touch()
            time.sleep(0.01)

    return len(list(build_folder(place / "target", build).iterdir()))


def test_a_file_in_the_way_is_an_error_that_names_the_way_out(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="MECHANEX_CACHE"):
        build_folder(tmp_path / "file" / "target", lambda folder: None)


# --- wheels --------------------------------------------------------------------------------------------------------


@pytest.fixture
def wheel_source(tmp_path: Path, monkeypatch) -> WheelSource:
    """A wheel with a tiny model in a folder that pip takes for its only index."""
    path = write_gguf(tmp_path / "tiny.gguf", random_weights(tied=True), "Q8_0")
    links = tmp_path / "links"
    links.mkdir()
    info = "mechanex_tiny_model-1.0.dist-info"
    with zipfile.ZipFile(links / "mechanex_tiny_model-1.0-py3-none-any.whl", "w") as archive:
        archive.write(path, "mechanex_tiny_model/tiny.gguf")
        archive.writestr("mechanex_tiny_model/__init__.py", "raise ImportError('must not be imported')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: mechanex-tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("MECHANEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return WheelSource("mechanex-tiny-model", "1.0", "mechanex_tiny_model/tiny.gguf", digest)


def _kept(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache" / "models").rglob("*") if path.suffix != ".lock"]


def test_a_wheel_is_fetched_verified_converted_and_only_the_result_kept(tmp_path: Path, wheel_source: WheelSource, capfd):
    folder = sources._fetch(wheel_source, "tiny", True)
    assert len(TensorReader(folder).names) == 20
    assert sorted(_kept(tmp_path)) == sorted(
        [
            folder.name,
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    )
    captured = capfd.readouterr()
    assert "Downloading mechanex-tiny-model" in captured.err and not captured.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "message"), [("sha256", "got SHA-256.*expected 0000"), ("file", "no readable mechanex_tiny_model/no")]
)
def test_a_wheel_with_another_content_keeps_nothing(tmp_path: Path, wheel_source: WheelSource, field: str, message: str):
    values = vars(wheel_source) | {field: {"sha256": "0" * 64, "file": "mechanex_tiny_model/no.gguf"}[field]}
    with pytest.raises(CheckpointError, match=message):
        sources._fetch(WheelSource(**values), "tiny", False)
    assert _kept(tmp_path) == []


def test_offline_with_an_empty_cache_says_what_to_do(tmp_path: Path, wheel_source: WheelSource, monkeypatch):
    ways = r"pip download --no-deps mechanex-tiny-model==1\.0.*MECHANEX_CACHE.*\.gguf"
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(CheckpointError, match=ways):
        sources._fetch(wheel_source, "tiny", False)
    find_spec = wheel.importlib.util.find_spec
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    with pytest.raises(CheckpointError, match="no pip.*" + ways):
        sources._fetch(wheel_source, "tiny", False)
    assert _kept(tmp_path) == []


def test_an_installed_package_is_used_without_importing_it(tmp_path: Path, wheel_source: WheelSource, monkeypatch):
    with zipfile.ZipFile(tmp_path / "links" / "mechanex_tiny_model-1.0-py3-none-any.whl") as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(wheel, "_download", lambda *args: pytest.fail("downloaded"))
    assert len(TensorReader(sources._fetch(wheel_source, "tiny", False)).names) == 20
    assert "mechanex_tiny_model" not in sys.modules


def test_pip_does_not_outlive_an_interrupted_download():
    with pytest.raises(_Interrupt), wheel._running([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        raise _Interrupt
    assert process.poll() is not None
