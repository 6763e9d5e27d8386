"""The proof of the path: rank 0's port says the round's nonce, and whoever is to use it reads it.

The same address may exist on several hosts (docker0), a firewall may drop the port: a connection
that brings back the nonce is the only evidence that counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Collection
from pathlib import Path

from mingled.core import events
from mingled.core.events import Address
from mingled.core.words import JobId, Nonce
from mingled.net.dialing import try_anew
from mingled.net.interfaces import interface_of

PROVE_S = 5.0
"""For the proof: less than the leader waits for the answer to its PREPARE."""

ANEW_S = 0.25
"""A proof takes three packets: at 30% loss one try in three gets through, so a fresh connection is
made beside the ones that wait; the kernel would repeat a lost SYN after 1 s only."""

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def ephemeral_ports() -> range:
    """Ports that the kernel hands out to anybody: never picked for rank 0."""
    try:
        low, high = _RANGE.read_text().split()
        return range(int(low), int(high) + 1)
    except (OSError, ValueError):
        return range(32_768, 61_000)


def _socket(family: int, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return sock


def reserve(port: int) -> socket.socket:
    """A socket that keeps `port` against every other reservation, and lets a server have it.

    Bound alone, so that a used port is noticed; then SO_REUSEADDR is set, with which Linux lets a
    server that sets it too (all do: torch, gRPC, asyncio) listen beside a socket that does not.
    Raises `OSError`.
    """
    for family, host in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            sock = _socket(family, port)
        except OSError:
            continue
        try:
            sock.bind((host, port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except OSError as error:
            sock.close()
            if family == socket.AF_INET or error.errno == errno.EADDRINUSE:
                raise
        else:
            return sock
    raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))


class Proofs:
    """Rank 0's listeners, and the proofs that followers make."""

    def __init__(self, emit: Callable[[events.Event], None]) -> None:
        self._emit = emit
        self._reserved: dict[Nonce, socket.socket] = {}
        self._listening: dict[Nonce, socket.socket] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        for proof in list(self._reserved):
            self.close_proof(proof, keep=False)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------ rank 0's side

    def open_proof(
        self,
        job: JobId,
        proof: Nonce,
        *,
        first: int,
        base: int,
        count: int,
        avoid: Collection[int],
    ) -> None:
        """Listen on the first free port."""
        forbidden = ephemeral_ports()
        for offset in range(count):
            port = base + (first - base + offset) % count
            if port in avoid or port in forbidden:
                continue
            try:
                reserved = reserve(port)
            except OSError:
                continue
            try:
                listener = self._listen(reserved.family, port)
            except OSError:
                reserved.close()
                continue
            self._reserved[proof] = reserved
            self._listening[proof] = listener
            self._loop.add_reader(listener, self._accept, listener, proof)
            self._emit(events.ProofOpened(job=job, proof=proof, port=port))
            return
        reason = f"no port is free for rank 0 between {base} and {base + count - 1}"
        self._emit(events.ProofFailed(job=job, proof=proof, reason=reason))

    @staticmethod
    def _listen(family: int, port: int) -> socket.socket:
        listener = _socket(family, port)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
        return listener

    def _accept(self, listener: socket.socket, proof: Nonce) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    # Fits in any empty send buffer. The reader answers with RST (see `_read`), so
                    # that no TIME_WAIT is left on the port.
                    connection.send(proof.encode() + b"\n")

    def close_proof(self, proof: Nonce, *, keep: bool) -> None:
        listener = self._listening.pop(proof, None)
        if listener is not None:
            self._loop.remove_reader(listener)
            # RST for whoever still knocks: a client of the store must try again, not wait.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            listener.close()
        if not keep:
            self.free_port(proof)

    def free_port(self, proof: Nonce) -> None:
        reserved = self._reserved.pop(proof, None)
        if reserved is not None:
            reserved.close()

    # ------------------------------------------------------------ a follower's side

    def prove_path(self, job: JobId, proof: Nonce, address: str, port: int) -> None:
        task = asyncio.create_task(self._prove(job, proof, address, port))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prove(self, job: JobId, proof: Nonce, address: str, port: int) -> None:
        try:
            local = await try_anew(
                lambda: _read(address, port, proof),
                lambda _: None,
                every_s=ANEW_S,
                within_s=PROVE_S,
            )
        except TimeoutError:
            reason = f"TCP {address} port {port}: no answer within {PROVE_S:g} s, firewall?"
        except OSError as error:
            word = os.strerror(error.errno) if error.errno else str(error)
            reason = f"TCP {address} port {port}: {word}"
        except ValueError as error:
            reason = f"TCP {address} port {port}: {error}"
        else:
            self._emit(events.PathProven(job=job, proof=proof, local=local))
            return
        self._emit(events.PathRefuted(job=job, proof=proof, reason=reason))


async def _read(address: str, port: int, proof: Nonce) -> Address:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        local = str(writer.get_extra_info("sockname")[0]).partition("%")[0]
        said = await reader.readline()
    finally:
        # RST instead of FIN: neither side keeps a TIME_WAIT on rank 0's port.
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    if said.strip() != proof.encode():
        raise ValueError("somebody else answers there; the same address on another host?")
    return Address(address=local, interface=interface_of(local))
