"""What daemons say to each other in single UDP datagrams: the rungs below multicast DNS, the census
of nodes, and doctor's echoes. JSON, one object each; `type` names the kind.

Nothing here is authenticated: everything is a hint, as adverts are.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Literal, TypeVar

import msgspec

from mingled.core import codec, reach
from mingled.core.codec import Decoder
from mingled.core.heard import printable
from mingled.core.messages import ADDRESSES_MAX, HOST_CHARS_MAX, Advert
from mingled.core.words import Label, NodeId, Nonce
from mingled.errors import BadInput

BROADCAST_PORT = 29_491
"""UDP, of everybody: beside the peer link's TCP 29490, so that one range opens a firewall."""

DATAGRAM_BYTES_MAX = 1_200
"""Sent in one: what IPv6 carries everywhere unfragmented (1,280 less headers)."""

RECEIVED_BYTES_MAX = 1_500
"""What was sent in one, and where it came from when it is passed on inside one machine."""

LABELS_MAX = 16
"""Jobs that one datagram asks for."""

PAD_CHARS_MAX = 1_000
"""An echo's padding: a full datagram can be tried, and its echo is no larger."""

TOKEN_CHARS_MAX = 64
KEY_ID_CHARS_MAX = 16

Means = Literal["multicast", "broadcast", "unicast"]
"""How a datagram travelled. Over IPv6, ff02::1 (all nodes) counts as broadcast."""

_INTERFACE = re.compile(r"[^\s/%\x00-\x1f]{0,15}")
"""What Linux takes as an interface's name."""


def printable_host(name: str) -> str:
    """A host name as the others take it."""
    return printable(name)[:HOST_CHARS_MAX]


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a daemon is, for those who ask who is there. A host name that the others would refuse, as
    with a control character in it, is made one that they take; `host_given` is what it was."""

    node: NodeId
    host: str
    port: int  #: its peer link, TCP
    key_id: str = ""  #: of the cluster key that it presents
    host_given: str = ""  #: empty: `host` is what it was

    def __post_init__(self) -> None:
        host = printable_host(self.host)
        if host != self.host:
            msgspec.structs.force_setattr(self, "host_given", self.host)
            msgspec.structs.force_setattr(self, "host", host)


class Relay(msgspec.Struct, frozen=True, kw_only=True):
    """Where a datagram came from that a daemon passed on to the others on its machine. Believed
    only if the datagram came from loopback."""

    by: NodeId  #: the daemon that passed it on
    address: str  #: of the sender: answers go there
    port: int
    interface: str = ""

    def __post_init__(self) -> None:
        _check_port(self.port)
        _check_addresses((self.address,))
        _check_interface(self.interface)


class Datagram(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """Base of all. `to`: whether it was sent to one machine or to all, where a kernel does not
    tell. Scopes of addresses stay behind: they mean nothing on another machine."""

    node: NodeId  #: the sender; its own are not for itself
    to: Literal["one", "all"] = "all"
    relay: Relay | None = None


class Announce(Datagram, tag="advert", frozen=True, kw_only=True):
    """Somebody leads a job."""

    advert: Advert

    def __post_init__(self) -> None:
        _check_addresses(self.advert.addresses)
        _check_text(self.advert.key_id, KEY_ID_CHARS_MAX, "key id")
        if not 0 < self.advert.version < 65_536:
            raise BadInput(f"an advert of version {self.advert.version}")


class Bye(Datagram, tag="bye", frozen=True, kw_only=True):
    """... and no longer does."""

    label: Label
    claim: Nonce


class Ask(Datagram, tag="ask", frozen=True, kw_only=True):
    """Who leads these?"""

    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        if len(self.labels) > LABELS_MAX:
            raise BadInput(f"{len(self.labels)} labels, at most {LABELS_MAX} allowed")


class Who(Datagram, tag="who", frozen=True, kw_only=True):
    """Who is there? Answered with Here, to the sender alone."""


class Here(Datagram, tag="here", frozen=True, kw_only=True):
    by: Means  #: how the question came
    host: str
    port: int  #: of its peer link
    addresses: tuple[str, ...]
    key_id: str = ""  #: of the cluster key that it presents; empty: it did not say

    def __post_init__(self) -> None:
        _check_port(self.port)
        _check_addresses(self.addresses)
        _check_text(self.host, HOST_CHARS_MAX, "host name")
        _check_text(self.key_id, KEY_ID_CHARS_MAX, "key id")


class Echo(Datagram, tag="echo", frozen=True, kw_only=True):
    """Answered with Echoed to the sender alone, and with `back` also by the means it came by."""

    token: str
    by: Means  #: what the sender meant
    back: bool = False
    pad: str = ""

    def __post_init__(self) -> None:
        _check_text(self.token, TOKEN_CHARS_MAX, "token")
        _check_text(self.pad, PAD_CHARS_MAX, "padding")


class Echoed(Datagram, tag="echoed", frozen=True, kw_only=True):
    token: str
    by: Means  #: how the echo came
    sent_by: Means  #: how this answer goes back
    host: str
    interface: str  #: where the echo came in; empty: not known
    address: str  #: of the answering machine, as the echo found it; empty: not known
    pad: str = ""

    def __post_init__(self) -> None:
        _check_text(self.token, TOKEN_CHARS_MAX, "token")
        _check_text(self.pad, PAD_CHARS_MAX, "padding")
        _check_text(self.host, HOST_CHARS_MAX, "host name")
        if self.address:
            _check_addresses((self.address,))
        _check_interface(self.interface)


kind_of_datagrams = Announce | Bye | Ask | Who | Here | Echo | Echoed

_decoder: Decoder[Datagram] = Decoder(kind_of_datagrams, "datagram")

D = TypeVar("D", bound=Datagram)


def decode(data: bytes) -> Datagram:
    """Raises `BadInput`, whatever the bytes are."""
    if not data.startswith(b"{") or len(data) > RECEIVED_BYTES_MAX:  # garbage costs next to nothing
        raise BadInput(f"datagram: {len(data)} bytes that are none of ours")
    datagram = _decoder.decode(data)
    return _with_addresses(datagram, unscoped(_addresses_of(datagram)))


def encode(datagram: Datagram) -> bytes:
    """At most DATAGRAM_BYTES_MAX, but for a relay's; the last addresses are left out if need be."""
    datagram = _with_addresses(datagram, unscoped(_addresses_of(datagram))[:ADDRESSES_MAX])
    while True:
        data = codec.encode(datagram)
        addresses = _addresses_of(datagram)
        if len(data) <= DATAGRAM_BYTES_MAX or datagram.relay is not None or not addresses:
            return data
        datagram = _with_addresses(datagram, addresses[:-1])


def unscoped(addresses: Iterable[str]) -> tuple[str, ...]:
    """Without scopes, as they go over the wire; each once."""
    return tuple(dict.fromkeys(map(reach.bare, addresses)))


def scoped(addresses: Iterable[str], interface: str) -> tuple[str, ...]:
    """With the receiver's own interface on link-local IPv6 addresses that have no scope, so that
    they can be connected to. Without an interface these are of no use, and left out."""
    known = (reach.scoped(address, interface) for address in addresses)
    return tuple(a for a in known if "%" in a or not reach.is_link_local_v6(a))


def _addresses_of(datagram: Datagram) -> tuple[str, ...]:
    match datagram:
        case Announce():
            return datagram.advert.addresses
        case Here():
            return datagram.addresses
    return ()


def _with_addresses(datagram: D, addresses: tuple[str, ...]) -> D:
    if addresses == _addresses_of(datagram):
        return datagram
    match datagram:
        case Announce():
            advert = msgspec.structs.replace(datagram.advert, addresses=addresses)
            return msgspec.structs.replace(datagram, advert=advert)
        case Here():
            return msgspec.structs.replace(datagram, addresses=addresses)
    return datagram


def _check_port(port: int) -> None:
    if not 0 < port < 65_536:
        raise BadInput(f"port {port} is not between 1 and 65535")


def _check_interface(name: str) -> None:
    if not _INTERFACE.fullmatch(name):
        raise BadInput(f"no interface is called {name[:32]!r}")


def _check_text(text: str, chars_max: int, what: str) -> None:
    # What is shown to people must not paint their terminal.
    if len(text) > chars_max or not text.isprintable():
        raise BadInput(f"{what} {text[:32]!r}: not printable, or over {chars_max} characters")


def _check_addresses(addresses: tuple[str, ...]) -> None:
    if len(addresses) > ADDRESSES_MAX:
        raise BadInput(f"{len(addresses)} addresses, at most {ADDRESSES_MAX} allowed")
    for address in addresses:
        plain, _, scope = address.partition("%")
        try:
            ipaddress.ip_address(plain)
        except ValueError:
            raise BadInput(f"{address[:64]!r} is no address") from None
        if not _INTERFACE.fullmatch(scope):
            raise BadInput(f"{address[:64]!r} is no address")
