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

from mingled.cli.nodes import WITHIN, find
from mingled.core.secrets import label_of
from mingled.core.words import JobId
from mingled.doctor.nodes import Nodes, Seen
from mingled.errors import BadInput, MingleError
from mingled.wording import clean

Format = Literal["openmpi", "deepspeed", "ssh"]

SLOTS_MAX = 4_096

_HOST = re.compile(r"(?=.{1,253}$)([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.?)+")
"""RFC 1123. Anything else could be a pattern or another line of the file."""

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
@click.option("--within", default=WITHIN, show_default=True, metavar="TIME", help="How long.")
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
    labels = () if job_id is None else (label_of(job_id),)
    found = find(peers, within, "mingle hosts", labels)
    for seen in found.seen:
        if seen.presence is None:
            why = clean(f"{seen.host}: left out: {seen.why}")
            click.echo(f"mingle hosts: {why}", err=True)
    hosts = chosen(found, job_id, slots)
    if not hosts:
        of_job = f" with job {job}" if job is not None else ""
        raise MingleError(f"no node{of_job} was reached; see mingle nodes, mingle doctor")
    sys.stdout.write(written(hosts, kind, user=user, names=names))


def chosen(found: Nodes, job: JobId | None, slots: int | None) -> list[Host]:
    """Each machine once, however many daemons it has."""
    label = label_of(job) if job is not None else None
    hosts: dict[str, Host] = {}
    for seen in found.seen:
        presence = seen.presence
        address = address_of(seen)
        if presence is None or not address or (label and label not in presence.labels):
            continue
        name = seen.host if _HOST.fullmatch(seen.host) else ""
        hosts.setdefault(
            address, Host(name=name, address=address, slots=slots or max(1, len(presence.gpus)))
        )
    return list(hosts.values())


def address_of(seen: Seen) -> str:
    """The best one that means the same on every machine; empty: it has none."""
    for text in seen.addresses:
        try:
            ip = ipaddress.ip_address(text)
        except ValueError:
            continue
        if not ip.is_loopback and not (ip.version == 6 and ip.is_link_local):
            return str(ip)
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
    lines = [f"Host {alias}", f"    HostName {host.address}"]
    lines += [f"    User {user}"] if user else []
    return "\n".join(lines) + "\n"


def _warn_of(host: Host) -> None:
    try:
        found = {str(place[4][0]) for place in socket.getaddrinfo(host.name, None)}
    except OSError:
        found = set()
    if host.address not in found:
        click.echo(
            f"mingle hosts: {host.name} does not resolve to {host.address} on this machine; "
            "without --names addresses are written",
            err=True,
        )
