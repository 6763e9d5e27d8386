"""The sealed rounds of one job that this node still watches over, and the links they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mingled.core import actions
from mingled.core.config import Member
from mingled.core.held import Held
from mingled.core.messages import NAMES_SHOWN_MAX, Ended, Fate, Gone, Message, Passed, Waiting
from mingled.core.words import ParticipantId, distinct

if TYPE_CHECKING:
    from mingled.core.job import Job
    from mingled.core.watch import RoundKey


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
        self.keep(held)
        self.prune(now)

    def keep(self, held: Held) -> None:
        """Watch over it, too. An older one may be handed down after a newer one was sealed."""
        self.helds.append(held)
        self.helds.sort(key=lambda h: h.round)

    def get(self, key: RoundKey) -> Held | None:
        return next((h for h in self.helds if h.key == key), None)

    def need(self, link: int) -> bool:
        return any(link in held.links.values() for held in self.helds)

    # ------------------------------------------------------------ who is still there

    def seat_ended(
        self,
        participant: ParticipantId,
        left: bool,
        reason: str,
        now: float,
        *,
        again: bool,
        closes: bool = False,
    ) -> None:
        """A local member is no more. `again`: its process has joined anew, for the next round;
        `closes`: with it the run is over."""
        for held in self.helds:
            seats = self._job.seats.values()
            held.seat_ended(participant, left, reason, seats, now, again=again, closes=closes)
            if closes and held.leads and held.member(participant) is not None:
                self._close(held, now)
        self._job.progressed(now)

    def finished(self, participant: ParticipantId, now: float) -> None:
        """A local member's work is done."""
        for held in self.helds:
            held.finished(participant, self._job.seats.values(), now)
        self._job.progressed(now)

    def disown(self, participant: ParticipantId, reason: str) -> None:
        """The others go on without a local member: it is told, and may join again."""
        for held in self.helds:
            member = held.member(participant)
            if member is not None:
                word = held.word(member, "lost", reason)
                self._ctx.do(actions.Tell(participant=participant, message=word))

    def passed_by(self, key: RoundKey, newer: int, now: float) -> None:
        """A newer round was sealed without us, who were lost to the others for a while."""
        held = self.get(key)
        if held is not None and not held.leads and newer > held.round:
            held.disown(f"round {newer} was sealed without it", self._job.seats.values(), now)
            self._job.progressed(now)

    def _close(self, held: Held, now: float) -> None:
        """At the hub: the run is over, if nobody of the round works on."""
        if held.working or self._job.claim is None:
            return
        hosts = distinct((m.host, m.address) for m in held.members.values())[:NAMES_SHOWN_MAX]
        self._job.claim.close(
            f"the run has ended: round {held.round} has finished on {', '.join(hosts)}; start a "
            "new run with the same line on every machine",
            now,
        )

    def waiting(self, count: int) -> None:
        """At the hub: so many wait for the next round. Of a broken one everybody knows enough."""
        newest = self.newest
        if newest is not None and newest.leads and newest.whole:
            newest.tell_waiting(count, self._job.seats.values())

    def link_closed(self, link: int, fate: Fate, reason: str, ago_s: float, now: float) -> None:
        needed = frozenset(h.key for h in self.helds if h.needs(link))
        self._job.watches.unlink(link, needed if fate == "unwatched" else frozenset(), now)
        for held in self.helds:
            held.link_closed(link, fate, reason, ago_s, self._job.seats.values(), now)
        self._job.progressed(now)

    def lost(
        self, node: str, rounds: frozenset[RoundKey], reason: str, ago_s: float, now: float
    ) -> None:
        """A host whose daemon was gone already does not answer any more."""
        for held in self.helds:
            if held.key in rounds:
                held.node_gone(node, "lost", reason, ago_s, self._job.seats.values(), now)
        self.prune(now)
        self._job.progressed(now)
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
        claim = self._job.claim
        present = claim.present() if claim is not None else []
        return held.survivors((p.node, p.address) for p in present), held.broken_at

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
        if not isinstance(message, Ended | Gone | Passed | Waiting):
            return
        held = self.get((message.claim, message.round))
        if held is None:
            return
        if isinstance(message, Ended):
            if held.ended(link, message, self._job.seats.values(), now) and message.closes:
                self._close(held, now)
        elif link == held.hub and isinstance(message, Gone):
            held.gone(message, self._job.seats.values(), now)
        elif link == held.hub and isinstance(message, Passed):
            self.passed_by(held.key, message.newer, now)
        elif link == held.hub and isinstance(message, Waiting):
            held.tell_waiting(message.count, self._job.seats.values())
            return
        self._job.progressed(now)
        self._job.settle(now)

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
            young = now < held.unsaid_since + self._ctx.settings.unsaid_max_s
            unsaid = held.unsaid and young and self._job.watches.expect(held.key)
            if mine or expects or unsaid or (held.leads and held.links and held.live):
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
