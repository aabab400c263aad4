"""The entry point of the command line `mechanex-jax`, and Ctrl-C on it.

This file lies beside the package, because importing the package takes seconds, in which Ctrl-C counts too. Programs that use
the package as a library keep Python's own Ctrl-C.

The first Ctrl-C raises KeyboardInterrupt, as everywhere in Python. That alone is not enough: no Python code runs while XLA
compiles, a KeyboardInterrupt that arises in a callback of native code is lost, and an interpreter that shuts down after an
interrupted compilation may crash. So a thread that the signal wakes by itself ends the process if the command has not ended
some moments later, or at the second Ctrl-C.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

INTERRUPTED = 130  # a shell's code for a process that SIGINT ended
_SHOW_CURSOR = b"\x1b[?25h"  # progress bars hide it


class Interrupt:
    """Ctrl-C on the command line of this process.

    Attributes:
      happened: whether it was pressed.
      grace: seconds that an interrupted command has to end by itself.
      keeps_results: whether an interrupted command still hands over results, however long its current step takes; then only a
        second Ctrl-C ends it at once.
      describe: returns what follows "Interrupted.".
      cleanups: called before the process is ended in the middle of its work, from another thread.
    """

    def __init__(self) -> None:
        self.happened = self._begun = False
        self.grace = 2.0
        self.cleanups: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._repeats = 0  # signals that this process sent to itself
        self._reset()

    def _reset(self) -> None:
        self.keeps_results = False
        self.describe: Callable[[], str] = lambda: ""
        self._said = False

    def install(self) -> None:
        """Handle SIGINT in this process from now on, unless whoever started it has it ignored, as `nohup` and `&` do."""
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        threading.Thread(target=self._watch, daemon=True).start()
        sys.unraisablehook = self._repeat_lost
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._raise)

    def begin(self) -> None:
        """Start a command: from now on there is something to unwind, and Ctrl-C raises KeyboardInterrupt."""
        self._reset()
        self._begun = True

    def say(self, write: Callable[[str], object]) -> None:
        """Write the message of an interrupted command, once."""
        with self._lock:
            said, self._said = self._said, True
        if not said:
            write(f"\nInterrupted. {self.describe()}".rstrip() + "\n")

    def end(self) -> None:
        """End the process at once, without the interpreter's shutdown, which may crash."""
        self.say(_write_error)
        for cleanup in self.cleanups:
            with contextlib.suppress(Exception):
                cleanup()
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)
        os._exit(INTERRUPTED)

    def _raise(self, number: int, frame: object) -> None:
        self.happened = True
        if not self._begun:  # modules that are being imported may swallow it, or print it
            self.end()
        raise KeyboardInterrupt

    def _repeat_lost(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Raise a KeyboardInterrupt again that could not leave a callback, such as one of the garbage collection."""
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)
            return
        with self._lock:
            self._repeats += 1
        timer = threading.Timer(0.01, _interrupt_main)  # once the callback has returned
        timer.daemon = True
        timer.start()

    def _watch(self) -> None:
        """Wait for Ctrl-C in a thread of its own: the signal itself writes to the socket, whatever the main thread does."""
        deadline: float | None = None
        while True:
            waits = deadline is None or self.keeps_results
            self._reader.settimeout(None if deadline is None or waits else max(deadline - time.monotonic(), 0.001))
            try:
                number = self._reader.recv(1)
            except TimeoutError:
                self.end()
                return
            if number != bytes([signal.SIGINT]) or self._sent_here():
                continue
            self.happened = True
            if deadline is not None:
                self.end()
            deadline = time.monotonic() + self.grace
            if self.keeps_results:
                _write_error("\nInterrupted; the step that is running ends first. Ctrl-C once more ends at once.\n")

    def _sent_here(self) -> bool:
        with self._lock:
            sent = self._repeats > 0
            self._repeats -= sent
        return sent


def _interrupt_main() -> None:
    """Send SIGINT to the main thread, so that it leaves a system call too."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:  # Windows
        _thread.interrupt_main()


def _write_error(text: str) -> None:
    """Write past Python's buffers, whose locks another thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="replace"))


interrupt = Interrupt()
"""Ctrl-C in this process."""


def main() -> None:
    """Run the command line."""
    interrupt.install()
    try:
        from mechanex_jax.cli import app

        app()
    except BaseException:
        if not interrupt.happened:
            raise
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        interrupt.end()


if __name__ == "__main__":
    from mechanex_jax_command import main as run  # under its own name, by which the package imports it

    run()
