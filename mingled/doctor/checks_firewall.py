"""What this machine's own rules would do with what other nodes send. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from mingled.core.reach import bare, parsed, subnet_of
from mingled.doctor import iptables, nft
from mingled.doctor.firewall import Chains, Incoming, judge
from mingled.doctor.gather_here import MDNS_PORT
from mingled.doctor.gathered import Gathered, firewall_command, here_for
from mingled.doctor.model import Finding, failed, named, passed, skipped
from mingled.doctor.ports import Opening, openings
from mingled.net.udp import GROUP, GROUP6


def firewall(g: Gathered) -> list[Finding]:
    check = "firewall"
    if not g.rulesets:
        return [skipped(check, "neither nft nor iptables-save is installed here")]
    chains: list[tuple[str, Chains]] = []
    unread: list[str] = []
    for rules in g.rulesets:
        if rules.why_not:
            unread.append(f"{rules.tool}: {rules.why_not}")
            continue
        try:
            if rules.tool == "nft":
                chains.append((rules.tool, nft.parse(rules.text)))
            else:
                version = iptables.parse(rules.text, 6 if rules.tool == "ip6tables" else 4)
                chains.append((rules.tool, version))
        except nft.NotRead as error:
            unread.append(str(error))
    if not chains:
        return [skipped(check, f"the rules cannot be read ({named(unread)})", "sudo mingle doctor")]
    dropped: dict[str, None] = {}
    perhaps: dict[str, None] = {}
    for tool, rules_ in chains:
        for opening, packet in _packets(g):
            word = judge(rules_, packet)
            port = f"{packet.protocol.upper()} {opening.ports} from {packet.source} ({tool})"
            if word == "drop":
                dropped[port] = None
            elif word == "perhaps":
                perhaps[port] = None
    if dropped:
        said = f"this machine's rules drop {named(dropped)}"
        return [failed(check, said, f"{firewall_command(g)} | sudo nft -f -")]
    tools = named(tool for tool, _ in chains)
    if perhaps:
        return [passed(check, f"no rule of {tools} surely drops; perhaps {named(perhaps)}")]
    return [passed(check, f"the rules of {tools} let in what jobs need")]


def _packets(g: Gathered) -> Iterator[tuple[Opening, Incoming]]:
    """The first, the middle and the last port of each range, from one other node of each subnet."""
    for source, interface in _sources(g):
        for opening in openings(g.ports):
            middle = (opening.first + opening.last) // 2
            for port in dict.fromkeys((opening.first, middle, opening.last)):
                if opening.protocol == "tcp":
                    packet = Incoming(protocol="tcp", port=port, interface=interface, source=source)
                elif port == MDNS_PORT:
                    packet = Incoming(
                        protocol="udp",
                        port=port,
                        interface=interface,
                        source=source,
                        destination=ipaddress.ip_address(GROUP if source.version == 4 else GROUP6),
                        to="multicast",
                    )
                else:
                    to = "broadcast" if source.version == 4 else "multicast"
                    packet = Incoming(
                        protocol="udp",
                        port=port,
                        interface=interface,
                        source=source,
                        to="broadcast" if to == "broadcast" else "multicast",
                    )
                yield opening, packet


def _sources(
    g: Gathered,
) -> list[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, str]]:
    """Nodes that were found, else a made-up neighbour in each of our subnets."""
    found: dict[tuple[str, int], tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, str]] = {}
    for other in g.others:
        for text in other.seen.addresses:
            ip = parsed(bare(text))
            for own in here_for(g, text):
                if ip is not None:
                    found.setdefault((own.interface, ip.version), (ip, own.interface))
    for own in g.here.candidates:
        net = subnet_of(own)
        if own.virtual or net is None or net.is_loopback or net.num_addresses < 4:
            continue
        first, second = net[1], net[2]
        ip = second if str(first) == own.address else first
        found.setdefault((own.interface, net.version), (ip, own.interface))
    return list(found.values())
