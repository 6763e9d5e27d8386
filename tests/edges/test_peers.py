"""The peer link: who wins the race, what is said of those who lose it, and what peers may send."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from mingled.core import events, messages
from mingled.core.codec import encode
from mingled.core.secrets import realm_of
from mingled.core.words import JobId, Nonce
from mingled.edges import peers
from mingled.errors import DaemonError
from mingled.net import tls

REALM = realm_of(JobId("bert"))
LABEL = REALM.label
PASS = tls.Pass(REALM)
PING = messages.Ping(claim=Nonce("0" * 32))


@pytest.fixture
def port() -> Iterator[int]:
    """One on which 127.0.0.1 listens and 127.0.0.2 does not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
async def daemon() -> AsyncIterator[int]:
    """The port of a daemon at 127.0.0.1; nothing listens at 127.0.0.2."""
    events_: asyncio.Queue[events.Event] = asyncio.Queue()
    there = peers.Peers(events_.put_nowait)
    there.trust(REALM)
    sock = socket.create_server(("127.0.0.1", 0))
    await there.start(sock)
    yield sock.getsockname()[1]
    await there.close()


@contextlib.contextmanager
def black_hole(port: int) -> Iterator[str]:
    """An address that answers nothing: its queue of connections is full, so SYNs are dropped."""
    address = "127.0.0.3"
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind((address, port))
        server.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect((address, port))
        yield address


async def winner(addresses: list[str], port: int) -> str:
    channel = await peers.race(addresses, port, PASS)
    remote = str(channel.peername[0])
    channel.close()
    await channel.wait_closed()
    return remote


async def test_a_dead_first_address(daemon: int) -> None:
    assert await winner(["127.0.0.2", "127.0.0.1"], daemon) == "127.0.0.1"
    assert await winner(["127.0.0.1", "127.0.0.2"], daemon) == "127.0.0.1"


async def test_a_silent_first_address(daemon: int) -> None:
    with black_hole(daemon) as silent:
        assert await winner([silent, "127.0.0.1"], daemon) == "127.0.0.1"


async def test_each_address_and_its_reason_are_named(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "CONNECT_S", 0.05)
    monkeypatch.setattr(peers, "STAGGER_S", 0.01)
    with black_hole(port) as silent, pytest.raises(peers.Unreached) as caught:
        await peers.race(["127.0.0.2", silent], port, PASS)
    assert caught.value.answered
    assert caught.value.strerror == (
        f"127.0.0.2 port {port}: Connection refused; {silent} port {port}: no answer within 0.05 s"
    )


async def test_no_address_at_all() -> None:
    with pytest.raises(peers.Unreached, match="names no address") as caught:
        await peers.race([], 1, PASS)
    assert not caught.value.answered


async def test_silent_and_unreachable_addresses_do_not_answer(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "CONNECT_S", 0.05)
    broadcast = "255.255.255.255"
    with black_hole(port) as silent, pytest.raises(peers.Unreached) as caught:
        await peers.race([silent, broadcast], port, PASS)
    assert not caught.value.answered
    assert caught.value.strerror == (
        f"{silent} port {port}: no answer within 0.05 s; "
        f"{broadcast} port {port}: {os.strerror(errno.ENETUNREACH)}"
    )


async def pair() -> tuple[tls.Channel, socket.socket]:
    """A channel without a handshake, and the other side's socket."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    channel = tls.Channel(reader, writer, PASS.client(incoming, outgoing), incoming, outgoing)
    return channel, theirs


async def test_a_race_called_off_closes_what_it_had_won(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = asyncio.Event()
    first = peers._first
    channel, theirs = await pair()

    async def dial(address: str, *_: object) -> tls.Channel:
        if address == "better":
            await asyncio.Event().wait()
        return channel

    async def seen(
        attempts: list[asyncio.Task[tls.Channel]], wait_s: float | None
    ) -> asyncio.Task[tls.Channel] | None:
        if wait_s == peers.BETTER_S:
            waiting.set()
        return await first(attempts, wait_s)

    monkeypatch.setattr(peers, "dial", dial)
    monkeypatch.setattr(peers, "_first", seen)
    monkeypatch.setattr(peers, "STAGGER_S", 0.0)
    monkeypatch.setattr(peers, "BETTER_S", 3600.0)
    race = asyncio.create_task(peers.race(["better", "worse"], 1, PASS))
    await waiting.wait()
    race.cancel()
    await channel.wait_closed()
    assert race.cancelled()
    theirs.close()


async def test_a_better_address_that_answers_a_little_later_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = asyncio.Event()
    streams: dict[str, tls.Channel] = {}
    async with contextlib.AsyncExitStack() as stack:
        for address in ("better", "worse"):
            streams[address], theirs = await pair()
            stack.enter_context(theirs)

        async def dial(address: str, *_: object) -> tls.Channel:
            if address == "better":
                await answered.wait()
            answered.set()
            return streams[address]

        monkeypatch.setattr(peers, "dial", dial)
        monkeypatch.setattr(peers, "STAGGER_S", 0.0)
        assert await peers.race(["better", "worse"], 1, PASS) is streams["better"]
        await streams["worse"].wait_closed()
        streams["better"].close()


def test_a_busy_link_port_moves_on() -> None:
    first = peers.bind(29_900)
    second = peers.bind(29_900)
    assert second.getsockname()[1] > first.getsockname()[1]
    first.close()
    second.close()


def test_no_link_port_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PORTS_TRIED", 1)
    first = peers.bind(29_900)
    with pytest.raises(DaemonError, match="no peer link port: "):
        peers.bind(first.getsockname()[1])
    first.close()


class End:
    """One daemon's side."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[events.Event] = asyncio.Queue()
        self.peers = peers.Peers(self.events.put_nowait)
        self.peers.trust(REALM)
        self.sock = peers.bind(29_900)

    @property
    def port(self) -> int:
        port: int = self.sock.getsockname()[1]
        return port


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    both = End(), End()
    for end in both:
        await end.peers.start(end.sock)
    yield both
    for end in both:
        await end.peers.close()


async def test_a_link_says_what_it_measured_and_carries_messages(ends: tuple[End, End]) -> None:
    ours, theirs = ends
    ours.peers.open_link(1, LABEL, ["127.0.0.1"], theirs.port)
    opened, accepted = await ours.events.get(), await theirs.events.get()
    assert isinstance(opened, events.LinkOpened)
    assert (opened.local.address, opened.local.interface) == ("127.0.0.1", "lo")
    assert opened.remote_address == "127.0.0.1"
    assert isinstance(accepted, events.LinkAccepted)
    assert (accepted.local, accepted.remote_address) == (opened.local, "127.0.0.1")
    assert accepted.label == LABEL
    ours.peers.send(1, PING)
    assert await theirs.events.get() == events.FrameReceived(link=accepted.link, message=PING)
    theirs.peers.send(accepted.link, PING)
    assert await ours.events.get() == events.FrameReceived(link=1, message=PING)
    theirs.peers.send(accepted.link, PING)
    theirs.peers.close_link(accepted.link)  # what was sent still arrives
    assert await ours.events.get() == events.FrameReceived(link=1, message=PING)
    assert await ours.events.get() == events.LinkClosed(link=1, reason="hung up", answered=True)
    assert theirs.events.empty()


async def test_a_link_that_cannot_be_opened(ends: tuple[End, End]) -> None:
    ours, _ = ends
    ours.peers.open_link(1, LABEL, ["127.0.0.2"], 1)
    failed = await ours.events.get()
    assert isinstance(failed, events.LinkFailed)
    assert "127.0.0.2 port 1: Connection refused" in failed.reason
    assert failed.answered
    ours.peers.open_link(3, LABEL, ["255.255.255.255"], 1)
    failed = await ours.events.get()
    assert isinstance(failed, events.LinkFailed)
    assert (failed.link, failed.answered) == (3, False)


async def test_a_link_closed_while_it_is_opened_leaves_nothing(
    ends: tuple[End, End], port: int
) -> None:
    ours, _ = ends
    with black_hole(port) as silent:
        running, descriptors = asyncio.all_tasks(), len(os.listdir("/proc/self/fd"))
        ours.peers.open_link(1, LABEL, [silent, silent], port)
        ours.peers.close_link(1)  # before its first step
        ours.peers.open_link(3, LABEL, [silent, silent], port)
        for _ in range(20):  # turns of the loop, by which a socket is there
            await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) > descriptors
        ours.peers.close_link(3)
        ours.peers.close_link(3)
        while opening := asyncio.all_tasks() - running:
            await asyncio.wait(opening)
        assert len(os.listdir("/proc/self/fd")) == descriptors
    assert ours.events.empty()


async def test_a_link_closed_at_any_step_of_its_opening(ends: tuple[End, End]) -> None:
    """Each time one turn of the loop later, until it stands before it is closed."""
    ours, theirs = ends
    running, descriptors = asyncio.all_tasks(), len(os.listdir("/proc/self/fd"))
    for turns in range(1000):
        link = 2 * turns + 1
        ours.peers.open_link(link, LABEL, ["127.0.0.1"], theirs.port)
        for _ in range(turns):
            await asyncio.sleep(0)
        opened = not ours.events.empty()
        ours.peers.close_link(link)
        while opening := asyncio.all_tasks() - running:
            await asyncio.wait(opening)
        if opened:
            break
        assert ours.events.empty()
    assert isinstance(ours.events.get_nowait(), events.LinkOpened)
    assert ours.events.empty()
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "sent what is no message"),
        (b"\xff\n", "sent what is no message"),
        (b"[" * 5000 + b"\n", "sent what is no message"),
        (b'{"type":"later"}\n', "sent what is no message"),
        (encode(PING)[:-1], "hung up"),
        (b"x" * (messages.FRAME_SIZE_BYTES_MAX + 1), "sent a line longer than"),
    ],
    ids=["http", "not utf-8", "deep", "unknown", "cut off", "too long"],
)
async def test_what_is_no_message_ends_the_link(
    ends: tuple[End, End], sent: bytes, reason: str
) -> None:
    _, theirs = ends
    client = await peers.dial("127.0.0.1", theirs.port, PASS)
    accepted = await theirs.events.get()
    assert isinstance(accepted, events.LinkAccepted)
    client.write(sent)
    client.finish()
    closed = await theirs.events.get()
    assert isinstance(closed, events.LinkClosed)
    assert closed.link == accepted.link
    assert closed.reason.startswith(reason)
    assert closed.answered
    client.close()
    await client.wait_closed()


async def accepted(end: End) -> tuple[int, tls.Channel, socket.socket]:
    """A link to `end`: its number, its own channel, and the other side's socket."""
    client = socket.create_connection(("127.0.0.1", end.port))
    ours = PASS._client.wrap_socket(client, server_hostname=LABEL, do_handshake_on_connect=False)
    await asyncio.to_thread(ours.do_handshake)
    event = await end.events.get()
    assert isinstance(event, events.LinkAccepted)
    return event.link, end.peers._channels[event.link], ours


async def test_a_reset_is_an_answer(ends: tuple[End, End]) -> None:
    link, _channel, client = await accepted(ends[0])
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    reason = os.strerror(errno.ECONNRESET)
    closed = events.LinkClosed(link=link, reason=reason, answered=True)
    assert await ends[0].events.get() == closed


async def test_what_the_kernel_gives_up_on_is_no_answer(ends: tuple[End, End]) -> None:
    link, channel, client = await accepted(ends[0])
    channel.sock.setsockopt(
        socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1
    )  # ms; nobody reads for longer
    with client:
        for _ in range(3):
            channel.write(b"x" * 8_000_000)
        closed = await ends[0].events.get()
    reason = os.strerror(errno.ETIMEDOUT)
    assert closed == events.LinkClosed(link=link, reason=reason, answered=False)


async def test_a_peer_that_does_not_read_is_hung_up_on(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "UNSENT_BYTES_MAX", 1000)
    link, channel, client = await accepted(ends[0])
    with client:
        channel.write(b"x" * 24_000_000)
        ends[0].peers.send(link, PING)
        closed = await ends[0].events.get()
    assert closed == events.LinkClosed(link=link, reason="left 1000 bytes unread", answered=False)


async def test_a_reset_at_once_is_told() -> None:
    """Between connect and asyncio's first look the peer may be gone again: never silence."""
    linger = struct.pack("ii", 1, 0)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as server:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        told: dict[int, str] = {}
        all_told = asyncio.Event()

        def emit(event: events.Event) -> None:
            if isinstance(event, events.LinkFailed | events.LinkClosed):
                assert event.answered
                told[event.link] = event.reason
            if len(told) == 100:
                all_told.set()

        links = peers.Peers(emit)
        links.trust(REALM)
        for link in range(1, 200, 2):
            links.open_link(link, LABEL, ["127.0.0.1"], server.getsockname()[1])
        async with asyncio.timeout(60):
            await all_told.wait()
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        await links.close()
