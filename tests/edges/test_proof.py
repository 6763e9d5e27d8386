"""Rank 0's port: kept for it, proven to be there, and free when the store comes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator

import pytest

from mingled.core import events
from mingled.core.words import JobId, Nonce
from mingled.edges import proof
from mingled.edges.proof import Proofs, ephemeral_ports, reserve

JOB = JobId("bert")
ONE, TWO = Nonce("1" * 32), Nonce("2" * 32)
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

    async def prove(self, nonce: Nonce, port: int, address: str = "127.0.0.1") -> events.Event:
        self.proofs.prove_path(JOB, nonce, address, port)
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


def test_a_reservation_keeps_others_out_and_lets_a_server_in() -> None:
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
    assert (proven.proof, proven.local.address, proven.local.interface) == (ONE, "127.0.0.1", "lo")


async def test_a_wrong_nonce_is_refuted(side: Side) -> None:
    port = await side.port(ONE)
    refuted = await side.prove(TWO, port)
    assert isinstance(refuted, events.PathRefuted)
    assert refuted.proof == TWO
    assert f"TCP 127.0.0.1 port {port}: somebody else answers there" in refuted.reason


async def test_nobody_there_is_refuted(side: Side) -> None:
    port = free_port()
    refuted = await side.prove(ONE, port)
    assert isinstance(refuted, events.PathRefuted)
    assert refuted.reason == f"TCP 127.0.0.1 port {port}: {os.strerror(errno.ECONNREFUSED)}"


async def test_silence_is_refuted(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "PROVE_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        refuted = await side.prove(ONE, port)
    assert isinstance(refuted, events.PathRefuted)
    assert refuted.reason == f"TCP 127.0.0.1 port {port}: no answer within 0.05 s, firewall?"


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


async def test_ports_to_avoid_and_none_left(side: Side) -> None:
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


async def test_the_place_is_free_for_the_store_and_for_nobody_else(side: Side) -> None:
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
