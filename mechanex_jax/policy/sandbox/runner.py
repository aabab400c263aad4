"""Run generated code against unit tests, contained as far as the system allows.

Generated code never runs in this process. It runs in a child interpreter: isolated (`-s -P -S`: no site-packages, no user
site, nothing of the current folder; not `-I`, which would ignore the hash seed that is fixed so that results repeat), with an
environment that holds TMPDIR alone, a temporary folder of its own, and no open file but `/dev/null`.

On Linux with namespaces (an unprivileged user needs user namespaces for them, root in a container the right to `unshare`), the
code
- sees a root folder with nothing but the interpreter, the system's libraries and five devices, read-only, and one folder in
  memory (`Limits.disk_mib`) to write to; no home folder, no `/proc`, no sockets of other programs;
- is process 1 of its PID namespace: it can name no process outside, and all that it starts dies with it;
- has a network of its own without interfaces, and System V IPC of its own;
- has no rights: no capabilities, no way to get some by running a program; where this process is root, it is another user;
- is held to CPU time, memory and file size a process, and to a number of processes and threads.
It is killed at the time limit, when this process is killed, and on Ctrl-C. What it prints is thrown away.

What the system at hand refuses to contain is in every `TestResult.uncontained`, and in `uncontained()`, in these words:
- ``the network``: connections to anywhere;
- ``processes of the same user``: it can signal them, and read their environment;
- ``reading files outside its folder``, ``writing files outside its folder``: as far as the user may;
- ``filling the disk with files``: each file is limited, their number is not;
- ``the number of processes``, ``the memory used``: only the time limit ends a fork bomb, or a process that grows;
- ``processes that leave their process group``: they outlive the run;
- ``System V shared memory of the same user``;
- ``system calls that make namespaces, trace processes or load programs into the kernel``: a seccomp filter refuses them where
  there is one (x86-64, 64-bit ARM and RISC-V).
Without namespaces (a container that forbids them, an old kernel: 5.12 is needed for files) the first five are open; what the
code leaves running is found and ended on Linux all the same. macOS has none of it, and all ten are. Windows cannot run the
child at all: pass a runner of your own (`UnitTestRunner`), such as a remote one.

Not contained anywhere:
- Memory is limited per process: `processes` times `memory_mib` in the worst case, though first in line when memory runs out.
- CPU time is shared with this process, and so are the kernel and its faults: this is no virtual machine.
- The verdict, against code that works at it. Code and tests share an interpreter, so code may return an object that equals
  anything, or dig the verdict's token out of the interpreter's frames. What does not pass is ending early in any way
  (`sys.exit`, `os._exit`, `exec`, a crash), printing, exit handlers, and replaced builtins, exceptions or `os` functions.
"""

from __future__ import annotations

import contextlib
import functools
import marshal
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from mechanex_jax.errors import MechanexError, NotLocalError, Verbatim, expected
from mechanex_jax.validation import integer, text

_CHILD = Path(__file__).with_name("child.py")
_FLAGS = ("-s", "-P", "-S", "-B", "-X", "utf8")
_GRACE_SECONDS = 20.0  # that a busy machine may take to start the child and to end it, on top of the time limit
_MAX_REASON = 300  # characters


@dataclass(frozen=True)
class TestResult:
    """The verdict on one piece of code.

    Attributes:
      passed: whether the code and then every test ran to its end.
      reason: why not, in one line of at most 300 characters; empty if passed.
      timed_out: whether the run was ended at the time limit.
      uncontained: what this run could not contain, in the words of the module's docstring; empty if it contained everything.
    """

    __test__ = False  # pytest collects classes of this name

    passed: bool
    reason: str
    timed_out: bool = False
    uncontained: tuple[str, ...] = ()


class UnitTestRunner(Protocol):
    """A function that runs code against tests: `run_unit_tests`, or one of yours that asks a container or a service."""

    def __call__(self, code: str, tests: Sequence[str], timeout_ms: int, /) -> TestResult:
        """Run the code, then each test in the same namespace, all within `timeout_ms` milliseconds."""
        ...


@dataclass(frozen=True)
class Limits:
    """Resources that generated code may use.

    Attributes:
      memory_mib: address space of each process, in MiB.
      processes: processes and threads besides the first one.
      file_mib: size of one file, in MiB.
      disk_mib: size of all files together, in MiB, and 64 files for each MiB; held only with namespaces.
      open_files: descriptors of each process.
      namespaces: False runs without namespaces, as on a system that has none.
    """

    memory_mib: int = 512
    processes: int = 24
    file_mib: int = 16
    disk_mib: int = 64
    open_files: int = 64
    namespaces: bool = True


DEFAULT_LIMITS = Limits()


def check_tests(tests: object, name: str = "code_unit_tests") -> None:
    """Check that `tests` is a list of snippets of Python, each of which compiles.

    Raises:
      ArgumentError: it is not; the message names the snippet, as an item of `name`.
    """
    if isinstance(tests, str) or not isinstance(tests, Sequence):
        raise expected(name, tests, "a list of Python snippets", "Write, for example, ['assert add(1, 2) == 3'].")
    for number, test in enumerate(tests):
        text(f"{name}[{number}]", test)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(test, name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            why = f"{error.msg} (line {error.lineno})" if isinstance(error, SyntaxError) else str(error) or "too deeply nested"
            action = f"It does not compile: {why}. Write statements such as 'assert add(1, 2) == 3'."
            raise expected(f"{name}[{number}]", test, "valid Python", action) from None


# --- runs ------------------------------------------------------------------------------------------------------------------


def run_unit_tests(code: str, tests: Sequence[str], timeout_ms: int = 1500, *, limits: Limits = DEFAULT_LIMITS) -> TestResult:
    """Run code, then each test in the same namespace, in a contained child process (see the module's docstring).

    Args:
      code: Python. `__name__` is "solution", so that what is below `if __name__ == "__main__"` stays out.
      tests: snippets; one fails by raising, as `assert` does. Without any, the code has to run to its end.
      timeout_ms: wall time for code and tests together, in milliseconds, the child's start not counted.
      limits: memory, files and processes that the code may use.

    Returns:
      The verdict, with the reason for a failure that names the test.

    Raises:
      ArgumentError: a test that is not valid Python, or a wrong type.
      NotLocalError: this is Windows.
      MechanexError: no child can be started at all.
    """
    if not isinstance(code, str):  # half of a surrogate pair is a failure of the code, not of the call
        raise expected("code", code, "a string")
    check_tests(tests, "tests")
    integer(1)("timeout_ms", timeout_ms)
    if not hasattr(os, "fork"):
        raise NotLocalError(
            f"run_unit_tests: got the platform {sys.platform}; expected one with POSIX processes. Plug in a runner of your own."
        )
    if not sys.executable:
        raise expected(
            "sys.executable", Verbatim("nothing"), "the path of a Python interpreter", "Plug in a runner of your own."
        )
    folder = tempfile.mkdtemp(prefix="mechanex-sandbox-")
    try:
        token = secrets.token_hex(16).encode()
        job = asdict(limits) | {"folder": folder, "token": token, "parent": os.getpid(), "timeout_ms": timeout_ms}
        report, verdict = _run_child(job | {"code": code, "tests": list(tests)}, folder, timeout_ms / 1000 + _GRACE_SECONDS)
    finally:
        _remove(folder)
    return _result(report, verdict, token, timeout_ms)


@functools.cache
def uncontained(limits: Limits = DEFAULT_LIMITS) -> tuple[str, ...]:
    """List what this system does not let a run contain, in the words of the module's docstring; tried once per process."""
    return run_unit_tests("", [], 60_000, limits=limits).uncontained


def _run_child(job: dict[str, object], folder: str, patience: float) -> tuple[bytes, bytes]:
    """Start the child, wait `patience` seconds for its end, and return its keeper's report and its runner's verdict."""
    environment = {"PYTHONHASHSEED": "0"}
    if "LD_LIBRARY_PATH" in os.environ:  # some interpreters don't start without; gone before the code runs
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    channel, child_end = os.pipe()
    child = None
    try:
        with tempfile.TemporaryFile() as file:  # unlike a pipe, never full
            file.write(marshal.dumps(job))
            file.seek(0)
            child = subprocess.Popen(
                [sys.executable, *_FLAGS, str(_CHILD), str(child_end)],
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(child_end,),
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
        os.close(child_end)
        child_end = -1
        assert child.stdout is not None
        report = _read(child.stdout.fileno(), time.monotonic() + patience)
        # The code can write to this pipe too. A runner that passes writes far less than the 64 KiB that the pipe holds.
        os.set_blocking(channel, False)
        try:
            verdict = os.read(channel, 4096)
        except BlockingIOError:
            verdict = b""
        return report, verdict
    finally:
        for descriptor in (channel, child_end):
            if descriptor >= 0:
                os.close(descriptor)
        if child is not None:
            _end(child)


def _read(descriptor: int, deadline: float) -> bytes:
    """Read all that the keeper writes, until it exits. The code never holds this pipe."""
    report, poll = b"", select.poll()
    poll.register(descriptor, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if poll.poll(left * 1000):
            part = os.read(descriptor, 4096)
            if not part:
                break
            report += part
    return report


def _end(child: subprocess.Popen[bytes]) -> None:
    """Have the keeper end everything, then end it too. It still runs only after an interrupt or on a stalled machine."""
    try:
        if child.stdout is not None:
            child.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.05)
        if child.returncode is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(2)
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _remove(folder: str) -> None:
    """Remove the folder, even if the code took away the rights to its subfolders."""
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.isdir(folder):
        for path, _, _ in os.walk(folder):
            with contextlib.suppress(OSError):
                os.chmod(path, 0o700)
        shutil.rmtree(folder, ignore_errors=True)


def _result(report: bytes, verdict: bytes, token: bytes, timeout_ms: int) -> TestResult:
    """Read the keeper's report (refused steps, ".", status) and the runner's verdict (token, then "+", or "-" and why)."""
    refused, ready, status = report.decode().partition(".")
    if not ready:
        raise MechanexError(
            f"run_unit_tests: the child interpreter {sys.executable} did not start, or was ended from outside. "
            "Check that the system has processes and memory left, or plug in a runner of your own."
        )
    uncontained = tuple(filter(None, refused.split("\n")))
    if status == "timeout":
        return TestResult(False, f"timed out after {timeout_ms} ms", True, uncontained)
    if status == "exit 0" and verdict == token + b"+":
        return TestResult(True, "", False, uncontained)
    if status == "exit 0" and verdict.startswith(token + b"-"):
        reason = verdict[len(token) + 1 :].decode(errors="replace")
        reason = re.sub(r"\b0x[0-9a-f]{6,}", "0x...", reason)  # addresses differ from run to run
    elif status.startswith("exit -"):
        reason = f"the interpreter was killed by {_signal_name(int(status[6:]))} (a crash, or too much memory or CPU time)"
    else:
        reason = f"the code ended the interpreter, or meddled with it, before the last test was done ({status or 'killed'})"
    return TestResult(False, reason if len(reason) <= _MAX_REASON else reason[: _MAX_REASON - 3] + "...", False, uncontained)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
