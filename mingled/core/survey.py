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


HOSTS_MAX = 8
"""Named in a warning for each way: it goes to everybody in the job."""


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
        reached[session.local.address] = session.address

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
        if not sessions or self._common(sessions):
            return
        addresses = tuple(a.address for a in self._addresses(sessions))[: messages.ADDRESSES_MAX]
        for session in sessions:
            if session.card.node not in self._asked:
                self._asked.add(session.card.node)
                self._until[session.card.node] = now + self._ctx.settings.reach_s
                reach = messages.Reach(claim=self._claim.nonce, addresses=addresses)
                self._ctx.send(session.link, reach)

    def ask_again(self) -> None:
        """What was found did not lead to a round: the network may be another one by now."""
        self._asked.clear()

    def answered(self, session: Session, message: messages.Reached) -> None:
        if session.card.node not in self._reached:
            return
        reached = self._reached.setdefault(session.card.node, {})
        for ours, theirs in zip(message.addresses, message.sources, strict=True):
            reached.setdefault(ours, theirs)
        if message.done:
            self._until.pop(session.card.node, None)

    def address_of(self, session: Session, master: Address) -> str:
        """The follower's own address on its way to that one: the one that others are to use, since
        collectives run over the interface that leads to rank 0."""
        reached = self._reached.get(session.card.node, {})
        return reached.get(master.address, session.address)

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

    def choose(self, sessions: Sequence[Session], failures: Mapping[str, int]) -> Choice | None:
        """The address that most came by, of those that all reach and that failed least. None where
        the user forbids the only ones that some reach."""
        ways = Counter(s.local for s in sessions)
        fits = self._common(sessions)
        if fits:
            order = {a: number for number, a in enumerate(fits)}
            best = min(fits, key=lambda a: (failures.get(a.address, 0), -ways[a], order[a]))
            return Choice(master=best)
        if self.shut_out(sessions):
            return None
        own = {s.card.node: s.local for s in sessions}
        order = {a: number for number, a in enumerate(self._addresses(sessions))}
        master = min(ways, key=lambda a: (failures.get(a.address, 0), -ways[a], order[a]))
        return Choice(master=master, own=own, warning=self._warning(sessions))

    def shut_out(self, sessions: Sequence[Session]) -> list[Session]:
        """Those that reach none of the addresses which a user allows here."""
        home = self._claim.job.home
        allowed = {a.address for a in home.addresses}
        if not home.sources:
            return []
        return [s for s in sessions if not allowed & set(self._reached.get(s.card.node, ()))]

    def _warning(self, sessions: Sequence[Session]) -> str:
        by_way: dict[Address, list[str]] = {}
        for s in sessions:
            by_way.setdefault(s.local, []).append(s.card.host)
        come = []
        for way, hosts in by_way.items():
            net = subnet_of(way)
            more = f" and {len(hosts) - HOSTS_MAX} more" if len(hosts) > HOSTS_MAX else ""
            named = ", ".join(hosts[:HOSTS_MAX]) + more
            come.append(f"{named} by {way.address} ({net or way.interface})")
        return (
            f"no address of {self._claim.job.home.here()} is reached by everybody: "
            f"{'; '.join(come)}. Each gets the one that it reaches; Gloo and NCCL may need one "
            "subnet that all share"
        )

    def _addresses(self, sessions: Sequence[Session]) -> list[Address]:
        home = self._claim.job.home
        others = () if home.sources else (s.local for s in sessions)
        return list(dict.fromkeys([*home.addresses, *others]))

    def _common(self, sessions: Sequence[Session]) -> list[Address]:
        reached = [self._reached.get(s.card.node, {s.local.address: ""}) for s in sessions]
        return [a for a in self._addresses(sessions) if all(a.address in r for r in reached)]


class Surveyed:
    """The follower's side: tries them all, and tells once it knows of each."""

    def __init__(self, pursuit: Pursuit) -> None:
        self._pursuit = pursuit
        self._open: dict[str, str] = {}  #: as it is tried here: as the leader wrote it

    def asked(self, message: messages.Reach) -> None:
        leader, local = self._pursuit.leader, self._pursuit.local
        assert leader is not None
        self._open = {scoped(a, local.interface): a for a in message.addresses}
        for address in self._open:  # the ring's port says whose it is
            self._pursuit.prove(message.claim, (address, leader.ring_port), leader.node)
        if not self._open:
            self._tell({})

    def ended(self, address: str, local: Address | None) -> None:
        """One was reached, from `local`; or not. Each is told at once: an address that never
        answers takes seconds, and nobody need wait for it once one is known that suits all."""
        written = self._open.pop(address, None)
        if written is not None and (local is not None or not self._open):
            self._tell({written: local.address} if local is not None else {})

    def _tell(self, reached: Mapping[str, str]) -> None:
        self._pursuit.tell(
            messages.Reached(
                claim=self._pursuit.claim,
                addresses=tuple(reached),
                sources=tuple(reached.values()),
                done=not self._open,
            )
        )
