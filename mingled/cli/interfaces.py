"""`mingle interfaces`: every interface, which of them mingled uses, in which order, and why."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

import click
import msgspec

from mingled.cli import configuration
from mingled.cli.blocks import Block, print_blocks
from mingled.cli.forms import check_given
from mingled.cli.json_lines import print_json
from mingled.core.peers import listed
from mingled.errors import BadInput
from mingled.frameworks.environment import defaults
from mingled.net import interfaces as net
from mingled.net.choosing import Verdict, choose, speed_words
from mingled.net.facts import Facts, Kind, Link, LinkAddress, Origin, Reach, State
from mingled.net.restricting import refuse, restriction, with_prefix
from mingled.net.subnets import same_subnet
from mingled.wording import clean


class ShownAddress(msgspec.Struct, frozen=True, kw_only=True):
    """One address in the JSON output."""

    address: str
    prefix: int | None
    reach: Reach
    origin: Origin
    state: State


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """One interface in the JSON output; null is what this system does not tell."""

    name: str
    index: int
    index_hex: str
    kind: Kind
    hardware: bool | None
    up: bool | None
    carrier: bool | None
    state: str
    speed_mbits: int | None
    mtu_bytes: int | None
    mac: str
    master: str
    parent: str
    addresses: tuple[ShownAddress, ...]
    gateways: tuple[str, ...]
    exact: bool
    used: bool
    place: int | None
    why: str


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array on stdout.")
@click.option(
    "--interface",
    "only",
    multiple=True,
    metavar="NAME|ADDRESS",
    help="Show what this restriction would do. Repeatable.",
)
@click.option(
    "--subnet",
    "subnets",
    multiple=True,
    metavar="CIDR",
    help="The same, as in 10.0.0.0/8. Repeatable.",
)
@click.option(
    "--same-subnet",
    "pair",
    nargs=2,
    metavar="A B",
    help="Say whether two addresses are in one subnet here; exit 0: yes, 1: no.",
)
def command(
    as_json: bool, only: tuple[str, ...], subnets: tuple[str, ...], pair: tuple[str, str] | None
) -> None:
    """This machine's interfaces, and which of them mingled uses."""
    for flag, values in (("--interface", only), ("--subnet", subnets)):
        check_given(flag, values)
    facts = net.facts()
    if facts.why_not:
        click.echo(f"mingle interfaces: {clean(_inexact(facts.why_not))}", err=True)
    if pair:
        _same_subnet(facts, pair, as_json)
        return
    interface, subnet = _wishes(only, subnets)
    sentence = refuse(facts, socket.gethostname(), interface.words, subnet.words)
    if sentence:
        for wish in (interface, subnet):
            if wish.origin:
                sentence = sentence.replace(f"correct {wish.flag}", f"correct {wish.origin}")
        raise BadInput(sentence)
    for wish in (interface, subnet):
        if wish.origin:
            words = f"only {wish.flag} {', '.join(wish.words)} may be used, says {wish.origin}"
            click.echo(f"mingle interfaces: {clean(words)}", err=True)
    verdicts = choose(facts, restriction(interface.words, subnet.words)).verdicts
    pairs = sorted(zip(facts.links, verdicts, strict=True), key=_order)
    if as_json:
        shown = [_shown(link, verdict, facts.exact) for link, verdict in pairs]
        print_json(shown)
        return
    print_blocks([_block(link, verdict) for link, verdict in pairs])


class _Wish(NamedTuple):
    flag: str
    words: tuple[str, ...]
    origin: str  #: empty: the flag was typed, or nothing is wished for


def _wishes(only: tuple[str, ...], subnets: tuple[str, ...]) -> tuple[_Wish, _Wish]:
    """What a daemon that is started with these flags would go by: without one its variable counts,
    and without that the file."""
    path, named = configuration.place()
    in_file: dict[str, Any] = {}
    if not (only and subnets):
        in_file = configuration.load(path, needed=named)
    env = defaults(os.environ)

    def one(flag: str, typed: tuple[str, ...], key: str) -> _Wish:
        variable = f"MINGLE_{flag[2:].upper()}"
        if typed:
            return _Wish(flag, listed(typed), "")
        words = listed([env.get(variable, "")])
        if words:
            return _Wish(flag, words, variable)
        words = tuple(in_file.get(key, ()))
        return _Wish(flag, words, f"{flag[2:]} in {path}" if words else "")

    return one("--interface", only, "interfaces"), one("--subnet", subnets, "subnets")


def _same_subnet(facts: Facts, pair: tuple[str, str], as_json: bool) -> None:
    answer = same_subnet(facts, *pair)
    if as_json:
        print_json(answer)
    else:
        word = {True: "yes", False: "no", None: "unknown"}[answer.yes]
        print(clean(f"{word}: {answer.why}"))
    if not answer.yes:
        raise SystemExit(1)


def _order(pair: tuple[Link, Verdict]) -> tuple[bool, int, int]:
    link, verdict = pair
    return (not verdict.used, verdict.place or 0, link.index)


def _block(link: Link, verdict: Verdict) -> Block:
    rows = [
        ("index", f"{link.index} ({link.index:#x})" if link.index else "unknown"),
        ("kind", ", ".join(filter(None, (link.kind, _hardware(link), _relation(link))))),
        ("state", ", ".join(filter(None, (_power(link), _carrier(link))))),
        ("speed", speed_words(link.speed_mbits) or "unknown"),
        ("mtu", f"{link.mtu_bytes} bytes" if link.mtu_bytes else "unknown"),
        ("mac", link.mac or "none"),
        *_addresses(link.addresses),
        *(("gateway", gateway) for gateway in link.gateways),
    ]
    place = f"used, place {verdict.place}" if verdict.used else "not used"
    return Block(title=link.name, marked=verdict.used, line=f"{place}: {verdict.why}", rows=rows)


def _addresses(addresses: Sequence[LinkAddress]) -> list[tuple[str, str]]:
    return [("address", f"{with_prefix(a)} {', '.join(_words(a))}") for a in addresses] or [
        ("address", "none")
    ]


def _words(address: LinkAddress) -> list[str]:
    words = [str(address.reach)]
    if address.origin == "dynamic":
        words.append("dynamic (DHCP or SLAAC)" if ":" in address.address else "dynamic (DHCP)")
    elif address.origin != "unknown":
        words.append(address.origin)
    return words + ([address.state] if address.state != "ok" else [])


def _hardware(link: Link) -> str:
    return {True: "hardware", False: "software", None: ""}[link.hardware]


def _relation(link: Link) -> str:
    if link.master:
        return f"port of {link.master}"
    if not link.parent:
        return ""
    return f"peer of {link.parent}" if link.kind == "veth" else f"on {link.parent}"


def _power(link: Link) -> str:
    if link.up is None:
        return link.state
    # The kernel calls it "unknown" where a driver only has "up" (lo, tunnels).
    odd = link.state not in ("up", "down", "unknown")
    return ("up" if link.up else "down") + (f" ({link.state})" if odd else "")


def _carrier(link: Link) -> str:
    return {True: "carrier", False: "no carrier", None: ""}[link.carrier]


def _shown(link: Link, verdict: Verdict, exact: bool) -> Shown:
    return Shown(
        name=link.name,
        index=link.index,
        index_hex=f"{link.index:#x}",
        kind=link.kind,
        hardware=link.hardware,
        up=link.up,
        carrier=link.carrier,
        state=link.state,
        speed_mbits=link.speed_mbits,
        mtu_bytes=link.mtu_bytes or None,
        mac=link.mac,
        master=link.master,
        parent=link.parent,
        addresses=tuple(
            ShownAddress(
                address=a.address,
                prefix=a.prefix or None,
                reach=a.reach,
                origin=a.origin,
                state=a.state,
            )
            for a in link.addresses
        ),
        gateways=link.gateways,
        exact=exact,
        used=verdict.used,
        place=verdict.place,
        why=verdict.why,
    )


def _inexact(why_not: str) -> str:
    return (
        f"{why_not}: kinds are guessed from names, and neither ports of bridges nor static or "
        "dynamic addresses can be told"
    )
