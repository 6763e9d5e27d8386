"""This machine as one job may use it: its addresses, and how it connects to others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mingled.core import actions
from mingled.core.context import Context
from mingled.core.events import Address
from mingled.core.messages import ADDRESSES_MAX, NodeCard
from mingled.core.reach import bare, permitted, to_try
from mingled.core.words import JobId, Label, Nonce

if TYPE_CHECKING:
    from mingled.core.job import Job

Wish = tuple[tuple[str, ...], tuple[str, ...]]
"""Interfaces and subnets that a user allows; empty ones: all."""

NO_WISH: Wish = ((), ())


def node_card(ctx: Context, addresses: tuple[str, ...]) -> NodeCard:
    """Who this daemon is, with those of its addresses that may be told."""
    return NodeCard(
        node=ctx.node,
        host=ctx.host,
        port=ctx.link_port,
        ring_port=ctx.ring_port,
        addresses=addresses,
    )


class Home:
    """Of one job on one node."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ctx = job.ctx
        self._known: tuple[tuple[Address, ...], Wish] = ((), NO_WISH)
        self._allowed: tuple[Address, ...] = ()

    @property
    def wish(self) -> Wish:
        """What the participants here asked for: the same, or a later one is refused."""
        wishes = (s.join.wish for s in self._job.seats.values())
        return next((w for w in wishes if w != NO_WISH), NO_WISH)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Candidates, best first."""
        known = (self._ctx.addresses, self.wish)
        if known != self._known:
            self._known = known
            self._allowed = permitted(known[0], *known[1])
        return self._allowed

    @property
    def sources(self) -> tuple[Address, ...]:
        """What connections must come from; empty: the system may choose."""
        return self.addresses if self._ctx.restricted or self.wish != NO_WISH else ()

    @property
    def left_out(self) -> list[Address]:
        """Candidates that the participants here forbid; not virtual ones."""
        return [a for a in self._ctx.addresses if a not in self.addresses and not a.virtual]

    def candidates(self) -> tuple[str, ...]:
        """For others to try, best first."""
        return tuple(a.address for a in self.addresses[:ADDRESSES_MAX])

    def card(self) -> NodeCard:
        return node_card(self._ctx, self.candidates())

    def first_address(self) -> str:
        return self.addresses[0].address if self.addresses else ""

    def here(self) -> str:
        """This node, for sentences: cloned machines share their names."""
        address = self.first_address()
        return f"{self._ctx.host} ({address})" if address else self._ctx.host

    def listening_on(self) -> str:
        """For hints and errors: this node's interfaces and addresses."""
        if not self.addresses:
            return "no network address"
        return ", ".join(f"{a.interface} {a.address}" for a in self.addresses[:4])

    # ------------------------------------------------------------ to others

    def open(self, label: Label, addresses: tuple[str, ...], port: int) -> int:
        """Ask for a link to a daemon; its number."""
        link = self._ctx.next_link()
        honest = tuple(a for a in addresses if bare(a) not in self._job.misleading)
        self._ctx.do(
            actions.OpenLink(
                link=link,
                label=label,
                addresses=to_try(honest or addresses, self.addresses, self._ctx.own),
                port=port,
                sources=self.sources,
            )
        )
        return link

    def prove(self, job: JobId, proof: Nonce, place: tuple[str, int], word: str) -> None:
        """Connect there and read `word`. PathProven or PathRefuted comes."""
        address, port = place
        self._ctx.do(
            actions.ProvePath(
                job=job, proof=proof, address=address, port=port, word=word, sources=self.sources
            )
        )
