"""What one other daemon and this machine reach of each other over TCP, both ways."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Literal

import msgspec

from mingled.core.messages import Place, Tried
from mingled.core.settings import Settings
from mingled.core.words import Label
from mingled.doctor.nodes import Seen, reach, seen_of
from mingled.doctor.visit import Unreached, Visit
from mingled.edges.places import speak, try_place
from mingled.edges.presence import Found
from mingled.net.listening import Speaker, ephemeral_ports

EXAMINE_S = 10.0
"""For one node: a firewall that drops everything costs 3 s there and 3 s back."""

Port = Literal["link", "master", "ephemeral"]


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One connection. `back`: from there to here."""

    port: Port
    back: bool
    number: int
    reason: str  #: why it failed; empty: it did not


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """Of one other node. `large_*` are None where they were not tried; empty: all is well."""

    seen: Seen
    attempts: tuple[Attempt, ...] = ()
    large_there: str | None = None
    large_back: str | None = None
    ahead_s: float = 0.0  #: its clock
    untried: tuple[str, ...] = ()  #: what could not be tried, and why


class Doors:
    """Ports here that others are asked to connect to: one as rank 0's, one as Gloo and NCCL open
    them; and the local daemon's link port, 0 where there is no daemon."""

    def __init__(self, link_port: int) -> None:
        settings = Settings()
        taken = ephemeral_ports()
        ports = range(settings.port_first, settings.port_first + settings.port_count)
        self.word = "mingle-doctor"
        self.link_port = link_port
        self._master = speak([p for p in ports if p not in taken], (), self.word)
        self._ephemeral = speak((0,), (), self.word)

    def close(self) -> None:
        for speaker in (self._master, self._ephemeral):
            if speaker is not None:
                speaker.close()

    def places(self, address: str) -> dict[Port, Place]:
        """As seen from outside, where our address is this."""
        speakers: tuple[tuple[Port, Speaker | None], ...] = (
            ("master", self._master),
            ("ephemeral", self._ephemeral),
        )
        found: dict[Port, Place] = {
            kind: Place(address=address, port=speaker.port, word=self.word)
            for kind, speaker in speakers
            if speaker is not None
        }
        if self.link_port:
            found["link"] = Place(address=address, port=self.link_port)
        return found


async def examine(found: Found, doors: Doors, labels: Sequence[Label] = ()) -> Examined:
    """Never longer than EXAMINE_S; what was not found out by then is missing. `labels`: of jobs
    that it is asked for."""
    notes = _Notes()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(EXAMINE_S):
            visit = await reach(found, labels, own=False)
            if isinstance(visit, Unreached):
                seen = seen_of(found, own=False, why=visit.reason)
                attempt = Attempt(port="link", back=False, number=found.port, reason=visit.reason)
                return Examined(seen=seen, attempts=(attempt,))
            notes.seen = seen_of(found, own=False, visit=visit)
            notes.ahead_s = visit.ahead_s
            async with visit:
                notes.attempt("link", visit.presence.node.port, "")
                # A path that swallows large packets spoils a connection, so they have their own.
                await asyncio.gather(_small(visit, doors, notes), _large(found, notes))
    seen = notes.seen or seen_of(found, own=False, why=f"no answer within {EXAMINE_S:g} s")
    return Examined(
        seen=seen,
        attempts=tuple(notes.attempts),
        large_there=notes.large_there,
        large_back=notes.large_back,
        ahead_s=notes.ahead_s,
        untried=tuple(notes.untried),
    )


class _Notes:
    def __init__(self) -> None:
        self.seen: Seen | None = None
        self.attempts: list[Attempt] = []
        self.untried: list[str] = []
        self.large_there: str | None = None
        self.large_back: str | None = None
        self.ahead_s = 0.0

    def attempt(self, port: Port, number: int, reason: str, *, back: bool = False) -> None:
        self.attempts.append(Attempt(port=port, back=back, number=number, reason=reason))


async def _small(visit: Visit, doors: Doors, notes: _Notes) -> None:
    await _there(visit, notes)
    await _back(visit, doors, notes)


async def _there(visit: Visit, notes: _Notes) -> None:
    card = visit.presence.node
    ring = Place(address=visit.address, port=card.ring_port, word=card.node)

    async def master() -> Tried | Unreached:
        port = await visit.listen()
        if isinstance(port, Unreached):
            return port
        if not port:
            return Unreached("no port of rank 0's range is free there")
        return await try_place(Place(address=visit.address, port=port, word=card.node))

    tried, opened = await asyncio.gather(try_place(ring), master())
    notes.attempt("ephemeral", tried.port, tried.reason)
    if isinstance(opened, Unreached):
        notes.untried.append(f"master ports of {card.host}: {opened.reason}")
    else:
        notes.attempt("master", opened.port, opened.reason)


async def _back(visit: Visit, doors: Doors, notes: _Notes) -> None:
    host = visit.presence.node.host
    places = doors.places(visit.presence.seen_address)
    results = await visit.test(tuple(places.values()))
    if isinstance(results, Unreached):
        notes.untried.append(f"the way back from {host}: {results.reason}")
        return
    by_port = {result.port: result for result in results}
    for port, place in places.items():
        if place.port in by_port:
            notes.attempt(port, place.port, by_port[place.port].reason, back=True)


async def _large(found: Found, notes: _Notes) -> None:
    visit = await reach(found, own=False)
    if isinstance(visit, Unreached):
        notes.untried.append(f"large packets to {found.host}: {visit.reason}")
        return
    async with visit:
        notes.large_there = await visit.hears_large()
        if not notes.large_there:
            notes.large_back = await visit.says_large()
