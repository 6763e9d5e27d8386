"""A command that runs on a node, with the face of `subprocess.Popen`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from types import TracebackType
from typing import IO, Self

from mingled.lab.namespaces import child_of


class Process:
    """Like `subprocess.Popen[str]`; `pid` and signals reach the command itself.

    A process namespace can only be entered by a fork, so what we started is `nsenter`, which waits
    for the command and ends as it ended. Signals to `nsenter` would not get to the command.
    """

    def __init__(self, entered: subprocess.Popen[str], args: list[str]) -> None:
        self.args = args
        self._entered = entered
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        """The command's process ID as this machine sees it (inside the node it has another)."""
        while self._pid is None:
            self._pid = child_of(self._entered.pid)
            if self._pid is None:
                if self._entered.poll() is not None:
                    return self._entered.pid
                time.sleep(0.0005)  # nsenter is about to fork
        return self._pid

    @property
    def stdin(self) -> IO[str] | None:
        return self._entered.stdin

    @property
    def stdout(self) -> IO[str] | None:
        return self._entered.stdout

    @property
    def stderr(self) -> IO[str] | None:
        return self._entered.stderr

    @property
    def returncode(self) -> int | None:
        return self._entered.returncode

    def poll(self) -> int | None:
        return self._entered.poll()

    def wait(self, timeout: float | None = None) -> int:
        return self._entered.wait(timeout)

    def communicate(
        self, input: str | None = None, timeout: float | None = None
    ) -> tuple[str, str]:
        return self._entered.communicate(input, timeout)

    def send_signal(self, number: int) -> None:
        """Signal the command; nothing happens if it is over."""
        if self.poll() is not None:
            return
        try:
            os.kill(self.pid, number)
            # nsenter stops when the command stops, and must wake up to see its end.
            if number in (signal.SIGCONT, signal.SIGKILL):
                os.kill(self._entered.pid, signal.SIGCONT)
        except ProcessLookupError:
            pass

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def reap(self) -> None:
        """Collect what is left once the node is dead, and close our ends of its pipes."""
        if self.poll() is None:
            os.kill(self._entered.pid, signal.SIGCONT)
        self._entered.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None and not stream.closed:
                # What was still to be written has no reader any more.
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<Process {self.args!r} returncode={self.returncode}>"
