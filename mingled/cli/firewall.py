"""`mingle firewall`: rules, printed and never applied. What to open between the nodes of a subnet
before any job runs, or what to close around the nodes of one job's round."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click
import msgspec

from mingled.cli import configuration, roster_firewall
from mingled.core.words import JobId
from mingled.doctor.ports import Opening, Ports, openings
from mingled.errors import BadInput
from mingled.wording import clean

Format = Literal["nft", "ufw"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_INSERT = "insert rule inet filter input"


@click.command()
@click.option(
    "--subnet",
    "subnets",
    multiple=True,
    metavar="CIDR",
    help="Where the nodes are, as in 10.0.0.0/24. Repeatable.",
)
@click.option("--job", metavar="ID", help="For exactly the nodes of the round that runs.")
@click.option("--format", "kind", type=click.Choice(["nft", "ufw"]), help="Of which firewall.")
@click.option("--json", "as_json", is_flag=True, help="With --job: addresses and ports, as JSON.")
def command(subnets: tuple[str, ...], job: str | None, kind: Format | None, as_json: bool) -> None:
    """Firewall rules on stdout. Nothing is applied.

    With --subnet: what lets the nodes of a subnet train together. Every node opens the same ports
    to every other: nobody knows beforehand who will be rank 0.

    With --job: what keeps all but the members of that job's running round from this node's ports:
    rank 0's store, the daemons' link, Gloo's and NCCL's.
    """
    if (job is None) == (not subnets):
        raise click.UsageError("Give either --subnet CIDR, or --job ID of a job that runs here.")
    if job is None and as_json:
        raise click.UsageError("--json goes with --job; with --subnet give --format.")
    if (kind is None) == (not as_json):
        raise click.UsageError(
            "Give --format nft or --format ufw" + (", or --json." if job else ".")
        )
    if job is not None:
        sys.stdout.write(_of_job(JobId(job), kind))
        return
    networks = [network(text) for text in subnets]
    rules = nft if kind == "nft" else ufw
    sys.stdout.write(rules(networks, openings(configured())))


def _of_job(job: JobId, kind: Format | None) -> str:
    doors = roster_firewall.doors(job)
    if kind is None:
        return msgspec.json.encode(doors).decode() + "\n"
    others = roster_firewall.beside(job)
    if others:
        names = clean(", ".join(others[:8]))
        click.echo(
            f"mingle firewall: this node takes part in {names} as well, whose other nodes these "
            "rules shut out; apply rules of each of them, too (with nft)",
            err=True,
        )
    return roster_firewall.nft(doors) if kind == "nft" else roster_firewall.ufw(doors)


def configured() -> Ports:
    """The ports that the daemon of this machine is to use: of the environment, else of its file.
    Raises `BadInput`."""
    named = os.environ.get("MINGLE_CONFIG")
    path = Path(named) if named else configuration.PATH
    values = configuration.load(path, needed=bool(named))
    usual = Ports()
    return Ports(
        link=_port("MINGLE_LINK_PORT", values.get("link_port", usual.link)),
        broadcast=_port("MINGLE_BROADCAST_PORT", values.get("broadcast_port", usual.broadcast)),
    )


def _port(variable: str, otherwise: int) -> int:
    text = os.environ.get(variable, "")
    if not text:
        return otherwise
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65_536):
        raise BadInput(f"{variable}={text[:64]!r} is no port from 1 to 65535")
    return int(text)


def network(text: str) -> Network:
    """Raises `BadInput`: malformed, or everybody."""
    try:
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise BadInput(
            f"--subnet {text[:64]!r} is no subnet; give it as in 10.0.0.0/24 or fd00::/64"
        ) from None
    if found.prefixlen == 0:
        raise BadInput(f"--subnet {text} is the whole Internet; name the nodes' own subnet")
    return found


def _families(networks: Sequence[Network]) -> list[tuple[str, str]]:
    """`ip` or `ip6`, and what stands in its set. IPv6 discovery comes from link-local addresses."""
    four = ipaddress.collapse_addresses(n for n in networks if n.version == 4)
    six = list(ipaddress.collapse_addresses(n for n in networks if n.version == 6))
    link_local = ipaddress.IPv6Network("fe80::/10")
    if six and link_local not in six and not any(n.supernet_of(link_local) for n in six):
        six.append(link_local)
    found = [("ip", ", ".join(map(str, four))), ("ip6", ", ".join(map(str, six)))]
    return [(family, texts) for family, texts in found if texts]


def nft(networks: Sequence[Network], opened: Sequence[Opening]) -> str:
    """Rules for the machine's own input chain, put before those that are there. A table of our own
    would not do: what one table accepts another may still drop."""
    lines = [
        "# What mingled and the training libraries need between the nodes, for nftables:",
        "#     mingle firewall ... --format nft | sudo nft -f -",
        "# The rules go to the front of chain `input` of table `inet filter`, where Debian and",
        "# others drop; replace the two names where yours are called otherwise. To keep them over",
        "# a restart: sudo nft list ruleset > /etc/nftables.conf",
        "add table inet filter",
        "add chain inet filter input",
        "# what belongs to a connection that was let in, or goes out from here",
        f"{_INSERT} ct state established,related accept",
        f"{_INSERT} iifname lo accept",
    ]
    for family, texts in _families(networks):
        for one in opened:
            lines.append(f"# {one.why}")
            where = f"{family} saddr {{ {texts} }} {one.protocol} dport {one.ports}"
            lines.append(f"{_INSERT} {where} accept")
        if family == "ip6":
            neighbours = "nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert"
            lines.append("# IPv6 finds its neighbours by ICMP")
            lines.append(f"{_INSERT} icmpv6 type {{ {neighbours} }} accept")
    return "\n".join(lines) + "\n"


def ufw(networks: Sequence[Network], opened: Sequence[Opening]) -> str:
    """A shell script of `ufw` calls. Its port ranges have a colon."""
    lines = [
        "# What mingled and the training libraries need between the nodes, for ufw.",
        "#     mingle firewall ... --format ufw | sudo sh",
    ]
    for one in opened:
        lines.append(f"# {one.why}")
        for _, texts in _families(networks):
            for text in texts.split(", "):
                ports = one.ports.replace("-", ":")
                lines.append(f"ufw allow from {text} to any port {ports} proto {one.protocol}")
    return "\n".join(lines) + "\n"
