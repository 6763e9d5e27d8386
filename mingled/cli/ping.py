"""`mingle ping`: is that host or node there, and how far away?"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import sys
from collections.abc import Iterable

import click
import msgspec

from mingled.cli.blocks import milliseconds, print_line
from mingled.core import local
from mingled.errors import BadInput, MingleError
from mingled.net.interfaces import interface_names
from mingled.net.ping import INTERVAL_S, TIMEOUT_S, Activity, Outcome, Reply, ping
from mingled.net.resolve import Resolver
from mingled.wording import clean

COUNT_MAX = 65_535
"""Sequence numbers of ICMP have 16 bits."""

INTERVAL_MIN_S = 0.01
"""A hundred a second tells as much as a flood."""

PAUSE_MAX_S = 3600.0

NAME_CHARS_MAX = 253
"""Of a host name in DNS."""


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON output."""

    target: str
    address: str
    known_by: str  #: "address", "daemon" or "resolver"
    activity: Activity
    sent: int
    received: int
    lost_percent: float
    rtt_min_ms: float | None
    rtt_avg_ms: float | None
    rtt_max_ms: float | None
    why: str


@click.command()
@click.argument("target", metavar="HOST|NODE")
@click.option(
    "--count",
    "-c",
    type=click.IntRange(1, COUNT_MAX),
    default=4,
    show_default=True,
    help="Packets.",
)
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(INTERVAL_MIN_S, PAUSE_MAX_S),
    default=INTERVAL_S,
    show_default=True,
    help="Seconds between two.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.01, PAUSE_MAX_S),
    default=TIMEOUT_S,
    show_default=True,
    help="Seconds to wait for each answer.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(target: str, count: int, interval_s: float, timeout_s: float, as_json: bool) -> None:
    """Ask a host, or a node of a running job, for an echo. Exit 0: it answered; 1: it did not."""
    address, known_by = _address(target)
    if not as_json and known_by != "address":
        where = "as the daemon here knows it" if known_by == "daemon" else "as the resolver says"
        click.echo(f"mingle ping: {clean(target)} is {clean(address)}, {where}", err=True)

    def told(reply: Reply) -> None:
        if not as_json:
            print_line(_line(address, reply))
            sys.stdout.flush()

    outcome = ping(address, count=count, interval_s=interval_s, timeout_s=timeout_s, told=told)
    if as_json:
        shown = _shown(target, known_by, outcome)
        sys.stdout.write(msgspec.json.encode(shown).decode() + "\n")
    else:
        for line in _summary(target, outcome):
            print_line(line)
    if not outcome.received:
        raise SystemExit(1)


def _address(target: str) -> tuple[str, str]:
    """Of the target, and who knows it. A node of a job first: that is the address that counts."""
    given = literal(target)
    if given is not None:
        return _scoped(given), "address"
    known = _known_nodes().get(target, ())
    if known:
        # A link-local one is the last choice: without its scope it leads nowhere.
        best, *others = sorted(known, key=lambda a: ipaddress.ip_address(a).is_link_local)
        if others:
            shown = clean(", ".join(others))
            click.echo(f"mingle ping: {clean(target)} also has {shown}", err=True)
        return _scoped(best), "daemon"
    return _scoped(_resolved(target)), "resolver"


def literal(text: str) -> str | None:
    """The address that `text` is, with its scope; None where it is a name."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _resolved(name: str) -> str:
    """What the system prefers of its addresses (RFC 6724); seconds at most."""
    if not name or not name.isprintable() or len(name) > NAME_CHARS_MAX:
        raise BadInput(
            f"{name[:NAME_CHARS_MAX]!r} is neither an address nor a host name; correct it"
        )
    found = asyncio.run(Resolver().resolve(name))
    if not found.addresses:
        raise MingleError(
            f"{name} {found.trouble}, and no job on {socket.gethostname()} has a node of that "
            "name: give its address"
        )
    return found.addresses[0]


def _scoped(address: str) -> str:
    """Refuses what is the same on every link."""
    ip = ipaddress.ip_address(address)
    if ip.is_multicast or ip.is_unspecified or address == "255.255.255.255":
        raise BadInput(f"{address} is not the address of one host; give one that is")
    if ip.version == 6 and ip.is_link_local and "%" not in address:
        names = [name for name in interface_names() if name != "lo"] or ["eth0"]
        raise BadInput(
            f"{address} is link-local, and every link has such addresses: say through which "
            f"interface, as in {address}%{names[0]} (this node has {', '.join(names)})"
        )
    return address


def _known_nodes() -> dict[str, tuple[str, ...]]:
    """Addresses of the nodes of all jobs here, by host name."""
    from mingled.cli.status import reports

    return nodes_of(reports())


def nodes_of(reports: Iterable[local.Report]) -> dict[str, tuple[str, ...]]:
    """The same of these reports; what is no address is left out."""
    found: dict[str, dict[str, None]] = {}
    for report in reports:
        pairs = [(report.host, address) for address in report.addresses]
        for job in report.jobs:
            pairs += [(node.host, node.address) for node in job.nodes]
            pairs += [(m.host, m.address) for r in reversed(job.rounds) for m in r.members]
            if job.leader and job.leader_address:
                pairs.append((job.leader, job.leader_address))
        for host, address in pairs:
            text = literal(address)
            if text is not None:
                found.setdefault(host, {})[text] = None
    return {host: tuple(addresses) for host, addresses in found.items()}


def _line(address: str, reply: Reply) -> str:
    if reply.rtt_ms is not None:
        return f"{reply.sequence}: {reply.source} answered in {milliseconds(reply.rtt_ms)}"
    return f"{reply.sequence}: {address}: {reply.said}"


def _summary(target: str, outcome: Outcome) -> list[str]:
    name = target if target == outcome.address else f"{target} ({outcome.address})"
    lines = [
        f"{name} is {outcome.activity}" + (f": {outcome.why}" if outcome.why else ""),
        f"{outcome.sent} sent, {outcome.received} received, {outcome.lost_percent:g}% lost",
    ]
    trips = (outcome.rtt_min_ms, outcome.rtt_avg_ms, outcome.rtt_max_ms)
    if None not in trips:
        named = zip(("min", "avg", "max"), trips, strict=True)
        shown = ", ".join(f"{word} {milliseconds(ms)}" for word, ms in named if ms is not None)
        lines.append(f"round trip: {shown}")
    return lines


def _shown(target: str, known_by: str, outcome: Outcome) -> Shown:
    return Shown(
        target=target,
        address=outcome.address,
        known_by=known_by,
        activity=outcome.activity,
        sent=outcome.sent,
        received=outcome.received,
        lost_percent=outcome.lost_percent,
        rtt_min_ms=outcome.rtt_min_ms,
        rtt_avg_ms=outcome.rtt_avg_ms,
        rtt_max_ms=outcome.rtt_max_ms,
        why=outcome.why,
    )
