"""The switch: one bridge per network, in a network namespace of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from ipaddress import IPv6Address

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
            card = mac(network, node)
            lines += [
                f"link add {name} type veth peer name {interface} address {card} netns {pid}",
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


def mac(network: int, node: int) -> str:
    """Of the node's card in the network, counted from 0. It stays the same when the node boots
    again."""
    return f"02:4d:47:00:{network:02x}:{node:02x}"


def link_local(network: int, node: int) -> str:
    """What IPv6 makes of that MAC address (RFC 4291, appendix A), without scope."""
    octets = bytes.fromhex(mac(network, node).replace(":", ""))
    half = bytes([octets[0] ^ 0x02]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + half))
