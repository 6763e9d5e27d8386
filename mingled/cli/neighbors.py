"""`mingle neighbors`: who was seen on the links of this machine, and who of them is alive."""

from __future__ import annotations

from typing import Literal

import click
import msgspec

from mingled.cli.blocks import Block, milliseconds, print_blocks
from mingled.cli.json_lines import print_json
from mingled.net import neighbors as net
from mingled.net.ping import Activity, Outcome, PingForbidden, probe
from mingled.wording import clean


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """One entry in the JSON output. `activity`, `rtt_ms` and `why` are null without --ping."""

    interface: str
    index: int
    address: str
    mac: str
    entry: Literal["dynamic", "static"]
    state: net.NeighborState
    activity: Activity | None
    rtt_ms: float | None
    why: str | None


@click.command()
@click.option("--ping", "with_ping", is_flag=True, help="Ask each whether it is alive.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array on stdout.")
def command(with_ping: bool, as_json: bool) -> None:
    """The neighbour table (ARP and NDP) of each interface."""
    found = net.neighbors()
    outcomes = _probed(found) if with_ping else {}
    if as_json:
        shown = [_shown(n, outcomes.get(n.scoped)) for n in found]
        print_json(shown)
        return
    if not found:
        click.echo(
            "mingle neighbors: this machine has talked to nobody on its links lately", err=True
        )
        return
    print_blocks(
        [_block(name, found, outcomes) for name in dict.fromkeys(n.interface for n in found)]
    )


def _probed(found: tuple[net.Neighbor, ...]) -> dict[str, Outcome]:
    addresses = [n.scoped for n in found]
    try:
        return probe(addresses)
    except PingForbidden as error:
        click.echo(f"mingle neighbors: {clean(str(error))}", err=True)
        return {address: _unknown(address, str(error)) for address in addresses}


def _unknown(address: str, why: str) -> Outcome:
    return Outcome(
        address=address,
        activity="unknown",
        sent=0,
        received=0,
        lost_percent=0.0,
        rtt_min_ms=None,
        rtt_avg_ms=None,
        rtt_max_ms=None,
        why=why,
    )


def _block(name: str, found: tuple[net.Neighbor, ...], outcomes: dict[str, Outcome]) -> Block:
    here = [n for n in found if n.interface == name]
    rows = [(n.address, _text(n, outcomes.get(n.scoped))) for n in here]
    line = f"{len(here)} neighbour{'s' if len(here) > 1 else ''}"
    return Block(title=name, marked=True, line=line, rows=rows)


def _text(n: net.Neighbor, outcome: Outcome | None) -> str:
    start = n.mac or "no answer yet,"
    text = f"{start} {n.entry}" + (f", {n.state}" if n.state != "permanent" else "")
    return text if outcome is None else f"{text}; {_activity(outcome)}"


def _activity(outcome: Outcome) -> str:
    if outcome.rtt_min_ms is not None:
        return f"{outcome.activity} ({milliseconds(outcome.rtt_min_ms)})"
    # Why nobody can be asked was said once, above.
    return outcome.activity if outcome.sent == 0 else f"{outcome.activity} ({outcome.why})"


def _shown(n: net.Neighbor, outcome: Outcome | None) -> Shown:
    return Shown(
        interface=n.interface,
        index=n.index,
        address=n.address,
        mac=n.mac,
        entry=n.entry,
        state=n.state,
        activity=outcome.activity if outcome else None,
        rtt_ms=outcome.rtt_min_ms if outcome else None,
        why=outcome.why if outcome else None,
    )
