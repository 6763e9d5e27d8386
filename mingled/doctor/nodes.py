"""Every daemon on the network: found by discovery, then asked over TCP who it is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import msgspec

from mingled.core.events import Address, Rung
from mingled.core.messages import Presence
from mingled.core.reach import bare, to_try
from mingled.core.words import Label, NodeId
from mingled.doctor.here import Daemons, daemons
from mingled.doctor.ports import Ports, real
from mingled.doctor.visit import AT_ONCE, Unreached, Visit, hail
from mingled.edges.presence import Found, find_nodes
from mingled.net.interfaces import all_addresses, candidates

OWN = ("127.0.0.1", "::1")
"""Where this machine's daemons are asked."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One daemon. `presence` is None where it was heard and not reached; then `why` says so."""

    node: NodeId
    host: str
    addresses: tuple[str, ...]  #: the one that was reached first
    port: int
    rungs: tuple[Rung, ...]
    key_id: str = ""  #: of its cluster key; empty: it did not say
    own: bool  #: of this machine
    presence: Presence | None = None
    why: str = ""
    answered_s: float | None = None  #: how long its answer took
    here: Address | None = None  #: our end of the way there


class Nodes(msgspec.Struct, frozen=True, kw_only=True):
    seen: tuple[Seen, ...]  #: this machine's first, then by host
    local: Daemons
    troubles: tuple[str, ...]  #: what could not be asked, a sentence each


async def survey(
    within_s: float,
    peers: Sequence[str] = (),
    labels: Sequence[Label] = (),
    *,
    ports: Ports | None = None,
) -> Nodes:
    """Listen for `within_s`, then ask each, also which of the jobs it has that are known here and
    of those in `labels`. `BadInput` where a peer is no host. `ports`: as configured."""
    local = await asyncio.to_thread(daemons)
    jobs = (*labels, *local.jobs)
    port = real(ports or Ports(), local.reports).broadcast
    census = await find_nodes(within_s, peers, port=port)
    found = with_own(census.nodes, local)
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(node: Found) -> Seen:
        async with turn:
            return await seen(node, jobs, own=node.node in local.nodes)

    every = await asyncio.gather(*(one(node) for node in found))
    return Nodes(
        seen=tuple(sorted(every, key=lambda s: (not s.own, s.host, s.node))),
        local=local,
        troubles=local.troubles + census.troubles,
    )


def with_own(found: Sequence[Found], local: Daemons) -> list[Found]:
    """This machine's daemons are there, whatever the network says of it."""
    known = {node.node for node in found}
    return [
        *found,
        *(
            Found(
                node=NodeId(report.node),
                host=report.host,
                addresses=tuple(text.split()[-1] for text in report.addresses if text),
                port=report.link_port,
                key_id=report.key_ids[0],
                rungs=(),
            )
            for report in local.reports
            if report.node not in known
        ),
    ]


async def reach(found: Found, labels: Sequence[Label] = (), *, own: bool) -> Visit | Unreached:
    """A visit to that very daemon."""
    mine = {a.address for a in all_addresses()}
    places = OWN if own else to_try(found.addresses, candidates(), mine)
    visit = await hail(places, found.port, labels)
    if isinstance(visit, Unreached):
        return visit
    card = visit.presence.node
    if card.node != found.node:
        await visit.close()
        return Unreached(
            f"{visit.address} port {found.port}: another daemon answers there, of {card.host}; it "
            "was started anew, or two hosts have this address"
        )
    return visit


async def seen(found: Found, labels: Sequence[Label], *, own: bool) -> Seen:
    visit = await reach(found, labels, own=own)
    if isinstance(visit, Unreached):
        return seen_of(found, own=own, why=visit.reason)
    async with visit:
        return seen_of(found, own=own, visit=visit)


def distinct(addresses: Iterable[str]) -> tuple[str, ...]:
    """Each once; a link-local one that is known with its scope is not repeated without it."""
    every = dict.fromkeys(addresses)
    scoped = {bare(a) for a in every if "%" in a}
    return tuple(a for a in every if "%" in a or a not in scoped)


def in_own_order(seen: Seen) -> tuple[str, ...]:
    """IPv4 first, then as the node itself prefers them: the same however it was reached."""
    own = [bare(a) for a in seen.presence.node.addresses] if seen.presence is not None else []
    places = {address: place for place, address in enumerate(own)}

    def key(address: str) -> tuple[bool, int]:
        return ":" in address, places.get(bare(address), len(own))

    return tuple(sorted(distinct(seen.addresses), key=key))


def seen_of(found: Found, *, own: bool, why: str = "", visit: Visit | None = None) -> Seen:
    if visit is None:
        return Seen(
            node=found.node,
            host=found.host,
            addresses=distinct(found.addresses),
            port=found.port,
            rungs=found.rungs,
            key_id=found.key_id,
            own=own,
            why=why,
        )
    card = visit.presence.node
    reached = () if own else (visit.address,)
    return Seen(
        node=found.node,
        host=card.host,
        addresses=distinct((*reached, *card.addresses)),
        port=card.port,
        rungs=found.rungs,
        key_id=found.key_id,
        own=own,
        presence=visit.presence,
        answered_s=visit.took_s,
        here=visit.here,
    )
