"""The UDP port that the rungs below multicast DNS share: typed datagrams in and out, passed on
between the daemons of one machine; it also answers those who ask who is there, and echoes.

Linux hands a broadcast to every socket that shares a port, but what is sent to one address to one
of them only. Whichever daemon gets that passes it on over loopback, once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from mingled.core.datagrams import (
    BROADCAST_PORT,
    Announce,
    Ask,
    Bye,
    Datagram,
    Echo,
    Echoed,
    Here,
    Identity,
    Means,
    Relay,
    Who,
    decode,
    encode,
)
from mingled.core.events import Address
from mingled.core.messages import ADDRESSES_MAX
from mingled.core.words import NodeId
from mingled.errors import BadInput
from mingled.net.udp import (
    ALL_NODES,
    EVERYBODY,
    EVERYBODY_HERE,
    GROUP,
    GROUP6,
    Packet,
    Target,
    UdpPort,
    targets,
)

ANSWERS_PER_S = 50.0
"""To Who and Echo, of one daemon: a forged sender gets no more out of us than that."""

RELAYS_PER_S = 500.0
"""Passed on to the other daemons here. A thousand peers that ask within 2 s get through."""

CENSUS_SPREAD_S = 0.2
"""Answers to a Who that went to all are spread over this: a thousand at once would overflow the
asker's buffer."""

REOPEN_AFTER_S = 5.0
"""A port that could not be had is tried again no sooner than this."""

_PASSED_ON = (Announce, Ask, Bye, Who, Here)

log = logging.getLogger(__name__)


class Arrival(NamedTuple):
    """A datagram of another daemon."""

    datagram: Datagram
    host: str  #: answers go there
    port: int
    interface: str  #: that it came to this machine by; empty: not known
    means: Means
    address: str = ""  #: of ours, as it found us; empty: not known


class Cap:
    """So many a second, and no more; a second's worth may come at once."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._left = per_s
        self._at_s = 0.0

    def allows(self, now_s: float) -> bool:
        self._left = min(self._per_s, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Datagrams:
    """`identity`: what Who and Echo are answered with. None: they are not; `node` is then drawn."""

    def __init__(self, identity: Identity | None, *, port: int = BROADCAST_PORT) -> None:
        self._identity = identity
        self.node = identity.node if identity else NodeId(os.urandom(16).hex())
        self._udp = UdpPort(port, self._received)
        self._subscribers: list[Callable[[Arrival], None]] = []
        self._addresses: tuple[Address, ...] = ()
        self._answers = Cap(ANSWERS_PER_S)
        self._relays = Cap(RELAYS_PER_S)
        self._later: set[asyncio.TimerHandle] = set()
        self._reopen_at_s = 0.0
        self._started = False
        self.sent = self.received = 0  #: datagrams, whatever is in them
        self.trouble = "not started"  #: why nothing can be sent or heard; empty: it can
        self.targets: tuple[Target, ...] = ()  #: where a broadcast goes
        if identity is not None and identity.host_given:
            log.warning(
                "the host name %r has characters that cannot be shown; others see %r: correct it "
                "with hostnamectl",
                identity.host_given,
                identity.host,
            )

    @property
    def port(self) -> int:
        return self._udp.port

    @property
    def host(self) -> str:
        return self._identity.host if self._identity else "this machine"

    def introduce_as(self, identity: Identity) -> None:
        """From now on; the node stays."""
        self._identity = identity

    def subscribe(self, arrived: Callable[[Arrival], None]) -> None:
        """Called with every datagram of others that decodes, in the loop's thread."""
        self._subscribers.append(arrived)

    async def start(self, addresses: Sequence[Address]) -> None:
        """A port that cannot be had is no error: `trouble` says it."""
        self._started = True
        self._open()
        await self.readdress(addresses)

    async def readdress(self, addresses: Sequence[Address]) -> None:
        self._addresses = tuple(addresses)
        self.targets = targets(addresses)
        if self._ready():
            self._join()

    async def close(self) -> None:
        self._started = False
        self.trouble = "closed"
        for handle in self._later:
            handle.cancel()
        self._later.clear()
        self._udp.close()

    # ------------------------------------------------------------ out

    def send(self, datagram: Datagram, host: str, port: int | None = None) -> str:
        """To one address. Why it could not be sent, as far as this machine knows; empty: it was."""
        one = msgspec.structs.replace(datagram, to="one")
        return self._send(encode(one), Target(host, ""), port)

    def broadcast(self, datagram: Datagram, *, wide: bool = True) -> dict[Target, str]:
        """To everybody on this machine's subnets. Where it could not be sent, and why. Not `wide`:
        over IPv6 only on those interfaces where it cannot be sent over IPv4."""
        if wide:
            return self._to_all(datagram, self.targets)
        four = [t for t in self.targets if t.host != ALL_NODES]
        failed = self._to_all(datagram, four)
        reached = {t.interface for t in four if t not in failed}
        six = [t for t in self.targets if t.host == ALL_NODES and t.interface not in reached]
        return failed | self._to_all(datagram, six)

    def multicast(self, datagram: Datagram) -> dict[Target, str]:
        """The same to the group of multicast DNS, on this port."""
        return self._to_all(
            datagram,
            [t._replace(host=GROUP6 if t.host == ALL_NODES else GROUP) for t in self.targets],
        )

    def _to_all(self, datagram: Datagram, where: Sequence[Target]) -> dict[Target, str]:
        data = encode(msgspec.structs.replace(datagram, to="all"))
        said = {target: self._send(data, target) for target in where}
        return {target: reason for target, reason in said.items() if reason}

    def here(self, datagram: Datagram) -> str:
        """To all that share the port on this machine. Why it could not be sent."""
        data = encode(msgspec.structs.replace(datagram, to="all"))
        return self._send(data, Target(EVERYBODY_HERE, ""))

    def _send(self, data: bytes, target: Target, port: int | None = None) -> str:
        if not self._ready():
            return self.trouble
        try:
            self._udp.send(data, target.host, port or self.port, target.interface, target.source)
            self.sent += 1
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return self.trouble
            return _reason(error, target.host)
        return ""

    def _ready(self) -> bool:
        loop = asyncio.get_running_loop()
        if self.trouble and self._started and loop.time() >= self._reopen_at_s:
            self._open()
            self._join()
        return self._udp.is_open

    def _open(self) -> None:
        try:
            self._udp.open()
            self.trouble = ""
        except OSError as error:
            self._reopen_at_s = asyncio.get_running_loop().time() + REOPEN_AFTER_S
            self.trouble = error.strerror or str(error)
            if error.errno == errno.EADDRINUSE:
                self.trouble = f"another program holds UDP port {self.port} for itself alone"
            log.warning("UDP %d: %s", self.port, self.trouble)

    def _join(self) -> None:
        before = self._udp.left_out
        self._udp.join(self._addresses)
        if self._udp.left_out and self._udp.left_out != before:
            log.warning(
                "UDP %d hears no multicast on %s: net.ipv4.igmp_max_memberships is too small",
                self.port,
                ", ".join(self._udp.left_out),
            )

    # ------------------------------------------------------------ in

    def _received(self, packet: Packet) -> None:
        self.received += 1
        try:
            datagram = decode(packet.data)
        except BadInput:
            return
        arrival = self._arrival(packet, datagram)
        if arrival is None:
            return
        try:
            self._answer(arrival)
            for arrived in self._subscribers:
                arrived(arrival)
        except Exception:
            log.exception("bug: a datagram from %s was not handled", arrival.host)

    def _arrival(self, packet: Packet, datagram: Datagram) -> Arrival | None:
        """None: it is our own, or a lie."""
        relay = datagram.relay
        if relay is not None:
            ours = self.node in (relay.by, datagram.node)
            if ours or not packet.host.startswith("127."):
                return None
            return Arrival(datagram, relay.address, relay.port, relay.interface, "unicast")
        means = packet.means or ("unicast" if datagram.to == "one" else "broadcast")
        arrival = Arrival(
            datagram, packet.host, packet.port, packet.interface, means, packet.address
        )
        if means == "unicast" and isinstance(datagram, _PASSED_ON):
            self._pass_on(arrival)  # our own as well: it was meant for this machine
        return arrival if datagram.node != self.node else None

    def _pass_on(self, arrival: Arrival) -> None:
        if not self._relays.allows(asyncio.get_running_loop().time()):
            return
        relay = Relay(
            by=self.node, address=arrival.host, port=arrival.port, interface=arrival.interface
        )
        self.here(msgspec.structs.replace(arrival.datagram, relay=relay))

    def _answer(self, arrival: Arrival) -> None:
        match arrival.datagram:
            case Who() if self._identity is not None:
                spread_s = CENSUS_SPREAD_S if arrival.means != "unicast" else 0.0
                self._soon(random.uniform(0, spread_s), lambda: self._introduce(arrival))
            case Echo() if self._identity is not None:
                self._echo(arrival, arrival.datagram, self._identity.host)

    def _introduce(self, arrival: Arrival) -> None:
        if self._identity is not None and self._may_answer():
            here = Here(
                node=self.node,
                by=arrival.means,
                host=self._identity.host,
                port=self._identity.port,
                key_id=self._identity.key_id,
                addresses=tuple(a.address for a in self._addresses[:ADDRESSES_MAX]),
            )
            self.send(here, arrival.host, arrival.port)

    def _echo(self, arrival: Arrival, echo: Echo, host: str) -> None:
        if not self._may_answer():
            return
        echoed = Echoed(
            node=self.node,
            token=echo.token,
            by=arrival.means,
            sent_by="unicast",
            host=host,
            interface=arrival.interface,
            address=arrival.address,
            pad=echo.pad,
        )
        self.send(echoed, arrival.host, arrival.port)
        if echo.back and arrival.means != "unicast":
            data = encode(msgspec.structs.replace(echoed, to="all", sent_by=arrival.means))
            for target in self._by(arrival):
                self._send(data, target, arrival.port)

    def _by(self, arrival: Arrival) -> list[Target]:
        """Everybody where it came from, by the means it came by."""
        six = ":" in arrival.host
        if arrival.means == "multicast":
            return [Target(GROUP6 if six else GROUP, arrival.interface, arrival.address)]
        if six:
            return [Target(ALL_NODES, arrival.interface)]
        there = [
            t for t in self.targets if t.interface == arrival.interface and t.host != ALL_NODES
        ]
        return there or [Target(EVERYBODY, arrival.interface, arrival.address)]

    def _may_answer(self) -> bool:
        return self._answers.allows(asyncio.get_running_loop().time())

    def _soon(self, after_s: float, act: Callable[[], None]) -> None:
        if len(self._later) >= ANSWERS_PER_S:  # the rest would not be answered anyway
            return

        def run() -> None:
            self._later.discard(handle)
            act()

        handle = asyncio.get_running_loop().call_later(after_s, run)
        self._later.add(handle)


def _reason(error: OSError, host: str) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"a firewall on this machine forbids UDP to {host}"
    return f"{host}: {error.strerror or error}"
