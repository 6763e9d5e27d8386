"""Tells at once when this machine's interfaces, addresses or default routes change.

A plain netlink socket from the standard library: a daemon that idles must not hold pyroute2's
13 MiB. What is told is that something changed; what there is now, the caller looks up.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Callable, Iterator

from mingled.net import ioctls, quick

FIRST_PAUSE_S = 0.1
"""One change comes as a handful of messages: link, address, route."""

PAUSE_MAX_S = 5.0
"""Between two calls while an interface flaps."""

CALM_S = 5.0
"""Quiet after which the pause is halved, and again after as much more."""

MESSAGES_MAX = 256
"""Read in one go; then the loop's other work has its turn."""

KNOWN_MAX = 4_096
"""Interfaces and addresses whose last state is remembered; then all are forgotten, and the next
message about each counts as a change."""

_RECEIVE_BYTES_MAX = 64 * 1024
_NETLINK_ROUTE = 0
# RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, ..., flags
_ATTRIBUTE = struct.Struct("=HH")  # length, type

_AF_BRIDGE = 7
_IFLA_IFNAME, _IFLA_WIRELESS, _IFLA_MASTER = 3, 11, 10
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
# Of an address, what decides whether it can be used: failed, deprecated, tentative.
_IFA_FLAGS_SEEN = 0x08 | 0x20 | 0x40
_RT_TABLE_MAIN = 254
_RTM_F_CLONED = 0x200  # the route cache's

snapshot = quick.snapshot


class Damper:
    """When to call, for events that come singly or in floods. Times are any clock's, in seconds."""

    def __init__(self) -> None:
        self._pause_s = FIRST_PAUSE_S
        self._called = float("-inf")

    def due(self, now: float) -> float:
        """Something happened: when it is to be told. Not to be asked again before `called`."""
        # Bounded: the first quiet is infinite. After 64 any pause is at its minimum.
        halvings = int(min((now - self._called) / CALM_S, 64.0))
        self._pause_s = max(FIRST_PAUSE_S, self._pause_s / 2**halvings)
        return max(now + FIRST_PAUSE_S, self._called + self._pause_s)

    def called(self, now: float) -> None:
        self._called = now
        self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)


class Sieve:
    """Lets through what may matter of the kernel's messages; remembers the last state of each
    interface and address, since the kernel repeats itself (a router's advertisement renews each
    address, a Wi-Fi card reports its signal)."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], object] = {}

    def matters(self, datagram: bytes) -> bool:
        """Whether any message in it may matter. What cannot be read does."""
        try:
            found = [self._one(kind, body) for kind, body in _messages(datagram)]
        except struct.error:
            return True
        return any(found)  # each had to be seen by the memory, so not the first that matters

    def forget(self) -> None:
        self._known.clear()

    def _one(self, kind: int, body: bytes) -> bool:
        if kind in (_RTM_NEWLINK, _RTM_DELLINK):
            return self._link(kind, body)
        if kind in (_RTM_NEWADDR, _RTM_DELADDR):
            return self._address(kind, body)
        if kind in (_RTM_NEWROUTE, _RTM_DELROUTE):
            _, length, _, _, table, _, _, _, flags = _ROUTE.unpack_from(body)
            # Routes to our own subnets come and go with the addresses.
            return length == 0 and table == _RT_TABLE_MAIN and not flags & _RTM_F_CLONED
        return False

    def _link(self, kind: int, body: bytes) -> bool:
        family, _, index, flags, _ = _LINK.unpack_from(body)
        attributes = dict(_attributes(body[_LINK.size :]))
        if family == _AF_BRIDGE or _IFLA_WIRELESS in attributes:
            return False
        if kind == _RTM_DELLINK:
            self._known.pop(("link", index), None)
            return True
        seen = flags & (ioctls.IFF_UP | ioctls.IFF_RUNNING)
        state = (seen, attributes.get(_IFLA_IFNAME), attributes.get(_IFLA_MASTER))
        return self._is_new(("link", index), state)

    def _address(self, kind: int, body: bytes) -> bool:
        family, prefix, flags, _, index = _ADDRESS.unpack_from(body)
        attributes = dict(_attributes(body[_ADDRESS.size :]))
        address = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
        if _is_loopback(address):
            return False
        key = ("address", index, family, address, prefix)
        if kind == _RTM_DELADDR:
            self._known.pop(key, None)
            return True
        return self._is_new(key, flags & _IFA_FLAGS_SEEN)

    def _is_new(self, key: tuple[object, ...], state: object) -> bool:
        if self._known.get(key, self) == state:
            return False
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[key] = state
        return True


class Monitor:
    """Calls `changed` in the running loop, 0.1 s after the first of a group of changes; while they
    do not end, after pauses that double up to 5 s."""

    def __init__(self, changed: Callable[[], object]) -> None:
        self._changed = changed
        self._damper = Damper()
        self._sieve = Sieve()
        self._sock: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> bool:
        """Listen, from now on. False where there is no netlink (macOS, a sandbox): then the caller
        has to look from time to time."""
        if sys.platform != "linux" or not hasattr(socket, "AF_NETLINK"):
            return False
        self._loop = asyncio.get_running_loop()
        sock = None
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)
            sock.setblocking(False)
            sock.bind((0, _GROUPS))
        except OSError:
            if sock is not None:
                sock.close()
            return False
        self._sock = sock
        self._loop.add_reader(sock.fileno(), self._readable)
        return True

    def close(self) -> None:
        """No call comes any more. May be called twice, and where `start` said False."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None and self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _readable(self) -> None:
        if self._drain() and self._timer is None and self._loop is not None:
            due = self._damper.due(self._loop.time())
            self._timer = self._loop.call_at(due, self._call)

    def _drain(self) -> bool:
        """Whether something that matters was in what lay there."""
        matters = False
        assert self._sock is not None
        for _ in range(MESSAGES_MAX):
            try:
                datagram, sender = self._sock.recvfrom(_RECEIVE_BYTES_MAX)
            except OSError as error:
                if error.errno == errno.ENOBUFS:  # the kernel had to drop some
                    self._sieve.forget()
                    matters = True
                    continue
                break  # BlockingIOError: that was all
            if sender[0] == 0:  # the kernel; other processes can send here as well
                matters |= self._sieve.matters(datagram)
        return matters

    def _call(self) -> None:
        self._timer = None
        if self._loop is not None:
            self._damper.called(self._loop.time())
        self._changed()


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, kind, *_ = _HEADER.unpack_from(datagram, at)
        if length < _HEADER.size:
            return
        yield kind, datagram[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[at + _ATTRIBUTE.size : at + length]  # without the nesting bits
        at += (length + 3) & ~3


def _is_loopback(address: bytes) -> bool:
    return (len(address) == 4 and address[0] == 127) or address == b"\0" * 15 + b"\1"
