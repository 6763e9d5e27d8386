"""Everything that the checks judge, and what several of them ask of it."""

from __future__ import annotations

import ipaddress

import msgspec

from mingled.core.datagrams import Means
from mingled.core.events import Address
from mingled.core.messages import Nic
from mingled.core.reach import bare, parsed, subnet_of
from mingled.doctor.gather_dns import Dns
from mingled.doctor.gather_firewall import Ruleset
from mingled.doctor.gather_here import Here
from mingled.doctor.gather_tcp import Examined
from mingled.doctor.gather_udp import Udp
from mingled.doctor.nodes import Seen
from mingled.doctor.ports import Ports


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """One of --peer that did not answer; why, in a sentence."""

    said: str
    known: bool = True  #: its name could be looked up


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon of this machine that is somebody else's."""

    seen: Seen
    user: str  #: empty: not known


class Gathered(msgspec.Struct, frozen=True, kw_only=True):
    here: Here
    others: tuple[Examined, ...] = ()
    udp: Udp = Udp()
    dns: Dns = Dns(servers=(), own=())
    rulesets: tuple[Ruleset, ...] = ()
    ports: Ports = Ports()
    beside: tuple[Beside, ...] = ()  #: daemons of this machine that this user may not ask
    missing: tuple[Missing, ...] = ()  #: of --peer, who did not answer
    troubles: tuple[str, ...] = ()
    gateway_answers: bool | None = None  #: None: nobody asked it


class OnLink(msgspec.Struct, frozen=True, kw_only=True):
    """Another node on a link of ours, by whichever of its addresses: over IPv6 it answers from its
    link-local one or from another, as it likes."""

    interface: str
    host: str
    addresses: frozenset[str]
    there: frozenset[Means]  #: how it heard us
    back: frozenset[Means]  #: how we heard it

    def among(self, addresses: frozenset[str]) -> bool:
        return bool(self.addresses & addresses)


def on_links(g: Gathered) -> tuple[OnLink, ...]:
    """Who should hear our multicasts and broadcasts. Container bridges do not count."""
    found: list[OnLink] = []
    for other in g.others:
        by_interface: dict[str, set[str]] = {}
        for text in other.seen.addresses:
            for own in here_for(g, text):
                by_interface.setdefault(own.interface, set()).add(bare(text))
        for interface, addresses in by_interface.items():
            every = addresses | {bare(text) for text in other.seen.addresses}
            heard = [e for e in g.udp.echoes if e.interface == interface and e.address in every]
            found.append(
                OnLink(
                    interface=interface,
                    host=other.seen.host or min(addresses),
                    addresses=frozenset(every),
                    there=frozenset(means for e in heard for means in e.there),
                    back=frozenset(means for e in heard for means in e.back),
                )
            )
    return tuple(found)


def here_for(g: Gathered, address: str) -> tuple[Address, ...]:
    """Our addresses in whose subnet this one lies; of a link-local one its scope says where it
    is."""
    ip = parsed(address)
    if ip is None or ip.is_loopback or bare(address) in g.here.own:
        return ()
    if ip.version == 6 and ip.is_link_local:
        scope = address.partition("%")[2]
        return tuple(a for a in g.here.candidates if a.interface == scope and ":" in a.address)
    nets = ((a, subnet_of(a)) for a in g.here.candidates if not a.virtual)
    return tuple(a for a, net in nets if net is not None and ip in net)


def used_nic(seen: Seen) -> Nic | None:
    """The other side's interface that we reach it by."""
    if seen.presence is None or not seen.addresses:
        return None
    for nic in seen.presence.nics:
        if any(text.partition("/")[0] == bare(seen.addresses[0]) for text in nic.addresses):
            return nic
    return None


def subnets(g: Gathered) -> tuple[str, ...]:
    """Of our candidates that are no container bridge's."""
    nets = (subnet_of(a) for a in g.here.candidates if not a.virtual)
    return tuple(dict.fromkeys(str(net) for net in nets if net is not None and not _local(net)))


def _local(net: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    return net.is_loopback or (net.version == 6 and net.is_link_local)


def firewall_command(g: Gathered) -> str:
    flags = " ".join(f"--subnet {net}" for net in subnets(g)) or "--subnet YOUR-SUBNET"
    return f"mingle firewall {flags} --format nft"
