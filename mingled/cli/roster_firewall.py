"""`mingle firewall --job`: rules for exactly the roster of the round that runs, on this node."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import socket

import msgspec

from mingled.cli import status
from mingled.core import local
from mingled.core.reach import bare, is_link_local_v6
from mingled.core.words import Form, JobId
from mingled.errors import MingleError
from mingled.net.listening import ephemeral_ports

MARK = 0x80
"""The bit that a member's packet carries from one chain to the next. Every job's table knows only
its own members, and a drop is final for all tables: without it two jobs on one node would shut each
other out. Not among the bits that others commonly use (Kubernetes 0xc000, WireGuard 0xca6c, Istio
0x539, Calico and Cilium the upper half)."""

_NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,15}")
"""Of an interface, as it can stand between quotes and in a shell. Linux allows more."""


class Doors(msgspec.Struct, frozen=True, kw_only=True):
    """What one node opens for one round of one job, and to whom: TCP ports of this node."""

    job: str
    round: int
    table: str  #: names the rules: `mingled-` and a hash of the job ID
    ipv4: tuple[str, ...]  #: the members' addresses
    ipv6: tuple[str, ...]
    link_local: tuple[str, ...]  #: IPv6 ones that mean something on `interface` alone
    interface: str  #: where the link-local ones are; else empty
    master_port: int | None  #: where rank 0's store listens, if that is here
    link_port: int  #: of the daemons' link
    first: int  #: of the kernel's ephemeral ports, on which Gloo and NCCL listen
    last: int

    @property
    def others(self) -> str:
        """What several jobs of this node share."""
        return f"{self.link_port}, {self.first}-{self.last}"


def doors(job: JobId) -> Doors:
    """Of the round that runs here. Raises `MingleError`: no such job, nothing sealed yet, or
    nothing that could be written into rules."""
    report, found = _find(job)
    sealed = found.rounds[-1]
    own = {seat.rank for seat in found.seats if seat.state == "released"}
    # Where no address of rank 0 suits all, the one that this node knows is not in the roster.
    texts = [*(m.address for m in sealed.members), sealed.master_addr]
    addresses = sorted({_address(job, text) for text in texts}, key=lambda a: (a.version, int(a)))
    addresses = [a for a in addresses if not a.is_loopback]
    near = [str(a) for a in addresses if is_link_local_v6(str(a))]
    high = ephemeral_ports()
    return Doors(
        job=found.job,
        round=sealed.round,
        table=f"mingled-{hashlib.sha256(found.job.encode()).hexdigest()[:12]}",
        ipv4=tuple(str(a) for a in addresses if a.version == 4),
        ipv6=tuple(str(a) for a in addresses if a.version == 6 and str(a) not in near),
        link_local=tuple(near),
        interface=_interface(job, report, sealed, own) if near else "",
        master_port=sealed.master_port if 0 in own else None,
        link_port=report.link_port,
        first=high[0],
        last=high[-1],
    )


def beside(job: JobId) -> list[str]:
    """Other jobs here, as far as this user may see them."""
    return sorted({j.job for report in status.reports() for j in report.jobs if j.job != job})


def _find(job: JobId) -> tuple[local.Report, local.Job]:
    here = socket.gethostname()
    found = [(report, j) for report in status.reports() for j in report.jobs if j.job == job]
    if not found:
        raise MingleError(
            f"job {job}: nothing of yours takes part in it on {here}; see `mingle status`. Another "
            "user's job is shown to that user, and to root where the system's daemon runs"
        )
    sealed = [pair for pair in found if pair[1].rounds]
    if not sealed:
        raise MingleError(f"job {job} on {here}: {_waits(found[0][1])}")
    report, newest = min(sealed, key=lambda pair: pair[1].rounds[-1].since_s)
    if not any(seat.state == "released" for seat in newest.seats):
        raise MingleError(
            f"job {job}: {here} takes no part in round {newest.rounds[-1].round} any more; run "
            "this again when the next round runs"
        )
    return report, newest


def _waits(job: local.Job) -> str:
    """Why there is no roster yet, and who is waited for."""
    if any(seat.form is Form.PLAIN for seat in job.seats):
        return (
            "without a size nobody knows who takes part, so there is no roster to write rules for; "
            "give --nnodes or --world-size, or open the subnet: mingle firewall --subnet"
        )
    hosts = ", ".join(dict.fromkeys(seen.host for seen in job.nodes)) or "nobody"
    ranks = {seen.rank for seen in job.nodes if seen.rank is not None}
    lacking = job.size_min - job.here
    if lacking <= 0:
        who = job.note or "all are here, and the paths are being proven"
    elif len(ranks) == job.here:  # all have said which they are
        missing = sorted(set(range(job.size_min)) - ranks)
        who = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))} not yet"
    else:
        who = f"{lacking} more not yet"
    return (
        f"its round is not sealed: {job.here} of {job.size_min} are here ({hosts}), {who}; run "
        "this again once it is"
    )


def _address(job: JobId, text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(bare(text))
    except ValueError:
        raise MingleError(
            f"job {job}: a member's address reads {text[:64]!r}, which is none; no rules are made"
        ) from None


def _interface(job: JobId, report: local.Report, sealed: local.Round, own: set[int | None]) -> str:
    """This node's, on which the roster's link-local addresses are."""
    ours = {bare(m.address) for m in sealed.members if m.rank in own}
    pairs = (line.split(" ", 1) for line in report.addresses if " " in line)
    names = {name for name, address in pairs if bare(address) in ours}
    names |= {sealed.master_addr.partition("%")[2]} - {""}
    if len(names) != 1 or not _NAME.fullmatch(min(names)):
        found = ", ".join(sorted(names)) or "none"
        raise MingleError(
            f"job {job}: its members have IPv6 link-local addresses, and rules need the one "
            f"interface of {socket.gethostname()} that they are on: found {found}; give the job "
            "--interface NAME"
        )
    return min(names)


# ---------------------------------------------------------------- as text


def _head(doors: Doors, run: str, remove: str) -> list[str]:
    # ASCII, quoted and on one line: whatever a job is called, it stays a comment.
    name = json.dumps(doors.job)
    return [
        f"# Round {doors.round} of job {name}, for this node; made by mingle firewall --job.",
        f"#     apply:   {run}",
        f"#     remove:  {remove}",
        "# TCP only. Whoever is not of the round cannot connect to these ports: not to what else",
        "# listens there, and no node can join a round on this one. Print them anew for the next",
        "# round, and remove them after the job.",
    ]


def nft(doors: Doors) -> str:
    """A script for `nft -f -`: one table, replaced as a whole."""
    table = f"inet {doors.table}"
    sets, whose = [], []
    for family, kind, addresses in (
        ("ip", "ipv4_addr", doors.ipv4),
        ("ip6", "ipv6_addr", doors.ipv6),
        ("ip6", "ipv6_addr", doors.link_local),
    ):
        if not addresses:
            continue
        near = addresses is doors.link_local
        name = "neighbors" if near else f"members_{kind[:4]}"
        sets += [
            f"    set {name} {{",
            f"        type {kind}",
            f"        elements = {{ {', '.join(addresses)} }}",
            "    }",
        ]
        where = f'iifname "{doors.interface}" ' if near else ""
        whose.append(f"{where}{family} saddr @{name}")
    shared = f"tcp dport {{ {doors.others} }}"
    master = []
    if doors.master_port is not None:
        port = f"tcp dport {doors.master_port}"
        master = ["        # MASTER_PORT: this is rank 0's node"]
        master += [f"        {who} {port} accept" for who in whose]
        master += [f"        {port} drop"]

    def chain(name: str, priority: int, rules: list[str]) -> list[str]:
        hook = f"type filter hook input priority {priority}; policy accept;"
        return [f"    chain {name} {{", f"        {hook}", *rules, "    }"]

    lines = [
        *_head(
            doors,
            "mingle firewall --job ... --format nft | sudo nft -f -",
            f"sudo nft delete table {table}",
        ),
        "# They open nothing that another table drops: see mingle firewall --subnet. Applied anew,",
        "# they replace what was there.",
        "# A member's packet is marked, and what bears no job's mark is dropped: so the tables of",
        f"# several jobs stand side by side. Bit {MARK:#x} of the packet's mark is used.",
        f"add table {table}",
        f"delete table {table}",
        f"table {table} {{",
        *sets,
        *chain("forget", -12, [f"        meta mark set meta mark and {~MARK & 0xFFFFFFFF:#x}"]),
        *chain(
            "members",
            -11,
            [f"        {who} {shared} meta mark set meta mark or {MARK:#x}" for who in whose],
        ),
        *chain(
            "others",
            -10,
            [
                "        ct state established,related accept",
                '        iifname "lo" accept',
                *master,
                "        # the daemons' link, Gloo and NCCL",
                f"        meta mark and {MARK:#x} == {MARK:#x} accept",
                f"        {shared} drop",
            ],
        ),
        "}",
    ]
    return "\n".join(lines) + "\n"


def ufw(doors: Doors) -> str:
    """A shell script of `ufw` calls. Each goes to the front, so what is allowed comes last."""
    ports = [f"{doors.link_port}", f"{doors.first}:{doors.last}"]
    if doors.master_port is not None and not doors.first <= doors.master_port <= doors.last:
        ports.append(f"{doors.master_port}")
    near = [f"in on {doors.interface} from {address}" for address in doors.link_local]
    members = [*(f"from {address}" for address in (*doors.ipv4, *doors.ipv6)), *near]
    mark = f"comment {doors.table}"
    lines = [
        *_head(
            doors,
            "mingle firewall --job ... --format ufw > rules; sudo sh rules",
            r"sed -n 's/^ufw prepend \(.*\) comment .*/ufw delete \1/p' rules | sudo sh",
        ),
        "# ufw has one list: these are good for one job on this node at a time, and for one round:",
        "# remove them before those of the next.",
        *(f"ufw prepend deny proto tcp to any port {port} {mark}" for port in ports),
        *(
            f"ufw prepend allow {who} to any port {port} proto tcp {mark}"
            for who in members
            for port in ports
        ),
    ]
    return "\n".join(lines) + "\n"
