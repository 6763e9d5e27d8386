"""This machine's interfaces and which of their addresses another machine may reach us by."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Any

from mingled.core.events import Address

_VIRTUAL = re.compile(
    r"(docker|br-|veth|virbr|vmnet|vboxnet|lxc|lxd|cni|flannel|cali|kube|podman|nerdctl|ifb|dummy)"
)
"""Names that container engines and hypervisors give to bridges. Their addresses are often the same
on every machine (docker0 is 172.17.0.1), so whoever connects there reaches itself."""

_SLOW = re.compile(r"(wl|tun|tap|wg|ppp|tailscale|zt|utun)")
"""Wireless and tunnels: usable, after everything wired."""


_known: dict[str, str] = {}


def _netifaces() -> Any:
    import netifaces  # heavy enough to be loaded only where it is used

    return netifaces


def interface_names() -> tuple[str, ...]:
    """Every interface of this network namespace."""
    return tuple(_netifaces().interfaces())


def all_addresses() -> list[Address]:
    """Every address of every interface but IPv6 link-local ones, IPv4 first."""
    netifaces = _netifaces()
    found: list[Address] = []
    for family in (netifaces.AF_INET, netifaces.AF_INET6):
        for name in netifaces.interfaces():
            for entry in netifaces.ifaddresses(name).get(family, ()):
                text = str(entry.get("addr", "")).partition("%")[0]
                try:
                    address = ipaddress.ip_address(text)
                except ValueError:
                    continue
                # A link-local IPv6 address means nothing without the reader's own interface.
                if not (address.version == 6 and address.is_link_local):
                    found.append(Address(address=str(address), interface=name))
    return found


def default_interfaces() -> tuple[str, ...]:
    """Interfaces that a default route goes through."""
    netifaces = _netifaces()
    gateways = netifaces.gateways()
    found: list[str] = []
    for family in (netifaces.AF_INET, netifaces.AF_INET6):
        found += [entry[1] for entry in gateways.get(family, ())]
    return tuple(dict.fromkeys(found))


def candidates(only: Iterable[str] = ()) -> tuple[Address, ...]:
    """Addresses to advertise, best first: default route's interface, then wired, then wireless and
    tunnels. Container bridges are left out; loopback only where there is nothing else. `only`:
    interface names or addresses that the user allows."""
    _known.clear()
    allowed = set(only)
    default = default_interfaces()

    def rank(a: Address) -> tuple[bool, bool, bool, str]:
        return (
            a.interface not in default,
            bool(_SLOW.match(a.interface)),
            ":" in a.address,
            a.interface,
        )

    every = [
        a for a in all_addresses() if not allowed or a.interface in allowed or a.address in allowed
    ]
    real = [
        a
        for a in every
        if not ipaddress.ip_address(a.address).is_loopback
        and (allowed or not _VIRTUAL.match(a.interface))
    ]
    loop = [a for a in every if ipaddress.ip_address(a.address).is_loopback]
    return tuple(sorted(real, key=rank)) or tuple(loop)


def interface_of(address: str) -> str:
    """The interface that has this address; empty if none has. Remembered, since asking the system
    costs 0.7 ms and a leader asks for every follower; `candidates` forgets."""
    plain = address.partition("%")[0]
    if plain not in _known:
        _known.clear()
        _known.update({a.address: a.interface for a in reversed(all_addresses())})
    return _known.get(plain, "")
