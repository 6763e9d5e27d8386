"""Who hears us over UDP, and whom we hear: echoes on the broadcast port by multicast, broadcast and
unicast, and real multicast DNS on 5353. So "5353 is firewalled" and "multicast is filtered" differ.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Mapping, Sequence

import msgspec
from zeroconf import (  # type: ignore[attr-defined]  # meant for use, only not in its __all__
    DNSIncoming,
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
)
from zeroconf.const import _CLASS_IN, _FLAGS_QR_QUERY, _TYPE_PTR

from mingled.core.datagrams import BROADCAST_PORT, Echo, Echoed, Means, encode
from mingled.core.events import Address
from mingled.core.reach import is_link_local_v6
from mingled.doctor.gather_here import MDNS_PORT
from mingled.net.datagrams import Arrival, Datagrams
from mingled.net.multicast import NODE_TYPE
from mingled.net.udp import GROUP, GROUP6, Packet, Target, UdpPort

ASK_AFTER_S = (0.0, 0.4, 1.1)
"""Datagrams get lost, and a responder says the same thing by multicast once a second at most."""

LISTEN_S = 2.3
"""A multicast answer may be put off for 1.1 s, since the same was said just before (RFC 6762 6)."""

PEERS_MAX = 256
"""Asked by unicast."""

UNICAST = 0x8000
"""The top bit of a question's class asks for an answer to us alone (RFC 6762 5.4)."""


class Echoes(msgspec.Struct, frozen=True, kw_only=True):
    """Of one host on one of our interfaces."""

    interface: str
    address: str  #: of the host
    there: frozenset[Means]  #: how we were heard there
    back: frozenset[Means]  #: how the answers came


class Udp(msgspec.Struct, frozen=True, kw_only=True):
    """`trouble`: why the port could not be had; empty: it could."""

    echoes: tuple[Echoes, ...] = ()
    interfaces: tuple[str, ...] = ()  #: that were asked on
    trouble: str = ""
    unsent: tuple[str, ...] = ()  #: what this machine refused to send, a clause each
    mdns_trouble: str = ""
    mdns_self: frozenset[str] = frozenset()  #: interfaces on which we heard our own question
    mdns_answered: frozenset[str] = frozenset()  #: hosts that answered by multicast
    mdns_answered_us: frozenset[str] = frozenset()  #: ... to us alone, as asked
    mdns_heard: frozenset[str] = frozenset()  #: hosts that said anything by multicast


Known = Mapping[str, tuple[str, ...]]
"""The addresses of nodes, by their ids: over IPv6 the answers come from link-local ones, which are
in no list."""


async def gather(
    addresses: Sequence[Address],
    peers: Sequence[str],
    *,
    known: Known | None = None,
    answer_as: str = "",
    port: int = BROADCAST_PORT,
) -> Udp:
    """`peers`: addresses to ask by unicast, too. `answer_as`: this machine's host name, where a
    daemon runs here, whose unicast echoes we may get in its place."""
    nodes = known or {}
    echoes, mdns = await asyncio.gather(
        _Echoer(answer_as, nodes, port).gather(addresses, peers), _Mdns(nodes).gather(addresses)
    )
    names = ("mdns_trouble", "mdns_self", "mdns_answered", "mdns_answered_us", "mdns_heard")
    return msgspec.structs.replace(echoes, **{name: getattr(mdns, name) for name in names})


class _Echoer:
    def __init__(self, answer_as: str, known: Known, port: int) -> None:
        self._answer_as = answer_as
        self._known = known
        # Other sockets here share the port. Linux gives what is sent to one address to the one
        # that was bound last: to us, who pass on to the daemons what is theirs.
        self._port = port
        self._datagrams = Datagrams(None, port=port)
        self._token = os.urandom(8).hex()
        self._there: dict[tuple[str, str], set[Means]] = {}
        self._back: dict[tuple[str, str], set[Means]] = {}

    async def gather(self, addresses: Sequence[Address], peers: Sequence[str]) -> Udp:
        unsent: dict[str, None] = {}
        # Multicasts go out by a socket of their own, since `Datagrams` sends none of itself. Opened
        # first, so that the other is the last one bound.
        speaker = UdpPort(self._port, lambda packet: None)
        try:
            speaker.open()
            self._datagrams.subscribe(self._arrived)
            await self._datagrams.start(addresses)
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            for after_s in ASK_AFTER_S:
                await asyncio.sleep(max(0.0, began_s + after_s - loop.time()))
                self._ask(addresses, peers, speaker, unsent)
            await asyncio.sleep(max(0.0, began_s + LISTEN_S - loop.time()))
        except OSError as error:
            held = error.errno == errno.EADDRINUSE
            return Udp(trouble="held" if held else error.strerror or str(error))
        finally:
            speaker.close()
            await self._datagrams.close()
        return Udp(
            echoes=tuple(
                Echoes(
                    interface=interface,
                    address=address,
                    there=frozenset(means),
                    back=frozenset(self._back.get((interface, address), ())),
                )
                for (interface, address), means in sorted(self._there.items())
            ),
            interfaces=tuple(dict.fromkeys(t.interface for t in self._datagrams.targets)),
            unsent=tuple(unsent),
        )

    def _ask(
        self,
        addresses: Sequence[Address],
        peers: Sequence[str],
        speaker: UdpPort,
        unsent: dict[str, None],
    ) -> None:
        echo = Echo(node=self._datagrams.node, token=self._token, by="broadcast", back=True)
        for target, reason in self._datagrams.broadcast(echo).items():
            unsent[f"broadcast on {target.interface}: {reason}"] = None
        for target in groups(addresses):
            try:
                speaker.send(encode(echo), target.host, self._port, target.interface, target.source)
            except OSError as error:
                unsent[f"multicast on {target.interface}: {error.strerror or error}"] = None
        for peer in peers[:PEERS_MAX]:
            reason = self._datagrams.send(echo, peer)
            if reason:
                unsent[f"unicast to {peer}: {reason}"] = None

    def _arrived(self, arrival: Arrival) -> None:
        said = arrival.datagram
        if isinstance(said, Echo) and arrival.means == "unicast" and self._answer_as:
            answer = Echoed(
                node=self._datagrams.node,
                token=said.token,
                by="unicast",
                sent_by="unicast",
                host=self._answer_as,
                interface=arrival.interface,
                address=arrival.address,
            )
            self._datagrams.send(answer, arrival.host, arrival.port)
        if not isinstance(said, Echoed) or said.token != self._token:
            return
        for address in names_of(arrival.host, said.node, self._known):
            key = (arrival.interface, address)
            self._there.setdefault(key, set()).add(said.by)
            self._back.setdefault(key, set()).add(said.sent_by)


def names_of(host: str, node: str, known: Known) -> tuple[str, ...]:
    """The sender of an answer, and where it is link-local all that it is known by."""
    plain = host.partition("%")[0]
    return (plain, *known.get(node, ())) if is_link_local_v6(plain) else (plain,)


def groups(addresses: Sequence[Address]) -> tuple[Target, ...]:
    """The multicast group on each interface, once for each family."""
    found: dict[tuple[str, bool], Target] = {}
    for a in addresses:
        six = ":" in a.address
        target = Target(GROUP6 if six else GROUP, a.interface, "" if six else a.address)
        found.setdefault((a.interface, six), target)
    return tuple(target for (name, _), target in found.items() if name != "lo")


class _Mdns:
    """Questions for NODE_TYPE on 5353, beside whoever else shares the port."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._self: set[str] = set()
        self._answered: set[str] = set()
        self._answered_us: set[str] = set()
        self._heard: set[str] = set()
        self._own: set[str] = set()

    async def gather(self, addresses: Sequence[Address]) -> Udp:
        self._own = {a.address for a in addresses}
        port = UdpPort(MDNS_PORT, self._received)
        try:
            port.open()
        except OSError as error:
            port.close()
            held = error.errno == errno.EADDRINUSE
            return Udp(mdns_trouble="held" if held else error.strerror or str(error))
        try:
            port.join(addresses)
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            for after_s in ASK_AFTER_S:
                await asyncio.sleep(max(0.0, began_s + after_s - loop.time()))
                # First to all; then for an answer to us alone, which an unheard multicast isn't.
                number = ASK_AFTER_S.index(after_s) + 1
                self._ask(port, addresses, number, unicast=number == len(ASK_AFTER_S))
            await asyncio.sleep(max(0.0, began_s + LISTEN_S - loop.time()))
        finally:
            port.close()
        return Udp(
            mdns_self=frozenset(self._self),
            mdns_answered=frozenset(self._answered),
            mdns_answered_us=frozenset(self._answered_us),
            mdns_heard=frozenset(self._heard),
        )

    def _ask(
        self, port: UdpPort, addresses: Sequence[Address], number: int, *, unicast: bool
    ) -> None:
        out = DNSOutgoing(_FLAGS_QR_QUERY)
        out.add_question(DNSQuestion(NODE_TYPE, _TYPE_PTR, _CLASS_IN | (UNICAST if unicast else 0)))
        # Responders read no number, but zeroconf drops a packet that equals the one before it.
        packets = [number.to_bytes(2, "big") + data[2:] for data in out.packets()]
        for data in packets:
            for target in groups(addresses):
                with contextlib.suppress(OSError):  # of the port of the echoes it is said
                    port.send(data, target.host, MDNS_PORT, target.interface, target.source)

    def _received(self, packet: Packet) -> None:
        host = packet.host.partition("%")[0]
        if packet.means == "multicast":
            if host in self._own:
                self._self.add(packet.interface)
            self._heard.add(host)
        message = DNSIncoming(packet.data)
        if not message.valid or message.is_query():
            return
        answered = self._answered if packet.means == "multicast" else self._answered_us
        for answer in message.answers():
            if isinstance(answer, DNSPointer) and answer.name.lower() == NODE_TYPE:
                node = answer.alias.removesuffix("." + NODE_TYPE)
                answered.update(names_of(host, node, self._known))
