"""What this machine itself shows, before anybody else is asked. Pure."""

from __future__ import annotations

import ipaddress
import re

from mingled.daemon import LINK_PORT
from mingled.doctor.gather_here import Here
from mingled.doctor.gathered import Gathered
from mingled.doctor.model import Finding, failed, named, passed, skipped, warned
from mingled.errors import BadInput
from mingled.frameworks.environment import TUNING, check_interfaces


def daemon(g: Gathered) -> list[Finding]:
    check = "daemon"
    found = g.here.daemons
    findings = [failed(check, trouble) for trouble in found.troubles]
    for report in found.reports:
        if report.link_port != LINK_PORT and not report.private:
            said = (
                f"the link port is {report.link_port}, since {LINK_PORT} was busy when it started"
            )
            mend = f"see who has it (sudo ss -tlpn 'sport = :{LINK_PORT}'), then restart mingled"
            findings.append(warned(check, said, mend))
    if findings:
        return findings
    if not found.reports:
        said = "none runs here; the next mingle-wait starts one. Without it nobody can try to "
        return [skipped(check, f"{said}reach its link port", "sudo systemctl start mingled")]
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
    own = next((a.address for a in g.here.candidates if a.interface != "lo"), "ITS-ADDRESS")
    mend = rf"sudo sed -i 's/^{re.escape(address)}\s.*/{own} {g.here.host}/' /etc/hosts"
    return [warned(check, said, mend)]


def loopback_of(hosts: str, name: str) -> str:
    """The loopback address that a hosts file maps a name to; empty: none."""
    wanted = {name, name.partition(".")[0]}
    for line in hosts.splitlines():
        address, *names = [*line.partition("#")[0].split(), ""]
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            continue
        if ip.is_loopback and wanted.intersection(names) - {"localhost"}:
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
        own = next((a.address for a in g.here.candidates if a.interface != "lo"), "ITS-ADDRESS")
        return [warned(check, said, f"echo '{own} {host}' | sudo tee -a /etc/hosts")]
    if not g.dns.own:
        return [passed(check, f"{host} resolves to nothing, at once; mingled needs no name")]
    return [passed(check, f"{host} resolves to {named(g.dns.own)}")]


def wifi(g: Gathered) -> list[Finding]:
    check = "wifi"
    if not g.here.candidates:
        said = "this machine has no address that others could reach"
        return [failed(check, said, "mingle interfaces says why")]
    kinds = {link.name: link.kind for link in g.here.facts.links}
    here = g.here.candidates[0]
    findings = []
    if kinds.get(here.interface) == "wifi":
        said = f"jobs use {here.interface} ({here.address}), which is Wi-Fi: slow, and it loses"
        findings.append(warned(check, said, "plug a cable in; a wired interface is then preferred"))
    return findings or [passed(check, f"jobs use {here.interface} ({here.address}), not Wi-Fi")]
