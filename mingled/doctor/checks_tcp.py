"""TCP between this machine and the others, both ways; large packets; NAT. Pure."""

from __future__ import annotations

from collections.abc import Callable

from mingled.core.reach import NAT_ADVICE, behind_nat
from mingled.doctor.gather_tcp import Port
from mingled.doctor.gathered import Gathered, firewall_command, used_nic
from mingled.doctor.model import Finding, failed, named, passed, skipped, warned

NOBODY = "no other node was found"

_WHAT: dict[Port, str] = {
    "link": "the daemons' link",
    "master": "a port of rank 0's range",
    "ephemeral": "a port of the kernel's choice, as Gloo and NCCL use",
}


def port_check(check: str, port: Port) -> Callable[[Gathered], list[Finding]]:
    """The check of one kind of port."""

    def judge(g: Gathered) -> list[Finding]:
        findings = []
        reached: list[str] = []
        for other in g.others:
            host = other.seen.host or "?"
            address = other.seen.addresses[0] if other.seen.addresses else "no address"
            tries = [attempt for attempt in other.attempts if attempt.port == port]
            for attempt in tries:
                if not attempt.reason:
                    reached.append(host)
                elif attempt.back:
                    said = (
                        f"{host} does not reach TCP {attempt.number} here ({_WHAT[port]}): "
                        f"{attempt.reason}"
                    )
                    mend = f"open it on {g.here.host}: {firewall_command(g)}"
                    findings.append(failed(check, said, mend))
                else:
                    said = (
                        f"TCP {attempt.number} of {host} ({address}; {_WHAT[port]}): "
                        f"{attempt.reason}"
                    )
                    findings.append(
                        failed(check, said, f"open it on {host}: {firewall_command(g)}")
                    )
        if findings:
            return findings
        if not g.others:
            return [skipped(check, NOBODY)]
        if not reached:
            hosts = named(other.seen.host or "?" for other in g.others)
            return [skipped(check, f"could not be tried with {hosts}; see link-port")]
        ways = "" if _both_ways(g, port) else "; the way back needs a daemon here"
        untried = [why for other in g.others for why in other.untried] if port == "link" else []
        return [
            passed(check, f"{_WHAT[port]}: {named(reached)} reached{ways}"),
            *(skipped(check, f"not tried: {why}") for why in untried),
        ]

    return judge


def _both_ways(g: Gathered, port: Port) -> bool:
    return any(a.back and a.port == port for other in g.others for a in other.attempts)


link_port = port_check("link-port", "link")
master_ports = port_check("master-ports", "master")
ephemeral_ports = port_check("ephemeral-ports", "ephemeral")


def mtu(g: Gathered) -> list[Finding]:
    """A stream of full packets, each way: what a path cannot carry it must say (RFC 1191), and
    some swallow it instead."""
    check = "mtu"
    tried = [other for other in g.others if other.large_there is not None]
    findings = []
    for other in tried:
        seen = other.seen
        way = seen.here.interface if seen.here is not None else "?"
        link = g.here.facts.link(way)
        ours = link.mtu_bytes if link is not None else 0
        nic = used_nic(seen)
        theirs = nic.mtu if nic is not None else 0
        sizes = f"MTU {ours or '?'} here on {way}, {theirs or '?'} there"
        mend = (
            f"sudo ip link set {way} mtu 1500 (and the same on {seen.host}), or let the switch "
            "pass frames of that size"
        )
        if other.large_there:
            said = f"large packets to {seen.host} vanish, small ones arrive ({sizes})"
            findings.append(failed(check, said, mend))
        elif other.large_back:
            said = f"large packets from {seen.host} vanish, small ones arrive ({sizes})"
            findings.append(failed(check, said, mend))
    if findings:
        return findings
    if not tried:
        return [skipped(check, NOBODY if not g.others else "no other node could be reached")]
    return [passed(check, f"full packets pass to and from {named(o.seen.host for o in tried)}")]


def nat(g: Gathered) -> list[Finding]:
    check = "nat"
    reached = [o.seen for o in g.others if o.seen.presence is not None]
    behind = [
        seen
        for seen in reached
        if seen.presence is not None
        and seen.here is not None
        and behind_nat(seen.presence.seen_address, seen.here.address)
    ]
    if behind:
        seen = behind[0]
        presence, here = seen.presence, seen.here
        assert presence is not None
        assert here is not None
        said = (
            f"{seen.host} sees {presence.seen_address}, but this machine is {here.address}: nobody "
            "there can connect back"
        )
        return [failed(check, said, NAT_ADVICE)]
    if not reached:
        return [skipped(check, NOBODY)]
    return [passed(check, "the others see this machine's own address")]


def container(g: Gathered) -> list[Finding]:
    """In a container with a network of its own others cannot connect to it, but for published
    ports, and the ephemeral ones cannot all be published."""
    check = "container"
    if not g.here.containers:
        return [passed(check, "this is no container")]
    kinds = {
        link.kind
        for a in g.here.candidates
        if (link := g.here.facts.link(a.interface)) is not None and not a.virtual
    }
    said = f"a container ({g.here.containers[0]})"
    if any(a.back and not a.reason for other in g.others for a in other.attempts):
        return [passed(check, f"{said} that others connect to")]
    if kinds == {"veth"} and any(link.gateways for link in g.here.facts.links):
        where = g.here.candidates[0].address
        mend = "docker run --network host (podman: --network host; Kubernetes: hostNetwork: true)"
        return [warned(check, f"{said} with a bridged network of its own ({where})", mend)]
    return [passed(check, f"{said} with the host's network, or one that is its own")]
