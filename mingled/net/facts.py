"""What is known of this machine's interfaces, whoever read it: plain values."""

from __future__ import annotations

import ipaddress
from typing import Literal

import msgspec

Kind = Literal[
    "bond",
    "bridge",
    "docker",
    "dummy",
    "ethernet",
    "infiniband",
    "ipvlan",
    "loopback",
    "macvlan",
    "macvtap",
    "other",
    "ppp",
    "tap",
    "tun",
    "tunnel",
    "veth",
    "vlan",
    "vrf",
    "vxlan",
    "wifi",
    "wireguard",
    "wwan",
]
"""`docker`: the bridge of a container engine. `tunnel`: GRE, IPIP, SIT, IPsec. `bond`: team too."""

Reach = Literal["public", "private", "shared", "link-local", "loopback"]
"""`shared` is 100.64.0.0/10: a provider's NAT, Tailscale."""

Origin = Literal["static", "dynamic", "automatic", "unknown"]
"""`dynamic` has a lifetime (DHCP, SLAAC); `automatic` the kernel made itself (fe80::, ::1)."""

State = Literal["ok", "tentative", "duplicate", "deprecated", "temporary"]
"""`tentative`: whether another host has it is still being found out; `duplicate`: another has."""


class LinkAddress(msgspec.Struct, frozen=True, kw_only=True):
    """One address of an interface, without scope."""

    address: str
    prefix: int  #: in bits; 0 where it is not known
    reach: Reach
    origin: Origin = "unknown"
    state: State = "ok"


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One interface. None, 0 and empty texts stand for what nobody could tell."""

    name: str
    kind: Kind
    index: int = 0
    hardware: bool | None = None
    up: bool | None = None  #: switched on by the administrator
    carrier: bool | None = None  #: packets could pass: a cable is in, an access point answers
    state: str = "unknown"  #: as the kernel calls it (RFC 2863): up, down, dormant, ...
    speed_mbits: int | None = None
    mtu_bytes: int = 0
    mac: str = ""
    addresses: tuple[LinkAddress, ...] = ()
    gateways: tuple[str, ...] = ()  #: of default routes through it
    master: str = ""  #: the bridge or bond that it is a port of
    parent: str = ""  #: what a VLAN or MACVLAN is on
    peer_elsewhere: bool = False  #: a veth, or what stands on another, in another namespace


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All interfaces of this network namespace, by index."""

    links: tuple[Link, ...]
    exact: bool  #: from netlink; else kinds are guessed from names
    why_not: str = ""  #: why not exact

    def link(self, name: str) -> Link | None:
        return next((link for link in self.links if link.name == name), None)


def reach_of(address: str) -> Reach:
    """Who can reach it; `address` is an IP address without scope."""
    ip = ipaddress.ip_address(address)
    if ip.is_loopback:
        return "loopback"
    if ip.is_link_local:
        return "link-local"
    if ip.is_private:
        return "private"
    return "public" if ip.is_global else "shared"
