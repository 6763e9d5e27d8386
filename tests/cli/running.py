"""A command that runs while a test looks at it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mingled import client
from mingled.core import local
from tests.unique import job

BIN = Path(sys.executable).parent
WAIT = str(BIN / "mingle-wait")

JOB = job("bert")
"""Whatever else is tested on this machine meets on the same loopback: not under the same name."""

PATIENCE_S = 60
"""A test that hangs fails after this; nothing is expected to take that long."""


class Running:
    """One process, its words read as they come. A context: it has ended after the block."""

    def __init__(
        self,
        *command: str | Path,
        stderr: int = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=stderr, env=env, **more
        )
        self.out = ""
        self.err = ""
        streams = (("out", self.process.stdout), ("err", self.process.stderr))
        self._open = {stream.fileno(): name for name, stream in streams if stream is not None}

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def until(self, words: str) -> None:
        """Reads on until `words` were said, on stdout or stderr."""
        while words not in self.out and words not in self.err:
            assert self._read(), f"ended without {words!r}:\n{self.out}\n{self.err}"

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """Closes its stdin and reads to its end; the exit code as Python's, minus for a signal."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        while self._read():
            pass
        return self.process.wait(PATIENCE_S)

    def _read(self) -> bool:
        if not self._open:
            return False
        ready, _, _ = select.select(list(self._open), [], [], PATIENCE_S)
        assert ready, f"silent:\n{self.out}\n{self.err}"
        for fd in ready:
            said = os.read(fd, 65_536).decode()
            name = self._open[fd] if said else self._open.pop(fd)
            setattr(self, name, getattr(self, name) + said)
        return True


def reports() -> list[local.Report]:
    """Of all daemons that this process would use."""
    found = [client.ask(connection, local.Status()) for connection in client.daemons()]
    return [report for report in found if isinstance(report, local.Report)]


def seats() -> list[local.Seat]:
    """What these daemons hold."""
    return [seat for report in reports() for job in report.jobs for seat in job.seats]


def until_nobody() -> None:
    """Asks until nobody has a seat: a daemon notices that its client ended when it gets to it."""
    until = time.monotonic() + PATIENCE_S
    while found := seats():
        assert time.monotonic() < until, found


def until_ended(pids: Sequence[int]) -> None:
    """Waits for these processes, which may be nobody's children here."""
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with open(pidfd):
            assert select.select([pidfd], [], [], PATIENCE_S)[0]


def until_daemons_end() -> None:
    """Private ones: after their last lease."""
    until_ended([report.pid for report in reports()])
