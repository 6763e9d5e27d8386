"""Looking for a leader: try what was heard, ask again while somebody waits, lead if nobody does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mingled.core import actions
from mingled.core.events import Address
from mingled.core.messages import Advert
from mingled.core.pursuit import Pursuit
from mingled.core.table import State, Trigger

if TYPE_CHECKING:
    from mingled.core.job import Job


class Search:
    """The timers of one job's searches, and the leaders being connected to."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ctx = job.ctx
        self._window_end = 0.0
        self._asked = 0
        self._turns = 0
        self._next_try_at = 0.0
        self._first_try_at: float | None = None
        self.ask_at = 0.0  #: at the earliest; see `asks_at`
        self.tries: dict[int, Advert] = {}  #: by link

    def begin(self, now: float) -> None:
        settings = self._ctx.settings
        self._window_end = now + self._ctx.stream.uniform(
            settings.search_min_s, settings.search_max_s
        )
        self._first_try_at = None
        self.ask_anew(now)
        self.try_adverts(now)

    def ask_anew(self, now: float) -> None:
        self._asked = 0
        self.ask_at = now + self._ctx.settings.query_after_s[0]

    # ------------------------------------------------------------ leaders that were heard

    def try_adverts(self, now: float) -> None:
        """Connect to the best advert whose turn it is; while that has not answered, to the next,
        so that no ghost stands before a live leader."""
        state = self._job.state
        if state not in (State.SEARCHING, State.CONNECTING) or not self._job.waiting():
            return
        if state is State.CONNECTING and now < self._next_try_at:
            return
        if self._may_lead(now) and state is State.CONNECTING:
            return  # no more of them: as a leader we look for the rest, too
        advert = self._next(now)
        if advert is None:
            return
        if state is State.SEARCHING:
            self._job.to(Trigger.CONNECT)
        self._try(advert, now)

    def _next(self, now: float) -> Advert | None:
        """Once we may lead, or somebody is being tried, one that has not failed yet only: the rest
        may be ghosts, and as a leader we go on to look for them."""
        fresh_only = bool(self.tries) or self._may_lead(now)
        under_way = {advert.claim for advert in self.tries.values()}
        due = [
            heard
            for heard in self._ctx.book.of(*self._job.labels)
            if heard.retry_at <= now
            and not (fresh_only and heard.failures)
            and heard.advert.claim not in under_way
        ]
        if not due:
            return None
        best = [
            h for h in due if (h.failures, not h.vouched) == (due[0].failures, not due[0].vouched)
        ]
        # The smallest claim wins a conflict, so that all who try it first meet; but whoever forges
        # claims can make small ones, so that each other time it is left to chance.
        first = min(best, key=lambda h: h.advert.claim) if self._turns % 2 == 0 else best[0]
        return first.advert

    def follow(self, advert: Advert, now: float) -> None:
        """Connect to the one that leads now: our leader said so, or we have yielded to it."""
        self._first_try_at = None
        self._try(advert, now)

    def _try(self, advert: Advert, now: float) -> None:
        if self._first_try_at is None:
            self._first_try_at = now
        self.tries[self._job.home.open(advert.label, advert.addresses, advert.port)] = advert
        self._turns += 1
        self._next_try_at = now + self._ctx.settings.try_stagger_s

    def others(self, advert: Advert) -> bool:
        """Another advert is there that nothing speaks against."""
        book = self._ctx.book.of(*self._job.labels)
        return any(not h.failures and h.advert.claim != advert.claim for h in book)

    def opened(self, link: int, local: Address, remote: str, now: float) -> None:
        """The first that answers is the one; we lock to one leader at a time."""
        advert = self.tries.pop(link)
        self.close()
        self._job.unreached.discard(advert.claim)
        self._job.to(Trigger.LOCK)
        self._job.pursuit = Pursuit(self._job, advert, link, local, remote, now)

    def failed(self, link: int, reason: str, now: float) -> None:
        advert = self.tries.pop(link)
        if len(self._job.unreached) < self._ctx.settings.adverts_per_label_max:
            self._job.unreached.add(advert.claim)
        self._ctx.book.failed(advert.label, advert.claim, now)
        self._ctx.do(actions.Doubt(label=advert.label, claim=advert.claim))
        if self.tries:
            self.try_adverts(now)
        else:
            self._job.lose_leader(f"{reason}, where a leader of this job was advertised", now)

    def close(self) -> None:
        """Nobody is being connected to any more."""
        for link in self.tries:
            self._ctx.do(actions.CloseLink(link=link))
        self.tries.clear()

    # ------------------------------------------------------------ time

    def tick(self, now: float) -> None:
        self.try_adverts(now)
        if self._may_lead(now) and now >= self._leads_at():
            self.close()
            self._job.start_claim(now)

    def _leads_at(self) -> float:
        """When we need not wait for those who are being tried any more: one connect attempt after
        the first, however many ghosts there are; at once where all of them are suspects."""
        if self._first_try_at is None or not self._tries_fresh():
            return self._window_end
        return max(self._window_end, self._first_try_at + self._ctx.settings.connect_s)

    def _tries_fresh(self) -> bool:
        """Is anybody being tried who may well answer?"""
        suspects = {h.advert.claim for h in self._ctx.book.of(*self._job.labels) if h.failures}
        return any(advert.claim not in suspects for advert in self.tries.values())

    def _may_lead(self, now: float) -> bool:
        return now >= self._window_end and any(s.can_lead for s in self._job.waiting())

    @property
    def asks_at(self) -> float:
        """When the network is asked next. Whoever is being connected to may well be the one, and
        is given a moment: where a thousand followers know their leader, none has to ask."""
        if self._job.state is State.CONNECTING and self._first_try_at is not None:
            return max(self.ask_at, self._first_try_at + self._ctx.settings.try_stagger_s)
        return self.ask_at

    def ask(self, now: float) -> None:
        """Ask the network again, if it is time."""
        if now < self.asks_at:
            return
        settings = self._ctx.settings
        # The first time so that a leader answers us alone; if nothing comes, the reply may have
        # gone to another responder on this host, so everybody is asked.
        for label in self._job.labels:
            ask = actions.Ask(label=label, unicast=self._asked == 0, peers=self._job.peers())
            self._ctx.do(ask)
        self._asked += 1
        after = settings.query_after_s
        if self._asked < len(after):
            pause = after[self._asked] - after[self._asked - 1]
        else:
            pause = settings.query_every_s
        self.ask_at = now + pause * self._ctx.stream.uniform(1.0, 1.0 + settings.query_jitter)

    def deadline(self) -> float | None:
        times: list[float] = []
        leads = any(s.can_lead for s in self._job.waiting())
        if leads:
            times.append(self._leads_at())
        if self._job.state is State.SEARCHING:
            times += [h.retry_at for h in self._ctx.book.of(*self._job.labels)]
        elif self._next(self._next_try_at) is not None and not (
            leads and self._next_try_at >= self._window_end
        ):
            times.append(self._next_try_at)
        return min(times, default=None)
