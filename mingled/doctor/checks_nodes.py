"""The nodes compared with each other: versions, clocks, machine-ids, speeds, subnets. Pure."""

from __future__ import annotations

from mingled import __version__
from mingled.core.reach import bare
from mingled.core.secrets import NO_KEY_ID
from mingled.doctor.gathered import (
    Gathered,
    Missing,
    firewall_command,
    here_for,
    subnets,
    used_nic,
)
from mingled.doctor.model import Finding, failed, named, passed, skipped, warned

NOBODY = "no other node was found"

APART_S = 2.0
"""Clocks: below it nothing minds; above, logs and certificates begin to."""


def nodes(g: Gathered) -> list[Finding]:
    check = "nodes"
    findings = [failed(check, peer.said, _mend_of(g, peer)) for peer in g.missing]
    if not g.others and not findings:
        mend = "start mingled on the others, or name one: mingle doctor --peer HOST"
        return [warned(check, "; ".join((NOBODY, *g.troubles)), mend)]
    if not g.others:
        return findings
    count = len(g.others)
    hosts = named(other.seen.host or "?" for other in g.others)
    return [*findings, passed(check, f"{count} other{'s' if count > 1 else ''}: {hosts}")]


def _mend_of(g: Gathered, peer: Missing) -> str:
    if not peer.known:
        return "correct the name, or give its address: mingle doctor --peer ADDRESS"
    return f"start mingled there, or let it through there: {firewall_command(g)}"


def version(g: Gathered) -> list[Finding]:
    check = "version"
    releases = [
        *((g.here.host, report.release) for report in g.here.daemons.reports),
        *((o.seen.host, o.seen.presence.release) for o in g.others if o.seen.presence),
    ]
    others = [f"{host} ({release})" for host, release in releases if release != __version__]
    if others:
        said = f"mingled {__version__} here, another version on {named(others)}"
        return [warned(check, said, f"on those: pip install mingled=={__version__}; then restart")]
    if not releases:
        return [skipped(check, "no daemon was found")]
    return [passed(check, f"mingled {__version__} everywhere")]


def key(g: Gathered) -> list[Finding]:
    """One key on all: a job's nodes with different ones never meet."""
    check = "key"
    own = dict.fromkeys(report.key_ids[0] for report in g.here.daemons.reports)
    mine = next(iter(own), "")
    findings = (
        [warned(check, g.here.key_trouble, "ask as root: sudo mingle doctor")]
        if g.here.key_trouble
        else []
    )
    if len(own) > 1:
        said = f"the daemons of this machine have different keys: {', '.join(map(_key, own))}"
        findings.append(failed(check, said, "one file for all: /etc/mingled/key (mingle key)"))
    others = [(o.seen.host or "?", o.seen.key_id) for o in g.others if o.seen.key_id]
    apart = [f"{host} has {_key(key_id)}" for host, key_id in others if mine not in ("", key_id)]
    if apart:
        said = f"{_key(mine)} here, another one elsewhere: {named(apart)}"
        mend = (
            "give all the same: mingle key show here, mingle key new - there, and restart mingled"
        )
        return [*findings, failed(check, said, mend)]
    if not mine:
        return findings or [skipped(check, "no daemon runs here")]
    if mine == NO_KEY_ID:
        said = "no cluster key: whoever is on this network and knows a job's ID can join it"
        return [*findings, passed(check, said)]
    return [*findings, passed(check, f"{_key(mine)} here{' and elsewhere' if others else ''}")]


def _key(key_id: str) -> str:
    return "no key" if key_id == NO_KEY_ID else f"key {key_id}"


def machine_id(g: Gathered) -> list[Finding]:
    check = "machine-id"
    hosts: dict[str, list[str]] = {g.here.machine: [g.here.host]}
    for other in g.others:
        if other.seen.presence is not None:
            hosts.setdefault(other.seen.presence.machine, []).append(other.seen.host)
    hosts.pop("", None)
    same = [named(names) for names in hosts.values() if len(names) > 1]
    if same:
        said = f"{'; '.join(same)}: the same machine-id, as copies of one disk have"
        mend = "on all but one: sudo rm /etc/machine-id && sudo systemd-machine-id-setup"
        return [warned(check, said, mend)]
    if not g.others:
        return [skipped(check, NOBODY)]
    return [passed(check, "each node has its own")]


def clock(g: Gathered) -> list[Finding]:
    check = "clock"
    known = [o for o in g.others if o.seen.presence is not None]
    apart = [o for o in known if abs(o.ahead_s) > APART_S]
    if apart:
        said = named(
            f"{o.seen.host} is {abs(o.ahead_s):.0f} s {'ahead' if o.ahead_s > 0 else 'behind'}"
            for o in apart
        )
        return [warned(check, said, "on each node: sudo timedatectl set-ntp true")]
    if not known:
        return [skipped(check, NOBODY)]
    most_s = max(abs(o.ahead_s) for o in known)
    return [passed(check, f"at most {most_s:.1f} s apart")]


def speed(g: Gathered) -> list[Finding]:
    check = "speed"
    speeds: dict[str, int] = {}
    for other in g.others:
        nic, here = used_nic(other.seen), other.seen.here
        if nic is not None and nic.speed_mbps:
            speeds[f"{other.seen.host} {nic.name}"] = nic.speed_mbps
        link = g.here.facts.link(here.interface) if here is not None else None
        if link is not None and link.speed_mbits:
            speeds[f"{g.here.host} {link.name}"] = link.speed_mbits
    if not speeds:
        return [skipped(check, "no interface tells its speed" if g.others else NOBODY)]
    fastest = max(speeds.values())
    slow = [f"{where} ({mbits} Mbit/s)" for where, mbits in speeds.items() if mbits < fastest]
    if slow:
        said = f"{named(slow)}, others {fastest} Mbit/s: a job runs at the slowest node's speed"
        return [warned(check, said, "check its cable and its switch port: ethtool IFACE")]
    return [passed(check, f"{fastest} Mbit/s everywhere, as far as it is told")]


def other_wifi(g: Gathered) -> list[Finding]:
    """Of the others; this machine's own is `checks_here.wifi`."""
    nics = [(o.seen.host, used_nic(o.seen)) for o in g.others]
    return [
        warned("wifi", f"{host} is reached by {nic.name}, which is Wi-Fi", f"cable {host} up")
        for host, nic in nics
        if nic is not None and nic.kind == "wifi"
    ]


def same_address(g: Gathered) -> list[Finding]:
    """docker0 is 172.17.0.1 on every machine: harmless, unless it is what others connect to."""
    check = "same-address"
    shared: dict[str, list[str]] = {}
    for other in g.others:
        presence = other.seen.presence
        if presence is None:
            continue
        every = {text.partition("/")[0] for nic in presence.nics for text in nic.addresses}
        for address in every & {a for a in g.here.own if not a.startswith(("fe80:", "127."))}:
            shared.setdefault(address, []).append(other.seen.host)
        own = {a.address for a in g.here.candidates if not a.virtual}
        first = other.seen.addresses[0] if other.seen.addresses else ""
        if bare(first) in own:
            said = f"{other.seen.host} and {g.here.host} both have {first}, and others use it"
            return [failed(check, said, f"give one of them another address: {first} is taken")]
    if shared:
        said = "; ".join(
            f"{address} on {named([g.here.host, *hosts])}" for address, hosts in shared.items()
        )
        return [passed(check, f"{said}: the same on each, and not used")]
    if not g.others:
        return [skipped(check, NOBODY)]
    return [passed(check, "no two nodes have the same address")]


def subnet(g: Gathered) -> list[Finding]:
    check = "subnet"
    apart = [
        o.seen
        for o in g.others
        if o.seen.addresses and not any(here_for(g, a) for a in o.seen.addresses)
    ]
    # Those that are link-local say nothing of a subnet, and need none.
    apart = [s for s in apart if not s.addresses[0].lower().startswith("fe80:")]
    if apart:
        theirs = named(f"{seen.host} {seen.addresses[0]}" for seen in apart)
        ours = named(subnets(g)) or "none"
        said = f"no shared subnet with {theirs}; here: {ours}"
        mend = "multicast and broadcast do not get there: mingle-wait --peers HOST,..."
        return [warned(check, said, mend)]
    if not g.others:
        return [skipped(check, NOBODY)]
    return [passed(check, f"all share {named(subnets(g)) or 'a link'}")]
