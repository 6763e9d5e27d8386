"""Everybody who knocks is served, or turned away at once where no descriptor is left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from mingled.net import accepting
from mingled.net.accepting import Acceptor
from mingled.net.listening import listen

MakeAcceptor = Callable[[accepting.Serve], Awaitable[int]]


@pytest.fixture
async def acceptors() -> AsyncIterator[MakeAcceptor]:
    made: list[Acceptor] = []

    async def make(serve: accepting.Serve) -> int:
        sock = listen(0)
        port: int = sock.getsockname()[1]
        made.append(Acceptor("a test", sock, serve))
        return port

    yield make
    for each in made:
        each.close()
        each.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    writer.close()
    await writer.wait_closed()


async def say(port: int, word: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(word)
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_all_who_knock_at_once_are_served(acceptors: MakeAcceptor) -> None:
    port = await acceptors(echo)
    words = [b"%d\n" % number for number in range(accepting.PER_TURN_MAX * 2 + 1)]
    assert await asyncio.gather(*(say(port, word) for word in words)) == words


async def test_fault_31_without_descriptors_they_are_turned_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    at = Acceptor("a test", listen(0), echo)
    port: int = at._sock.getsockname()[1]
    assert await say(port, b"before\n") == b"before\n"
    while at._tasks:
        await asyncio.wait(at._tasks)
    knocking = [socket.socket() for _ in range(50)]
    for sock in knocking:
        sock.setblocking(False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        loop = asyncio.get_running_loop()
        for sock in knocking:
            await loop.sock_connect(sock, ("127.0.0.1", port))
            assert await loop.sock_recv(sock, 1) == b"", "it is hung up on"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in fillers:
            os.close(descriptor)
        for sock in knocking:
            sock.close()
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert line.startswith("a test: no descriptor is left; turned away: 1.")
    assert await say(port, b"after\n") == b"after\n"
    at.close()


async def test_where_not_even_that_helps_it_pauses(
    acceptors: MakeAcceptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "PAUSE_S", 0.01)
    monkeypatch.setattr(accepting, "_spare", lambda: None)
    tries = 0

    class Exhausted(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            nonlocal tries
            tries += 1
            if tries <= 3:
                raise OSError(errno.EMFILE, "none left")
            return super().accept()

    sock = listen(0)
    at = Acceptor("a test", Exhausted(fileno=sock.detach()), echo)
    assert await say(at._sock.getsockname()[1], b"word\n") == b"word\n"
    assert tries >= 4
    at.close()


async def test_a_bug_of_whoever_serves_is_said(
    acceptors: MakeAcceptor, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()
        raise KeyError("a bug")

    assert await say(await acceptors(fails), b"word\n") == b""
    assert "bug: a test: a connection was not served" in caplog.text
