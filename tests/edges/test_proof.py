"""Ports that are proven to be there: rank 0's, kept for it and free when the store comes, and the
ring's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator

import pytest

from mingled.core import events
from mingled.core.words import JobId, NodeId, Nonce
from mingled.edges import proof
from mingled.edges.proof import Proofs, reserve
from mingled.errors import DaemonError
from mingled.net import listening
from mingled.net.listening import ephemeral_ports

JOB = JobId("bert")
ONE, TWO = Nonce("1" * 32), Nonce("2" * 32)
NODE = NodeId("a" * 32)
FIRST = 29_700


class Side:
    """The proofs of one daemon, and what it hears of them."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[events.Event] = asyncio.Queue()
        self.proofs = Proofs(self.events.put_nowait)

    async def open(self, nonce: Nonce, count: int = 100, *avoid: int) -> events.Event:
        self.proofs.open_proof(JOB, nonce, first=FIRST, base=FIRST, count=count, avoid=avoid)
        return await self.events.get()

    async def port(self, nonce: Nonce) -> int:
        opened = await self.open(nonce)
        assert isinstance(opened, events.ProofOpened)
        return opened.port

    async def prove(self, word: str, port: int, address: str = "127.0.0.1") -> events.Event:
        self.proofs.prove_path(JOB, ONE, address, port, word)
        return await self.events.get()


@pytest.fixture
async def side() -> AsyncIterator[Side]:
    made = Side()
    yield made
    await made.proofs.close()


def free_port() -> int:
    """A port that can be reserved; given back."""
    for port in range(FIRST, FIRST + 100):
        with contextlib.suppress(OSError), reserve(port):
            return port
    raise AssertionError("every port is taken")


def test_fault_29_a_reservation_keeps_others_out_and_lets_a_server_in() -> None:
    port = free_port()
    with reserve(port):
        with pytest.raises(OSError) as caught:
            reserve(port)
        assert caught.value.errno == errno.EADDRINUSE
        with socket.create_server(("127.0.0.1", port)) as server:  # sets SO_REUSEADDR
            with socket.create_connection(("127.0.0.1", port)) as client:
                accepted, address = server.accept()
                assert address == client.getsockname()
                accepted.close()
            with pytest.raises(OSError):
                reserve(port)


def test_a_port_in_use_is_not_reserved() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server, pytest.raises(OSError):
        reserve(server.getsockname()[1])


@pytest.mark.torch
def test_torchs_store_listens_on_a_reserved_port() -> None:
    pytest.importorskip("torch")
    from torch.distributed import TCPStore

    port = free_port()
    with reserve(port):
        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        client = TCPStore("127.0.0.1", port, is_master=False)
        client.set("who", "rank 0")
        assert store.get("who") == b"rank 0"


async def test_the_proof_is_the_nonce(side: Side) -> None:
    port = await side.port(ONE)
    proven = await side.prove(ONE, port)
    assert isinstance(proven, events.PathProven)
    assert (proven.job, proven.proof, proven.address, proven.port) == (JOB, ONE, "127.0.0.1", port)
    assert (proven.local.address, proven.local.interface) == ("127.0.0.1", "lo")


async def test_a_wrong_nonce_is_refuted(side: Side) -> None:
    port = await side.port(ONE)
    refuted = await side.prove(TWO, port)
    assert isinstance(refuted, events.PathRefuted)
    assert (refuted.proof, refuted.address, refuted.port) == (ONE, "127.0.0.1", port)
    assert refuted.reason == "somebody else answers there; the same address on another host?"


async def test_nobody_there_is_refuted(side: Side) -> None:
    port = free_port()
    refuted = await side.prove(ONE, port)
    assert isinstance(refuted, events.PathRefuted)
    assert (refuted.proof, refuted.address, refuted.port) == (ONE, "127.0.0.1", port)
    assert refuted.reason == os.strerror(errno.ECONNREFUSED)


async def test_silence_is_refuted(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "PROVE_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        refuted = await side.prove(ONE, mute.getsockname()[1])
    assert isinstance(refuted, events.PathRefuted)
    assert refuted.reason == "no answer within 0.05 s"


async def test_with_no_word_the_connection_is_the_proof(side: Side) -> None:
    """A store says nothing; it sees no connection at all, or one that is reset."""
    with socket.create_server(("127.0.0.1", 0)) as store:
        port = store.getsockname()[1]
        proven = await side.prove("", port)
        assert isinstance(proven, events.PathProven)
        assert (proven.address, proven.port) == ("127.0.0.1", port)
        assert proven.local.address == "127.0.0.1"
        store.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            accepted, _ = store.accept()
            with accepted, pytest.raises(ConnectionResetError):
                accepted.recv(1)
    refuted = await side.prove("", port)
    assert isinstance(refuted, events.PathRefuted)


@pytest.mark.torch
@pytest.mark.parametrize("libuv", [True, False])
async def test_torchs_store_outlives_the_proofs_made_at_it(side: Side, libuv: bool) -> None:
    pytest.importorskip("torch")
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, use_libuv=libuv)
    for _ in range(100):
        assert isinstance(await side.prove("", store.port), events.PathProven)
    client = TCPStore("127.0.0.1", store.port, is_master=False, use_libuv=libuv)
    client.set("who", "rank 0")
    assert store.get("who") == b"rank 0"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1"])
async def test_the_ring_says_the_node_to_whoever_connects(side: Side, address: str) -> None:
    if address == "::1":
        try:
            socket.create_server((address, 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 on this machine's loopback")
    port = side.proofs.open_ring(NODE)
    for _ in range(3):
        proven = await side.prove(NODE, port, address)
        assert isinstance(proven, events.PathProven)
        assert (proven.address, proven.port) == (address, port)
    refuted = await side.prove("b" * 32, port, address)
    assert isinstance(refuted, events.PathRefuted)
    await side.proofs.close()
    refuted = await side.prove(NODE, port, address)
    assert isinstance(refuted, events.PathRefuted)
    assert refuted.reason == os.strerror(errno.ECONNREFUSED)


async def test_each_of_many_proofs_ends_in_one_event(side: Side) -> None:
    """All of one attempt: to rank 0 and along the ring."""
    ring, leader, closed = side.proofs.open_ring(NODE), await side.port(ONE), free_port()
    for port, word in ((ring, NODE), (leader, ONE), (ring, ONE), (closed, NODE), (ring, "")) * 10:
        side.proofs.prove_path(JOB, ONE, "127.0.0.1", port, word)
    ended = [await side.events.get() for _ in range(50)]
    assert sum(isinstance(event, events.PathProven) for event in ended) == 30
    assert sum(isinstance(event, events.PathRefuted) for event in ended) == 20
    assert side.events.empty()


@pytest.mark.parametrize(
    ("address", "port"), [("127.0.0.1", 70_000), ("a\0b", 1), ("." * 300, 1), ("127.0.0.1", 0)]
)
async def test_what_is_no_address_is_refuted_too(side: Side, address: str, port: int) -> None:
    for word in (NODE, ""):
        refuted = await side.prove(word, port, address)
        assert isinstance(refuted, events.PathRefuted)
        assert refuted.reason


async def test_no_port_for_the_ring(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(port: int) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(proof, "listen", none)
    with pytest.raises(DaemonError, match=f"{socket.gethostname()} has no port.*: Too many open"):
        side.proofs.open_ring(NODE)


async def test_a_listener_without_descriptors_rests_and_goes_on(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "PAUSE_S", 0.01)
    accept, failures = socket.socket.accept, 0

    def scarce(listener: socket.socket) -> tuple[socket.socket, object]:
        nonlocal failures
        if failures < 2:
            failures += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", scarce)
    port = side.proofs.open_ring(NODE)
    assert isinstance(await side.prove(NODE, port), events.PathProven)
    assert failures == 2


@pytest.mark.parametrize("said", [b"x" * 200_000, b"", b"\xff\xff\n"])
async def test_somebody_else_who_answers_is_refuted(side: Side, said: bytes) -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        refuted = await side.prove(ONE, server.sockets[0].getsockname()[1])
    assert isinstance(refuted, events.PathRefuted)


async def test_two_proofs_never_share_a_port(side: Side) -> None:
    first = await side.port(ONE)
    second = await side.port(TWO)
    assert second > first


async def test_fault_29_ports_to_avoid_and_none_left(side: Side) -> None:
    first = free_port()
    failed = await side.open(ONE, first - FIRST + 1, first)
    assert isinstance(failed, events.ProofFailed)
    assert f"no port is free for rank 0 between {FIRST} and {first}" in failed.reason
    opened = await side.open(ONE, 100, first)
    assert isinstance(opened, events.ProofOpened)
    assert opened.port != first


async def test_the_search_wraps_around(side: Side) -> None:
    last = free_port()
    side.proofs.open_proof(
        JOB, ONE, first=last + 1, base=last, count=2, avoid=frozenset({last + 1})
    )
    opened = await side.events.get()
    assert isinstance(opened, events.ProofOpened)
    assert opened.port == last


async def test_the_kernels_own_ports_are_never_picked(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(ephemeral_ports()) > 1
    monkeypatch.setattr(proof, "ephemeral_ports", lambda: range(FIRST, FIRST + 100))
    assert isinstance(await side.open(ONE), events.ProofFailed)


async def test_fault_29_the_place_is_free_for_the_store_and_for_nobody_else(side: Side) -> None:
    port = await side.port(ONE)
    assert isinstance(await side.prove(ONE, port), events.PathProven)
    side.proofs.close_proof(ONE, keep=True)
    with pytest.raises(OSError):
        reserve(port)
    with socket.create_server(("127.0.0.1", port)):
        pass
    side.proofs.free_port(ONE)
    side.proofs.free_port(ONE)
    with reserve(port):  # no TIME_WAIT of the proof is in its way either
        pass
