"""`mingle nodes`: every daemon on this network, with its GPUs and its jobs."""

from __future__ import annotations

import asyncio
import os

import click
import msgspec

from mingled.cli.blocks import Block, print_blocks
from mingled.cli.firewall import configured
from mingled.cli.forms import seconds
from mingled.cli.json_lines import print_json
from mingled.cli.status import duration
from mingled.core.peers import check_peers, listed
from mingled.core.secrets import NO_KEY_ID
from mingled.core.words import Label
from mingled.doctor.nodes import Nodes, Seen, in_own_order, survey
from mingled.errors import BadInput
from mingled.wording import clean

WITHIN = "1.5s"
WITHIN_MAX_S = 60.0
"""Whoever has not answered by then does not."""

WITHIN_RANGE = f"more than 0, at most {WITHIN_MAX_S:g}s"


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """One daemon in the JSON output. What only it can tell is null where it could not be asked."""

    node: str
    host: str
    own: bool  #: of this machine
    addresses: tuple[str, ...]  #: IPv4 first, then in the node's own order
    link_port: int
    key_id: str  #: of the cluster key that it presents; "none": it has none; empty: it did not say
    found_by: tuple[str, ...]
    reached: bool
    why_not: str
    release: str | None
    gpus: tuple[str, ...] | None
    jobs: tuple[str, ...] | None  #: those that a daemon of this machine knows by name
    other_jobs: int | None
    up_s: float | None
    answered_s: float | None  #: how long its answer took


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array on stdout.")
@click.option(
    "--peers",
    multiple=True,
    metavar="HOST,...",
    help="Ask these, too, where multicast does not reach. Repeatable.",
)
@click.option(
    "--within",
    default=WITHIN,
    show_default=True,
    metavar="TIME",
    help=f"How long to listen: {WITHIN_RANGE}.",
)
def command(as_json: bool, peers: tuple[str, ...], within: str) -> None:
    """Every daemon on this network: host, addresses, GPUs, version and jobs."""
    found = find(peers, within, "mingle nodes")
    shown = [_shown(seen, found.local.jobs) for seen in found.seen]
    if as_json:
        print_json(shown)
        return
    if not shown:
        click.echo(
            "mingle nodes: no daemon answered; mingle doctor says what may be wrong", err=True
        )
        return
    print_blocks([_block(one) for one in shown])


def find(peers: tuple[str, ...], within: str, who: str, labels: tuple[Label, ...] = ()) -> Nodes:
    """`labels`: of jobs that nobody here may know. Raises `BadInput`; what could not be asked is
    said on stderr."""
    try:
        within_s = seconds(within, "--within")
    except BadInput:
        within_s = None
    if within_s is None or within_s > WITHIN_MAX_S:
        raise BadInput(f"--within {within[:64]!r}: want a time as in {WITHIN}: {WITHIN_RANGE}")
    named = listed(peers or [os.environ.get("MINGLE_PEERS", "")])
    check_peers(named)
    found = asyncio.run(survey(within_s, named, labels, ports=configured()))
    for trouble in found.troubles:
        click.echo(f"{who}: {clean(trouble)}", err=True)
    return found


def _shown(seen: Seen, jobs: dict[Label, str]) -> Shown:
    presence = seen.presence
    labels = presence.labels if presence is not None else ()
    known = tuple(jobs[label] for label in labels if label in jobs)
    return Shown(
        node=str(seen.node),
        host=seen.host,
        own=seen.own,
        addresses=in_own_order(seen),
        link_port=seen.port,
        key_id=seen.key_id,
        found_by=seen.rungs,
        reached=presence is not None,
        why_not=seen.why,
        release=presence.release if presence is not None else None,
        gpus=presence.gpus if presence is not None else None,
        jobs=known if presence is not None else None,
        other_jobs=max(0, presence.jobs - len(known)) if presence is not None else None,
        up_s=presence.up_s if presence is not None else None,
        answered_s=seen.answered_s,
    )


def _block(one: Shown) -> Block:
    rows = [("address", ", ".join(one.addresses) or "none")]
    if one.release is not None:
        rows += [
            ("gpus", gpu_words(one.gpus or ())),
            ("jobs", _job_words(one.jobs or (), one.other_jobs or 0)),
            ("mingled", f"{one.release}, up {duration(one.up_s or 0)}, link port {one.link_port}"),
            ("answered", f"in {1000 * (one.answered_s or 0):.0f} ms"),
        ]
    else:
        rows += [("link port", str(one.link_port)), ("not reached", one.why_not)]
    if one.key_id not in ("", NO_KEY_ID):
        rows.append(("cluster key", one.key_id))
    rows.append(("found by", ", ".join(one.found_by) or "this machine's own list"))
    line = "heard, but not reached"
    if one.reached:
        line = "this machine" if one.own else "reached"
    return Block(title=one.host or one.node, marked=one.reached, line=line, rows=rows)


def gpu_words(names: tuple[str, ...]) -> str:
    """`4 x NVIDIA H200, 1 x NVIDIA A2`."""
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return ", ".join(f"{count} x {name}" for name, count in counts.items()) or "none"


def _job_words(known: tuple[str, ...], others: int) -> str:
    words = [*known, *([f"{others} other{'s' if others > 1 else ''}"] if others else [])]
    return ", ".join(words) or "none"
