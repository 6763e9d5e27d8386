"""Two leaders of one job. They meet over a link of their own, compare, and one yields.

A running round beats none; an explicit rank 0 beats an elected one, and a member of the job's last
round a newcomer; then the smaller nonce wins.
Nobody yields to an advert: only to a rival that answered, and never between PREPARE and its
outcome, nor once sealed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from mingled.core import actions
from mingled.core.events import Address
from mingled.core.messages import Advert, Contest
from mingled.core.reach import ways
from mingled.core.table import State
from mingled.core.words import Label, Nonce

if TYPE_CHECKING:
    from mingled.core.claim import Claim


class _Rival(msgspec.Struct, kw_only=True):
    """Mutable: one other advert of this job."""

    advert: Advert
    #: when to ask it; while a link is open, when to give up on that; None: while it opens
    next_at: float | None
    link: int | None = None


def loses(mine: Contest, theirs: Contest) -> bool:
    """Does `mine` yield to `theirs`? Both sides compute it from the same two messages. One that
    could not be reached cannot lead, whatever else speaks for it."""
    if mine.sealed or mine.busy or theirs.busy:
        return False
    ours = (mine.sealed, not theirs.unreached, mine.standing)
    others = (theirs.sealed, not mine.unreached, theirs.standing)
    if ours != others:
        return ours < others
    return mine.claim > theirs.claim


class Contests:
    """The rivals of one claim."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._ctx = claim.ctx
        self._rivals: dict[Nonce, _Rival] = {}
        self._until: float | None = None  #: rank 0 of the plain form is held back for them

    def heard(self, advert: Advert, now: float) -> None:
        """An advert that is new or says something new; it is in the book, which bounds us too."""
        known = self._rivals.get(advert.claim)
        if known is not None:
            known.advert = advert
        elif advert.claim != self._claim.nonce:
            listed = {h.advert.claim for h in self._ctx.book.of(*self._claim.job.labels)}
            for claim in [c for c in self._rivals if c not in listed]:
                self.gone(claim)
            self._rivals[advert.claim] = _Rival(advert=advert, next_at=now)
            if self._until is None:
                self._until = now + self._ctx.settings.connect_s

    def gone(self, claim: Nonce) -> None:
        """Its advert was withdrawn."""
        rival = self._rivals.pop(claim, None)
        if rival is not None and rival.link is not None:
            self._ctx.do(actions.CloseLink(link=rival.link))

    @property
    def until(self) -> float:
        """Rank 0 of the plain form is not released before: a rival was heard that nobody has shown
        to be a ghost. One connect attempt after the first of them it is, however many come."""
        return self._until if self.places() and self._until is not None else 0.0

    def places(self) -> list[str]:
        """An address of each rival that nobody has shown to be a ghost."""
        book = self._ctx.book.of(*self._claim.job.labels)
        rivals = [h.advert for h in book if h.advert.claim in self._rivals and not h.failures]
        return [next(iter(advert.addresses), "?") for advert in rivals]

    def owns(self, link: int) -> bool:
        return any(r.link == link for r in self._rivals.values())

    def opened(self, link: int, now: float) -> None:
        for rival in self._rivals.values():
            if rival.link == link:
                self._claim.job.unreached.discard(rival.advert.claim)
                self._ctx.send(link, self.standing(rival.advert.claim, rival.advert.label))
                rival.next_at = now + self._ctx.settings.first_frame_s

    def failed(self, link: int, now: float) -> None:
        """The rival cannot be reached, or hung up without a word: perhaps a ghost."""
        for rival in self._rivals.values():
            if rival.link == link:
                rival.link = None
                advert = rival.advert
                self._ctx.do(actions.Doubt(label=advert.label, claim=advert.claim))
                rival.next_at = max(
                    self._ctx.book.failed(advert.label, advert.claim, now),
                    now + self._ctx.settings.retry_min_s,
                )

    def stale(self, link: int) -> None:
        """There is no such claim where the advert points."""
        for claim, rival in list(self._rivals.items()):
            if rival.link == link:
                self._ctx.book.remove(rival.advert.label, claim)
                self.gone(claim)

    def standing(self, rival: Nonce, label: Label) -> Contest:
        """What this claim has to show, over a link of that label."""
        claim, job = self._claim, self._claim.job
        user = next((s.holder.user for s in job.seats.values()), "")
        return Contest(
            label=label,
            claim=claim.nonce,
            rival=rival,
            job=job.job,
            node=self._claim.job.home.card(),
            user=user,
            standing=claim.standing(),
            sealed=claim.sealed(),
            busy=job.state is State.PREPARING,
            unreached=rival in job.unreached,
        )

    def asked(self, link: int, message: Contest, local: Address, remote: str, now: float) -> None:
        """A rival asked us: answer, then yield if that is how it came out."""
        mine = self.standing(message.claim, message.label)
        self._ctx.send(link, mine)
        if loses(mine, message):
            self._yield(message, local, remote, now)

    def answered(
        self, link: int, message: Contest, local: Address, remote: str, now: float
    ) -> None:
        """A rival that we asked has answered."""
        mine = self.standing(message.claim, message.label)
        rival = next(r for r in self._rivals.values() if r.link == link)
        self._ctx.do(actions.CloseLink(link=link))
        asked = (rival.advert.label, rival.advert.claim, mine.claim, self._claim.job.job)
        if (message.label, message.claim, message.rival, message.job) != asked:
            self.failed(link, now)  # it answers for a claim that was not asked for
            return
        rival.link = None
        rival.next_at = now + self._ctx.settings.contest_every_s
        self._ctx.book.vouch(rival.advert, message.node)
        if loses(mine, message):
            self._yield(message, local, remote, now)

    def _yield(self, winner: Contest, local: Address, remote: str, now: float) -> None:
        addresses = ways(remote, winner.node.addresses, local.interface)
        mine = self._claim.advert()
        advert = msgspec.structs.replace(
            mine, label=winner.label, claim=winner.claim, port=winner.node.port, addresses=addresses
        )
        self._claim.job.yield_to(advert, winner, remote, now)

    def tick(self, now: float) -> None:
        for rival in list(self._rivals.values()):
            if rival.next_at is None or now < rival.next_at:
                continue
            if rival.link is None:
                advert = rival.advert
                rival.link = self._claim.job.home.open(advert.label, advert.addresses, advert.port)
                rival.next_at = None  # LinkOpened or LinkFailed comes for certain
            else:
                self._ctx.do(actions.CloseLink(link=rival.link))
                self.failed(rival.link, now)

    def deadline(self) -> float | None:
        times = (r.next_at for r in self._rivals.values())
        return min((t for t in times if t is not None), default=None)

    def close(self) -> None:
        for claim in list(self._rivals):
            self.gone(claim)
