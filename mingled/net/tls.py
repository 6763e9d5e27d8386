"""TLS 1.3 between daemons, both sides verified, over a TCP stream.

One port serves many realms: the client names the realm's label (SNI), and the server answers with
that realm's certificate or not at all. No session tickets: with them one realm's would be taken in
another. A client whose certificate is refused sees the handshake succeed, and then the end: only
what the other side says afterwards shows that it let us in.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mingled.core.secrets import Realm
from mingled.core.words import Label

if TYPE_CHECKING:
    from mingled.net.certificates import Authority

CHUNK_BYTES = 64 * 1024

UNKNOWN_BYTES_MAX = 8 * 1024
"""Read at a time from whoever has not shown who it is, and kept unread besides."""

HANDSHAKE_BYTES_MAX = 32 * 1024
"""Of one handshake, all in all: it has 2 KiB. OpenSSL itself would keep 128 KiB of a hello."""


class NotOurs(ConnectionError):
    """The other side is there, and is not in the realm: it has another key, or not that job."""


class Shed(ConnectionError):
    """It took the connection and ended it before it said who it is: it has no room just now, or
    ends. Of the daemon that we look for it says nothing."""


class Pass:
    """What one realm's members show each other. Made at first use, each side's context for itself:
    that costs 2 ms, and the first of all 25 ms more, to load what makes certificates."""

    def __init__(self, realm: Realm) -> None:
        from mingled.net.certificates import authority_of, leaf_of

        self.realm = realm
        self._authority: Authority = authority_of(realm)
        self._leaf = leaf_of(self._authority, realm.label)

    @functools.cached_property
    def _client(self) -> ssl.SSLContext:
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    @functools.cached_property
    def server(self) -> ssl.SSLContext:
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def warm(self) -> None:
        _ = self._client, self.server

    def _context(self, side: int) -> ssl.SSLContext:
        context = _bare(side)
        context.load_verify_locations(cadata=self._authority.der)
        with _file(self._leaf) as path:
            context.load_cert_chain(path)
        return context

    def client(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        return self._client.wrap_bio(incoming, outgoing, server_hostname=self.realm.label)

    def check(self, tls: ssl.SSLObject) -> None:
        """After the handshake: its certificate is this realm's, whatever the context made of it.
        Raises `NotOurs`."""
        if not self._authority.issued(tls.getpeercert(binary_form=True)):
            raise NotOurs("it shows another realm's certificate")


class Vault:
    """The realms that this process is in."""

    def __init__(self) -> None:
        self._realms: dict[Label, Realm] = {}
        self._passes: dict[Label, Pass] = {}
        self._labels: dict[ssl.SSLContext, Label] = {}
        # It trusts nothing and has no certificate, so that nothing but a realm's can succeed; and
        # it demands one, since what it demands is what counts after the switch, too.
        self._base = _bare(ssl.PROTOCOL_TLS_SERVER)
        self._base.sni_callback = self._switch

    def trust(self, realm: Realm) -> None:
        self._realms[realm.label] = realm

    def distrust(self, label: Label) -> None:
        self._realms.pop(label, None)
        self._passes.pop(label, None)
        self._labels = {c: known for c, known in self._labels.items() if known != label}

    def of(self, label: Label) -> Pass:
        """Raises `NotOurs`."""
        known = self._passes.get(label)
        if known is None:
            if label not in self._realms:
                raise NotOurs("this daemon is not in that realm")
            known = self._passes[label] = Pass(self._realms[label])
        return known

    def warm(self, label: Label) -> None:
        """Make what a connection needs, for both sides, unless it is no longer needed. Where that
        cannot be had now, as no descriptor is left, the first connection tries again."""
        if label in self._realms:
            with contextlib.suppress(OSError):
                self.of(label).warm()

    def server(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        return self._base.wrap_bio(incoming, outgoing, server_side=True)

    def _switch(self, tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        try:
            label = Label(name or "")
            context = self.of(label).server
            self._labels[context] = label
            tls.context = context
        except OSError as error:
            if not isinstance(error, NotOurs):  # no descriptor is left, say: it may well be ours
                return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        except Exception:  # whatever was asked for: it is none of ours
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        return None

    def passed(self, tls: ssl.SSLObject) -> Label:
        """The realm that a client has shown to be in. Raises `NotOurs`."""
        label = self._labels.get(tls.context)
        if label is None:
            raise NotOurs("it asked for no realm of ours")
        self.of(label).check(tls)
        return label


def _bare(side: int) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.check_hostname = False  # the authority is the realm's own: nobody else has a leaf of it
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[str]:
    """A path that holds `content` for as long as it is needed; `ssl` takes nothing else. In memory
    where the system can: a full disk is no reason not to train."""
    if not hasattr(os, "memfd_create"):
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name
        return
    descriptor = os.memfd_create("mingled", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


async def dial(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, with_: Pass) -> Channel:
    """The client's handshake on a fresh connection, which is closed where it fails. Raises
    `NotOurs`, and `OSError` otherwise."""
    try:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        channel = Channel(reader, writer, with_.client(incoming, outgoing), incoming, outgoing)
        await channel.shake()
        with_.check(channel.tls)
    except BaseException:
        writer.close()
        raise
    return channel


async def accept(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, vault: Vault
) -> tuple[Channel, Label]:
    """The server's, and the realm that the other side is in. Raises as `dial`. Costs nearly nothing
    before the client has said something."""
    first = await reader.read(UNKNOWN_BYTES_MAX)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(first)
    if not first:
        incoming.write_eof()
    channel = Channel(reader, writer, vault.server(incoming, outgoing), incoming, outgoing)
    await channel.shake()
    return channel, vault.passed(channel.tls)


class Channel:
    """Lines over one TLS connection. What goes wrong with it is an `OSError`."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> None:
        self.tls = tls
        self._reader = reader
        self._writer = writer
        self._incoming = incoming
        self._outgoing = outgoing
        self._plain = bytearray()  #: decrypted, and not yet a whole line
        self._searched = 0  #: of that, where no line ends
        self._ended = False  #: nothing more comes
        self._finished = False  #: by us: what comes is no longer of interest

    @property
    def sock(self) -> socket.socket:
        sock: socket.socket = self._writer.get_extra_info("socket")
        return sock

    @property
    def sockname(self) -> tuple[object, ...]:
        """Empty where it was reset before asyncio could ask."""
        return self._writer.get_extra_info("sockname") or ()

    @property
    def peername(self) -> tuple[object, ...]:
        return self._writer.get_extra_info("peername") or ()

    async def shake(self) -> None:
        """The handshake. What is wrong with it is told to the other side as well."""
        came = 0
        while True:
            try:
                _handshake(self.tls)
            except ssl.SSLWantReadError:
                self._flush()
                chunk = await self._reader.read(UNKNOWN_BYTES_MAX)
                if not chunk:
                    raise Shed("hung up during the handshake") from None
                came += len(chunk)
                if came > HANDSHAKE_BYTES_MAX:
                    raise NotOurs(f"a handshake of over {HANDSHAKE_BYTES_MAX} bytes") from None
                self._incoming.write(chunk)
                continue
            except ssl.SSLError as error:
                self._flush()
                kind = Shed if error.reason in _PASSING else NotOurs
                raise kind(_words(error)) from None
            self._flush()
            return

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._writer.write(self._outgoing.read())

    async def _receive(self) -> bool:
        """More to decrypt; False at the end of the connection."""
        chunk = await self._reader.read(CHUNK_BYTES)
        if chunk:
            self._incoming.write(chunk)
        return bool(chunk)

    # ------------------------------------------------------------ lines

    async def readline(self, bytes_max: int) -> bytes:
        """The next line, newline included; empty at the end. Raises `asyncio.LimitOverrunError`
        where it is longer than `bytes_max`."""
        while True:
            at = self._plain.find(b"\n", self._searched)
            if 0 <= at < bytes_max:
                line = bytes(self._plain[: at + 1])
                del self._plain[: at + 1]
                self._searched = 0
                return line
            self._searched = len(self._plain)
            if at >= 0 or self._searched >= bytes_max:
                raise asyncio.LimitOverrunError("no newline in sight", bytes_max)
            if self._ended:
                return b""
            await self._fill()

    async def _fill(self) -> None:
        if self._finished:  # only its end is waited for
            self._ended = not await self._reader.read(CHUNK_BYTES)
            return
        try:
            plain = self.tls.read(CHUNK_BYTES)
        except ssl.SSLWantReadError:
            self._ended = not await self._receive()
            return
        except ssl.SSLError as error:
            raise NotOurs(_words(error)) from None
        self._plain += plain
        self._ended = not plain  # it said goodbye
        self._flush()  # an answer to a change of keys

    def write(self, data: bytes) -> None:
        self.tls.write(data)
        self._writer.write(self._outgoing.read())

    async def drain(self) -> None:
        await self._writer.drain()

    @property
    def unsent_bytes(self) -> int:
        return self._writer.transport.get_write_buffer_size()

    @property
    def closing(self) -> bool:
        return self._finished or self._writer.transport.is_closing()

    def finish(self) -> None:
        """Say goodbye. What was written before still goes out; what comes is dropped."""
        if self.closing:
            return
        self._finished = True
        self._plain.clear()
        self._searched = 0
        with contextlib.suppress(ssl.SSLError):  # that the other side has not said so, too
            self.tls.unwrap()
        with contextlib.suppress(OSError, RuntimeError):  # it is closing already
            self._writer.write(self._outgoing.read())
            self._writer.write_eof()

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        """At once, whatever was not sent yet."""
        self._writer.transport.abort()

    async def wait_closed(self) -> None:
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


_PASSING = frozenset({"TLSV1_ALERT_INTERNAL_ERROR", "UNEXPECTED_EOF_WHILE_READING"})
"""OpenSSL's reasons that say nothing of who is there."""


def _handshake(tls: ssl.SSLObject) -> None:
    """`ssl` writes a traceback to stderr where the name that a client asks for is not ASCII; nobody
    who has not shown who he is writes into our log."""
    before = sys.unraisablehook

    def told(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, UnicodeDecodeError):
            before(unraisable)

    sys.unraisablehook = told
    try:
        tls.do_handshake()
    finally:
        sys.unraisablehook = before


_ALERTS = {
    "TLSV1_ALERT_INTERNAL_ERROR": "it cannot answer just now",
    "TLSV1_UNRECOGNIZED_NAME": "it has no such job, or another key",
    "CALLBACK_FAILED": "it asks for no job of ours, or with another key",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not take our certificate: another key",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is another key's",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "WRONG_VERSION_NUMBER": "what it says is not TLS; is it a mingled of this version?",
    "RECORD_LAYER_FAILURE": "what it says is not TLS; is it a mingled of this version?",
}
"""OpenSSL's reasons in our own words."""


def _words(error: ssl.SSLError) -> str:
    reason = error.reason or "no TLS"
    return _ALERTS.get(reason, f"TLS: {reason.lower().replace('_', ' ')}")
