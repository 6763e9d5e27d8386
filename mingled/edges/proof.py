"""The proof of the path: a port says a word, and whoever is to use that way connects and reads it.

Rank 0's port says the round's nonce; every daemon's ring port says its node id, for whoever comes
before it in the ring of ranks. The same address may exist on several hosts (docker0), a firewall
may drop the port: a connection that brings back the word is the only evidence that counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from mingled.core import events
from mingled.core.events import Address
from mingled.core.words import JobId, NodeId, Nonce
from mingled.errors import DaemonError
from mingled.net.dialing import connect, local_end, try_anew

PROVE_S = 5.0
"""For the proof: less than the leader waits for the answer to its PREPARE."""

ANEW_S = 0.25
"""A proof takes three packets: at 30% loss one try in three gets through, so a fresh connection is
made beside the ones that wait; the kernel would repeat a lost SYN after 1 s only."""

PAUSE_S = 1.0
"""With no descriptor left a listener stays readable for ever: it is looked at again after this."""

ACCEPTED_AT_ONCE = 1024
"""Then others get their turn, however many still knock."""

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER for a close with RST instead of FIN: neither side keeps a TIME_WAIT on the port."""

STRANGER = "somebody else answers there; the same address on another host?"

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def ephemeral_ports() -> range:
    """Ports that the kernel hands out to anybody: never picked for rank 0."""
    try:
        low, high = _RANGE.read_text().split()
        return range(int(low), int(high) + 1)
    except (OSError, ValueError):
        return range(32_768, 61_000)


def _socket(family: int) -> socket.socket:
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
            sock = _socket(family)
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


def _listen(family: int, port: int) -> socket.socket:
    listener = _socket(family)
    try:
        if port:  # else the kernel might give it the port of another that does not listen yet
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def _listen_anywhere() -> socket.socket:
    with contextlib.suppress(OSError):
        return _listen(socket.AF_INET6, 0)
    return _listen(socket.AF_INET, 0)


class _Stranger(Exception):
    """Something was said, but not the word."""


class Proofs:
    """Rank 0's listeners and the ring's, and the proofs that others' are reached."""

    def __init__(self, emit: Callable[[events.Event], None]) -> None:
        self._emit = emit
        self._reserved: dict[Nonce, socket.socket] = {}
        self._listening: dict[Nonce, socket.socket] = {}
        self._ring: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        for proof in list(self._reserved):
            self.close_proof(proof, keep=False)
        if self._ring is not None:
            self._hush(self._ring)
            self._ring = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------ what is to be reached

    def open_ring(self, node: NodeId) -> int:
        """Listen on all addresses, on a port of the kernel's choice, which is returned, and say
        `node` there until closed. Raises `DaemonError` where there is no port."""
        try:
            self._ring = _listen_anywhere()
        except OSError as error:
            raise DaemonError(
                f"{socket.gethostname()} has no port for the proof of the ring: "
                f"{os.strerror(error.errno or 0)}"
            ) from None
        port: int = self._ring.getsockname()[1]
        self._say(self._ring, node)
        return port

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
                listener = _listen(reserved.family, port)
            except OSError:
                reserved.close()
                continue
            self._reserved[proof] = reserved
            self._listening[proof] = listener
            self._say(listener, proof)
            self._emit(events.ProofOpened(job=job, proof=proof, port=port))
            return
        reason = f"no port is free for rank 0 between {base} and {base + count - 1}"
        self._emit(events.ProofFailed(job=job, proof=proof, reason=reason))

    def _say(self, listener: socket.socket, word: str) -> None:
        if listener.fileno() >= 0:  # closed during a pause
            self._loop.add_reader(listener, self._accept, listener, word)

    def _hush(self, listener: socket.socket) -> None:
        self._loop.remove_reader(listener)
        # RST for whoever still knocks: a client of the store must try again, not wait.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        listener.close()

    def _accept(self, listener: socket.socket, word: str) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _address = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._loop.remove_reader(listener)
                    self._loop.call_later(PAUSE_S, self._say, listener, word)
                return
            with connection, contextlib.suppress(OSError):
                # Fits in any empty send buffer. The reader answers with RST (see `_hear`), so
                # that no TIME_WAIT is left on the port.
                connection.send(word.encode() + b"\n")

    def close_proof(self, proof: Nonce, *, keep: bool) -> None:
        listener = self._listening.pop(proof, None)
        if listener is not None:
            self._hush(listener)
        if not keep:
            self.free_port(proof)

    def free_port(self, proof: Nonce) -> None:
        reserved = self._reserved.pop(proof, None)
        if reserved is not None:
            reserved.close()

    # ------------------------------------------------------------ whoever is to reach it

    def prove_path(
        self,
        job: JobId,
        proof: Nonce,
        address: str,
        port: int,
        word: str,
        sources: Sequence[Address] = (),
    ) -> None:
        """Connect and read `word`; with an empty one the connection is proof enough. Ends in one
        PathProven or PathRefuted, unless all is closed before."""
        task = asyncio.create_task(self._prove(job, proof, address, port, word, sources))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prove(
        self,
        job: JobId,
        proof: Nonce,
        address: str,
        port: int,
        word: str,
        sources: Sequence[Address],
    ) -> None:
        try:
            local = await try_anew(
                lambda: _read(address, port, word, sources),
                lambda _: None,
                every_s=ANEW_S,
                within_s=PROVE_S,
            )
        except TimeoutError:
            reason = f"no answer within {PROVE_S:g} s"
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
        except _Stranger:
            reason = STRANGER
        except Exception as error:  # whatever it is, the core must not wait for ever
            reason = str(error) or type(error).__name__
        else:
            self._emit(
                events.PathProven(job=job, proof=proof, address=address, port=port, local=local)
            )
            return
        self._emit(
            events.PathRefuted(job=job, proof=proof, address=address, port=port, reason=reason)
        )


async def _read(address: str, port: int, word: str, sources: Sequence[Address]) -> Address:
    """Our own end of a way on which `word` was read."""
    return local_end(await (_hear if word else _touch)(address, port, word, sources))


async def _hear(address: str, port: int, word: str, sources: Sequence[Address]) -> str:
    sock = await connect(address, port, sources)
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        local = str(sock.getsockname()[0])
        said = await reader.readline()
    except ValueError:  # a line that does not end
        raise _Stranger from None
    finally:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    if said.strip() != word.encode():
        raise _Stranger
    return local


async def _touch(address: str, port: int, word: str, sources: Sequence[Address]) -> str:
    """A store listens there, which must not be troubled: torch's looks up the name of whoever
    connects, one after the other, and warns of those who are gone. Without TCP_QUICKACK Linux
    keeps the handshake's last ACK back for a moment, so that our RST comes first and the
    connection never gets as far as the store's accept."""
    del word  # it says none
    sock = await connect(address, port, sources, quick_ack=False)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        return str(sock.getsockname()[0])
