"""The sandbox's child interpreter: a script that contains itself, then runs generated code.

It imports nothing of the library, and is two processes. The library starts the *keeper*, which enters new namespaces, forks the
*runner*, enforces the time limit, and ends everything that is left. The runner (process 1 of its PID namespace) builds itself a
root folder, gives up its rights, takes its limits, and only then, when the keeper is ready, runs the code and the tests in one
namespace.

Every step that a system refuses is reported by name before any generated code runs, and the run goes on without it.
"""

from __future__ import annotations

import marshal
import os
import signal
import sys
from typing import NoReturn

if __name__ == "__main__":  # started by path, with next to nothing to search: the library is not loaded
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    import containment

    sys.path.pop()
else:
    from mechanex_jax.policy.sandbox import containment

# --- the runner: the code and its tests ------------------------------------------------------------------------------------


def _one_line(text: object, max_length: int) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= max_length else line[: max_length - 3] + "..."


def describe(error: BaseException, where: str) -> str:
    """Say in one line what went wrong `where`: the exception, its message, and the line of the code."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    entry = error.__traceback__
    while entry is not None:
        if entry.tb_frame.f_code.co_filename == "<code>":
            line = entry.tb_lineno
        entry = entry.tb_next
    message = _one_line(error.msg if isinstance(error, SyntaxError) else error, 120)
    return f"{where}: {type(error).__name__}" + (f": {message}" if message else "") + (f" (line {line})" if line else "")


def run(code: str, tests: list[str], channel: int, token: bytes) -> NoReturn:
    """Run the code, then the tests, in one namespace, and write the verdict to `channel`, behind the secret `token`.

    The only way to pass is to come to the end of the last test. All functions that this takes are bound before the code runs,
    so that replacing builtins or `os` functions changes nothing.
    """
    from types import ModuleType

    write, leave, process, compile_, exec_, failures = os.write, os._exit, os.getpid, compile, exec, BaseException
    runner = process()
    step: tuple = ("the code",)
    module = ModuleType("solution")  # not `__main__`: a demonstration below `if __name__ == "__main__"` stays out
    sys.modules["solution"] = sys.modules["__main__"] = module
    try:
        try:
            checks = [
                (f"test {i} of {len(tests)} ({_one_line(test, 80)})", compile_(test, "<test>", "exec", dont_inherit=True))
                for i, test in enumerate(tests, 1)
            ]
            exec_(compile_(code, "<code>", "exec", dont_inherit=True), module.__dict__)
            for step in checks:
                exec_(step[1], module.__dict__)
        except failures as error:
            if process() == runner:
                write(channel, token + b"-" + describe(error, step[0]).encode(errors="backslashreplace")[:600])
        else:
            if process() == runner:  # children that the code forked come here too
                write(channel, token + b"+")
    finally:
        leave(0)


# --- the keeper ------------------------------------------------------------------------------------------------------------


def _children() -> list[int]:
    """List the keeper's child processes. It adopts orphans, so in the end these are all that the code started."""
    keeper, children = str(os.getpid()), []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    if file.read().rsplit(")", 1)[1].split()[1] == keeper:
                        children.append(int(name))
            except OSError:
                pass
    return children


def _wait(runner: int) -> int:
    """Wait for the runner's end: its exit code, or minus the signal. It is not reaped, so that its number stays its own."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return os.waitstatus_to_exitcode(os.waitpid(runner, 0)[1])
    info = os.waitid(os.P_PID, runner, os.WEXITED | os.WNOWAIT)
    assert info is not None  # it waited
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


def end_all(runner: int, adopts: bool) -> None:
    """Kill the runner, its process group (in a PID namespace, all processes in it) and, if `adopts`, orphans of the code."""
    for kill in (os.kill, os.killpg):
        containment.tried(kill, runner, signal.SIGKILL)
    containment.tried(os.waitpid, runner, 0)
    while adopts:
        for child in _children():
            containment.tried(os.kill, child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _remove_folder(job: dict) -> None:
    """Remove the run's folder, as the library would if it were still there."""
    import shutil

    shutil.rmtree(job["folder"], ignore_errors=True)


def keep(job: dict, channel: int) -> NoReturn:
    """Start the runner, wait for it no longer than its time limit, end it, and report on standard output.

    Args:
      job: `Limits` as a dict, with code, tests, token, folder, timeout_ms and parent, the library's process.
      channel: descriptor that the runner writes its verdict to.
    """
    refused, user = (
        containment.enter_namespaces()
        if job["namespaces"]
        else ([containment.PROCESSES, containment.NETWORK, containment.SHARED], False)
    )
    adopts = containment.PROCESSES in refused and containment.LINUX
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until there is a handler that cleans up
    output = os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    ready, tell_ready = os.pipe()
    go, tell_go = os.pipe()
    if containment.LINUX:
        containment.prctl(containment.PDEATHSIG, signal.SIGTERM)  # after a change of user namespace, which clears it
        containment.prctl(containment.SUBREAPER, 1)
        if os.getppid() != job["parent"]:
            _remove_folder(job)
            os._exit(1)
    job["number"] = os.getpid()
    os.set_inheritable(channel, False)
    runner = os.fork()
    if runner == 0:
        for descriptor in (output, ready, tell_go):
            os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.setsid()
        report = "\n".join(containment.contain(job, refused, user))
        os.write(tell_ready, report.encode() + b".")
        os.close(tell_ready)
        if os.read(go, 1) != b"!":
            os._exit(1)
        os.close(go)
        run(job["code"], job["tests"], channel, job["token"])

    for descriptor in (channel, tell_ready, go):
        os.close(descriptor)

    def finish(status: str) -> NoReturn:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM})
        end_all(runner, adopts)
        # The library asked for a stop, or died.
        if status == "stopped" or os.getppid() != job["parent"]:
            _remove_folder(job)
        containment.tried(os.write, output, status.encode())
        os._exit(0)

    signal.signal(signal.SIGTERM, lambda *_: finish("stopped"))
    signal.signal(signal.SIGALRM, lambda *_: finish("timeout"))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    report = b""
    while part := os.read(ready, 4096):
        report += part
    if not report.endswith(b"."):
        finish("unready")
    os.write(output, report)
    if containment.LINUX:
        containment.prctl(containment.DUMPABLE, 0)  # other processes of the same user cannot look into it
    signal.setitimer(signal.ITIMER_REAL, job["timeout_ms"] / 1000)
    os.write(tell_go, b"!")
    finish(f"exit {_wait(runner)}")


if __name__ == "__main__":
    keep(marshal.loads(sys.stdin.buffer.read()), int(sys.argv[1]))
