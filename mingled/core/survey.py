"""Which address of rank 0's node does everybody reach? Followers that came by different ones are
asked to try the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from mingled.core import messages
from mingled.core.events import Address
from mingled.core.reach import scoped, subnet_of
from mingled.core.words import NodeId

if TYPE_CHECKING:
    from mingled.core.claim import Claim, Session
    from mingled.core.pursuit import Pursuit


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Rank 0's address, and where nobody's suits all, each follower's own."""

    master: Address
    own: Mapping[NodeId, Address] = {}
    warning: str = ""

    def of(self, node: NodeId) -> Address:
        return self.own.get(node, self.master)


class Survey:
    """The leader's side; owned by a claim."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._ctx = claim.ctx
        self._reached: dict[NodeId, dict[str, str]] = {}  #: address of ours: from which of its own
        self._until: dict[NodeId, float] = {}  #: for the answers that are still awaited
        self._asked: set[NodeId] = set()

    def came(self, session: Session) -> None:
        """By one of our addresses; what was reached before is kept."""
        reached = self._reached.setdefault(session.card.node, {})
        reached[session.local.address] = session.remote_address

    def forget(self, node: NodeId) -> None:
        """It is gone, or somewhere else."""
        self._reached.pop(node, None)
        self._until.pop(node, None)
        self._asked.discard(node)

    def forget_all(self) -> None:
        """Our own addresses are others now."""
        for session in self._claim.sessions.values():
            self.forget(session.card.node)
            self.came(session)

    def ask(self, now: float) -> None:
        """Those that came by different ways: does any of the addresses suit them all?"""
        sessions = [s for s in self._claim.sessions.values() if s.entries]
        if len({s.local.address for s in sessions}) < 2 or self._common(sessions):
            return
        addresses = tuple(a.address for a in self._addresses(sessions))[: messages.ADDRESSES_MAX]
        for session in sessions:
            if session.card.node not in self._asked:
                self._asked.add(session.card.node)
                self._until[session.card.node] = now + self._ctx.settings.reach_s
                reach = messages.Reach(claim=self._claim.nonce, addresses=addresses)
                self._ctx.send(session.link, reach)

    def answered(self, session: Session, message: messages.Reached) -> None:
        if self._until.pop(session.card.node, None) is not None:
            reached = self._reached.setdefault(session.card.node, {})
            for ours, theirs in zip(message.addresses, message.sources, strict=True):
                reached.setdefault(ours, theirs)

    def address_of(self, session: Session, master: Address) -> str:
        """The follower's own address on its way to that one: the one that others are to use, since
        collectives run over the interface that leads to rank 0."""
        reached = self._reached.get(session.card.node, {})
        return reached.get(master.address, session.remote_address)

    def waits(self, sessions: Sequence[Session], now: float) -> bool:
        """An answer is due that may matter."""
        if self._common(sessions):
            return False
        return any(self._until.get(s.card.node, now) > now for s in sessions)

    def deadline(self) -> float | None:
        return min(self._until.values(), default=None)

    def tick(self, now: float) -> None:
        self._until = {node: until for node, until in self._until.items() if until > now}

    # ------------------------------------------------------------ the choice

    def choose(self, sessions: Sequence[Session], failures: Mapping[str, int]) -> Choice:
        """The address that most came by, of those that all reach and that failed least."""
        ways = Counter(s.local for s in sessions)
        fits = self._common(sessions)
        if fits:
            order = {a: number for number, a in enumerate(fits)}
            best = min(fits, key=lambda a: (failures.get(a.address, 0), -ways[a], order[a]))
            return Choice(master=best)
        own = {s.card.node: s.local for s in sessions}
        order = {a: number for number, a in enumerate(self._addresses(sessions))}
        master = min(ways, key=lambda a: (failures.get(a.address, 0), -ways[a], order[a]))
        return Choice(master=master, own=own, warning=self._warning(sessions))

    def _warning(self, sessions: Sequence[Session]) -> str:
        by_way: dict[Address, list[str]] = {}
        for s in sessions:
            by_way.setdefault(s.local, []).append(s.card.host)
        come = []
        for way, hosts in by_way.items():
            net = subnet_of(way)
            come.append(f"{', '.join(hosts)} by {way.address} ({net or way.interface})")
        return (
            f"no address of {self._claim.job.home.here()} is reached by everybody: "
            f"{'; '.join(come)}. Each gets the one that it reaches; Gloo and NCCL may need one "
            "subnet that all share"
        )

    def _addresses(self, sessions: Sequence[Session]) -> list[Address]:
        return list(dict.fromkeys([*self._claim.job.home.addresses, *(s.local for s in sessions)]))

    def _common(self, sessions: Sequence[Session]) -> list[Address]:
        reached = [self._reached.get(s.card.node, {s.local.address: ""}) for s in sessions]
        return [a for a in self._addresses(sessions) if all(a.address in r for r in reached)]


class Surveyed:
    """The follower's side: tries them all, and tells once it knows of each."""

    def __init__(self, pursuit: Pursuit) -> None:
        self._pursuit = pursuit
        self._open: dict[str, str] = {}  #: as it is tried here: as the leader wrote it
        self._reached: dict[str, str] = {}

    def asked(self, message: messages.Reach) -> None:
        leader, local = self._pursuit.leader, self._pursuit.local
        assert leader is not None
        self._reached = {}
        self._open = {scoped(a, local.interface): a for a in message.addresses}
        for address in self._open:  # the ring's port says whose it is
            self._pursuit.prove(message.claim, (address, leader.ring_port), leader.node)
        self._tell_if_done()

    def ended(self, address: str, local: Address | None) -> None:
        """One was reached, from `local`; or not."""
        written = self._open.pop(address, None)
        if written is None:
            return
        if local is not None:
            self._reached[written] = local.address
        self._tell_if_done()

    def _tell_if_done(self) -> None:
        if not self._open:
            self._pursuit.tell(
                messages.Reached(
                    claim=self._pursuit.claim,
                    addresses=tuple(self._reached),
                    sources=tuple(self._reached.values()),
                )
            )
