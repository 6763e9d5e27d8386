"""The switch: one bridge per network, in a network namespace of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from mingled.errors import MingleError
from mingled.lab.filters import Loss, loss_rules
from mingled.lab.namespaces import Holder


class Switch:
    """Ports are named after what is plugged in: "node2-eth0"."""

    def __init__(self, holder: Holder, *, networks: int, snooping: bool) -> None:
        self.holder = holder
        lines = []
        for network in range(networks):
            bridge = f"bridge{network}"
            lines += [
                f"link add {bridge} type bridge mcast_snooping {int(snooping)}",
                f"link set {bridge} up",
            ]
        holder.ip(lines)

    def plug(self, node: int, interfaces: Sequence[str], pid: int) -> None:
        """Lay a cable from each network to the network namespace of process `pid`."""
        lines = []
        for network, interface in enumerate(interfaces):
            name = port(node, interface)
            # The card, and so its MAC address, stays the same when the node boots again.
            mac = f"02:4d:47:00:{network:02x}:{node:02x}"
            lines += [
                f"link add {name} type veth peer name {interface} address {mac} netns {pid}",
                f"link set {name} master bridge{network} up",
            ]
        self.holder.ip(lines)

    def unplug(self, node: int, interfaces: Sequence[str]) -> None:
        """Take the cables of a dead node away; the kernel may have done so before us."""
        for interface in interfaces:
            with contextlib.suppress(MingleError):
                self.holder.ip([f"link del {port(node, interface)}"])

    def set_cables(self, node: int, interfaces: Sequence[str], *, up: bool) -> None:
        state = "up" if up else "down"
        self.holder.ip([f"link set {port(node, interface)} {state}" for interface in interfaces])

    def lose(self, loss: Mapping[str, Loss]) -> None:
        """From now on lose packets at these ports, and at no others."""
        self.holder.configure("nft", "-f", "-", script=loss_rules(loss))


def port(node: int, interface: str) -> str:
    return f"node{node}-{interface}"
