"""Is this machine heard, and does it hear: multicast, multicast DNS, broadcast? Pure."""

from __future__ import annotations

from collections.abc import Iterable

from mingled.doctor.gathered import Gathered, OnLink, firewall_command, on_links
from mingled.doctor.model import Finding, failed, named, passed, skipped, warned
from mingled.net.udp import GROUP

NOBODY = "no other node on a link of this machine answered"

_SNOOPING = (
    "on the switch: turn the IGMP querier on, or IGMP snooping off; on a Wi-Fi access point: allow "
    "multicast between its clients"
)
_PEERS = "until then name the other hosts: mingle-wait --peers HOST,... or MINGLE_PEERS"


def multicast(g: Gathered) -> list[Finding]:
    check = "multicast"
    links = on_links(g)
    if g.udp.trouble and not g.udp.mdns_answered:
        return [skipped(check, f"UDP {_port(g)} could not be had ({g.udp.trouble}); see broadcast")]
    if not links:
        return [skipped(check, NOBODY)]
    findings = []
    for interface, there in _by_interface(links):
        deaf = [link for link in there if not hears_multicast(g, link)]
        mute = [
            link
            for link in there
            if link not in deaf
            and "multicast" not in link.back
            and not link.among(g.udp.mdns_answered)
        ]
        if deaf:
            hosts = _hosts(deaf)
            if all("broadcast" in link.there for link in deaf):
                said = f"{interface}: {hosts} did not hear our multicast ({GROUP}); broadcast works"
                findings.append(warned(check, said, _SNOOPING))
            else:
                said = f"{interface}: {hosts} heard neither our multicast nor our broadcast"
                findings.append(failed(check, said, firewall_command(g), _PEERS))
        if mute:
            said = f"{interface}: {_hosts(mute)} heard our multicast, but theirs does not get here"
            findings.append(warned(check, said, firewall_command(g), _SNOOPING))
    said = f"sent to and heard from {_hosts(links)} on {_interfaces(links)}"
    return findings or [passed(check, said)]


def hears_multicast(g: Gathered, link: OnLink) -> bool:
    """By an echo, or since it answered a multicast question."""
    answered = g.udp.mdns_answered | g.udp.mdns_answered_us
    return "multicast" in link.there or link.among(answered)


def mdns(g: Gathered) -> list[Finding]:
    """5353 itself: where multicast passes on another port and not on this, it is firewalled."""
    check = "mdns"
    if g.here.mdns_held or g.udp.mdns_trouble:
        return [skipped(check, "UDP 5353 cannot be used on this machine; see mdns-port")]
    links = [link for link in on_links(g) if _speaks_mdns(g, link.host)]
    if not links:
        return [skipped(check, NOBODY)]
    silent = [link for link in links if not link.among(g.udp.mdns_answered)]
    if not silent:
        said = f"{_hosts(links)} answered on UDP 5353 on {_interfaces(links)}"
        return [passed(check, said)]
    findings = []
    for interface, there in _by_interface(silent):
        audible = [link for link in there if hears_multicast(g, link)]
        if not audible:
            continue
        result = warned if all("broadcast" in link.there for link in audible) else failed
        hosts = _hosts(audible)
        if interface not in g.udp.mdns_self:
            said = f"{interface}: this machine's firewall drops UDP 5353, even what it sends itself"
            findings.append(result(check, said, firewall_command(g)))
        elif all(link.among(g.udp.mdns_answered_us) for link in audible):
            said = f"{interface}: {hosts} hear us on UDP 5353, but their multicasts do not get here"
            findings.append(result(check, said, _SNOOPING))
        else:
            said = f"{interface}: {hosts} did not answer on UDP 5353, though multicast passes"
            mend = f"open UDP 5353 on {hosts}: {firewall_command(g)}"
            findings.append(result(check, said, mend))
    return findings or [skipped(check, "multicast does not pass at all; see multicast")]


def _speaks_mdns(g: Gathered, host: str) -> bool:
    """Its daemon may have been told not to, and may be unable to."""
    for other in g.others:
        presence = other.seen.presence
        if presence is not None and presence.node.host == host:
            return any(line.startswith("mdns: browsing") for line in presence.discovery)
    return True


def mdns_port(g: Gathered) -> list[Finding]:
    """5353 may be shared, and usually is; some programs keep it for themselves."""
    check = "mdns-port"
    strangers = [owner for owner in g.here.mdns_owners if not owner.mingled]
    names = named(owner.words for owner in strangers)
    if g.here.mdns_held:
        said = f"UDP 5353 is held exclusively by {names or 'another program'}"
        mend = "stop that program, or have it share the port (SO_REUSEADDR)"
        return [
            warned(check, said, mend, f"until then broadcast (UDP {_port(g)}) finds the others")
        ]
    if strangers:
        return [passed(check, f"shared with {names}, as it may be")]
    return [passed(check, "UDP 5353 can be had")]


def broadcast(g: Gathered) -> list[Finding]:
    check = "broadcast"
    if g.udp.trouble:
        said = f"UDP {_port(g)} could not be had on this machine: {g.udp.trouble}"
        return [failed(check, said, f"see who has it: sudo ss -ulpn 'sport = :{_port(g)}'")]
    links = on_links(g)
    if not links:
        return [skipped(check, NOBODY)]
    findings = []
    for interface, there in _by_interface(links):
        deaf = [link for link in there if "broadcast" not in link.there]
        mute = [link for link in there if link not in deaf and "broadcast" not in link.back]
        if deaf:
            works = all(hears_multicast(g, link) for link in deaf)
            closed = all(not link.there for link in deaf)
            said = f"{interface}: {_hosts(deaf)} did not hear our broadcast"
            said += f", nor anything else on UDP {_port(g)}" if closed else ""
            said += "; multicast works" if works else ""
            result = warned if works else failed
            findings.append(result(check, said, f"on {_hosts(deaf)}: {firewall_command(g)}"))
        if mute:
            said = f"{interface}: {_hosts(mute)} heard our broadcast, but theirs does not get here"
            findings.append(warned(check, said, firewall_command(g)))
    mend = "see whether the interface is up, and what the firewall lets out: mingle interfaces"
    findings += [warned(check, why, mend) for why in g.udp.unsent]
    said = f"sent to and heard from {_hosts(links)} on {_interfaces(links)}"
    return findings or [passed(check, said)]


def igmp_snooping(g: Gathered) -> list[Finding]:
    """A bridge that snoops, and nobody who asks who is in which group: multicast ends after some
    minutes, on the machines behind that bridge."""
    check = "igmp-snooping"
    links = on_links(g)
    deaf = {link.interface for link in links if not hears_multicast(g, link)}
    blind = [b for b in g.here.bridges if b.snooping and not b.querier]
    guilty = [b for b in blind if b.name in deaf]
    if guilty:
        names = named(b.name for b in guilty)
        mends = [f"sudo ip link set {b.name} type bridge mcast_snooping 0" for b in guilty]
        said = f"{names} snoops on IGMP without a querier, and multicast does not pass there"
        return [failed(check, said, *mends)]
    through = [k for k in links if k.interface in deaf and "broadcast" in k.there]
    if through:
        said = (
            f"broadcast passes on {_interfaces(through)} and multicast does not: a switch or "
            "access point may snoop on IGMP without a querier"
        )
        return [warned(check, said, _SNOOPING)]
    if blind:
        names = named(b.name for b in blind)
        return [passed(check, f"{names}: snoops without a querier, but multicast passes")]
    if not links:
        return [skipped(check, NOBODY)]
    return [passed(check, "nothing on this machine's links swallows multicast")]


def isolation(g: Gathered) -> list[Finding]:
    """Wi-Fi clients that may talk to the access point and not to each other."""
    check = "isolation"
    apart = [
        other
        for other in g.others
        if other.seen.presence is None and not _answers_unicast(g, other.seen.addresses)
    ]
    if not g.others:
        return [skipped(check, NOBODY)]
    if not apart:
        return [passed(check, "the other nodes answer when they are spoken to")]
    hosts = named(other.seen.host or "?" for other in apart)
    if g.gateway_answers:
        said = f"{hosts}: heard, but no packet to them is answered, while the gateway answers"
        mend = "on the access point or switch, turn client isolation (AP isolation) off"
        return [failed(check, said, mend)]
    return [passed(check, f"{hosts} cannot be reached, and whether the gateway can is not known")]


def _port(g: Gathered) -> int:
    return g.ports.broadcast


def _answers_unicast(g: Gathered, addresses: Iterable[str]) -> bool:
    own = {address.partition("%")[0] for address in addresses}
    return any(e.address in own and "unicast" in e.there for e in g.udp.echoes)


def _by_interface(links: Iterable[OnLink]) -> list[tuple[str, list[OnLink]]]:
    found: dict[str, list[OnLink]] = {}
    for link in links:
        found.setdefault(link.interface, []).append(link)
    return list(found.items())


def _hosts(links: Iterable[OnLink]) -> str:
    return named(link.host for link in links)


def _interfaces(links: Iterable[OnLink]) -> str:
    return named(link.interface for link in links)
