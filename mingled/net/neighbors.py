"""The neighbour table (ARP and NDP): who was seen on the links of this machine."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from mingled.errors import MingleError
from mingled.net import netlink

NeighborState = Literal[
    "none", "incomplete", "reachable", "stale", "delay", "probe", "failed", "permanent"
]

_NUD_NOARP = 0x40
_NUD_PERMANENT = 0x80
_STATES: tuple[tuple[int, NeighborState], ...] = (
    (0x01, "incomplete"),
    (0x02, "reachable"),
    (0x04, "stale"),
    (0x08, "delay"),
    (0x10, "probe"),
    (0x20, "failed"),
    (_NUD_PERMANENT, "permanent"),
)
"""linux/neighbour.h"""

_AF_BRIDGE = 7


class Neighbor(msgspec.Struct, frozen=True, kw_only=True):
    """One entry. `state` as the kernel calls it: `reachable` was confirmed in the last half minute,
    `stale` some time ago, `failed` did not answer."""

    interface: str
    index: int
    address: str  #: without scope
    mac: str  #: empty where nobody has answered
    entry: Literal["dynamic", "static"]  #: learned, or put there by an administrator
    state: NeighborState

    @property
    def scoped(self) -> str:
        """The address as another program on this machine can use it."""
        link_local = ":" in self.address and ipaddress.ip_address(self.address).is_link_local
        return f"{self.address}%{self.interface}" if link_local else self.address


def neighbors() -> tuple[Neighbor, ...]:
    """All entries but those that need no asking (multicast, loopback), by interface and address.

    Raises:
        MingleError: there is no netlink here.
    """
    try:
        messages = netlink.ask(lambda ipr: list(ipr.get_neighbours()))
    except netlink.NoNetlink as error:
        raise MingleError(
            f"{socket.gethostname()}: the neighbour table cannot be read: {error}; {_instead()}"
        ) from error
    found = (_neighbor(message) for message in messages)
    return tuple(sorted((n for n in found if n is not None), key=_order))


def _neighbor(message: Mapping[str, Any]) -> Neighbor | None:
    attributes = dict(message.get("attrs", ()))
    state, index = int(message["state"]), int(message["ifindex"])
    address = attributes.get("NDA_DST")
    if message["family"] == _AF_BRIDGE or state & _NUD_NOARP or not address:
        return None
    return Neighbor(
        interface=_name(index),
        index=index,
        address=str(address),
        mac=str(attributes.get("NDA_LLADDR") or ""),
        entry="static" if state & _NUD_PERMANENT else "dynamic",
        state=next((word for bit, word in _STATES if state & bit), "none"),
    )


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"#{index}"  # it has just gone


def _order(n: Neighbor) -> tuple[int, int, int]:
    ip = ipaddress.ip_address(n.address)
    return (n.index, ip.version, int(ip))


def _instead() -> str:
    return "allow AF_NETLINK" if sys.platform == "linux" else "look with `arp -an` and `ndp -an`"
