"""What this machine itself shows, before anybody else is asked. Pure."""

from __future__ import annotations

import ipaddress
import re

from mingled.core.events import Address
from mingled.core.reach import bare
from mingled.doctor.gather_here import Here
from mingled.doctor.gathered import Gathered
from mingled.doctor.model import NAMED_MAX, Finding, failed, named, passed, skipped, warned
from mingled.doctor.ports import PRIVATE_PORTS
from mingled.errors import BadInput
from mingled.frameworks.environment import TUNING, check_interfaces
from mingled.net.choosing import choose

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")
"""Of a host, that may stand in a command."""


def daemon(g: Gathered) -> list[Finding]:
    check = "daemon"
    found = g.here.daemons
    mend = "ask as the user whose daemon it is, or as root: sudo mingle doctor"
    findings = [failed(check, trouble, mend) for trouble in found.troubles]
    wanted = g.ports.link
    for report in found.reports:
        # Further away is no busy port's doing: somebody has set it.
        if wanted < report.link_port <= wanted + PRIVATE_PORTS and not report.private:
            said = (
                f"the link port is {report.link_port} and not {wanted}: that was busy when mingled "
                "started, or this one was asked for"
            )
            mend = f"see who has it (sudo ss -tlpn 'sport = :{wanted}'), then restart mingled"
            findings.append(warned(check, said, mend))
    if findings:
        return findings
    if not found.reports:
        said = "none runs here; the next mingle-wait starts one. Without it nobody can try to "
        start = "sudo systemctl start mingled" if g.here.unit else "sudo mingled &"
        return [skipped(check, f"{said}reach its link port", start)]
    report = found.reports[0]
    more = f", and {len(found.reports) - 1} more" if len(found.reports) > 1 else ""
    said = f"mingled {report.release}, pid {report.pid}, link port {report.link_port}{more}"
    return [passed(check, said)]


def hosts_file(g: Gathered) -> list[Finding]:
    """Debian maps the own name to 127.0.1.1; who looks the name up there tells others that."""
    check = "hosts-file"
    address = loopback_of(g.here.hosts_file, g.here.host)
    if not address:
        return [passed(check, f"/etc/hosts does not map {g.here.host} to this machine itself")]
    said = (
        f"/etc/hosts maps {g.here.host} to {address}: programs that look up their own name tell "
        "others to connect to themselves"
    )
    return [warned(check, said, _mend_hosts(g))]


def _mend_hosts(g: Gathered) -> str:
    """Takes the own names alone out of the lines of loopback addresses, and gives them a line of
    their own. A container's file is mounted, where `sed -i` cannot replace it."""
    own = _own_address(g)
    names = own_names(g.here.hosts_file, g.here.host)
    if not own or g.here.containers or not all(_NAME.fullmatch(name) for name in names):
        line = f"{own or 'ADDRESS'} {' '.join(names)}"
        return (
            "in /etc/hosts, take this name (not localhost) out of the lines of 127.x and ::1, and "
            f"add a line: {line}"
        )
    loopback = r"/^[[:space:]]*(127\.|::1[[:space:]])/"
    takes = [
        rf"-e '{loopback}s/[[:space:]]+{re.escape(name)}([[:space:]#]|$)/\1/g'" for name in names
    ]
    return f"sudo sed -E -i.bak {' '.join(takes)} -e '$a {own} {' '.join(names)}' /etc/hosts"


def own_names(hosts: str, name: str) -> tuple[str, ...]:
    """This host's names in the lines of loopback addresses, as they stand there."""
    short = name.partition(".")[0]
    found: dict[str, None] = {}
    for line in hosts.splitlines():
        address, *names = [*line.partition("#")[0].split(), ""]
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            continue
        if ip.is_loopback and short != "localhost":
            found |= {n: None for n in names if n == short or n.startswith(f"{short}.")}
    return tuple(found)


def _own_address(g: Gathered) -> str:
    """The best one that may be written into a file; empty: there is none."""
    for a in _usable(g.here):
        if not ipaddress.ip_address(bare(a.address)).is_link_local:
            return a.address
    return ""


def loopback_of(hosts: str, name: str) -> str:
    """The loopback address that a hosts file maps a name to; empty: none."""
    wanted = {name, name.partition(".")[0]} - {""}
    if "localhost" in wanted:
        return ""
    for line in hosts.splitlines():
        address, *names = [*line.partition("#")[0].split(), ""]
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            continue
        if ip.is_loopback and wanted.intersection(names):
            return address
    return ""


def environment(g: Gathered) -> list[Finding]:
    """Variables that somebody has set and mingled would set otherwise, or that cannot hold."""
    check = "environment"
    present = g.here.environment
    names = tuple(link.name for link in g.here.facts.links)
    findings = []
    for name, _ in TUNING:
        if name not in present:
            continue
        try:
            check_interfaces({name: present[name]}, names)
        except BadInput as error:
            findings.append(failed(check, str(error), f"unset {name}"))
            continue
        used = _used(g.here)
        try:
            check_interfaces({name: present[name]}, used)
        except BadInput:
            said = f"{name}={present[name]} leaves out {named(used)}, which jobs use here"
            findings.append(warned(check, said, f"unset {name}"))
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name in present:
            said = f"{name}={present[name]} is set already; mingled replaces it"
            findings.append(warned(check, said, f"unset {name}"))
    said = "no variable contradicts mingled"
    return findings or [passed(check, said)]


def _used(here: Here) -> tuple[str, ...]:
    return tuple(dict.fromkeys(a.interface for a in here.candidates if not a.virtual))


def dns(g: Gathered) -> list[Finding]:
    """A server that refuses costs nothing. One that is silent costs torch's store 6 s and more for
    each name or address that it looks up."""
    check = "dns"
    silent = [server.address for server in g.dns.servers if server.silent]
    if silent:
        plural = "do" if len(silent) > 1 else "does"
        said = f"{named(silent)} of /etc/resolv.conf {plural} not answer: look-ups stall"
        mend = "correct /etc/resolv.conf, or with systemd-resolved: resolvectl dns IFACE SERVER"
        return [warned(check, said, mend)]
    if not g.dns.servers:
        return [passed(check, "no name server is configured, so nothing waits for one")]
    down = [f"{s.address} ({s.reason})" for s in g.dns.servers if s.reason]
    if down:
        return [passed(check, f"{named(down)}: fails at once, so nothing waits for it")]
    return [passed(check, f"{named(s.address for s in g.dns.servers)} answered")]


def host_name(g: Gathered) -> list[Finding]:
    check = "host-name"
    host = g.here.host
    if g.dns.own_silent:
        said = f"{host} {g.dns.own_trouble}: programs that look up their own name stall"
        own = _own_address(g)
        mend = f"echo '{own} {host}' | sudo tee -a /etc/hosts"
        if not own or not _NAME.fullmatch(host):
            mend = f"add a line to /etc/hosts: {own or 'ADDRESS'} {host}"
        return [warned(check, said, mend)]
    if not g.dns.own:
        return [passed(check, f"{host} resolves to nothing, at once; mingled needs no name")]
    return [passed(check, f"{host} resolves to {named(g.dns.own)}")]


def interfaces(g: Gathered) -> list[Finding]:
    """Loopback is a candidate only where there is nothing else."""
    check = "interfaces"
    usable = _usable(g.here)
    if usable:
        return [passed(check, f"a job can use {named(a.interface for a in usable)}")]
    verdicts = [v for v in choose(g.here.facts).verdicts if v.interface != "lo"]
    why = "; ".join(f"{v.interface}: {v.why}" for v in verdicts[:NAMED_MAX])
    more = len(verdicts) - NAMED_MAX
    why += f"; and {more} more" if more > 0 else ""
    said = f"no interface of this machine can be used for a job with others ({why or 'none'})"
    first = verdicts[0].interface if verdicts else "IFACE"
    mend = f"sudo ip link set {first} up, plug its cable in, and give it an address"
    return [failed(check, said, f"{mend}; then: mingle interfaces")]


def _usable(here: Here) -> tuple[Address, ...]:
    return tuple(
        a for a in here.candidates if not ipaddress.ip_address(bare(a.address)).is_loopback
    )


def wifi(g: Gathered) -> list[Finding]:
    check = "wifi"
    if not _usable(g.here):
        return [skipped(check, "no interface can be used; see interfaces")]
    kinds = {link.name: link.kind for link in g.here.facts.links}
    here = _usable(g.here)[0]
    findings = []
    if kinds.get(here.interface) == "wifi":
        said = f"jobs use {here.interface} ({here.address}), which is Wi-Fi: slow, and it loses"
        findings.append(warned(check, said, "plug a cable in; a wired interface is then preferred"))
    return findings or [passed(check, f"jobs use {here.interface} ({here.address}), not Wi-Fi")]
