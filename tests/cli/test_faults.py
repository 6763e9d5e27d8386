"""Clients that die while they wait, and names that are meant to lead elsewhere: real daemons on
loopback."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from .running import JOB, PATIENCE_S, WAIT, Running, seats, until_daemons_end

THREE = ("--job", JOB, "--world-size", "3")


def until_waiting(*expected: Running) -> None:
    """Asks until nobody but these has a seat."""
    pids = sorted(running.process.pid for running in expected)
    until = time.monotonic() + PATIENCE_S
    while (found := sorted(seat.pid for seat in seats())) != pids:
        assert time.monotonic() < until, (found, pids)


def test_fault_44_a_client_that_is_killed_leaves_its_rank_at_once(runtime: Path) -> None:
    """To whoever asks for it next: before any timeout, and without a word of the dead."""
    with Running(WAIT, *THREE, "--rank", "0", "--", "true") as zero:
        zero.until("1/3 here")
        for _ in range(2):
            with Running(WAIT, *THREE, "--rank", "1", "--", "true") as one:
                one.until("2/3 here")
                until_waiting(zero, one)
                one.process.kill()
                until_waiting(zero)


@pytest.mark.parametrize("name", ["../../../tmp/Größe .", "/etc/~root/\\"])
def test_fault_39_a_job_id_is_no_path(runtime: Path, name: str) -> None:
    job = f"{name}/{JOB}"
    with Running(WAIT, "--job", job, "--world-size", "2", "--", "true") as waiting:
        waiting.until("1/2 here")
        names = [path.name for path in runtime.iterdir()]
        assert names
        for file in names:
            assert re.fullmatch(r"[0-9a-f]{24}\.[a-z.]+", file), file
    until_daemons_end()
    assert list(runtime.parent.rglob("*")) == [runtime]


def test_fault_39_a_nul_byte_never_gets_here(runtime: Path) -> None:
    """No argument can hold one; what comes through Python or a socket is refused (JobId)."""
    with pytest.raises(ValueError, match="null byte"):
        subprocess.run([WAIT, "--job", "a\0b", "--rank", "0"], check=False)
