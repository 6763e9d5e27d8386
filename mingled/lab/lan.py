"""A LAN of nodes on this machine: made, disturbed and taken away again."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from types import TracebackType
from typing import Self

from mingled.errors import BadInput, MingleError
from mingled.lab.capture import Capture
from mingled.lab.filters import Direction, Loss
from mingled.lab.namespaces import PRIVATE_DIRECTORIES, Holder, available
from mingled.lab.node import Node
from mingled.lab.switch import Switch, port

_NODES_MAX = 250  # what a /24 and the last byte of a MAC address hold
_NETWORKS_MAX = 8
_FAREWELL_S = 2.0  # between SIGTERM to what still runs and the end of the LAN
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


class Lan:
    """`with Lan(nodes=3) as lan:` -- three machines on one switch, gone at the end of the block.

    Node n (from 1) is called `hostname` with {n} filled in and has address n of `subnet` on eth0;
    the k-th further network is eth<k>, its subnet is `subnet` with the second byte raised by k
    (10.78.0.0/24, ...). IPv6 is off unless asked for: `ipv6=True` gives link-local addresses only,
    `ipv6="fd77::/64"` address n of that subnet as well (the k-th further network's is the k-th
    after it, fd77:0:0:1::/64, ...). `ipv4=False` leaves IPv4 out, but for lo. `snooping` turns the
    bridges' IGMP snooping on. /tmp, /run and /dev/shm are each node's own, except for the
    directories in `share` below /tmp or /run, and for the current and home directory and Python's
    own, so that code that lies there can run. One thread at a time.

    Raises `BadInput` for impossible sizes and `MingleError` where the machine forbids LANs
    (`available` tells beforehand).
    """

    def __init__(
        self,
        nodes: int = 2,
        *,
        networks: int = 1,
        hostname: str = "gpu{n}",
        subnet: str = "10.77.0.0/24",
        ipv4: bool = True,
        ipv6: bool | str = False,
        snooping: bool = False,
        share: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        if not 1 <= nodes <= _NODES_MAX:
            raise BadInput(f"A LAN has 1 to {_NODES_MAX} nodes, not {nodes}.")
        if not 1 <= networks <= _NETWORKS_MAX:
            raise BadInput(f"A LAN has 1 to {_NETWORKS_MAX} networks, not {networks}.")
        self.nodes: tuple[Node, ...] = ()
        if not ipv4 and not ipv6:
            raise BadInput(
                "A LAN without IPv4 needs IPv6: ipv6=True, or a subnet such as fd77::/64."
            )
        self._networks = networks
        self._subnets = _subnets(subnet, nodes, networks) if ipv4 else []
        self._subnets6 = _subnets6(ipv6, nodes, networks) if isinstance(ipv6, str) else []
        self._names = [_hostname(hostname, n + 1) for n in range(nodes)]
        self._ipv6 = bool(ipv6)
        self._snooping = snooping
        self._shared = _shared(share)
        self._switch: Switch | None = None
        self._loss: dict[int, Loss] = {}

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._names)

    def open(self) -> None:
        """Make the switch and all nodes; back when packets pass."""
        possible = available()
        if possible.kind == "none":
            raise MingleError(possible.reason)
        holder = Holder.start_switch(rootless=possible.kind == "rootless")
        try:
            holder.wait_ready()
            switch = Switch(holder, networks=self._networks, snooping=self._snooping)
        except BaseException:
            holder.close()
            raise
        self._switch = switch
        try:
            self.nodes = tuple(self._node(n, switch) for n in range(1, len(self) + 1))
            for node in self.nodes:
                node.start()
            for node in self.nodes:
                node.bring_up()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End what runs on the nodes (SIGTERM, 2 s later SIGKILL) and take everything away."""
        for node in self.nodes:
            node.terminate()
        deadline = time.monotonic() + _FAREWELL_S
        for node in self.nodes:
            node.close(deadline)
        if self._switch is not None:
            self._switch.holder.close()
            self._switch = None

    def node(self, number: int) -> Node:
        """Node `number`, counted from 1."""
        if not self.nodes:
            raise MingleError("The LAN is not open: use it in a `with` block.")
        if not 1 <= number <= len(self.nodes):
            raise BadInput(f"This LAN has nodes 1 to {len(self.nodes)}; there is no {number}.")
        return self.nodes[number - 1]

    def cut(self, number: int, interface: str | None = None) -> None:
        """Pull the node's cable (all its cables): nothing passes, and nobody is told."""
        self._set_cables(number, interface, up=False)

    def heal(self, number: int, interface: str | None = None) -> None:
        """Plug the node's cable (all its cables) in again."""
        self._set_cables(number, interface, up=True)

    def loss(self, percent: float, node: int | None = None, direction: Direction = "both") -> None:
        """Lose this share of all packets, 0 to 100 per cent, in place of what was set before.

        Without `node` every packet between two nodes runs the risk once. With `node`, those into
        it, out of it, or both. The sender is not told, ARP is lost too, and a multicast is lost
        or not for each receiver separately.
        """
        if node is None:
            everywhere = Loss.of(percent, "in")
            loss = {other.number: everywhere for other in self.nodes}
        else:
            loss = self._loss | {self.node(node).number: Loss.of(percent, direction)}
        self._open_switch.lose(
            {
                port(number, interface): lost
                for number, lost in loss.items()
                for interface in self.node(number).interfaces
            }
        )
        self._loss = loss

    def capture(self, node: int, filter: str = "", interface: str | None = None) -> Capture:
        """`with lan.capture(1, "udp port 5353") as packets:` what passes node 1's card (eth0)."""
        machine = self.node(node)
        return Capture(machine, filter, _interface(machine, interface) or machine.interface)

    @property
    def _open_switch(self) -> Switch:
        if self._switch is None:
            raise MingleError("The LAN is not open: use it in a `with` block.")
        return self._switch

    def _set_cables(self, number: int, interface: str | None, *, up: bool) -> None:
        node = self.node(number)
        chosen = _interface(node, interface)
        if not node.alive:
            raise MingleError(f"{node.name} has no power; boot() plugs its cables in again.")
        self._open_switch.set_cables(number, (chosen,) if chosen else node.interfaces, up=up)

    def _node(self, number: int, switch: Switch) -> Node:
        addresses = [
            IPv4Interface((subnet.network_address + number, subnet.prefixlen))
            for subnet in self._subnets
        ]
        addresses6 = [
            IPv6Interface((subnet.network_address + number, subnet.prefixlen))
            for subnet in self._subnets6
        ]
        name = self._names[number - 1]
        return Node(
            number,
            name,
            self._networks,
            addresses,
            addresses6,
            switch,
            lambda: Holder.start_node(
                name, switch=switch.holder, ipv6=self._ipv6, shared=self._shared
            ),
        )


def _interface(node: Node, interface: str | None) -> str | None:
    if interface is not None and interface not in node.interfaces:
        raise BadInput(f"{node.name} has {', '.join(node.interfaces)}, and no {interface!r}.")
    return interface


def _hostname(pattern: str, number: int) -> str:
    try:
        name = pattern.format(n=number)
    except (KeyError, IndexError, ValueError, AttributeError):
        raise BadInput(f"In the host name {pattern!r}, only {{n}} can be filled in.") from None
    if not _HOSTNAME.fullmatch(name):
        raise BadInput(f"{name!r} is no host name: up to 63 letters, digits and hyphens.")
    return name


def _subnets(first: str, nodes: int, networks: int) -> list[IPv4Network]:
    try:
        subnet = IPv4Network(first)
        last = [
            IPv4Network((int(subnet[0]) + (k << 16), subnet.prefixlen)) for k in range(networks)
        ]
    except ValueError as error:
        raise BadInput(f"{first!r} is no IPv4 subnet such as 10.77.0.0/24: {error}.") from None
    if subnet.prefixlen < 16 and networks > 1:
        raise BadInput(f"Several networks need /16 or smaller subnets; {first} is larger.")
    if subnet.num_addresses - 2 < nodes:
        raise BadInput(f"The subnet {first} has no room for {nodes} nodes.")
    return last


def _subnets6(first: str, nodes: int, networks: int) -> list[IPv6Network]:
    try:
        subnet = IPv6Network(first)
        last = [
            IPv6Network((int(subnet[0]) + k * subnet.num_addresses, subnet.prefixlen))
            for k in range(networks)
        ]
    except ValueError as error:
        raise BadInput(f"{first!r} is no IPv6 subnet such as fd77::/64: {error}.") from None
    if subnet.num_addresses - 1 < nodes:
        raise BadInput(f"The subnet {first} has no room for {nodes} nodes.")
    return last


def _shared(asked: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Directories below the private ones that nodes see nevertheless; an outer one comes first."""
    # A clone below /tmp must be able to run its own demo.
    code = [str(Path(__file__).parents[2]), sys.prefix, sys.base_prefix]
    wanted = {os.path.abspath(directory) for directory in asked}
    for directory in wanted:
        if not os.path.isdir(directory):
            raise BadInput(f"Nodes cannot share {directory}: it is not a directory.")
    usual = {os.path.realpath(path) for path in (os.getcwd(), str(Path.home()), *code)}
    return sorted(
        directory
        for directory in wanted | usual
        if any(_below(directory, private) for private in PRIVATE_DIRECTORIES[:2])
        and os.path.isdir(directory)
    )


def _below(directory: str, parent: str) -> bool:
    return directory.startswith(parent + "/")
