"""The sealed rounds of one job that this node still watches over, and the links they need.

While a claim or a pursuit uses such a link, its own heartbeat covers it. Afterwards the link is
kept for the round alone, and this one does: a host without power closes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mingled.core import actions
from mingled.core.held import Held
from mingled.core.messages import Ended, Gone, Message, Ping
from mingled.core.words import Nonce, ParticipantId

if TYPE_CHECKING:
    from mingled.core.job import Job


class Rounds:
    """Of one job on one node; `helds` from the oldest to the newest."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ctx = job.ctx
        self.helds: list[Held] = []
        self._heard_at: dict[int, float] = {}  #: by link
        self._ping_at = 0.0

    def add(self, held: Held, now: float) -> None:
        """A round is sealed."""
        self.helds.append(held)
        for link in held.links():
            self._heard_at[link] = now

    def reattach(self, claim: Nonce, round_: int, link: int, node: str, now: float) -> None:
        """A daemon of a sealed round is back over another link."""
        for held in self.helds:
            if (held.claim, held.round) == (claim, round_):
                held.reattach(link, node)
                self._heard_at[link] = now

    def need(self, link: int) -> bool:
        return link in self._heard_at

    def seat_ended(self, participant: ParticipantId, left: bool, reason: str) -> None:
        for held in self.helds:
            held.seat_ended(participant, left, reason, self._job.seats.values())

    def link_closed(self, link: int, reason: str) -> None:
        self._heard_at.pop(link, None)
        for held in self.helds:
            held.link_closed(link, reason, self._job.seats.values())

    def received(self, link: int, message: Message, now: float) -> None:
        """Whatever came over a link; only what is said of a round here changes one."""
        if link in self._heard_at:
            self._heard_at[link] = now
        if not isinstance(message, Ended | Gone):
            return
        for held in self.helds:
            if (message.claim, message.round) != (held.claim, held.round):
                continue
            if isinstance(message, Ended):
                held.ended(link, message, self._job.seats.values())
            elif link == held.hub:
                held.gone(message, self._job.seats.values())

    def prune(self) -> None:
        """Drop rounds that concern nobody here any more, and their links and ports."""
        for held in list(self.helds):
            mine = any(held.member(p) is not None for p in self._job.seats)
            if mine or (held.hub is None and held.spokes and held.live):
                continue
            self.helds.remove(held)
            if held.proof is not None:
                self._ctx.ports.pop(held.master[1], None)
                self._ctx.do(actions.FreePort(proof=held.proof))
            for link in held.links():
                if any(link in other.links() for other in self.helds):
                    continue
                self._heard_at.pop(link, None)
                if not self._job.in_use(link):
                    self._ctx.do(actions.CloseLink(link=link))

    # ------------------------------------------------------------ time

    def _alone(self) -> dict[int, Nonce]:
        """The links that nothing but a round needs, and its claim."""
        pursuit, claim = self._job.pursuit, self._job.claim
        return {
            link: held.claim
            for held in self.helds
            for link in held.links()
            if not (pursuit is not None and pursuit.link == link)
            and not (claim is not None and link in claim.sessions)
        }

    def tick(self, now: float) -> None:
        if now < self._ping_at:
            return
        settings = self._ctx.settings
        self._ping_at = now + settings.heartbeat_every_s
        for link, claim in self._alone().items():
            heard_at = self._heard_at.get(link)
            if heard_at is None:
                continue  # the end of another link took the round, and this link, with it
            if now - heard_at >= settings.silence_max_s:
                self._ctx.do(actions.CloseLink(link=link))
                self._job.link_lost(link, f"silent for {settings.silence_max_s:g} s", now)
            else:
                self._ctx.send(link, Ping(claim=claim))

    def deadline(self) -> float | None:
        return self._ping_at if self._alone() else None
