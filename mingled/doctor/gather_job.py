"""One job's nodes, each asked whether it reaches each of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from mingled.core import local
from mingled.core.messages import PLACES_MAX, Place
from mingled.core.words import JobId, Label
from mingled.doctor.realms import labels_of
from mingled.doctor.visit import AT_ONCE, Unreached, Visit, hail
from mingled.options import LINK_PORT

NODES_MAX = 32
"""All pairs of so many are tried, 2,000 connections; of a larger job its first nodes."""

MATRIX_S = 13.0
"""For all of it."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A connection that did not come about, both ends named."""

    source: str
    target: str
    address: str
    port: int
    reason: str


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """`unasked`: nodes that could not be asked, and why; `hosts` were."""

    job: str
    report: local.Job | None  #: None: no daemon here knows the job
    labels: tuple[Label, ...] = ()  #: under which others may know it
    known: tuple[str, ...] = ()  #: jobs that are known here
    hosts: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()
    failures: tuple[Pair, ...] = ()
    tried: int = 0
    left_out: int = 0  #: nodes beyond NODES_MAX


async def gather(job: JobId, reports: Sequence[local.Report]) -> Matrix:
    """`reports`: of this machine's daemons."""
    every = [found for report in reports for found in report.jobs]
    known = tuple(dict.fromkeys(found.job for found in every))
    found = next((found for found in every if found.job == job), None)
    labels = labels_of(job)
    if found is None:
        return Matrix(job=job, labels=labels, report=None, known=known)
    label = Label(found.label)
    labels = tuple(dict.fromkeys((label, *labels)))
    nodes = [seen for seen in found.nodes if seen.address]
    chosen = nodes[:NODES_MAX]
    places = [(seen.address, seen.port or LINK_PORT, seen.host) for seen in chosen]
    visits: dict[str, Visit] = {}
    unasked: list[str] = []
    turn = asyncio.Semaphore(AT_ONCE)

    async def visit(address: str, port: int, host: str) -> None:
        async with turn:
            reached = await hail([address], port)
        if isinstance(reached, Unreached):
            unasked.append(f"{host}: {reached.reason}")
        else:
            visits[address] = reached

    failures: list[Pair] = []
    tried = 0
    try:
        async with asyncio.timeout(MATRIX_S):
            await asyncio.gather(*(visit(*place) for place in places))
            answers = await asyncio.gather(
                *(_asked(label, address, visits) for address in visits),
            )
        for pairs, count, trouble in answers:
            failures += pairs
            tried += count
            unasked += [trouble] if trouble else []
    except TimeoutError:
        unasked.append(f"not all answered within {MATRIX_S:g} s")
    finally:
        for reached in visits.values():
            await reached.close()
    return Matrix(
        job=job,
        labels=labels,
        report=found,
        known=known,
        hosts=tuple(sorted(v.presence.node.host for v in visits.values())),
        unasked=tuple(sorted(unasked)),
        failures=tuple(sorted(failures, key=lambda pair: (pair.source, pair.target, pair.port))),
        tried=tried,
        left_out=len(nodes) - len(chosen),
    )


async def _asked(
    label: Label, address: str, visits: dict[str, Visit]
) -> tuple[list[Pair], int, str]:
    """What one node does not reach, of how many places; or why that is not known."""
    asker = visits[address]
    source = asker.presence.node.host
    places: dict[tuple[str, int], tuple[Place, str]] = {}
    for other, visit in visits.items():
        card = visit.presence.node
        if other == address or card.node == asker.presence.node.node:
            continue
        link = Place(address=other, port=card.port)
        ring = Place(address=other, port=card.ring_port, word=card.node)
        for place in (link, ring):
            places[other, place.port] = (place, card.host)
    if not places:
        return [], 0, ""
    wanted = [place for place, _ in places.values()][:PLACES_MAX]
    results = await asker.test(wanted, label)
    if isinstance(results, Unreached):
        return [], 0, f"{source}: {results.reason}"
    failures = [
        Pair(
            source=source,
            target=places[result.address, result.port][1],
            address=result.address,
            port=result.port,
            reason=result.reason,
        )
        for result in results
        if result.reason and (result.address, result.port) in places
    ]
    return failures, len(wanted), ""
