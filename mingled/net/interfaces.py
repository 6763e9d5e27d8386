"""This machine's interfaces and which of their addresses another machine may reach us by.

Two ways lead to the facts: netifaces (`quick`), and netlink (`links`), which is exact but costs
110 ms and 13 MiB once. Choosing among them is `choosing`, a pure function.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

from mingled.core.events import Address
from mingled.net import quick
from mingled.net.choosing import Choice, choose, is_virtual
from mingled.net.facts import Facts, LinkAddress
from mingled.net.restricting import refuse, restriction

_known: dict[str, str] = {}


def facts(*, exact: bool = True) -> Facts:
    """All interfaces. Where netlink does not answer, `exact` is False in the result and `why_not`
    says why."""
    if not exact:
        return quick.facts()
    from mingled.net import links  # brings asyncio along, which a client does without

    return links.facts()


def interface_names() -> tuple[str, ...]:
    """Every interface of this network namespace."""
    return quick.names()


def all_addresses() -> list[Address]:
    """Every address of every interface but IPv6 link-local ones, IPv4 first."""
    here = quick.facts()
    found = [
        Address(
            address=a.address,
            interface=link.name,
            prefix=a.prefix,
            virtual=is_virtual(here, link, a),
        )
        for link in here.links
        for a in link.addresses
        # A link-local IPv6 address means nothing without the reader's own interface.
        if not (":" in a.address and a.reach == "link-local")
    ]
    return sorted(found, key=lambda a: ":" in a.address)


def default_interfaces() -> tuple[str, ...]:
    """Interfaces that a default route goes through."""
    return tuple(quick.default_gateways())


def candidates(
    only: Iterable[str] = (),
    subnets: Iterable[str] = (),
    *,
    exact: bool = False,
    seen: Facts | None = None,
) -> tuple[Address, ...]:
    """Addresses to advertise, best first: wired, wireless, tunnels, then virtual ones; the faster
    first; IPv4, IPv6, IPv6 link-local (given without scope: `interface` is it). Loopback only where
    there is nothing else. `only`: names of interfaces or addresses that the user allows; `subnets`:
    such as 10.0.0.0/8. `exact` asks netlink, and does without where it does not answer; `seen`
    is what was read before, and then nothing is read.

    Raises:
        BadInput: a subnet that is none.
    """
    return choice(only, subnets, exact=exact, seen=seen).addresses


def choice(
    only: Iterable[str] = (),
    subnets: Iterable[str] = (),
    *,
    exact: bool = False,
    seen: Facts | None = None,
) -> Choice:
    """`candidates`, with the verdict on every interface."""
    allowed = restriction(only, subnets)
    if seen is None:
        seen = facts(exact=exact)
        remember(seen)
    return choose(seen, allowed)


def refusal(
    only: Iterable[str] = (),
    subnets: Iterable[str] = (),
    *,
    host: str | None = None,
    seen: Facts | None = None,
) -> str | None:
    """One sentence where an interface, an address or a subnet is not on this node, or a subnet is
    malformed; None where all is well. An interface that is there but down is well: its carrier may
    still come."""
    return refuse(seen or quick.facts(), host or socket.gethostname(), tuple(only), tuple(subnets))


def interface_of(address: str) -> str:
    """The interface that has this address; empty if none has. A scope (`fe80::1%eth0`) decides
    between several. Remembered, since a leader asks for every follower, until `forget`."""
    plain, _, scope = address.partition("%")
    wanted = address if scope else plain
    if wanted not in _known:
        _remember(quick.addresses())
    return _known.get(wanted) or _known.get(plain, "")


def remember(seen: Facts) -> None:
    """For `interface_of`: what was just read need not be read again."""
    _remember({link.name: link.addresses for link in seen.links})


def forget() -> None:
    """Something has changed: `interface_of` looks again."""
    _remember({})


def _remember(has: Mapping[str, Iterable[LinkAddress]]) -> None:
    """Keys with and without scope; without it the first interface that has the address wins."""
    global _known
    found: dict[str, str] = {}
    for name, addresses in has.items():
        for a in addresses:
            found.setdefault(a.address, name)
            found[f"{a.address}%{name}"] = name
    _known = found  # at once: threads look, too
