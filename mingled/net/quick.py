"""The interfaces as netifaces shows them: in a few milliseconds, with kinds guessed from names."""

from __future__ import annotations

import ipaddress
from typing import Any

from mingled.net import ioctls
from mingled.net.facts import Facts, Kind, Link, LinkAddress, reach_of
from mingled.net.naming import kind_by_name

_CARDS: tuple[Kind, ...] = ("ethernet", "wifi", "infiniband", "wwan")
_NO_SPEED: tuple[Kind, ...] = ("tun", "tap", "wireguard", "ppp", "tunnel", "loopback", "dummy")
"""Kinds whose driver reports a speed that it made up (a tun says 10 Mbit/s), or none."""

_Entries = dict[int, list[dict[str, str]]]
"""What netifaces has of an interface, by family."""

_LINK_FAMILIES = ("AF_PACKET", "AF_LINK")  # Linux, macOS


def netifaces() -> Any:
    import netifaces as module  # 11 ms, so it is loaded only where it is used

    return module


def names() -> tuple[str, ...]:
    """Every interface of this network namespace."""
    return tuple(netifaces().interfaces())


def facts(why_not: str = "") -> Facts:
    """Of all interfaces. `why_not` goes into the result: why nothing better was read."""
    gateways = default_gateways()
    links = (_link(name, found, gateways.get(name, ())) for name, found in _every().items())
    ordered = sorted(links, key=lambda link: link.index)
    return Facts(links=tuple(ordered), exact=False, why_not=why_not)


def addresses() -> dict[str, tuple[LinkAddress, ...]]:
    """Of every interface, IPv4 first. What is no address is left out."""
    return {name: _addresses(entries) for name, entries in _every().items()}


def default_gateways() -> dict[str, tuple[str, ...]]:
    """Of each interface that a default route goes through, IPv4 first."""
    module = netifaces()
    gateways = module.gateways()
    found: dict[str, tuple[str, ...]] = {}
    for family in (module.AF_INET, module.AF_INET6):
        for gateway, interface, *_ in gateways.get(family, ()):
            found[interface] = (*found.get(interface, ()), str(gateway))
    return found


def kind_of(name: str) -> Kind:
    """By its name, and by the wireless call: Wi-Fi cards can be called anything."""
    kind = kind_by_name(name)
    return "wifi" if kind == "ethernet" and ioctls.wireless(name) else kind


def speed_of(name: str, kind: Kind) -> int | None:
    """In Mbit/s; None where nobody knows, and where the driver makes it up."""
    return None if kind in _NO_SPEED else ioctls.speed_mbits(name)


def _link(name: str, entries: _Entries, gateways: tuple[str, ...]) -> Link:
    kind = kind_of(name)
    ioctls.settle(name)
    flags = ioctls.flags(name)
    up = None if flags is None else bool(flags & ioctls.IFF_UP)
    carrier = None if flags is None or not up else bool(flags & ioctls.IFF_RUNNING)
    state = "unknown" if flags is None else "up" if carrier else "down"
    return Link(
        name=name,
        kind=kind,
        index=ioctls.index(name),
        hardware=kind in _CARDS,
        up=up,
        carrier=carrier,
        state=state,
        speed_mbits=speed_of(name, kind),
        mtu_bytes=ioctls.mtu_bytes(name) or 0,
        mac=_mac(entries),
        addresses=_addresses(entries),
        gateways=gateways,
    )


def _every() -> dict[str, _Entries]:
    """What netifaces has of each interface, in one listing of them all. One that came or went
    beside it has nothing."""
    found: dict[str, _Entries] = netifaces().allifaddresses()
    return {name: found.get(name, {}) for name in names()}


def _addresses(entries: _Entries) -> tuple[LinkAddress, ...]:
    module = netifaces()
    found = []
    for family in (module.AF_INET, module.AF_INET6):
        for entry in entries.get(family, ()):
            text = str(entry.get("addr", "")).partition("%")[0]
            try:
                ip = ipaddress.ip_address(text)
            except ValueError:
                continue
            prefix = _prefix(str(entry.get("netmask", "")), ip.version)
            found.append(LinkAddress(address=str(ip), prefix=prefix, reach=reach_of(str(ip))))
    return tuple(found)


def _mac(entries: _Entries) -> str:
    module = netifaces()
    family = next((getattr(module, f) for f in _LINK_FAMILIES if hasattr(module, f)), -1)
    return next((str(entry["addr"]) for entry in entries.get(family, ()) if entry.get("addr")), "")


def _prefix(netmask: str, version: int) -> int:
    """255.255.255.0, ffff:ffff::/64 or ffff:ffff:: as a number of bits; 0 where it is neither."""
    mask, _, length = netmask.partition("/")
    if length.isdecimal():
        return min(int(length), 32 if version == 4 else 128)
    try:
        return int(ipaddress.ip_address(mask)).bit_count()
    except ValueError:
        return 0


def snapshot() -> tuple[object, ...]:
    """An identity of what matters, cheap to compare: of each interface its index, name, whether it
    is up and running, addresses with prefixes; then the default gateways. An interface that was
    removed and made again has another index."""
    every = []
    for name, found in addresses().items():
        ioctls.settle(name)
        flags = (ioctls.flags(name) or 0) & (ioctls.IFF_UP | ioctls.IFF_RUNNING)
        every.append((ioctls.index(name), name, flags, tuple((a.address, a.prefix) for a in found)))
    return (*sorted(every), tuple(sorted(default_gateways().items())))
