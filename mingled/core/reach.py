"""Addresses: which of another machine's to try, in which order, and how each is written here.

An IPv6 link-local address means nothing without an interface of the reader's own: on the wire it is
bare, and whoever uses it adds the scope of the link that it came over.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterable, Sequence
from functools import lru_cache

import msgspec

from mingled.core.events import Address
from mingled.core.messages import ADDRESSES_MAX, Advert

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@lru_cache(maxsize=4096)
def parsed(address: str) -> IpAddress | None:
    """None: it is no address. The scope is left out."""
    try:
        return ipaddress.ip_address(bare(address))
    except ValueError:
        return None


@lru_cache(maxsize=1024)
def subnet_of(address: Address) -> Network | None:
    """The subnet that an address of ours lies in; None where it is not known."""
    if not address.prefix:
        return None
    try:
        return ipaddress.ip_network(f"{bare(address.address)}/{address.prefix}", strict=False)
    except ValueError:
        return None


def bare(address: str) -> str:
    """Without a scope."""
    return address.partition("%")[0]


def is_link_local_v6(address: str) -> bool:
    ip = parsed(address)
    return ip is not None and ip.version == 6 and ip.is_link_local


def scoped(address: str, interface: str) -> str:
    """As it is used here: with the scope, where it needs one and has none."""
    if interface and "%" not in address and is_link_local_v6(address):
        return f"{address}%{interface}"
    return address


def ways(remote: str, addresses: Iterable[str], interface: str) -> tuple[str, ...]:
    """How to connect to a daemon anew: the address that was reached first, then the others that it
    names, which came over our `interface`."""
    others = (scoped(a, interface) for a in addresses if bare(a) != bare(remote))
    return (scoped(remote, interface), *others)[:ADDRESSES_MAX]


def scoped_advert(advert: Advert, interface: str) -> Advert:
    """One that was told over a link of this interface."""
    addresses = tuple(scoped(a, interface) for a in advert.addresses)
    return msgspec.structs.replace(advert, addresses=addresses)


def bare_advert(advert: Advert) -> Advert:
    """As it is told to others."""
    addresses = tuple(bare(a) for a in advert.addresses)
    return msgspec.structs.replace(advert, addresses=addresses)


def to_try(
    addresses: Sequence[str], here: Sequence[Address], own: Container[str]
) -> tuple[str, ...]:
    """Another daemon's addresses, best first: in a subnet of ours, then in its own order. Those
    that this machine has itself (`own`) lead back to it, as docker0 does, which is the same
    everywhere; unless there are no others: then that daemon runs on this machine."""
    foreign = [a for a in addresses if bare(a) not in own] or list(addresses)
    nets = [net for a in here if not a.virtual and (net := subnet_of(a)) is not None]

    def far(address: str) -> bool:
        ip = parsed(address)
        return ip is None or not any(ip in net for net in nets if net.version == ip.version)

    return tuple(sorted(foreign, key=far))


def permitted(
    addresses: Iterable[Address], interfaces: Sequence[str], subnets: Sequence[str]
) -> tuple[Address, ...]:
    """Those that a user allows: by the interface's name or an address, and by subnet (CIDR).
    Nothing said: all."""
    nets = [ipaddress.ip_network(text, strict=False) for text in subnets]
    meant = {ip for text in interfaces if (ip := parsed(text)) is not None}
    found = []
    for a in addresses:
        ip = parsed(a.address)
        named = not interfaces or a.interface in interfaces or ip in meant
        within = not nets or (ip is not None and any(ip in n for n in nets))
        if named and within:
            found.append(a)
    return tuple(found)


def behind_nat(seen: str, source: str) -> bool:
    """Somebody on the way has rewritten the address that the other side connects from."""
    return bool(source) and bare(seen) != bare(source)


NAT_ADVICE = "behind NAT; Docker: --network host; WSL2: networkingMode=mirrored"
