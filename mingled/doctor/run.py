"""Doctor's round: gather everything, as far as possible at once, then judge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from mingled.core.peers import parse_peer
from mingled.core.reach import bare
from mingled.core.words import JobId, Label
from mingled.doctor import (
    checks_firewall,
    checks_here,
    checks_job,
    checks_nodes,
    checks_tcp,
    checks_udp,
    gather_dns,
    gather_firewall,
    gather_here,
    gather_job,
    gather_udp,
)
from mingled.doctor.gather_tcp import Doors, Examined, examine
from mingled.doctor.gathered import Beside, Gathered, Missing
from mingled.doctor.here import Daemons, daemons
from mingled.doctor.model import Finding, failed
from mingled.doctor.ports import Ports, real
from mingled.doctor.realms import labels_of
from mingled.doctor.visit import Unreached, Visit, hail
from mingled.edges.presence import Found, find_nodes
from mingled.errors import MingleError
from mingled.net.ping import ping
from mingled.net.resolve import Resolver

LISTEN_S = 1.2
"""For daemons to answer who is there."""

NODES_MAX = 64
"""Other nodes that are examined, all at once; each is a dozen connections."""

Check = Callable[[Gathered], list[Finding]]

CHECKS: dict[str, Check] = {
    "daemon": checks_here.daemon,
    "interfaces": checks_here.interfaces,
    "nodes": checks_nodes.nodes,
    "version": checks_nodes.version,
    "key": checks_nodes.key,
    "subnet": checks_nodes.subnet,
    "multicast": checks_udp.multicast,
    "mdns": checks_udp.mdns,
    "mdns-port": checks_udp.mdns_port,
    "broadcast": checks_udp.broadcast,
    "igmp-snooping": checks_udp.igmp_snooping,
    "isolation": checks_udp.isolation,
    "link-port": checks_tcp.link_port,
    "master-ports": checks_tcp.master_ports,
    "ephemeral-ports": checks_tcp.ephemeral_ports,
    "firewall": checks_firewall.firewall,
    "mtu": checks_tcp.mtu,
    "nat": checks_tcp.nat,
    "container": checks_tcp.container,
    "same-address": checks_nodes.same_address,
    "machine-id": checks_nodes.machine_id,
    "clock": checks_nodes.clock,
    "speed": checks_nodes.speed,
    "wifi": lambda g: _wifi(g),
    "hosts-file": checks_here.hosts_file,
    "host-name": checks_here.host_name,
    "dns": checks_here.dns,
    "environment": checks_here.environment,
}
"""In the order in which they are shown; docs/doctor.md explains each."""


async def run(
    peers: Sequence[str] = (), job: JobId | None = None, *, ports: Ports | None = None
) -> list[Finding]:
    """Everything, within about 15 s. `BadInput` where a peer is no host. `ports`: as configured."""
    ports = ports or Ports()
    local = await asyncio.to_thread(daemons)
    matrix = None
    if job is None:
        gathered = await gather(local, peers, ports=ports)
    else:
        gathered, matrix = await asyncio.gather(
            gather(local, peers, labels_of(job), ports=ports),
            gather_job.gather(job, local.reports),
        )
    findings = judge(gathered)
    if matrix is not None:
        findings += checks_job.job(gathered, matrix) + checks_job.job_paths(gathered, matrix)
    return findings


def judge(gathered: Gathered) -> list[Finding]:
    """A check that fails itself must not hide the others."""
    findings: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            findings += check(gathered)
        except Exception as error:
            said = f"a bug in this check: {type(error).__name__}: {error}"
            findings.append(failed(name, said, "please report it, with mingle doctor --json"))
    return findings


async def gather(
    local: Daemons,
    peers: Sequence[str],
    labels: Sequence[Label] = (),
    *,
    ports: Ports | None = None,
) -> Gathered:
    ports = real(ports or Ports(), local.reports)
    here = await asyncio.to_thread(gather_here.gather, local)
    census, dns, rulesets = await asyncio.gather(
        find_nodes(LISTEN_S, peers, addresses=here.candidates, port=ports.broadcast),
        gather_dns.gather(here.host, here.name_servers),
        gather_firewall.gather(),
    )
    found = [node for node in census.nodes if node.node not in local.nodes]
    more, missing = await _named(peers, [*census.nodes], _links(ports, local), ports.broadcast)
    found += [node for node in more if node.node not in local.nodes]
    addresses = [a for node in found for a in node.addresses[:2]]
    report = next((r for r in local.reports if not r.private), None) or next(
        iter(local.reports), None
    )
    doors = Doors(report.link_port if report is not None else 0)
    try:
        udp, *others = await asyncio.gather(
            gather_udp.gather(
                here.candidates,
                addresses,
                known={node.node: tuple(bare(a) for a in node.addresses) for node in found},
                answer_as=here.host if report is not None else "",
                port=ports.broadcast,
            ),
            *(examine(node, doors, labels) for node in found[:NODES_MAX]),
        )
    finally:
        doors.close()
    examined = [o for o in others if isinstance(o, Examined)]
    beside = tuple(
        Beside(seen=o.seen, user=gather_here.tcp_user(o.seen.port))
        for o in examined
        if _is_here(o, here)
    )
    unreached = any(o.seen.presence is None for o in examined)
    return Gathered(
        here=here,
        others=tuple(o for o in examined if not _is_here(o, here)),
        beside=beside,
        ports=ports,
        udp=udp if isinstance(udp, gather_udp.Udp) else gather_udp.Udp(),
        dns=dns,
        rulesets=rulesets,
        missing=missing,
        troubles=census.troubles,
        gateway_answers=await asyncio.to_thread(_gateway, here) if unreached else None,
    )


def _is_here(other: Examined, here: gather_here.Here) -> bool:
    """Reached, and all its addresses are this machine's: another user's daemon."""
    presence = other.seen.presence
    if presence is None or not presence.node.addresses:
        return False
    return {bare(a) for a in presence.node.addresses} <= here.own


def _links(ports: Ports, local: Daemons) -> tuple[int, ...]:
    """Where a peer's daemon may listen: as the one here does, or as usual."""
    own = [report.link_port for report in local.reports if not report.private]
    return tuple(dict.fromkeys((ports.link, *own, Ports().link)))


async def _hail(addresses: Sequence[str], links: Sequence[int]) -> Visit | Unreached:
    """At the first of these ports that answers."""
    answers = await asyncio.gather(*(hail(addresses, port) for port in links))
    visits = [answer for answer in answers if isinstance(answer, Visit)]
    for visit in visits[1:]:
        await visit.close()
    return (*visits, *answers)[0]


async def _named(
    peers: Sequence[str], found: Sequence[Found], links: Sequence[int], broadcast: int
) -> tuple[list[Found], tuple[Missing, ...]]:
    """Peers that did not answer over UDP are asked over TCP; those who do not answer either."""
    resolver = Resolver()

    async def one(peer: str) -> Found | Missing | None:
        host, _ = parse_peer(peer)
        resolved = await resolver.resolve(host)
        if not resolved.addresses:
            if any(same_host(host, node.host) for node in found):
                return None  # discovery needs no DNS
            return Missing(said=f"{peer} {resolved.trouble}", known=False)
        places = {bare(address) for address in resolved.addresses}
        if any(places & {bare(a) for a in node.addresses} for node in found):
            return None
        visit = await _hail(resolved.addresses[:4], links)
        if isinstance(visit, Unreached):
            said = f"{peer} did not answer over UDP {broadcast}, and over TCP: {visit.reason}"
            return Missing(said=said)
        async with visit:
            card = visit.presence.node
            return Found(
                node=card.node,
                host=card.host,
                addresses=tuple(dict.fromkeys((visit.address, *card.addresses))),
                port=card.port,
                rungs=(),
            )

    answers = await asyncio.gather(*(one(peer) for peer in peers))
    known = {node.node for node in found}
    more = {a.node: a for a in answers if isinstance(a, Found) and a.node not in known}
    return list(more.values()), tuple(a for a in answers if isinstance(a, Missing))


def same_host(named: str, host: str) -> bool:
    """Whether these names may be one host's: `gpu2` and `gpu2.lab` may."""
    one, other = named.lower().rstrip("."), host.lower().rstrip(".")
    if "." in one and "." in other:
        return one == other
    return bool(one) and one.partition(".")[0] == other.partition(".")[0]


def _gateway(here: gather_here.Here) -> bool | None:
    """Whether the default gateway answers; None: there is none, or we may not ask."""
    gateways = [gateway for link in here.facts.links for gateway in link.gateways]
    if not gateways:
        return None
    try:
        outcome = ping(gateways[0], count=2, interval_s=0.2, timeout_s=1.0, until_answered=True)
    except MingleError:
        return None
    return outcome.activity == "active"


def _wifi(g: Gathered) -> list[Finding]:
    others = checks_nodes.other_wifi(g)
    own = checks_here.wifi(g)
    return [*(f for f in own if f.result != "pass"), *others] or own
