"""Peers that a user names: hosts to ask who leads, where multicast does not reach."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mingled.errors import BadInput

PEERS_MAX = 64
"""Named by one user. A name may stand for many addresses, so that nobody needs more."""

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\.?$){_LABEL}(\.{_LABEL})*\.?")


def listed(texts: Iterable[str]) -> tuple[str, ...]:
    """`("a,b", "c")` as `("a", "b", "c")`: each may be a list with commas or blanks between."""
    words = (word for text in texts for word in text.replace(",", " ").split())
    return tuple(dict.fromkeys(words))


def parse_peer(text: str) -> tuple[str, int | None]:
    """`host`, `host:port`, an IPv4 or IPv6 address, `[IPv6]:port`; the port is UDP, None: the
    usual one. Raises `BadInput`."""
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
        if not bracket or (rest and not rest.startswith(":")) or rest == ":":
            raise _bad(text)
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        if not port:
            raise _bad(text)
    if port and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65_536):
        raise _bad(text)
    if not (_is_address(host) or (_NAME.fullmatch(host) and not text.startswith("["))):
        raise _bad(text)
    return host, int(port) if port else None


def _is_address(host: str) -> bool:
    import ipaddress  # 5 ms that a client without peers need not spend

    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _bad(text: str) -> BadInput:
    return BadInput(
        f"peer {text[:64]!r} is no host: give names or addresses with commas between, as in "
        "--peers gpu1,10.0.0.7 or head.lab.svc.cluster.local"
    )


def check_peers(peers: Iterable[str], who: str = "") -> None:
    """Each is one that can be asked; `BadInput` otherwise."""
    given = tuple(peers)
    if len(given) > PEERS_MAX:
        raise BadInput(f"{who}{len(given)} peers, at most {PEERS_MAX} allowed; name a DNS name")
    for peer in given:
        try:
            parse_peer(peer)
        except BadInput as error:
            raise BadInput(f"{who}{error}") from None


def check_subnets(subnets: Iterable[str], who: str = "") -> None:
    """Each is a subnet in CIDR notation; `BadInput` otherwise."""
    given = tuple(subnets)
    if not given:
        return
    import ipaddress

    for text in given:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise BadInput(
                f"{who}subnet {text[:64]!r} is none; give it as in --subnet 10.0.0.0/24"
            ) from None
