"""How processes that are not our children end, seen through pidfds."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import subprocess

import pytest

from mingled.core.events import Event, HolderEnded
from mingled.core.words import ParticipantId
from mingled.edges.leases import Leases

WHO = ParticipantId("a" * 32)

PARENT = "exec 3<&0; (read how <&3; exit $how) & echo $!; wait; read end"
"""Its child ends as it is told, and its status is taken by this parent, not by us."""

KERNEL_TELLS = tuple(map(int, platform.release().split(".")[:2])) >= (6, 15)
"""PIDFD_GET_INFO with the exit status; before that a status is sometimes seen, never wrong."""


def popen(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def end(how: str | None) -> Event:
    """A grandchild of ours ends with `how`, by SIGKILL where that is None; what is heard of it."""
    heard: asyncio.Queue[Event] = asyncio.Queue()
    leases = Leases(heard.put_nowait)
    with popen("sh", "-c", PARENT) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        leases.watch(WHO, pid, os.pidfd_open(pid))
        if how is None:
            os.kill(pid, signal.SIGKILL)
        else:
            parent.stdin.write(how + "\n")
            parent.stdin.flush()
        event = await heard.get()
        parent.stdin.close()
    leases.close()
    assert heard.empty()
    return event


@pytest.mark.parametrize(
    ("how", "status"), [("0", 0), ("3", 3 << 8), (None, signal.SIGKILL)], ids=["0", "3", "SIGKILL"]
)
async def test_the_status_of_a_process_that_is_not_ours(how: str | None, status: int) -> None:
    event = await end(how)
    assert isinstance(event, HolderEnded)
    assert event.participant == WHO
    if KERNEL_TELLS:
        assert event.status == status
    else:
        assert event.status in (status, None)


async def test_what_is_forgotten_is_not_heard_of() -> None:
    heard: list[Event] = []
    leases = Leases(heard.append)
    with popen("cat") as process:
        leases.watch(WHO, process.pid, os.pidfd_open(process.pid))
        leases.forget(WHO)
        leases.forget(WHO)
        ended = os.pidfd_open(process.pid)
        process.kill()
        seen = asyncio.Event()
        asyncio.get_running_loop().add_reader(ended, seen.set)
        await seen.wait()
        asyncio.get_running_loop().remove_reader(ended)
        os.close(ended)
    assert heard == []


async def test_the_lease_goes_over_to_another_process() -> None:
    heard: asyncio.Queue[Event] = asyncio.Queue()
    leases = Leases(heard.put_nowait)
    with popen("cat") as first:
        leases.watch(WHO, first.pid, os.pidfd_open(first.pid))
        with popen("cat") as second:
            leases.watch(WHO, second.pid, os.pidfd_open(second.pid))
            first.kill()
            first.wait()
            assert second.stdin is not None
            second.stdin.close()
            second.wait()
            event = await heard.get()
    assert isinstance(event, HolderEnded)
    assert event.status in (0, None)
    assert heard.empty()
    leases.close()
