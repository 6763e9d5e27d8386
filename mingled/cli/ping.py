"""`mingle ping`: is that host or node there, and how far away?"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence

import click
import msgspec

from mingled.cli.blocks import milliseconds, print_line
from mingled.cli.json_lines import print_json
from mingled.core import local
from mingled.core.peers import listed, parse_peer
from mingled.errors import BadInput, MingleError
from mingled.frameworks.environment import defaults
from mingled.net import quick
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

CENSUS_S = 1.0
"""For a node to answer whose name neither a job here nor DNS knows."""

_KNOWN_BY = {
    "daemon": "as the daemon here knows it",
    "resolver": "as the resolver says",
    "discovery": "as its daemon says",
}


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON output."""

    target: str
    address: str
    known_by: str  #: "address", "daemon", "resolver" or "discovery"
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
        click.echo(
            f"mingle ping: {clean(target)} is {clean(address)}, {_KNOWN_BY[known_by]}", err=True
        )

    def told(reply: Reply) -> None:
        if not as_json:
            print_line(_line(address, reply))
            sys.stdout.flush()

    outcome = ping(address, count=count, interval_s=interval_s, timeout_s=timeout_s, told=told)
    if as_json:
        shown = _shown(target, known_by, outcome)
        print_json(shown)
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
        return _scoped(_best(target, known)), "daemon"
    _check_name(target)
    resolved = asyncio.run(Resolver().resolve(target))
    if resolved.addresses:  # by what the system prefers (RFC 6724)
        return _scoped(resolved.addresses[0]), "resolver"
    answered = _answering(target)
    if answered:
        return _scoped(_best(target, answered)), "discovery"
    raise MingleError(
        f"{target} {resolved.trouble}, and no job on {socket.gethostname()} has a node of that "
        "name, nor does a daemon of that name answer: give its address"
    )


def _best(target: str, known: Sequence[str]) -> str:
    # A link-local one is the last choice: without its scope it leads nowhere.
    best, *others = sorted(known, key=lambda a: ipaddress.ip_address(a).is_link_local)
    if others:
        shown = clean(", ".join(others))
        click.echo(f"mingle ping: {clean(target)} also has {shown}", err=True)
    return best


def literal(text: str) -> str | None:
    """The address that `text` is, with its scope; None where it is a name. IPv6 may stand in
    brackets, as in a URL."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") and ":" in text else text
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return None


def _check_name(text: str) -> None:
    """What can be no name in DNS is nobody's fault there. Raises `BadInput`."""
    try:
        if not text.isprintable() or len(text) > NAME_CHARS_MAX:
            raise ValueError
        ascii_ = text if text.isascii() else text.encode("idna").decode()
        _, port = parse_peer(ascii_)
        if port is not None:
            raise ValueError
    except (ValueError, BadInput):
        raise BadInput(
            f"{text[:NAME_CHARS_MAX]!r} is no host or address; give one alone, as in gpu2, "
            "10.0.0.2 or fd00::2"
        ) from None


def _answering(name: str) -> tuple[str, ...]:
    """Addresses of the node of that name whose daemon answers now."""
    from mingled.cli.firewall import configured
    from mingled.doctor.here import daemons
    from mingled.doctor.ports import real
    from mingled.edges.presence import find_nodes

    peers = listed([defaults(os.environ).get("MINGLE_PEERS", "")])
    with contextlib.suppress(BadInput):  # of peers: whoever means them is told elsewhere
        port = real(configured(), daemons().reports).broadcast
        found = asyncio.run(find_nodes(CENSUS_S, peers, port=port))
        addresses = (a for node in found.nodes if node.host == name for a in node.addresses)
        return tuple(dict.fromkeys(text for a in addresses if (text := literal(a)) is not None))
    return ()


def _scoped(address: str) -> str:
    """Refuses what is the same on every link, what stands for several hosts, and an interface that
    is not here."""
    ip = ipaddress.ip_address(address)
    scope = address.partition("%")[2]
    if scope and not _is_interface(scope):
        here = ", ".join(interface_names()) or "none"
        raise BadInput(
            f"{address}: there is no interface {scope} on {socket.gethostname()}; it has {here}"
        )
    if ip.is_multicast or ip.is_unspecified or address == "255.255.255.255":
        raise BadInput(f"{address} is not the address of one host; give one that is")
    for interface, network in _subnets():
        if ip == network.broadcast_address:
            raise BadInput(
                f"{address} is the broadcast address of {network} on {interface}: it stands for "
                "all hosts there, which do not answer to it; give the address of one"
            )
    if ip.version == 6 and ip.is_link_local and "%" not in address:
        names = [name for name in interface_names() if name != "lo"] or ["eth0"]
        raise BadInput(
            f"{address} is link-local, and every link has such addresses: say through which "
            f"interface, as in {address}%{names[0]} (this node has {', '.join(names)})"
        )
    return address


def _is_interface(scope: str) -> bool:
    if scope.isascii() and scope.isdecimal():  # its index
        with contextlib.suppress(OSError, OverflowError):
            return bool(socket.if_indextoname(int(scope)))
        return False
    return scope in interface_names()


def _subnets() -> Iterator[tuple[str, ipaddress.IPv4Network]]:
    """Of IPv4 on this machine's interfaces, those that have a broadcast address."""
    for interface, addresses in quick.addresses().items():
        for a in addresses:
            if ":" not in a.address and 0 < a.prefix < 31:
                yield interface, ipaddress.IPv4Network(f"{a.address}/{a.prefix}", strict=False)


def _known_nodes() -> dict[str, tuple[str, ...]]:
    """Addresses of the nodes of all jobs here, by host name."""
    from mingled.cli.status import asked

    return nodes_of(asked()[0])


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
