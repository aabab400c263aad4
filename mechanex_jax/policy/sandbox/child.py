"""The other side of `sandbox`: a script that shuts itself in, then runs generated code. It imports nothing of the library.

Two processes. The *keeper* is what the library starts: it enters new namespaces, forks the *runner*, enforces the time limit,
and ends everything that is left. The runner (process 1 of its PID namespace) builds itself a root folder, gives up its rights,
takes its limits, and only then, told that the keeper is ready, runs the code and the tests in one namespace.

Every step that a system refuses is reported by name, before any generated code runs, and the run goes on without it.
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


def _flat(text: object, most: int) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 3] + "..."


def describe(error: BaseException, where: str) -> str:
    """One line on what went wrong: the exception, its message, and the line of the code."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == "<code>":
            line = step.tb_lineno
        step = step.tb_next
    message = _flat(error.msg if isinstance(error, SyntaxError) else error, 120)
    return f"{where}: {type(error).__name__}" + (f": {message}" if message else "") + (f" (line {line})" if line else "")


def run(code: str, tests: list[str], channel: int, token: bytes) -> NoReturn:
    """Run the code, then the tests, in one namespace; the only way to pass is to come to the end of the last test.

    What is needed to pass is bound before the code runs, so that replacing builtins or `os` functions changes nothing.
    """
    from types import ModuleType

    write, leave, process, compile_, exec_, failures = os.write, os._exit, os.getpid, compile, exec, BaseException
    own = process()
    step: tuple = ("the code",)
    module = ModuleType("solution")  # not `__main__`: a demonstration below `if __name__ == "__main__"` stays out
    sys.modules["solution"] = sys.modules["__main__"] = module
    try:
        try:
            checks = [
                (f"test {i} of {len(tests)} ({_flat(test, 80)})", compile_(test, "<test>", "exec", dont_inherit=True))
                for i, test in enumerate(tests, 1)
            ]
            exec_(compile_(code, "<code>", "exec", dont_inherit=True), module.__dict__)
            for step in checks:
                exec_(step[1], module.__dict__)
        except failures as error:
            if process() == own:
                write(channel, token + b"-" + describe(error, step[0]).encode(errors="backslashreplace")[:600])
        else:
            if process() == own:  # children that the code forked come here too
                write(channel, token + b"+")
    finally:
        leave(0)


# --- the keeper ------------------------------------------------------------------------------------------------------------


def _children() -> list[int]:
    """The keeper's own, and, since it adopts orphans, in the end all that the code started."""
    own, found = str(os.getpid()), []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    if file.read().rsplit(")", 1)[1].split()[1] == own:
                        found.append(int(name))
            except OSError:
                pass
    return found


def _wait(runner: int) -> int:
    """Until it ends: its exit code, or minus the signal. Not reaped, where the system can: the number stays its own."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return os.waitstatus_to_exitcode(os.waitpid(runner, 0)[1])
    info = os.waitid(os.P_PID, runner, os.WEXITED | os.WNOWAIT)
    assert info is not None  # it waited
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


def end_all(runner: int, adopts: bool) -> None:
    """Kill the runner, its group (with a PID namespace, all in it) and whoever was left to us."""
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


def _tidy(job: dict) -> None:
    """What the library would do, were it still there."""
    import shutil

    shutil.rmtree(job["folder"], ignore_errors=True)


def keep(job: dict, channel: int) -> NoReturn:
    """Start the runner, wait for it as long as it may take, end it, and say on standard output how it went."""
    refused, user = (
        containment.enter_namespaces()
        if job["namespaces"]
        else ([containment.PROCESSES, containment.NETWORK, containment.SHARED], False)
    )
    adopts = containment.PROCESSES in refused and containment.LINUX
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until there is somebody who tidies up behind it
    said = os.dup(1)
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    ready, tell_ready = os.pipe()
    go, tell_go = os.pipe()
    if containment.LINUX:
        containment.prctl(containment.PDEATHSIG, signal.SIGTERM)  # after a change of user namespace, which clears it
        containment.prctl(containment.SUBREAPER, 1)
        if os.getppid() != job["parent"]:
            _tidy(job)
            os._exit(1)
    job["number"] = os.getpid()
    os.set_inheritable(channel, False)
    runner = os.fork()
    if runner == 0:
        for descriptor in (said, ready, tell_go):
            os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.setsid()
        report = "\n".join(containment.shut_in(job, refused, user))
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
        # Told to stop, by the library or because it died; which of its threads still live is not known.
        if status == "stopped" or os.getppid() != job["parent"]:
            _tidy(job)
        containment.tried(os.write, said, status.encode())
        os._exit(0)

    signal.signal(signal.SIGTERM, lambda *_: finish("stopped"))
    signal.signal(signal.SIGALRM, lambda *_: finish("timeout"))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    report = b""
    while part := os.read(ready, 4096):
        report += part
    if not report.endswith(b"."):
        finish("unready")
    os.write(said, report)
    if containment.LINUX:
        containment.prctl(containment.DUMPABLE, 0)  # whoever is the same user cannot look into it
    signal.setitimer(signal.ITIMER_REAL, job["timeout_ms"] / 1000)
    os.write(tell_go, b"!")
    finish(f"exit {_wait(runner)}")


if __name__ == "__main__":
    keep(marshal.loads(sys.stdin.buffer.read()), int(sys.argv[1]))
