"""Which interfaces multicast DNS is spoken on, and what it calls the nodes."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence

import msgspec
from zeroconf import IPVersion

from mingled.core.datagrams import scoped
from mingled.core.events import Address
from mingled.core.reach import is_link_local_v6
from mingled.net.udp import interface_index, interface_name, memberships_max

NODE_TYPE = "_mingle-node._tcp.local."
"""Every daemon, whether it leads or not. Never announced: only whoever asks is told."""


def usable(addresses: Iterable[str], only_interface: str) -> tuple[str, ...]:
    """zeroconf's addresses, each once, with interface names for its numeric scopes. A link-local
    one that was heard over IPv4 has no scope; it is usable where there is but one interface."""
    named = []
    for address in addresses:
        plain, _, scope = address.partition("%")
        if not scope:
            named.append(plain)
        elif name := interface_name(int(scope)):
            named.append(f"{plain}%{name}")
    return tuple(dict.fromkeys(scoped(named, only_interface)))


class Spot(msgspec.Struct, frozen=True):
    """One interface in one family, and its address that multicast goes out from."""

    interface: str
    address: str  #: without scope
    index: int  #: of the interface; another one once it was removed and made again

    @property
    def six(self) -> bool:
        return ":" in self.address

    @property
    def choice(self) -> str | int:
        """What zeroconf calls it. Several interfaces may have the same link-local address."""
        return self.index if is_link_local_v6(self.address) else self.address

    @property
    def ready(self) -> bool:
        """Whether the address is there and can be used. (A fresh IPv6 one cannot for a second or
        two.) zeroconf fails as a whole for one that is not."""
        family = socket.AF_INET6 if self.six else socket.AF_INET
        scope = (0, self.index) if is_link_local_v6(self.address) else ()
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.bind((self.address, 0, *scope))
        except OSError:
            return False
        return True

    def __str__(self) -> str:
        return f"{self.interface} {self.address}"


class Plan(msgspec.Struct, frozen=True):
    """Where to speak, best first; `left_out`: interfaces for which the kernel has no room."""

    spots: tuple[Spot, ...]
    left_out: tuple[str, ...] = ()

    @property
    def choices(self) -> list[str | int]:
        return [spot.choice for spot in self.spots]

    @property
    def ip_version(self) -> IPVersion:
        families = {spot.six for spot in self.spots}
        if families == {True}:
            return IPVersion.V6Only
        return IPVersion.All if True in families else IPVersion.V4Only

    @property
    def ready(self) -> Plan:
        """Without what is not there yet, or no longer."""
        return Plan(tuple(spot for spot in self.spots if spot.ready), self.left_out)

    @property
    def only_interface(self) -> str:
        """Empty if there are several."""
        names = {spot.interface for spot in self.spots}
        return names.pop() if len(names) == 1 else ""


def plan(addresses: Sequence[Address]) -> Plan:
    """One IPv4 and one IPv6 address of each interface: those of container bridges last, and no more
    than one socket can be in a group on. Loopback where there is nothing."""
    spots: dict[tuple[str, bool], Spot] = {}
    left_out: dict[str, None] = {}
    room = memberships_max()
    for a in sorted(addresses, key=lambda a: a.virtual):
        spot = Spot(a.interface, a.address.partition("%")[0], interface_index(a.interface))
        key = (spot.interface, spot.six)
        if key in spots or spot.interface in left_out:
            continue
        if not spot.six and room == 0:
            left_out[spot.interface] = None
            continue
        room -= not spot.six
        spots[key] = spot
    loopback = Spot("lo", "127.0.0.1", interface_index("lo"))
    return Plan(tuple(spots.values()) or (loopback,), tuple(left_out))
