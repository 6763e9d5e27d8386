"""Whether two addresses are on one link, as far as this machine can tell."""

from __future__ import annotations

import ipaddress

import msgspec

from mingled.errors import BadInput
from mingled.net.facts import Facts, Link

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
_Place = tuple[Link, ipaddress.IPv4Network | ipaddress.IPv6Network]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    yes: bool | None  #: None: it cannot be told from here
    why: str


def same_subnet(facts: Facts, first: str, second: str) -> Answer:
    """Whether one of our interfaces has a subnet with both addresses in it.

    Raises:
        BadInput: one of them is no address.
    """
    a, b = _parse(first), _parse(second)
    if a == b:
        return Answer(yes=True, why=f"both are {a}")
    if a.is_link_local and b.is_link_local and a.version == b.version == 6:
        return _by_scope(a, b)
    for ip in (a, b):
        if ip.version == 6 and ip.is_link_local:
            other = b if ip is a else a
            return Answer(yes=None, why=f"{ip} is link-local, so no subnet has it and {other}")
    here, there = _places(facts, a), _places(facts, b)
    for link, network in here:
        if any(network == also and link is other for other, also in there):
            return Answer(yes=True, why=f"both are in {network} of {link.name}{_warning(link)}")
    if not here and not there:
        return Answer(
            yes=None,
            why=f"{a} and {b} are in no subnet of this node: ask on one of those hosts",
        )
    return Answer(yes=False, why=f"{_where(a, here)}, but {_where(b, there)}")


def _by_scope(a: _Ip, b: _Ip) -> Answer:
    scopes = [getattr(ip, "scope_id", None) for ip in (a, b)]
    if None in scopes:
        lacking = a if scopes[0] is None else b
        return Answer(
            yes=None,
            why=f"{lacking} is link-local, and every link has such addresses: name the interface "
            f"too, as in {lacking}%eth0",
        )
    if scopes[0] == scopes[1]:
        return Answer(yes=True, why=f"both are link-local on {scopes[0]}")
    return Answer(yes=False, why=f"{a} is on {scopes[0]}, but {b} is on {scopes[1]}")


def _places(facts: Facts, ip: _Ip) -> list[_Place]:
    """Our interfaces with a subnet that the address is in."""
    found: list[_Place] = []
    for link in facts.links:
        for own in link.addresses:
            if not own.prefix or (":" in own.address) != (ip.version == 6):
                continue
            network = ipaddress.ip_network(f"{own.address}/{own.prefix}", strict=False)
            if ip in network and (link, network) not in found:
                found.append((link, network))
    return found


def _where(ip: _Ip, places: list[_Place]) -> str:
    if not places:
        return f"{ip} is in no subnet of this node"
    return f"{ip} is in " + " and ".join(f"{network} of {link.name}" for link, network in places)


def _warning(link: Link) -> str:
    if link.kind == "docker":
        return ", a container bridge: other machines may have the same subnet"
    return ""


def _parse(text: str) -> _Ip:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise BadInput(
            f"{text!r} is not an address such as 10.0.0.1, fd00::1 or fe80::1%eth0; correct it"
        ) from None
