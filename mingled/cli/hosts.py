"""`mingle hosts`: the nodes as a host file of OpenMPI, DeepSpeed or ssh.

Addresses stand in the first two unless --names is given: a name may resolve to another address than
the one that was proven, or not at all. ssh's file maps names to addresses, which is its purpose.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import sys
from collections.abc import Sequence
from typing import Literal

import click
import msgspec

from mingled.cli.nodes import WITHIN, WITHIN_RANGE, find
from mingled.core.reach import bare, is_link_local_v6, parsed
from mingled.core.words import HOST_NAME, JobId
from mingled.doctor.nodes import Nodes, Seen
from mingled.doctor.realms import labels_of
from mingled.errors import BadInput, MingleError
from mingled.net import interfaces
from mingled.wording import clean

Format = Literal["openmpi", "deepspeed", "ssh"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SLOTS_MAX = 4_096

_USER = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,31})?")


class Host(msgspec.Struct, frozen=True, kw_only=True):
    name: str  #: empty: it has none that could be written down
    address: str
    slots: int


@click.command()
@click.option(
    "--format",
    "kind",
    type=click.Choice(["openmpi", "deepspeed", "ssh"]),
    required=True,
    help="What is to read it.",
)
@click.option("--job", metavar="ID", help="Only nodes with this job.")
@click.option("--user", metavar="NAME", help="ssh: log in as.")
@click.option(
    "--slots",
    type=click.IntRange(1, SLOTS_MAX),
    metavar="N",
    help="Of each node.  [default: its GPUs, or 1]",
)
@click.option("--names", is_flag=True, help="openmpi, deepspeed: host names, not addresses.")
@click.option("--peers", multiple=True, metavar="HOST,...", help="Ask these, too. Repeatable.")
@click.option(
    "--within",
    default=WITHIN,
    show_default=True,
    metavar="TIME",
    help=f"How long to listen: {WITHIN_RANGE}.",
)
def command(
    kind: Format,
    job: str | None,
    user: str | None,
    slots: int | None,
    names: bool,
    peers: tuple[str, ...],
    within: str,
) -> None:
    """The nodes of this network as a host file, on stdout.

    For example: mingle hosts --format deepspeed > hostfile; mingle hosts --format ssh >
    ~/.ssh/config.d/gpus
    """
    if user is not None and not _USER.fullmatch(user):
        raise BadInput(f"--user {user[:64]!r} is no user name")
    if user is not None and kind != "ssh":
        raise BadInput("--user is for --format ssh; delete it")
    if names and kind == "ssh":
        raise BadInput("--names is not for --format ssh, which has both; delete it")
    job_id = JobId(job) if job is not None else None
    labels = () if job_id is None else labels_of(job_id)
    found = find(peers, within, "mingle hosts", labels)
    for seen in found.seen:
        if seen.presence is None:
            why = clean(f"{seen.host}: left out: {seen.why}")
            click.echo(f"mingle hosts: {why}", err=True)
    hosts = chosen(found, job_id, slots, link_local=kind == "ssh")
    for name in left_out(found, job_id, hosts):
        where = "" if kind == "ssh" else f", which mean nothing in a file for {kind}"
        click.echo(
            f"mingle hosts: {clean(name)}: left out: it has link-local addresses alone{where}; "
            "give it another, or use --format ssh",
            err=True,
        )
    if not hosts and _of_job(found, job_id):
        raise MingleError(
            "nodes were reached, but by addresses alone that mean nothing elsewhere (link-local)"
        )
    if not hosts:
        of_job = f" with job {job}" if job is not None else ""
        raise MingleError(f"no node{of_job} was reached; see mingle nodes, mingle doctor")
    sys.stdout.write(written(hosts, kind, user=user, names=names))


def chosen(
    found: Nodes, job: JobId | None, slots: int | None, *, link_local: bool = False
) -> list[Host]:
    """Each machine once, however many daemons it has; the same whatever way each was reached by.
    `link_local`: such an address, with this machine's scope, where a node has no other."""
    every = _of_job(found, job)
    common = common_subnets(every)
    hosts: dict[str, Host] = {}
    for seen in every:
        presence = seen.presence
        address = address_of(seen, common) or (_link_local(seen) if link_local else "")
        if presence is None or not address:
            continue
        name = seen.host if HOST_NAME.fullmatch(seen.host) else ""
        hosts.setdefault(
            address, Host(name=name, address=address, slots=slots or max(1, len(presence.gpus)))
        )
    return list(hosts.values())


def left_out(found: Nodes, job: JobId | None, hosts: Sequence[Host]) -> list[str]:
    """The names of nodes that were reached and are not in the file."""
    listed = {bare(host.address) for host in hosts}
    return [
        seen.host or str(seen.node)
        for seen in _of_job(found, job)
        if not listed & {bare(a) for a in (*seen.addresses, *_own_order(seen))}
    ]


def _of_job(found: Nodes, job: JobId | None) -> list[Seen]:
    reached = [seen for seen in found.seen if seen.presence is not None]
    if job is None:
        return reached
    known = (label for label, name in found.local.jobs.items() if name == job)
    labels = {*labels_of(job), *known}
    return [s for s in reached if s.presence and not labels.isdisjoint(s.presence.labels)]


def common_subnets(every: Sequence[Seen]) -> list[Network]:
    """Those that each of these nodes has an address of its own in, best first. What several
    machines have alike, as docker0's, connects none of them."""
    machines = list({_own_order(seen): seen for seen in every}.values())
    places: dict[Network, list[int]] = {}
    addresses: dict[Network, set[str]] = {}
    for seen in machines:
        nets = _nets(seen)
        for net in dict.fromkeys(nets.values()):
            mine = [(n, a) for n, a in enumerate(_own_order(seen)) if nets.get(a) == net]
            if mine:
                places.setdefault(net, []).append(mine[0][0])
                addresses.setdefault(net, set()).add(mine[0][1])
    shared = [
        net
        for net, found in places.items()
        if len(found) == len(machines) and len(addresses[net]) == len(machines)
    ]
    return sorted(shared, key=lambda net: (net.version, sum(places[net]), str(net)))


def _nets(seen: Seen) -> dict[str, Network]:
    """The subnet of each of its addresses that mean the same on every machine."""
    found: dict[str, Network] = {}
    for nic in seen.presence.nics if seen.presence is not None else ():
        for text in nic.addresses:
            address = text.partition("/")[0]
            if _means_something(address):
                try:
                    found[address] = ipaddress.ip_network(text, strict=False)
                except ValueError:
                    continue
    return found


def _own_order(seen: Seen) -> tuple[str, ...]:
    return seen.presence.node.addresses if seen.presence is not None else seen.addresses


def _means_something(address: str) -> bool:
    """The same on every machine."""
    ip = parsed(address)
    return (
        ip is not None
        and "%" not in address
        and not ip.is_loopback
        and not is_link_local_v6(address)
    )


def address_of(seen: Seen, common: Sequence[Network] = ()) -> str:
    """Of a node that was reached by an address that it does not know itself (NAT) that one; else in
    the best subnet that all share, else the first in its own order. Empty: it has none."""
    usable = [a for a in _own_order(seen) if _means_something(a)]
    nets = _nets(seen)
    reached = seen.addresses[0] if seen.addresses else ""
    if _means_something(reached) and reached not in usable and reached not in nets:
        return reached
    for net in common:
        for address in usable:
            if nets.get(address) == net:
                return address
    return usable[0] if usable else ""


def _link_local(seen: Seen) -> str:
    """As this machine writes it, with a scope."""
    for address in seen.addresses:
        if not is_link_local_v6(address):
            continue
        if "%" in address:
            return address
        interface = interfaces.interface_of(address) if seen.own else ""
        if interface:
            return f"{address}%{interface}"
    return ""


def written(
    hosts: Sequence[Host], kind: Format, *, user: str | None = None, names: bool = False
) -> str:
    """The whole file. `BadInput` where a name is wanted and a host has none."""
    if kind == "ssh":
        return "\n".join(_ssh(host, hosts, user) for host in hosts)
    lines = []
    for host in hosts:
        if names and not host.name:
            raise BadInput(f"{host.address} has no host name that could be written; delete --names")
        if names:
            _warn_of(host)
        lines.append(f"{host.name if names else host.address} slots={host.slots}\n")
    return "".join(lines)


def _ssh(host: Host, hosts: Sequence[Host], user: str | None) -> str:
    # Of two hosts with one name ssh would only ever see the first.
    twice = [other.name for other in hosts].count(host.name) > 1
    alias = host.address if twice or not host.name else host.name
    address = host.address.replace("%", "%%")  # else ssh takes the scope for a token
    lines = [f"Host {alias}", f"    HostName {address}"]
    lines += [f"    User {user}"] if user else []
    return "\n".join(lines) + "\n"


def _warn_of(host: Host) -> None:
    try:
        found = {str(place[4][0]) for place in socket.getaddrinfo(host.name, None)}
    except (OSError, UnicodeError):
        found = set()
    if host.address not in found:
        click.echo(
            f"mingle hosts: {host.name} does not resolve to {host.address} on this machine; "
            "without --names addresses are written",
            err=True,
        )
