"""Which addresses others may reach this node by, in which order, and why: a pure function.

`mingled` advertises by it and `mingle interfaces` explains by it, so the two cannot disagree.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from enum import IntEnum

import msgspec

from mingled.core.events import Address
from mingled.net.facts import Facts, Kind, Link, LinkAddress
from mingled.net.naming import is_engines_bridge, is_host_side
from mingled.net.restricting import Restriction

NESTED_MAX = 8
"""A VLAN on a bond on a bridge is as deep as it gets; the kernel itself stops at 8."""


class Rank(IntEnum):
    """Of an interface: the lower is taken before the higher."""

    WIRED = 0
    WIRELESS = 1
    TUNNEL = 2
    VIRTUAL = 3
    LOOPBACK = 4


_RANKS: dict[Kind, Rank] = {
    "bond": Rank.WIRED,
    "ethernet": Rank.WIRED,
    "infiniband": Rank.WIRED,
    "loopback": Rank.LOOPBACK,
    "ppp": Rank.TUNNEL,
    "tap": Rank.TUNNEL,
    "tun": Rank.TUNNEL,
    "tunnel": Rank.TUNNEL,
    "wifi": Rank.WIRELESS,
    "wireguard": Rank.TUNNEL,
    "wwan": Rank.WIRELESS,
}
"""Whatever is not here is virtual, unless `rank_of` finds out better."""

_RANK_WORDS = {
    Rank.WIRED: "wired",
    Rank.WIRELESS: "wireless, so after what is wired",
    Rank.TUNNEL: "a tunnel, so after wired and wireless",
    Rank.VIRTUAL: "virtual, so after all others: other machines may have the same addresses",
    Rank.LOOPBACK: "loopback, since there is nothing else: only this machine reaches it",
}


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Of one interface. `place` counts from 1, by its first address."""

    interface: str
    used: bool
    place: int | None
    why: str


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    addresses: tuple[Address, ...]  #: best first
    verdicts: tuple[Verdict, ...]  #: one for each interface, in the order of the facts


def choose(facts: Facts, restriction: Restriction | None = None) -> Choice:
    """The candidates among all addresses, best first, and the verdict on each interface."""
    allowed = restriction or Restriction()
    reasons: dict[str, str] = {}
    taken: list[tuple[Link, LinkAddress]] = []
    loopback: list[tuple[Link, LinkAddress]] = []
    for link in facts.links:
        usable, reasons[link.name] = _usable(facts, link, allowed)
        for address in usable:
            (loopback if address.reach == "loopback" else taken).append((link, address))
    taken = _without_autoconfigured_ipv4(facts, taken, reasons)
    chosen = sorted(taken, key=lambda pair: _key(facts, *pair)) or loopback
    order = tuple(dict.fromkeys(link.name for link, _ in chosen))
    return Choice(
        addresses=tuple(_advertised(facts, *pair) for pair in chosen),
        verdicts=tuple(_verdict(facts, link, order, reasons[link.name]) for link in facts.links),
    )


def rank_of(facts: Facts, link: Link, depth: int = 0) -> Rank:
    """What sort of way to the other machines this is."""
    if link.kind in ("bridge", "docker"):
        return Rank.WIRED if _is_lan_bridge(facts, link) else Rank.VIRTUAL
    if link.kind == "veth":
        own = link.peer_elsewhere and link.addresses and not is_host_side(link.name)
        return Rank.WIRED if own else Rank.VIRTUAL
    if link.kind in ("vlan", "macvlan", "ipvlan"):
        below = facts.link(link.parent)
        if below is None or link.peer_elsewhere or depth >= NESTED_MAX:
            return Rank.WIRED
        if below.kind == "veth" and below.peer_elsewhere and not is_host_side(below.name):
            return Rank.WIRED  # on a container's own card, which may be left without an address
        return rank_of(facts, below, depth + 1)
    return _RANKS.get(link.kind, Rank.VIRTUAL)


def is_virtual(facts: Facts, link: Link, address: LinkAddress) -> bool:
    """Whether other machines may well have this very address. One that was put on lo is often a
    service's (LVS, anycast), the same on each of its machines."""
    if link.kind == "loopback":
        return address.reach != "loopback"
    return rank_of(facts, link) is Rank.VIRTUAL


def _is_lan_bridge(facts: Facts, bridge: Link) -> bool:
    """A card is plugged in, or the way to everywhere goes through it, as on a KVM host."""
    if bridge.gateways:
        return True
    ports = [link for link in facts.links if link.master == bridge.name]
    if any(port.hardware or port.kind in ("bond", "vlan") for port in ports):
        return True
    # Without netlink nobody knows the ports: br0 and vmbr0 are an administrator's, docker0 is not.
    guessed = not facts.exact and not is_engines_bridge(bridge.name)
    return guessed and bridge.kind == "bridge"


def _usable(facts: Facts, link: Link, allowed: Restriction) -> tuple[list[LinkAddress], str]:
    """The addresses that may be taken, and what is to be said where there are none."""
    virtual = rank_of(facts, link) is Rank.VIRTUAL
    if link.master and _takes_over(facts, link.master):
        return [], f"it is a port of {link.master}, which has the addresses"
    if link.up is False:
        return [], "it is down"
    # Whoever names a container bridge means it: its carrier comes with the first container.
    if link.carrier is False and not (virtual and allowed.explicit):
        return [], f"it has no carrier ({_no_carrier(link)})"
    if not link.addresses:
        return [], "it has no address"
    permitted = [a for a in link.addresses if allowed.allows(link.name, a.address)]
    if not permitted:
        return [], "--interface or --subnet leaves it out"
    ready = [a for a in permitted if a.state not in ("tentative", "duplicate")]
    if not ready:
        state = permitted[0].state
        word = "another host has it too" if state == "duplicate" else "not yet found to be unique"
        return [], f"{permitted[0].address} cannot be used: {word}"
    usable = [a for a in ready if not (_is_link_local_ipv6(a) and _is_no_lan(virtual, link))]
    if not usable:
        return [], "a link-local address of a virtual interface leads nowhere"
    return usable, "loopback counts only where there is nothing else"


def _is_no_lan(virtual: bool, link: Link) -> bool:
    return virtual or link.kind == "loopback"


def _takes_over(facts: Facts, master: str) -> bool:
    """A VRF is a routing table: its members keep their addresses."""
    found = facts.link(master)
    return found is None or found.kind != "vrf"


def _no_carrier(link: Link) -> str:
    if link.state == "dormant":
        return "it waits for a key or a login"
    if link.kind == "wifi":
        return "not connected to any network"
    return "no cable, or nothing at its other end"


def _without_autoconfigured_ipv4(
    facts: Facts, taken: Sequence[tuple[Link, LinkAddress]], reasons: dict[str, str]
) -> list[tuple[Link, LinkAddress]]:
    """169.254.0.0/16 is what a host gives itself when DHCP did not answer: taken only where the
    node has nothing else of IPv4 on a real interface."""

    def own(address: LinkAddress) -> bool:
        return ":" not in address.address and address.reach == "link-local"

    real = any(
        ":" not in address.address and not own(address) and not is_virtual(facts, link, address)
        for link, address in taken
    )
    kept = [(link, address) for link, address in taken if not (real and own(address))]
    for link, address in taken:
        if real and own(address):
            reasons[link.name] = f"{address.address} is a stopgap: did DHCP not answer?"
    return kept


def _is_link_local_ipv6(address: LinkAddress) -> bool:
    return ":" in address.address and address.reach == "link-local"


def _key(
    facts: Facts, link: Link, address: LinkAddress
) -> tuple[int, bool, int, int, bool, str, int, int]:
    """IPv4 before IPv6 before link-local; what will soon change is the last of its sort."""
    ip = ipaddress.ip_address(address.address)
    rank = Rank.VIRTUAL if is_virtual(facts, link, address) else rank_of(facts, link)
    family = 3 if _is_link_local_ipv6(address) else 1 if ip.version == 6 else 0
    if family == 0 and address.reach == "link-local":
        family = 2
    return (
        rank,
        link.speed_mbits is None,
        -(link.speed_mbits or 0),
        family,
        address.state != "ok",
        link.name,
        link.index,
        link.addresses.index(address),
    )


def _advertised(facts: Facts, link: Link, address: LinkAddress) -> Address:
    return Address(
        address=address.address,
        interface=link.name,
        prefix=address.prefix,
        virtual=is_virtual(facts, link, address),
    )


def _verdict(facts: Facts, link: Link, order: Sequence[str], reason: str) -> Verdict:
    if link.name not in order:
        return Verdict(interface=link.name, used=False, place=None, why=reason)
    rank = rank_of(facts, link)
    if rank is Rank.LOOPBACK and any(a.reach != "loopback" for a in link.addresses):
        rank = Rank.VIRTUAL
    why = _RANK_WORDS[rank]
    if rank < Rank.VIRTUAL:
        speed = speed_words(link.speed_mbits)
        why += f", {speed}" if speed else ", speed unknown"
    place = order.index(link.name) + 1
    return Verdict(interface=link.name, used=True, place=place, why=why)


def speed_words(mbits: int | None) -> str:
    """`10 Gbit/s`, `100 Mbit/s`; empty where it is not known."""
    if mbits is None:
        return ""
    return f"{mbits / 1000:g} Gbit/s" if mbits >= 1000 else f"{mbits} Mbit/s"
