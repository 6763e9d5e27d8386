"""The sealed rounds of one job that this node still watches over, and the links they need."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mingled.core import actions, messages
from mingled.core.config import Config, Member
from mingled.core.held import Held
from mingled.core.messages import Ended, Fate, Gone, Message
from mingled.core.words import NodeId, ParticipantId

if TYPE_CHECKING:
    from mingled.core.job import Job
    from mingled.core.watch import RoundKey, Watch


class Rounds:
    """Of one job on one node; `helds` from the oldest to the newest."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ctx = job.ctx
        self.helds: list[Held] = []

    @property
    def newest(self) -> Held | None:
        return self.helds[-1] if self.helds else None

    def add(self, held: Held, now: float) -> None:
        """A round is sealed."""
        self.helds.append(held)
        self.prune(now)

    def get(self, key: RoundKey) -> Held | None:
        return next((h for h in self.helds if h.key == key), None)

    def need(self, link: int) -> bool:
        return any(link in held.links.values() for held in self.helds)

    def _seats(self) -> list[ParticipantId]:
        return list(self._job.seats)

    # ------------------------------------------------------------ who is still there

    def seat_ended(
        self, participant: ParticipantId, left: bool, reason: str, now: float, *, again: bool
    ) -> None:
        """A local member is no more. `again`: its process has joined anew, for the next round."""
        for held in self.helds:
            seats = self._job.seats.values()
            held.seat_ended(participant, left, reason, seats, now, again=again)

    def link_closed(self, link: int, fate: Fate, reason: str, ago_s: float, now: float) -> None:
        needed = frozenset(h.key for h in self.helds if h.needs(link))
        self._job.watches.unlink(link, needed if fate == "unwatched" else frozenset(), now)
        for held in self.helds:
            held.link_closed(link, fate, reason, ago_s, self._job.seats.values(), now)

    def lost(
        self, node: str, rounds: frozenset[RoundKey], reason: str, ago_s: float, now: float
    ) -> None:
        """A host whose daemon was gone already does not answer any more."""
        for held in self.helds:
            if held.key in rounds:
                held.node_gone(node, "lost", reason, ago_s, self._job.seats.values(), now)
        self._job.settle(now)

    def daemonless(self, node: str, rounds: frozenset[RoundKey], reason: str, now: float) -> None:
        """A host answers, but no daemon there has attached."""
        for held in self.helds:
            if held.key in rounds:
                held.node_gone(node, "unwatched", reason, 0.0, self._job.seats.values(), now)

    def survivors(self) -> tuple[list[Member], float]:
        """Members of the newest round, if that was broken, who may still join again, and since
        when it was."""
        held = self.newest
        if held is None or held.broken_at is None:
            return [], 0.0
        waiting: Counter[str] = Counter()
        if self._job.claim is not None:
            waiting.update(p.node for p in self._job.claim.present())
        return held.survivors(waiting), held.broken_at

    def runs(self, now: float) -> str | None:
        """Why somebody who will not wait is refused; None if no round runs."""
        newest = self.newest
        if newest is None or not newest.whole:
            return None
        running = newest.running(now)
        return (
            f"round {running.round} has run for {running.since_s:.0f} s with {running.size} "
            f"participants on {', '.join(running.hosts)}; delete --no-wait to wait for the next "
            "round, or choose another job ID"
        )

    def received(self, link: int, message: Message, now: float) -> None:
        """Whatever came over a link; only what is said of a round here changes one."""
        if not isinstance(message, Ended | Gone | messages.Attached):
            return
        held = self.get((message.claim, message.round))
        if held is None:
            return
        if isinstance(message, messages.Attached):
            if self.need(link) and held.hub is None:  # the first came over a probe
                self._take_back(held, link, message, now)
        elif isinstance(message, Ended):
            held.ended(link, message, self._job.seats.values(), now)
        elif link == held.hub:
            held.gone(message, self._job.seats.values(), now)
        self._job.settle(now)

    # ------------------------------------------------------------ daemons that come back

    def attaches(self, watch: Watch) -> list[messages.Attach]:
        """What to say to the daemon of rank 0 once it answers: of each round that runs here and
        has lost it."""
        found = []
        for held in self.helds:
            if held.key not in watch.rounds or held.leads or held.home[0] != watch.node:
                continue
            mine = tuple(p for p in self._seats() if held.member(p) is not None)
            if mine:
                found.append(
                    messages.Attach(
                        label=self._job.label,
                        claim=held.claim,
                        round=held.round,
                        node=self._ctx.card(),
                        participants=mine,
                    )
                )
        return found

    def attached(self, link: int, message: messages.Attached, watch: Watch, now: float) -> None:
        """Rank 0's daemon has taken us back over this link, and says how the round stands."""
        held = self.get((message.claim, message.round))
        if held is None or held.leads:
            self._ctx.do(actions.CloseLink(link=link))
            return
        self._job.watches.add(
            link, message.node, watch.addresses, watch.port, held.claim, pings=False, now=now
        )
        self._take_back(held, link, message, now)

    def _take_back(self, held: Held, link: int, message: messages.Attached, now: float) -> None:
        held.attached(link, message.node, message, self._job.seats.values(), now)
        for rank, fate in held.fates.items():
            if held.home[rank] == self._ctx.node and fate in ("left", "lost"):
                self._ctx.send(
                    link,
                    Ended(
                        claim=held.claim,
                        round=held.round,
                        participant=ParticipantId(held.members[rank].participant),
                        left=fate == "left",
                        reason="ended while rank 0's daemon was gone",
                    ),
                )
        self._job.settle(now)

    def attach(self, link: int, message: messages.Attach, remote: str, now: float) -> bool:
        """At the hub: a daemon is here again. False: no such round is led here."""
        held = self.get((message.claim, message.round))
        if held is None or not held.leads:
            return False
        card = message.node
        addresses = (remote, *(a for a in card.addresses if a != remote))
        self._job.watches.add(
            link, card.node, addresses, card.port, held.claim, pings=True, now=now
        )
        seats = self._job.seats.values()
        old = held.links.get(card.node)
        for node in held.attach(link, card.node, message.participants, seats, now):
            if not any(node in h.home.values() for h in self.helds):
                self._job.watches.back(node)
        self._job.watches.back(card.node)
        if old not in (None, link) and not self._job.links.in_use(old):
            self._job.links.close(old, now)
        attached = messages.Attached(
            claim=held.claim,
            round=held.round,
            node=self._ctx.node,
            members=tuple(held.members.values()),
            fates=tuple(held.fates[rank] for rank in held.members),
        )
        self._ctx.send(link, attached)
        return True

    def take_up(self, config: Config, participant: ParticipantId, now: float) -> None:
        """Of a round that an earlier daemon here watched: this participant is here. Members that
        the config does not name are learnt from rank 0's daemon."""
        if not config.members:
            return
        mine = next((m for m in config.members if m.participant == participant), None)
        zero = config.members[0]
        if mine is None or zero.rank != 0:
            return
        held = self.get((config.claim, config.round))
        if held is None:
            leads = zero.node == mine.node
            held = Held(
                self._ctx,
                self._job.job,
                config.claim,
                config.round,
                config.members,
                master=(config.master_addr, config.master_port),
                leads=leads,
                links={},
                proof=None,
                now=now,
            )
            for member in config.members:
                if member.node == mine.node:  # until they say that they are here
                    held.fates[member.rank] = "unwatched"
            self.helds.append(held)
            self._expect(held, zero, config.leader_link, now)
        held.home[mine.rank] = self._ctx.node
        held.note(mine.rank, "running", "its daemon is back", self._job.seats.values(), now)

    def _expect(self, held: Held, zero: Member, link: tuple[str, int] | None, now: float) -> None:
        """Go to rank 0's daemon; or be it, and wait for the others. As long as one does not come,
        whether its host is there is asked at the port that daemons share."""
        places: dict[str, tuple[str, int]] = {}
        if held.leads:
            others = (m for m in held.members.values() if m.node != zero.node)
            places = {m.node: (m.address, self._ctx.link_port) for m in others}
        elif link is not None:
            places = {zero.node: link}
        for node, (address, port) in places.items():
            rounds = frozenset({held.key})
            self._job.watches.add_absent(node, (address,), port, held.claim, rounds, now)

    def relink(self, key: RoundKey, link: int, node: NodeId, now: float) -> None:
        """At the hub: a daemon that had lost its link is here over another."""
        held = self.get(key)
        if held is not None:
            mine = [
                ParticipantId(m.participant)
                for m in held.members.values()
                if held.home[m.rank] == node
            ]
            held.attach(link, node, mine, self._job.seats.values(), now)
            self._job.watches.back(node)

    # ------------------------------------------------------------ the end

    def prune(self, now: float) -> None:
        """Drop rounds that concern nobody here any more, and their links and ports. A broken one
        tells whoever waits here whom to expect, until the next one."""
        kept = []
        for held in self.helds:
            mine = any(held.member(p) is not None for p in self._job.seats)
            expects = (
                held.broken_at is not None and held is self.newest and bool(self._job.waiting())
            )
            if mine or expects or (held.leads and held.links and held.live):
                kept.append(held)
        dropped = [h for h in self.helds if h not in kept]
        if not dropped:
            return
        self.helds = kept
        self._job.watches.prune(frozenset(h.key for h in kept))
        for held in dropped:
            if held.proof is not None:
                self._ctx.ports.pop(held.master[1], None)
                self._ctx.do(actions.FreePort(proof=held.proof))
            for link in held.links.values():
                if not self._job.links.in_use(link):
                    self._job.links.close(link, now)
