"""Ctrl-C on the command line: whatever runs, it ends with code 130 and a message, and the second one ends at once."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from jobfiles import COMMAND, ENVIRONMENT

import mechanex_jax.cli

BOUND = 30  # seconds for anything here, on a busy machine

# Programs on the command line's handler: what the main thread does while it is interrupted.
HEAD = """
import gc, hashlib, pathlib, sys, time
from mechanex_jax_command import interrupt, main, INTERRUPTED
sys.modules["mechanex_jax.cli"] = cli = type(sys)("mechanex_jax.cli")
interrupt.grace = 0.5
interrupt.describe = lambda: ""

begun = time.perf_counter()
hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)
rate = 100_000 / (time.perf_counter() - begun)

def native(seconds):  # without the interpreter's lock, and without a look at signals: as a compilation
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(rate * seconds))

def ready():
    print("ready", flush=True)
"""
NATIVE = """
def app():
    interrupt.begin()
    interrupt.describe = lambda: "2 of 3 rows are done."
    ready()
    native(600)
"""
RESULTS = """
def app():
    interrupt.begin()
    interrupt.keeps_results = True
    try:
        ready()
        native(%s)
        time.sleep(600)
    except KeyboardInterrupt:
        print("results")
        sys.exit(INTERRUPTED)
"""
LOST = """
def app():
    interrupt.begin()
    interrupt.grace = 600

    def callback(phase, info):
        gc.callbacks.remove(callback)
        ready()
        time.sleep(600)

    gc.callbacks.append(callback)
    gc.collect()
    time.sleep(600)
"""
SWALLOWED = """
def app():
    interrupt.begin()
    try:
        ready()
        time.sleep(600)
    except BaseException:
        time.sleep(600)
"""
CRASHING = """
def app():
    interrupt.begin()
    import atexit, os
    atexit.register(os.abort)
    ready()
    time.sleep(600)
"""
IMPORTING = """
def app():
    ready()
    time.sleep(600)
"""
UNFINISHED = """
def app():
    interrupt.begin()
    from mechanex_jax.storage.atomic import discard_unfinished, temporary_file
    interrupt.cleanups.append(discard_unfinished)
    with temporary_file(pathlib.Path(sys.argv[1])) as path:
        path.write_bytes(b"half")
        ready()
        native(600)
"""


def begin(program: str, *arguments: object, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start a program, and wait until it says that it is ready."""
    command = [*prefix, sys.executable, "-c", f"{HEAD}{program}\ncli.app = app\nmain()", *map(str, arguments)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("program", "output", "message"),
    [
        (NATIVE, "", "Interrupted. 2 of 3 rows are done."),
        (RESULTS % 2, "results\n", "Interrupted; the step that is running ends first. Ctrl-C once more ends at once."),
        (LOST, "", "Interrupted."),
        (SWALLOWED, "", "Interrupted."),
        (CRASHING, "", "Interrupted."),
        (IMPORTING, "", "Interrupted."),
    ],
    ids=["native code", "results to come", "lost in a callback", "swallowed", "crash at exit", "import"],
)
@pytest.mark.slow
def test_the_first_control_c_ends_it_with_130_and_a_message(program, output, message):
    process = begin(program)
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=BOUND)
    assert process.returncode == 130, errors
    assert shown == output
    assert errors.startswith(f"\n{message}") and "Traceback" not in errors


@pytest.mark.slow
def test_the_second_control_c_ends_what_the_first_one_does_not():
    process = begin(RESULTS % 600)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)  # three times as long as a command without results has
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=BOUND)
    assert (process.returncode, shown) == (130, "")


@pytest.mark.slow
def test_temporary_files_go_when_native_code_is_cut_off(tmp_path):
    process = begin(UNFINISHED, tmp_path / "half")
    assert (tmp_path / "half").exists()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=BOUND)
    assert process.returncode == 130
    assert not (tmp_path / "half").exists()


@pytest.mark.slow
def test_a_signal_that_the_parent_ignores_stays_ignored():
    process = begin(
        "def app():\n    interrupt.begin()\n    ready()\n    sys.stdin.read()\n    time.sleep(1)\n    print('whole')\n",
        prefix=["sh", "-c", "trap '' INT; exec \"$@\"", "sh"],
    )
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=BOUND)
    assert (process.returncode, shown, errors) == (0, "whole\n", "")


def test_the_library_keeps_pythons_own_control_c():
    assert mechanex_jax.cli.app is not None  # imported, as the library is
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1
    assert mechanex_jax.cli.base.interrupt._repeat_lost != sys.unraisablehook


# ---- the whole command, with nothing compiled before


def _importing(process: subprocess.Popen[str], errors: list[str]) -> bool:
    maps = Path(f"/proc/{process.pid}/maps")  # without one, as on macOS, some moment of the start
    return not maps.exists() or "jaxlib" in maps.read_text()


def _compiling(name: str) -> Callable[[subprocess.Popen[str], list[str]], bool]:
    return lambda process, errors: any(re.search(rf"Compiling .*{name}", line) for line in errors)


MOMENTS = {
    "import": _importing,
    "small programs": _compiling(""),
    "compilation of the loop": _compiling("decode_chunk"),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_control_c_at_any_moment_of_a_first_run(moment, smollm2_folder, tmp_path):
    environment = {**ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_LOG_COMPILES": "1"}
    command = [*COMMAND, "generate", "One, two, three,", "--max-tokens", "500", "--min-tokens", "500"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stderr is not None
    errors: list[str] = []
    reader = threading.Thread(target=errors.extend, args=(process.stderr,))
    reader.start()
    until = time.monotonic() + 4 * BOUND
    while not MOMENTS[moment](process, errors):
        assert process.poll() is None and time.monotonic() < until, errors
        time.sleep(0.01)
    time.sleep(0.3)  # into it
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert process.wait(BOUND) == 130
    assert time.monotonic() - begun < 20
    reader.join()
    assert process.stdout.read() == ""
    assert errors[-1] == "Interrupted.\n"
