"""Looking for a leader: try what was heard, ask again while somebody waits, lead if nobody does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mingled.core import actions
from mingled.core.table import State

if TYPE_CHECKING:
    from mingled.core.job import Job


class Search:
    """The timers of one job's searches."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ctx = job.ctx
        self._window_end = 0.0
        self._asked = 0
        self.ask_at = 0.0

    def begin(self, now: float) -> None:
        settings = self._ctx.settings
        self._window_end = now + self._ctx.stream.uniform(
            settings.search_min_s, settings.search_max_s
        )
        self.ask_anew(now)
        self.try_adverts(now)

    def ask_anew(self, now: float) -> None:
        self._asked = 0
        self.ask_at = now + self._ctx.settings.query_after_s[0]

    def try_adverts(self, now: float) -> None:
        """Connect to the best advert whose turn it is. Once we may lead, to one that nobody has
        tried yet only: the rest may be ghosts, and as a leader we go on to look for them."""
        if self._job.state is not State.SEARCHING or not self._job.waiting():
            return
        may_lead = self._may_lead(now)
        for heard in self._ctx.book.of(self._job.label):
            if heard.retry_at <= now and not (may_lead and heard.failures):
                self._job.connect(heard.advert)
                return

    def tick(self, now: float) -> None:
        self.try_adverts(now)
        if self._job.state is State.SEARCHING and self._may_lead(now):
            self._job.start_claim(now)

    def _may_lead(self, now: float) -> bool:
        return now >= self._window_end and any(s.can_lead for s in self._job.waiting())

    def ask(self, now: float) -> None:
        """Ask the network again, if it is time."""
        if now < self.ask_at:
            return
        settings = self._ctx.settings
        # The first time so that a leader answers us alone; if nothing comes, the reply may have
        # gone to another responder on this host, so everybody is asked.
        self._ctx.do(actions.Ask(unicast=self._asked == 0))
        self._asked += 1
        after = settings.query_after_s
        if self._asked < len(after):
            pause = after[self._asked] - after[self._asked - 1]
        else:
            pause = settings.query_every_s
        self.ask_at = now + pause * self._ctx.stream.uniform(1.0, 1.0 + settings.query_jitter)

    def deadline(self) -> float | None:
        times: list[float] = []
        if any(s.can_lead for s in self._job.waiting()):
            times.append(self._window_end)
        times += [h.retry_at for h in self._ctx.book.of(self._job.label)]
        return min(times, default=None)
