"""Who gets in at the Unix socket, and who is turned away with which words."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mingled.core import local
from mingled.edges import door
from mingled.edges.door import Door
from mingled.processes import user_name

from .waiting import until

NOBODY = 65_534

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user as well")

ASKS = """
import socket, sys
held = []
for _ in range(int(sys.argv[2])):
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    held.append(s)
    s.settimeout(float(sys.argv[3]))
    try:
        line = s.recv(65536)
    except TimeoutError:
        line = b"in"
    print(line.decode().strip(), flush=True)
sys.stdin.read()
"""


class Inn:
    """Lets in, and keeps whom it let in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(str(path))
        path.chmod(0o666)
        self.sock.listen(128)
        self.inside: list[tuple[socket.socket, int]] = []
        self.door = Door(self.sock, lambda sock, uid: self.inside.append((sock, uid)))

    def end(self) -> None:
        self.door.close()
        self.leave()

    def leave(self) -> None:
        for sock, uid in self.inside:
            sock.close()
            self.door.left(uid)
        self.inside.clear()

    async def knock(self, count: int = 1, uid: int = 0) -> list[str]:
        """What connections of a user, one after the other, are told; they end with this."""
        asks = [sys.executable, "-Sc", ASKS, str(self.path), str(count), "0.05"]
        as_user = ["setpriv", f"--reuid={uid}", "--clear-groups"] if uid else []
        process = await asyncio.create_subprocess_exec(
            *as_user, *asks, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        out, _ = await process.communicate(b"")
        lines = out.decode().splitlines()
        return [line if line == "in" else sentence(line.encode()) for line in lines]


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing any more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    with contextlib.ExitStack() as hoard:
        hoard.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        with contextlib.suppress(OSError):
            while True:
                hoard.callback(os.close, os.dup(0))
        yield


def sentence(line: bytes) -> str:
    failed = local.reply_decoder.decode(line)
    assert isinstance(failed, local.Failed)
    assert failed.code == "refused"
    return failed.sentence


@pytest.fixture
async def inn() -> AsyncIterator[Inn]:
    with tempfile.TemporaryDirectory() as folder:  # every user may enter it
        os.chmod(folder, 0o755)
        made = Inn(Path(folder, "s"))
        made.door.open()
        yield made
        made.end()
        assert not made.door._by_user


@AS_ROOT
async def test_fault_37_one_user_has_so_many_connections_and_root_is_no_user(
    inn: Inn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "CLIENTS_PER_USER_MAX", 2)
    user, host = user_name(NOBODY), socket.gethostname()
    *got_in, refused = await inn.knock(3, NOBODY)
    assert got_in == ["in", "in"]
    assert refused == (
        f"{user} has 2 connections to the daemon on {host} already, as many as one user may have; "
        "end some of them (mingle status names their pids)"
    )
    assert await inn.knock(1, NOBODY - 1) == ["in"]
    assert await inn.knock(3) == ["in"] * 3
    inn.leave()
    assert await inn.knock(1, NOBODY) == ["in"]


@AS_ROOT
async def test_fault_37_a_new_user_gets_in_where_another_took_all_places(
    inn: Inn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inn.door, "_places", 16)
    *got_in, refused = await inn.knock(15, NOBODY)
    assert got_in == ["in"] * 14
    assert f"has 14 clients, 14 of them {user_name(NOBODY)}'s, and places for 16" in refused
    assert await inn.knock(1, NOBODY - 1) == ["in"]
    assert await inn.knock(1) == ["in"]
    (full,) = await inn.knock(1, NOBODY - 2)
    assert "has 16 clients, 0 of them" in full


def test_as_many_places_as_there_are_descriptors_for(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {256: door.FEW, 1_024: 384, 65_536: door.CLIENTS_MAX, -1: door.CLIENTS_MAX}
    for soft, count in limits.items():
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert door.places() == count


async def test_fault_31_without_descriptors_new_clients_are_told_so(
    inn: Inn, caplog: pytest.LogCaptureFixture
) -> None:
    """And whoever is in stays in; the loop does not spin, and says it once."""
    caplog.set_level(logging.WARNING, "mingled")
    clients = [socket.socket(socket.AF_UNIX) for _ in range(50)]
    insider, *others = clients
    insider.connect(str(inn.path))
    await until(lambda: bool(inn.inside))
    with no_descriptors():
        turns = 0
        for client in others:
            client.connect(str(inn.path))
        for client in others:
            client.setblocking(False)
            while True:
                turns += 1
                await asyncio.sleep(0)
                try:
                    line = client.recv(65_536)
                except BlockingIOError:
                    continue
                break
            assert "has no file descriptor left, with 1 clients; jobs that run go on" in sentence(
                line
            )
        assert turns < 500
        assert inn.door._again is None
    assert len(inn.inside) == 1
    assert len(caplog.records) == 1
    with socket.socket(socket.AF_UNIX) as late:
        late.connect(str(inn.path))
        await until(lambda: len(inn.inside) == 2)
    for client in clients:
        client.close()


async def test_fault_31_without_a_spare_one_either_nothing_is_accepted_for_a_while(
    inn: Inn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the whole machine is short: what waits in the queue must not wake the loop for ever."""
    monkeypatch.setattr(door, "PAUSE_S", 0.05)
    spare, inn.door._spare = inn.door._spare, None
    assert spare is not None
    os.close(spare)
    with socket.socket(socket.AF_UNIX) as client:
        with no_descriptors():
            client.connect(str(inn.path))
            await until(lambda: inn.door._again is not None)
            assert not asyncio.get_running_loop().remove_reader(inn.sock)
        await until(lambda: bool(inn.inside))
    assert "no client is accepted for 0.05 s: Too many open files" in caplog.text


async def test_a_door_that_is_closed_is_closed_once(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    inn = Inn(tmp_path / "s")
    inn.door.open()
    inn.door.close()
    inn.door.close()
    assert len(os.listdir("/proc/self/fd")) == before
