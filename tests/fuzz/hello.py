"""Target: what anybody can send to the peer link before it has shown that it belongs there."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from functools import cache
from typing import cast

from mingled.core.secrets import node_realms_of, realm_of
from mingled.net import tls
from tests.core.samples import JOB
from tests.fuzz import loops

REALM = realm_of(JOB)
STRANGE = realm_of(JOB, b"q" * 32)
LINE_BYTES_MAX = 4_096


class _Writer:
    """Answers go nowhere."""

    def write(self, data: bytes) -> None: ...


@cache
def _vault() -> tls.Vault:
    vault = tls.Vault()
    for realm in (REALM, *node_realms_of()):
        vault.trust(realm)
        vault.warm(realm.label)
    return vault


def close() -> None:
    """After the last input of a process that goes on."""
    _vault.cache_clear()


def peer_hello(data: bytes) -> None:
    """A connection's first bytes, and its end: nobody gets in by them, and what the loop gets to
    see is an `OSError`. Nothing may go past it into the log either."""
    ignored: list[BaseException | None] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda args: ignored.append(args.exc_value)
    try:
        loops.run(_accept(data))
    finally:
        sys.unraisablehook = before
    if ignored and ignored[0] is not None:
        raise ignored[0]


async def _accept(data: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    with contextlib.suppress(OSError):
        channel, label = await tls.accept(reader, cast(asyncio.StreamWriter, _Writer()), _vault())
        raise AssertionError(f"let in to {label}: {await channel.readline(LINE_BYTES_MAX)!r}")


def hello_seeds() -> list[bytes]:
    """From members, from others, of other versions, and of no TLS at all."""
    seeds = [b"GET / HTTP/1.1\r\n\r\n", b'{"type":"listen"}\n', b"\x16\x03\x01\x00\x00", b"\x15"]
    seeds += [_hello(tls.Pass(realm)._context(ssl.PROTOCOL_TLS_CLIENT), realm.label)
              for realm in (REALM, STRANGE, *node_realms_of())]  # fmt: skip
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    for name in (REALM.label, "gpu1.example", None):
        seeds.append(_hello(old, name))
    label = REALM.label.encode()
    odd = (b"\xff" * len(label), b"\x1b[2J".ljust(len(label)), label.upper())
    return seeds + [seeds[4].replace(label, name) for name in odd]


def _hello(context: ssl.SSLContext, name: str | None) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()
