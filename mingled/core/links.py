"""Whose is a link? Each connection of one job, and what comes of it, goes to whom it concerns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mingled.core import actions, messages
from mingled.core.events import Address
from mingled.core.messages import Contest, Fate, Message
from mingled.core.words import Nonce

if TYPE_CHECKING:
    from mingled.core.job import Job


def stale(claim: Nonce, host: str) -> messages.Refuse:
    """What was asked for does not live here."""
    sentence = f"no such claim is led on {host}"
    return messages.Refuse(claim=claim, code="stale", sentence=sentence)


class Links:
    """Of one job on one node. It keeps none itself: leaders being tried, the one that is followed,
    the claim's followers and rivals, the rounds and the watches each know theirs."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def in_use(self, link: int) -> bool:
        return (
            (self._job.pursuit is not None and self._job.pursuit.link == link)
            or (self._job.claim is not None and link in self._job.claim.sessions)
            or self._job.rounds.need(link)
            or self._job.cancels.needs(link)
        )

    def close(self, link: int, now: float) -> None:
        """Nothing here needs it any more."""
        self._job.watches.unlink(link, frozenset(), now)
        self._job.ctx.do(actions.CloseLink(link=link))

    def owns(self, link: int) -> bool:
        return (
            self.in_use(link)
            or link in self._job.search.tries
            or self._job.watches.owns(link)
            or (self._job.claim is not None and self._job.claim.contests.owns(link))
        )

    def opened(self, link: int, local_: Address, remote: str, now: float) -> None:
        if link in self._job.search.tries:
            self._job.search.opened(link, local_, remote, now)
        elif self._job.watches.owns(link):
            self._job.watches.probe_opened(link, remote, now)
        elif self._job.pursuit is not None and self._job.pursuit.link == link:
            self._job.pursuit.reopened(local_, remote, now)
        elif self._job.claim is not None and self._job.claim.contests.owns(link):
            self._job.claim.contests.opened(link, now)
        else:
            self._job.ctx.do(actions.CloseLink(link=link))

    def failed(self, link: int, reason: str, *, answered: bool, shed: bool, now: float) -> None:
        """It could not be opened, or it ended. `answered`: the other host is there; `shed`: its
        daemon is perhaps, too."""
        if link in self._job.search.tries:
            self._job.search.failed(link, reason, now)
        elif self._job.watches.owns(link):
            self._job.watches.probe_failed(link, reason, answered=answered, shed=shed, now=now)
        elif self._job.claim is not None and self._job.claim.contests.owns(link):
            self._job.claim.contests.failed(link, now)
        else:
            self._over(link, reason, "unwatched", now)

    def give_up(self, link: int, reason: str, now: float, *, lost: bool = False) -> None:
        """By us. `lost`: its host does not answer either."""
        self._job.ctx.do(actions.CloseLink(link=link))
        self._over(link, reason, "lost" if lost else "unwatched", now)

    def _over(self, link: int, reason: str, fate: Fate, now: float) -> None:
        ago_s = self._job.watches.ago_s(link, now)
        self._job.rounds.link_closed(link, fate, reason, ago_s, now)
        if self._job.claim is not None:
            self._job.claim.drop(link, reason, now)
        if self._job.pursuit is not None and self._job.pursuit.link == link:
            self._job.pursuit.failed(reason, now)
        self._job.cancels.link_closed(link, reason, now)
        self._job.rounds.prune(now)
        self._job.settle(now)

    def received(
        self, link: int, local_: Address, remote: str, message: Message, now: float
    ) -> None:
        """A frame on one of this job's links."""
        claim = self._job.claim
        self._job.watches.heard(link, now)
        if self._job.watches.owns(link):
            self._job.watches.probe_received(link, message, now)
        elif claim is not None and claim.contests.owns(link):
            if isinstance(message, Contest):
                claim.contests.answered(link, message, local_, remote, now)
            elif isinstance(message, messages.Refuse):
                claim.contests.stale(link)
        elif self._job.pursuit is not None and self._job.pursuit.link == link:
            self._job.pursuit.received(message, now)
        elif claim is not None and link in claim.sessions:
            claim.received(claim.sessions[link], message, now)
        elif isinstance(message, messages.Ping):
            self._job.ctx.send(link, messages.Pong(claim=message.claim, node=self._job.ctx.node))
        if isinstance(message, messages.Attach) and message.label in self._job.labels:
            if not self._job.attachments.attach(link, message, local_, remote, now):
                self._job.attachments.refuse(link, message)
        elif isinstance(message, messages.Attached):
            self._job.watches.attached_over(link, message, now)
        elif isinstance(message, messages.Cancel):
            self._job.cancels.heard(link, message, now)
        elif isinstance(message, messages.Cancelled):
            self._job.cancels.answered(link, message, now)
        self._job.rounds.received(link, message, now)
        self._job.rounds.prune(now)
