"""Daemons that ask who is there, and what can be reached from there: for `mingle nodes` and doctor.

Nothing here touches a job. A test connects only to whoever asks, or to the daemons' ports on nodes
of a job whose label the asker knows: a daemon is no tool to scan other people's networks with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mingled.core import actions, messages
from mingled.core.context import Context
from mingled.core.events import PlacesTried
from mingled.core.home import node_card
from mingled.core.job import Job
from mingled.core.messages import ADDRESSES_MAX, Message, NodeCard, Place, Tried
from mingled.core.words import Label

NOT_ALLOWED = "not tested: it is neither the asker's address nor one of that job"


class Hails:
    """Of one daemon. `jobs` gives those that run or wait here."""

    def __init__(self, ctx: Context, jobs: Callable[[], Iterable[Job]]) -> None:
        self._ctx = ctx
        self._jobs = jobs
        self._refused: dict[int, tuple[Tried, ...]] = {}  #: by link, while the rest is tried

    def received(self, link: int, remote: str, message: Message) -> bool:
        """A frame on a link that belongs to no job. False: it is none of ours."""
        match message:
            case messages.Hail():
                here = {label for job in self._jobs() for label in job.labels}
                labels = tuple(label for label in message.labels if label in here)
                self._ctx.do(
                    actions.Introduce(
                        link=link, remote=remote, card=self._card(), labels=labels, jobs=len(here)
                    )
                )
            case messages.Test():
                self._test(link, remote, message.label, message.places)
            case messages.Listen():
                settings = self._ctx.settings
                self._ctx.do(
                    actions.OpenTestPort(
                        link=link,
                        base=settings.port_first,
                        count=settings.port_count,
                        avoid=frozenset(self._ctx.ports),
                    )
                )
            case _:
                return False
        return True

    def _card(self) -> NodeCard:
        ctx = self._ctx
        addresses = tuple(a.address for a in ctx.addresses[:ADDRESSES_MAX])
        return node_card(ctx, addresses)

    def _test(self, link: int, remote: str, label: Label | None, places: tuple[Place, ...]) -> None:
        job = next((job for job in self._jobs() if label in job.labels), None)
        known = job.addresses() if job is not None else frozenset()
        settings = self._ctx.settings
        master = range(settings.port_first, settings.port_first + settings.port_count)

        def allowed(place: Place) -> bool:
            # A word is a daemon's own: whoever reads it has reached no other service.
            ours = place.word or place.port == self._ctx.link_port or place.port in master
            return place.address == remote or bool(place.address in known and ours)

        self._refused[link] = tuple(
            Tried(address=p.address, port=p.port, reason=NOT_ALLOWED, took_s=0.0)
            for p in places
            if not allowed(p)
        )
        wanted = tuple(p for p in places if allowed(p))
        self._ctx.do(actions.TryPlaces(link=link, places=wanted))

    def tried(self, event: PlacesTried) -> None:
        refused = self._refused.pop(event.link, ())
        self._ctx.send(event.link, messages.Tested(results=event.results + refused))

    def closed(self, link: int) -> None:
        self._refused.pop(link, None)
