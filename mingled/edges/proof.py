"""The proof of the path: a port says a word, and whoever is to use that way connects and reads it.

Rank 0's port says the round's nonce; every daemon's ring port says its node id, for whoever comes
before it in the ring of ranks. The same address may exist on several hosts (docker0), a firewall
may drop the port: a connection that brings back the word is the only evidence that counts.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Collection, Sequence

from mingled.core import events
from mingled.core.events import Address
from mingled.core.words import JobId, NodeId, Nonce
from mingled.errors import DaemonError
from mingled.net.dialing import STRANGER, Stranger, connect, hear, local_end, try_anew
from mingled.net.listening import RESET, Speaker, ephemeral_ports, listen, on_all_addresses

PROVE_S = 5.0
"""For the proof: less than the leader waits for the answer to its PREPARE."""

ANEW_S = 0.15
"""A proof takes three packets: at 30% loss one try in three gets through, so a fresh connection is
made beside the ones that wait; the kernel would repeat a lost SYN after 1 s only."""


def reserve(port: int) -> socket.socket:
    """A socket that keeps `port` against every other reservation, and lets a server have it.

    Bound alone, so that a used port is noticed; then SO_REUSEADDR is set, with which Linux lets a
    server that sets it too (all do: torch, gRPC, asyncio) listen beside a socket that does not.
    Raises `OSError`.
    """
    sock = on_all_addresses(port, lambda sock: sock.setblocking(False))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sock


class Proofs:
    """Rank 0's listeners and the ring's, and the proofs that others' are reached."""

    def __init__(self, emit: Callable[[events.Event], None]) -> None:
        self._emit = emit
        self._reserved: dict[Nonce, socket.socket] = {}
        self._listening: dict[Nonce, Speaker] = {}
        self._ring: Speaker | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for proof in list(self._reserved):
            self.close_proof(proof, keep=False)
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def counts(self) -> dict[str, int]:
        return {"ports kept": len(self._reserved), "proofs under way": len(self._tasks)}

    # ------------------------------------------------------------ what is to be reached

    def open_ring(self, node: NodeId) -> int:
        """Listen on all addresses, on a port of the kernel's choice, which is returned, and say
        `node` there until closed. Raises `DaemonError` where there is no port."""
        try:
            self._ring = Speaker(listen(0), node)
        except OSError as error:
            raise DaemonError(
                f"{socket.gethostname()} has no port for the proof of the ring: "
                f"{os.strerror(error.errno or 0)}"
            ) from None
        return self._ring.port

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
                speaker = Speaker(listen(port, beside=True), proof)
            except OSError:
                reserved.close()
                continue
            self._reserved[proof] = reserved
            self._listening[proof] = speaker
            self._emit(events.ProofOpened(job=job, proof=proof, port=port))
            return
        reason = f"no port is free for rank 0 between {base} and {base + count - 1}"
        self._emit(events.ProofFailed(job=job, proof=proof, reason=reason))

    def close_proof(self, proof: Nonce, *, keep: bool) -> None:
        speaker = self._listening.pop(proof, None)
        if speaker is not None:
            speaker.close()
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
        except Stranger:
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
    return local_end(await (hear if word else _touch)(address, port, word, sources))


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
