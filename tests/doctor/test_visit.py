"""The client of a visit against what is no daemon, and DNS servers: whatever answers, it is a text
and it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from mingled.core.codec import encode
from mingled.core.messages import Hail, peer_decoder
from mingled.core.messages import Test as Question  # pytest collects what is called Test...
from mingled.core.messages import Tested as Answer
from mingled.core.secrets import node_realms_of
from mingled.doctor import gather_dns, visit
from mingled.doctor.realms import Held
from mingled.doctor.visit import Unreached, hail
from mingled.edges import peers
from mingled.net import tls

from .samples import PRESENCE

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def port() -> AsyncIterator[Callable[[Serve], Awaitable[int]]]:
    """Serves on a port of loopback until the end of the test."""
    servers: list[asyncio.Server] = []

    async def start(serve: Serve) -> int:
        servers.append(await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20))
        number: int = servers[-1].sockets[0].getsockname()[1]
        return number

    yield start
    for server in servers:
        server.close()


def as_daemon(key: bytes, serve: Callable[[tls.Channel], Awaitable[None]]) -> Serve:
    """Serves those who have the same key."""
    vault = tls.Vault()
    (realm,) = node_realms_of([key])
    vault.trust(realm)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            channel, _ = await tls.accept(reader, writer, vault)
            await serve(channel)
        except OSError:
            pass
        finally:
            writer.close()

    return accept


async def play(channel: tls.Channel) -> None:
    """A daemon that refuses to test anything."""
    while line := await channel.readline(2**20):
        match peer_decoder.decode(line):
            case Hail():
                channel.write(encode(PRESENCE))
            case Question():
                channel.write(encode(Answer(results=())))


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    monkeypatch.setattr(visit, "passes", lambda: (tls.Pass(node_realms_of()[0]),))
    monkeypatch.setattr(visit, "held", lambda: Held((), ""))


async def test_a_visit(port: Callable[[Serve], Awaitable[int]]) -> None:
    clock = iter((PRESENCE.clock_s - 11.0, PRESENCE.clock_s - 9.0))
    serve = as_daemon(b"", play)
    found = await hail(["127.0.0.1"], await port(serve), clock=lambda: next(clock))
    assert not isinstance(found, Unreached)
    async with found:
        assert found.presence == PRESENCE
        assert (found.ahead_s, found.took_s) == (10.0, 2.0)
        assert (found.address, found.here.address) == ("127.0.0.1", "127.0.0.1")
        assert await found.hears_large() == ""
        assert await found.says_large() == ""
        assert await found.test([]) == ()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def talk_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9\r\n")
    await reader.read()
    writer.close()


@pytest.mark.parametrize(
    ("serve", "reason"),
    [
        (hang_up, "hung up during the handshake"),
        (talk_nonsense, "is not TLS; is it a mingled of this version?"),
        (as_daemon(b"k" * 32, play), "it has no such job, or another key"),
    ],
    ids=["hangs up", "nonsense", "another key"],
)
async def test_what_is_no_daemon(
    port: Callable[[Serve], Awaitable[int]], serve: Serve, reason: str
) -> None:
    found = await hail(["127.0.0.1"], await port(serve))
    assert isinstance(found, Unreached)
    assert reason in found.reason


async def test_one_that_says_nothing(
    port: Callable[[Serve], Awaitable[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def be_silent_after_all(channel: tls.Channel) -> None:
        await channel.readline(2**20)
        await channel.readline(2**20)

    monkeypatch.setattr(visit, "ANSWER_S", 0.05)
    found = await hail(["127.0.0.1"], await port(as_daemon(b"", be_silent_after_all)))
    assert found == Unreached("connected, but no answer within 0.05 s")
    monkeypatch.setattr(peers, "CONNECT_S", 0.05)
    number = await port(be_silent)
    found = await hail(["127.0.0.1"], number)
    assert found == Unreached(f"127.0.0.1 port {number}: no answer within 0.05 s")


async def test_nobody_there() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        found = await hail(["127.0.0.1"], closed.getsockname()[1])
    assert isinstance(found, Unreached)
    assert "Connection refused" in found.reason
    nowhere = await hail([], 29_490)
    assert isinstance(nowhere, Unreached)


# ---------------------------------------------------------------- DNS


class Server(asyncio.DatagramProtocol):
    def __init__(self, *, answers: bool) -> None:
        self._answers = answers
        self.transport: asyncio.DatagramTransport | None = None

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._answers and self.transport is not None:
            self.transport.sendto(b"??", addr)  # somebody else's
            self.transport.sendto(data[:2] + b"\x80\x05" + data[4:], addr)  # refused


@pytest.mark.parametrize("answers", [True, False])
async def test_a_name_server(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather_dns, "ANSWER_S", 0.1 if not answers else 10.0)
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(
        lambda: Server(answers=answers), ("127.0.0.1", 0)
    )
    server.transport = transport
    number = transport.get_extra_info("sockname")[1]
    found = await gather_dns.ask("127.0.0.1", number)
    transport.close()
    assert found == gather_dns.Server(address="127.0.0.1", silent=not answers)


async def test_a_name_server_that_is_not_there() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        number = closed.getsockname()[1]
    assert (await gather_dns.ask("127.0.0.1", number)).reason == "Connection refused"
    assert (await gather_dns.ask("nonsense")).reason
