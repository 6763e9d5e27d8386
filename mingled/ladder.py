"""The ladder of discovery: every rung at once, as one. Any single one that works is enough."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from mingled.core import actions, events
from mingled.core.datagrams import Identity
from mingled.core.discovery import Discovery
from mingled.core.events import Address
from mingled.edges.broadcast import Broadcast
from mingled.edges.mdns import Mdns
from mingled.edges.unicast import Unicast
from mingled.net.datagrams import Datagrams
from mingled.net.resolve import Resolver


class Ladder:
    """`rungs`: which of mdns, broadcast and peers; `peers`: hosts to ask for every job."""

    def __init__(
        self,
        emit: Callable[[events.Event], None],
        identity: Identity,
        *,
        rungs: Collection[str],
        peers: Sequence[str],
        port: int,
    ) -> None:
        self._datagrams = Datagrams(identity, port=port)
        self._emit = emit
        self._mdns = Mdns(emit, identity.node, identity) if "mdns" in rungs else None
        every: dict[str, Callable[[], Discovery]] = {
            "broadcast": lambda: Broadcast(emit, self._datagrams),
            "peers": lambda: Unicast(emit, self._datagrams, Resolver(), peers),
        }
        first: list[Discovery] = [] if self._mdns is None else [self._mdns]
        self._rungs = first + [make() for name, make in every.items() if name in rungs]

    @property
    def states(self) -> tuple[str, ...]:
        """One line for each rung: what works, what does not and why."""
        return tuple(rung.state for rung in self._rungs)

    @property
    def counts(self) -> dict[str, int]:
        return {} if self._mdns is None else self._mdns.counts

    @property
    def datagrams(self) -> dict[str, float]:
        """How many were sent and received, mDNS's left out."""
        return {"sent": self._datagrams.sent, "received": self._datagrams.received}

    async def start(self, addresses: Sequence[Address]) -> None:
        await self._datagrams.start(addresses)
        for rung in self._rungs:
            await rung.start(addresses)

    async def close(self) -> None:
        """Say goodbye on each."""
        for rung in self._rungs:
            await rung.close()
        await self._datagrams.close()

    async def readdress(self, addresses: Sequence[Address]) -> None:
        """The machine's addresses or interfaces may have changed."""
        await self._datagrams.readdress(addresses)
        for rung in self._rungs:
            await rung.readdress(addresses)

    def introduce_as(self, identity: Identity) -> None:
        """To those who ask who is there."""
        self._datagrams.introduce_as(identity)
        if self._mdns is not None:
            self._mdns.introduce_as(identity)

    def ask_peers(self, peers: Sequence[str]) -> None:
        """From now on these are asked for every job, in place of those before."""
        for rung in self._rungs:
            if isinstance(rung, Unicast):
                rung.ask_peers(peers)

    def name(self, action: actions.PublishName | actions.WithdrawName) -> None:
        """Names are multicast DNS's alone."""
        if self._mdns is not None:
            match action:
                case actions.PublishName():
                    self._mdns.names.publish(action.participant, action.name, action.address)
                case actions.WithdrawName():
                    self._mdns.names.withdraw(action.participant)
        elif isinstance(action, actions.PublishName):
            self._emit(
                events.NameRefused(
                    participant=action.participant,
                    name=f"{action.name}.local",
                    reason="mingled runs without mDNS here (--discovery)",
                )
            )

    def perform(
        self, action: actions.Advertise | actions.Withdraw | actions.Ask | actions.Doubt
    ) -> None:
        for rung in self._rungs:
            match action:
                case actions.Advertise():
                    rung.advertise(action.advert, action.peers)
                case actions.Withdraw():
                    rung.withdraw(action.label, action.claim)
                case actions.Ask():
                    rung.ask(action.label, unicast=action.unicast, peers=action.peers)
                case actions.Doubt():
                    rung.doubt(action.label, action.claim)
