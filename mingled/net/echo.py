"""One ICMP socket to one address, by icmplib (50 ms to import, so not before the first packet)."""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from mingled.errors import MingleError

_IP_RECVERR, _IPV6_RECVERR = 11, 25
_MSG_ERRQUEUE = 0x2000
_EXTENDED_ERROR = struct.Struct("=IBBBBII")  # errno, origin, type, code, pad, info, data
_ORIGINS_ICMP = (2, 3)
_ERRORS_MAX = 64
"""Entries of a socket's error queue that are read in one go."""

_ECHO_REPLY_V4, _ECHO_REPLY_V6 = 0, 129
_ERRORS_V4, _ERRORS_V6 = (3, 4, 5, 11, 12), (1, 2, 3, 4)
_HOST_UNREACHABLE_V4, _ADDRESS_UNREACHABLE_V6 = 1, 3

_HOST_UNREACHABLE = "destination host unreachable"

_WORDS_V4: dict[tuple[int, int | None], str] = {
    (3, 0): "destination network unreachable",
    (3, 1): _HOST_UNREACHABLE,
    (3, 2): "protocol unreachable",
    (3, 3): "port unreachable",
    (3, 4): "packet too large",
    (3, 9): "destination network prohibited",
    (3, 10): "destination host prohibited",
    (3, 13): "packet filtered",
    (3, None): "destination unreachable",
    (11, None): "too many hops",
}
"""By type and code: RFC 792, RFC 1812 5.2.7.1."""

_WORDS_V6: dict[tuple[int, int | None], str] = {
    (1, 0): "no route to the destination",
    (1, 1): "administratively prohibited",
    (1, 3): _HOST_UNREACHABLE,
    (1, 4): "port unreachable",
    (1, None): "destination unreachable",
    (2, None): "packet too large",
    (3, None): "too many hops",
}
"""RFC 4443 3."""

_identifiers = itertools.count(random.getrandbits(16))
"""Tells our answers from those to other programs, and to other threads."""

_RANGE = Path("/proc/sys/net/ipv4/ping_group_range")


class PingForbidden(MingleError):
    """The kernel lets this user send no echo requests."""


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What came back for one packet. `refused`: the destination itself says no, so it is there;
    `error`: it never left."""

    sequence: int
    what: Literal["answered", "unreachable", "refused", "error"]
    source: str = ""
    said: str = ""


class Line:
    """A context manager. One thread at a time."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._ipv6 = ":" in address
        self._id = next(_identifiers) & 0xFFFF
        self._sequence = 0
        self._socket: Any = None
        self._raw = True
        self._early: list[Heard] = []  #: read while sending

    def __enter__(self) -> Self:
        import icmplib

        kind = icmplib.ICMPv6Socket if self._ipv6 else icmplib.ICMPv4Socket
        try:
            self._socket = kind(privileged=True)
        except icmplib.SocketPermissionError:
            self._raw = False
            try:
                self._socket = kind(privileged=False)
            except icmplib.ICMPSocketError as error:
                raise PingForbidden(_forbidden()) from error
            self._ask_for_errors()
        except icmplib.ICMPSocketError as error:  # IPv6 is not in this kernel
            raise MingleError(f"{self._address} cannot be pinged from here: {error}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def send(self, sequence: int) -> Heard | None:
        """Send one; None where it left, else what the kernel has against it."""
        import icmplib

        self._sequence = sequence
        request = icmplib.ICMPRequest(self._address, self._id, sequence)
        # On a ping socket a send fails with an earlier packet's error, so those are taken off.
        self._early += self._errors()
        try:
            self._socket.send(request)
        except icmplib.ICMPSocketError as error:
            return self._not_sent(sequence, error)
        return None

    def receive(self, within_s: float) -> list[Heard]:
        """What comes within this time, as soon as something does; empty where nothing does."""
        import icmplib

        early, self._early = self._early, []
        if early:
            return early
        try:
            # icmplib waits anew after each packet of others, but never past the end by more.
            reply = self._socket.receive(timeout=max(within_s, 0.001))
        except icmplib.TimeoutExceeded:
            return []
        except icmplib.ICMPSocketError as error:
            return self._errors() or [self._not_sent(self._sequence, error)]
        heard = self._heard(reply)
        return [heard] if heard else []

    def _heard(self, reply: Any) -> Heard | None:
        """None for what is not about our packets: a raw socket sees everybody's."""
        if self._raw and reply.id != self._id:
            return None
        source = str(reply.source)
        if reply.type == (_ECHO_REPLY_V6 if self._ipv6 else _ECHO_REPLY_V4):
            if source.partition("%")[0] != self._address.partition("%")[0]:
                return None
            return Heard(sequence=reply.sequence, what="answered", source=source)
        if reply.type not in (_ERRORS_V6 if self._ipv6 else _ERRORS_V4):
            return None  # our own request, on the way to ourselves
        return self._unreachable(reply.sequence, source, reply.type, reply.code)

    def _unreachable(self, sequence: int, source: str, kind: int, code: int) -> Heard:
        said = _words(kind, code, ipv6=self._ipv6)
        if source.partition("%")[0] == self._address.partition("%")[0]:
            host = _HOST_UNREACHABLE_V4 if not self._ipv6 else _ADDRESS_UNREACHABLE_V6
            if code != host:
                said = f"{self._address} is there, but refuses to be pinged ({said})"
                return Heard(sequence=sequence, what="refused", source=source, said=said)
        return Heard(sequence=sequence, what="unreachable", source=source, said=said)

    def _not_sent(self, sequence: int, error: BaseException) -> Heard:
        cause = error.__context__
        number = cause.errno if isinstance(cause, OSError) else None
        if number == errno.EHOSTUNREACH:
            return Heard(sequence=sequence, what="unreachable", said=_HOST_UNREACHABLE)
        if number == errno.ENETUNREACH:
            said = f"network unreachable: there is no route to {self._address}"
            return Heard(sequence=sequence, what="unreachable", said=said)
        if number in (errno.EPERM, errno.EACCES):
            said = f"this machine's own firewall lets no ping to {self._address} out"
        else:
            said = f"no ping to {self._address} can be sent: {cause or error}"
        return Heard(sequence=sequence, what="error", said=said)

    def _ask_for_errors(self) -> None:
        sock: socket.socket = self._socket.sock
        if self._ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)

    def _errors(self) -> list[Heard]:
        """The ICMP errors that the kernel has put by for a ping socket."""
        found: list[Heard] = []
        if self._raw or not hasattr(socket.socket, "recvmsg"):
            return found
        for _ in range(_ERRORS_MAX):
            try:
                packet, extra, _, _ = self._socket.sock.recvmsg(
                    1024, 512, _MSG_ERRQUEUE | socket.MSG_DONTWAIT
                )
            except OSError:
                break
            for _, kind, data in extra:
                if kind in (_IP_RECVERR, _IPV6_RECVERR) and len(packet) >= 8:
                    heard = self._extended(int.from_bytes(packet[6:8], "big"), data)
                    found += [heard] if heard else []
        return found

    def _extended(self, sequence: int, data: bytes) -> Heard | None:
        """`struct sock_extended_err`, followed by the address of whoever reported it."""
        if len(data) < _EXTENDED_ERROR.size:
            return None
        _, origin, kind, code, *_ = _EXTENDED_ERROR.unpack_from(data)
        offender = data[_EXTENDED_ERROR.size :]
        source = ""
        if origin in _ORIGINS_ICMP and len(offender) >= (24 if self._ipv6 else 8):
            at, size, family = (8, 16, socket.AF_INET6) if self._ipv6 else (4, 4, socket.AF_INET)
            source = socket.inet_ntop(family, offender[at : at + size])
        return self._unreachable(sequence, source, kind, code)


def _words(kind: int, code: int, *, ipv6: bool) -> str:
    table = _WORDS_V6 if ipv6 else _WORDS_V4
    return table.get((kind, code)) or table.get((kind, None)) or f"ICMP error {kind}, code {code}"


def _forbidden() -> str:
    try:
        setting = " to ".join(_RANGE.read_text().split())
    except OSError:
        setting = "unknown"
    return (
        f"uid {os.geteuid()} may not ping on {socket.gethostname()} (net.ipv4.ping_group_range is "
        f"{setting}): run as root, or `sudo sysctl -w net.ipv4.ping_group_range='0 2147483647'`"
    )
