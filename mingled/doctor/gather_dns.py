"""Do the DNS servers answer, and does this host's own name resolve? Both bounded: a server that is
silent holds up torch's store for seconds."""

from __future__ import annotations

import asyncio
import os
import socket

import msgspec

from mingled.net.resolve import Resolver

ANSWER_S = 2.0

ROOT_NS = b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01"
"""Flags (recursion desired), one question: the name servers of the root. Each server knows them,
and any answer will do, a refusal too."""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """`silent`: no answer in time. Else `reason` says how it failed at once; empty: it answered."""

    address: str
    silent: bool = False
    reason: str = ""


class Dns(msgspec.Struct, frozen=True, kw_only=True):
    servers: tuple[Server, ...]
    own: tuple[str, ...]  #: what our own name resolves to
    own_trouble: str = ""  #: why it does not
    own_silent: bool = False  #: it was not told in time


async def gather(host: str, name_servers: tuple[str, ...]) -> Dns:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    asked = asyncio.gather(*(ask(server) for server in name_servers))
    own = await Resolver(timeout_s=ANSWER_S).resolve(host)
    took_s = loop.time() - began_s
    return Dns(
        servers=tuple(await asked),
        own=own.addresses,
        own_trouble=own.trouble,
        own_silent=not own.addresses and took_s >= ANSWER_S,
    )


async def ask(address: str, port: int = 53) -> Server:
    """One question, sent twice, since a datagram may be lost."""
    loop = asyncio.get_running_loop()
    try:
        family, kind, proto, _, place = socket.getaddrinfo(
            address, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )[0]
    except OSError as error:
        return Server(address=address, reason=error.strerror or str(error))
    question = os.urandom(2) + ROOT_NS
    with socket.socket(family, kind, proto) as sock:
        sock.setblocking(False)
        try:
            sock.connect(place)  # so that a refusal is told
            for _ in range(2):
                sock.send(question)
                try:
                    async with asyncio.timeout(ANSWER_S / 2):
                        while not (await loop.sock_recv(sock, 4096)).startswith(question[:2]):
                            pass
                except TimeoutError:
                    continue
                return Server(address=address)
        except OSError as error:
            return Server(address=address, reason=error.strerror or str(error))
    return Server(address=address, silent=True)
