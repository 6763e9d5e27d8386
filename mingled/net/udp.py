"""One UDP port of this machine, over IPv4 and IPv6, that several processes may share, and that
knows for each datagram which interface it came in by and whom it was sent to.

asyncio's own datagram transports tell neither, and read without a limit per turn of the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mingled.core.datagrams import RECEIVED_BYTES_MAX, Means
from mingled.core.events import Address

PER_TURN_MAX = 64
"""Datagrams read in one turn of the loop: garbage by the thousand costs others under 2 ms."""

TARGETS_MAX = 64
"""Subnets that one broadcast goes to; a Docker host may have hundreds, the best come first."""

GROUP = "224.0.0.251"
"""Multicast DNS's: switches and access points that let it through let doctor's echoes through."""

GROUP6 = "ff02::fb"
ALL_NODES = "ff02::1"
"""IPv6 has no broadcast: every host is in this group."""

EVERYBODY = "255.255.255.255"
EVERYBODY_HERE = "127.255.255.255"
"""Reaches every socket on this machine that shares the port. (A datagram to 127.0.0.1 reaches one
of them only.)"""

_LINUX = sys.platform == "linux"
_IP_PKTINFO = 8  # linux/in.h; Python has no name for it
_PKTINFO = struct.Struct("@I4s4s")  # index, our own address, the header's destination
_PKTINFO6 = struct.Struct("@16sI")
_ANCILLARY_BYTES = 256

log = logging.getLogger(__name__)


class Packet(NamedTuple):
    data: bytes
    host: str  #: of the sender; link-local IPv6 with its scope
    port: int
    nic: int  #: index of the interface that it came in by; 0: not known
    address: str  #: of ours, as it found us; empty: not known
    means: Means | None  #: None: the kernel does not tell

    @property
    def interface(self) -> str:
        return interface_name(self.nic)


class Target(NamedTuple):
    """Where a broadcast goes: to the subnet of one interface."""

    host: str
    interface: str
    source: str = ""  #: of ours, to send from


class UdpPort:
    """A socket for each family; `open` may fail and be tried again."""

    def __init__(self, port: int, received: Callable[[Packet], None]) -> None:
        self.port = port  #: 0: any; the one it became, once open
        self._received = received
        self._sockets: dict[socket.AddressFamily, socket.socket] = {}
        self._failures: dict[socket.AddressFamily, OSError] = {}
        self._joined: dict[tuple[str, int], str] = {}  #: groups and interfaces
        self.left_out: tuple[str, ...] = ()  #: interfaces that the kernel's limit left no room for

    @property
    def is_open(self) -> bool:
        return bool(self._sockets)

    def open(self) -> None:
        """Listen on all addresses, where that is not done yet. Raises `OSError` where neither
        family can be had, or another program has the port; a machine may well lack one family."""
        self._failures.clear()
        for family in (socket.AF_INET, socket.AF_INET6):
            if family in self._sockets:
                continue
            try:
                sock = _bind(family, self.port)
            except OSError as error:
                self._failures[family] = error
                continue
            self.port = sock.getsockname()[1]
            self._sockets[family] = sock
            asyncio.get_running_loop().add_reader(sock, self._readable, sock)
        for failure in self._failures.values():
            if not self._sockets or failure.errno == errno.EADDRINUSE:
                raise failure

    def close(self) -> None:
        for sock in self._sockets.values():
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._sockets.clear()
        self._joined.clear()

    # ------------------------------------------------------------ groups

    def join(self, addresses: Sequence[Address]) -> None:
        """Be in the multicast groups on these interfaces, and on no others. Those made anew under
        the same name are joined again. `left_out` tells which exceeded the kernel's limit."""
        wanted: dict[tuple[str, int], str] = {}
        left_out: list[str] = []
        room = memberships_max()
        for a in addresses:
            index = interface_index(a.interface)
            groups = (GROUP6, ALL_NODES) if ":" in a.address else (GROUP,)
            if not index or (groups[0], index) in wanted:
                continue
            if groups[0] == GROUP and room == 0:
                left_out.append(a.interface)
                continue
            room -= groups[0] == GROUP
            wanted |= {(group, index): a.interface for group in groups}
        for group, index in self._joined.keys() - wanted.keys():
            with contextlib.suppress(OSError):  # its interface is gone, and so is the membership
                self._membership(group, index, join=False)
        joined = {}
        for (group, index), name in wanted.items():
            try:
                if (group, index) not in self._joined:
                    self._membership(group, index, join=True)
                joined[group, index] = name
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    left_out.append(name)
                else:
                    log.debug("%s on %s: %s", group, name, error)
        self._joined = joined
        self.left_out = tuple(dict.fromkeys(left_out))

    def _membership(self, group: str, index: int, *, join: bool) -> None:
        if ":" in group:
            sock = self._sockets.get(socket.AF_INET6)
            option = socket.IPV6_JOIN_GROUP if join else socket.IPV6_LEAVE_GROUP
            value = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", index)
            level = socket.IPPROTO_IPV6
        else:
            sock = self._sockets.get(socket.AF_INET)
            option = socket.IP_ADD_MEMBERSHIP if join else socket.IP_DROP_MEMBERSHIP
            value = struct.pack("@4s4si", socket.inet_aton(group), bytes(4), index)
            level = socket.IPPROTO_IP
        if sock is not None:
            sock.setsockopt(level, option, value)

    # ------------------------------------------------------------ out

    def send(
        self, data: bytes, host: str, port: int, interface: str = "", source: str = ""
    ) -> None:
        """Raises `OSError`: no route, forbidden by a firewall, no socket of that family, ... A full
        send buffer loses it without a word, as networks do."""
        plain, _, scope = host.partition("%")
        family = socket.AF_INET6 if ":" in plain else socket.AF_INET
        sock = self._sockets.get(family)
        if sock is None:
            gone = OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            raise self._failures.get(family, gone)
        index = interface_index(interface) if interface else 0
        if interface and not index:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        where: tuple[object, ...] = (plain, port)
        ancillary = []
        if family == socket.AF_INET6:
            where = (plain, port, 0, _scope_id(scope) if scope else index)
        elif index and _LINUX:
            ours = socket.inet_aton(source) if source else bytes(4)
            packed = _PKTINFO.pack(index, ours, bytes(4))
            ancillary.append((socket.IPPROTO_IP, _IP_PKTINFO, packed))
        with contextlib.suppress(BlockingIOError):
            sock.sendmsg([data], ancillary, 0, where)

    # ------------------------------------------------------------ in

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(PER_TURN_MAX):
            try:
                data, ancillary, flags, source = sock.recvmsg(RECEIVED_BYTES_MAX, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError as error:  # what an earlier datagram of ours met with
                log.debug("UDP %d: %s", self.port, error)
                return
            if flags & socket.MSG_TRUNC:
                continue
            self._received(_packet(data, ancillary, source))
            if sock.fileno() < 0:  # closed by whoever received it
                return


def _bind(family: socket.AddressFamily, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if port:
            # Private daemons share the port. (With SO_REUSEPORT only one would hear a multicast.)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            sock.bind(("::", port))
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if _LINUX:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            sock.bind(("0.0.0.0", port))
    except OSError:
        sock.close()
        raise
    return sock


def _packet(
    data: bytes, ancillary: list[tuple[int, int, bytes]], source: tuple[object, ...]
) -> Packet:
    host, port = str(source[0]), int(str(source[1]))
    nic, address = 0, ""
    means: Means | None = None
    for level, kind, packed in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO) and len(packed) >= _PKTINFO.size:
            nic, ours, destination = _PKTINFO.unpack_from(packed)
            address = socket.inet_ntoa(ours)
            if 224 <= destination[0] < 240:
                means = "multicast"
            else:
                means = "unicast" if ours == destination else "broadcast"
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            destination, nic = _PKTINFO6.unpack_from(packed)
            text = socket.inet_ntop(socket.AF_INET6, destination)
            if destination[0] == 0xFF:
                means = "broadcast" if text == ALL_NODES else "multicast"
            else:
                address, means = text, "unicast"
    if ":" in host and "%" not in host and len(source) > 3 and source[3]:
        host = f"{host}%{interface_name(int(str(source[3])))}"
    return Packet(data, host, port, nic, address, means)


def targets(addresses: Iterable[Address]) -> tuple[Target, ...]:
    """Where a broadcast goes, best first: the subnets of these addresses, all nodes of each link
    over IPv6, and this machine's own loopback only where there is nothing else."""
    every = list(addresses)
    real = [a for a in every if not _is_loopback(a)]
    # By interface and host: further addresses in one subnet (keepalived's) repeat nothing.
    found: dict[tuple[str, str], Target] = {}
    for a in sorted(real, key=lambda a: a.virtual):
        if ":" in a.address:
            target = Target(ALL_NODES, a.interface)
        else:
            target = Target(_subnet(a), a.interface, a.address)
        found.setdefault((target.interface, target.host), target)
    if not found:
        return (Target(EVERYBODY_HERE, ""),)
    return tuple(found.values())[:TARGETS_MAX]


def _subnet(a: Address) -> str:
    # A host route (/32, as some clouds give out) has no broadcast address of its own.
    if not 0 < a.prefix < 31:
        return EVERYBODY
    return str(ipaddress.IPv4Interface(f"{a.address}/{a.prefix}").network.broadcast_address)


def _is_loopback(a: Address) -> bool:
    return ipaddress.ip_address(a.address.partition("%")[0]).is_loopback


def memberships_max() -> int:
    """How many IPv4 multicast groups one socket may be in."""
    try:
        return int(Path("/proc/sys/net/ipv4/igmp_max_memberships").read_text())
    except (OSError, ValueError):
        return 20  # Linux's default


def interface_index(name: str) -> int:
    """0 if there is none. A new one tells that an interface was removed and made again."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def interface_name(index: int) -> str:
    """Empty if there is none."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


def _scope_id(scope: str) -> int:
    return int(scope) if scope.isascii() and scope.isdigit() else interface_index(scope)
