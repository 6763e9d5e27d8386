"""What the user allows with --interface and --subnet, and the sentence where it is not here."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

import msgspec

from mingled.errors import BadInput
from mingled.net.facts import Facts, LinkAddress

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SHOWN_MAX = 12
"""Interfaces that a refusal lists: a Docker host can have hundreds."""


class Restriction(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing in it: everything is allowed. Both given: both must hold."""

    interfaces: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()  #: without scope
    networks: tuple[Network, ...] = ()

    @property
    def explicit(self) -> bool:
        return bool(self.interfaces or self.addresses or self.networks)

    def allows(self, interface: str, address: str) -> bool:
        if self.interfaces or self.addresses:
            named = interface in self.interfaces or address in self.addresses
            if not named:
                return False
        ip = ipaddress.ip_address(address)
        return not self.networks or any(
            ip.version == network.version and ip in network for network in self.networks
        )


def restriction(only: Iterable[str] = (), subnets: Iterable[str] = ()) -> Restriction:
    """`only`: names of interfaces, or addresses. `subnets`: such as 10.0.0.0/8 or fd00::/8; an
    address of the subnet stands for it (10.0.0.7/24).

    Raises:
        BadInput: a subnet that is none.
    """
    interfaces, addresses = set(), set()
    for word in only:
        address = _address(word)
        if address is None:
            interfaces.add(word)
        else:
            addresses.add(address)
    return Restriction(
        interfaces=frozenset(interfaces),
        addresses=frozenset(addresses),
        networks=tuple(_network(text) for text in subnets),
    )


def refuse(facts: Facts, host: str, only: Sequence[str], subnets: Sequence[str]) -> str | None:
    """The sentence that says what of the restriction is not on this node, and what is; None where
    all of it is."""
    try:
        wanted = restriction(only, subnets)
    except BadInput as error:
        return str(error)
    every = [(link.name, a) for link in facts.links for a in link.addresses]
    has_address = {a.address for _, a in every}
    for word in only:
        address = _address(word)
        there = facts.link(word) if address is None else address in has_address
        if not there:
            what = "interface" if address is None else "address"
            return f"{host} has no {what} {word}; it has {listing(facts)}: correct --interface"
    for text, network in zip(subnets, wanted.networks, strict=True):
        if not any(Restriction(networks=(network,)).allows(n, a.address) for n, a in every):
            return f"{host} has no address in {text}; it has {listing(facts)}: correct --subnet"
    if wanted.explicit and every and not any(wanted.allows(n, a.address) for n, a in every):
        named = (
            facts.links
            if not wanted.interfaces
            else [link for link in facts.links if link.name in wanted.interfaces]
        )
        if not wanted.networks and not any(link.addresses for link in named):
            return None  # the interface is there: its address may still come
        return (
            f"{host} has no address that --interface {', '.join(only)} and --subnet "
            f"{', '.join(subnets)} both allow; it has {listing(facts)}: correct one of them"
        )
    return None


def listing(facts: Facts) -> str:
    """`eth0 10.77.0.1/24, lo 127.0.0.1/8`: what people look for first. Ports of bridges and bonds
    have nothing of their own."""
    words = []
    links = [link for link in facts.links if not link.master]
    for link in sorted(links, key=lambda link: (link.kind == "loopback", link.index)):
        shown = [a for a in link.addresses if a.reach != "link-local"] or link.addresses
        words.append(f"{link.name} {' '.join(map(with_prefix, shown))}".rstrip())
    more = len(words) - SHOWN_MAX
    return ", ".join(words[:SHOWN_MAX]) + (f" and {more} more" if more > 0 else "") or "none"


def with_prefix(address: LinkAddress) -> str:
    return f"{address.address}/{address.prefix}" if address.prefix else address.address


def _address(word: str) -> str | None:
    try:
        return str(ipaddress.ip_address(word.partition("%")[0]))
    except ValueError:
        return None


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise BadInput(
            f"--subnet {text}: not a subnet such as 10.0.0.0/8 or fd00::/8; correct it"
        ) from None
