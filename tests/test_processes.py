"""Who is at the other end, and how a process ended that is not our child."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mingled.processes import exit_status, open_peer, open_pid, user_name


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until its stdin ends."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    yield process
    process.communicate()


def test_names_of_users() -> None:
    assert user_name(0) == "root"
    assert user_name(4_000_000_000) == "uid 4000000000"


def test_the_peer_of_a_socket_is_known_and_watched() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        holder, pidfd = open_peer(ours)
        assert pidfd is not None
        with open(pidfd):
            assert (holder.pid, holder.uid, holder.watched) == (os.getpid(), os.getuid(), True)
            assert not os.get_inheritable(pidfd)
    known = open_pid(os.getpid(), os.getuid())
    assert known is not None
    os.close(known[1])
    assert known[0] == holder


def test_two_processes_are_told_apart(child: subprocess.Popen[bytes]) -> None:
    ours, its = open_pid(os.getpid(), os.getuid()), open_pid(child.pid, os.getuid())
    assert ours is not None
    assert its is not None
    os.close(ours[1])
    os.close(its[1])
    assert ours[0].identity != its[0].identity


def test_a_process_that_is_not_there_or_not_theirs(child: subprocess.Popen[bytes]) -> None:
    other = os.getuid() + 1
    for pid in (0, -1, -(2**40), 2**31 - 1, 2**70):
        assert open_pid(pid, os.getuid()) is None
    assert open_pid(child.pid, other) is None
    child.communicate()
    assert open_pid(child.pid, os.getuid()) is None


def test_a_name_with_parentheses_changes_no_identity(tmp_path: Path) -> None:
    link = tmp_path / "a) b (c"  # /proc/PID/stat shows it as it is
    link.symlink_to("/bin/cat")
    process = subprocess.Popen([link], stdin=subprocess.PIPE)
    found = open_pid(process.pid, os.getuid())
    process.communicate()
    assert found is not None
    os.close(found[1])
    word, pid, started, ticks = found[0].identity.split()
    assert (word, int(pid), started) == ("pid", process.pid, "started")
    assert int(ticks) > 0


def test_nothing_is_known_of_the_living(child: subprocess.Popen[bytes]) -> None:
    with open(os.pidfd_open(child.pid)) as pidfd:
        assert exit_status(pidfd.fileno(), child.pid) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads a zombie's status")
@pytest.mark.parametrize(("script", "status"), [("exit 3", 3 << 8), ("kill -9 $$", signal.SIGKILL)])
def test_the_status_of_one_whose_parent_has_not_asked(script: str, status: int) -> None:
    process = subprocess.Popen(["sh", "-c", script])
    with open(os.pidfd_open(process.pid)) as pidfd:
        assert select.select([pidfd], [], [], 60)[0]
        assert exit_status(pidfd.fileno(), process.pid) == status
    process.wait()
