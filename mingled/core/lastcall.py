"""Are those who are here enough, or is somebody still to be waited for?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mingled.core.messages import NAMES_SHOWN_MAX
from mingled.core.seat import Seat

if TYPE_CHECKING:
    from mingled.core.claim import Claim


class LastCall:
    """Owned by a seal."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._ctx = claim.ctx
        self._count = 0  #: of those that were here when the call began
        self._called: float | None = None  #: the end of the call, if nobody new comes
        self._until: float | None = None  #: when to look again

    def waits(self, count: int, seat: Seat, now: float) -> bool:
        """May anybody still come who should be in? `count`: of those who are here, enough."""
        rounds = self._claim.job.rounds
        newest = rounds.newest
        if newest is not None and newest.whole and newest.claim in self._claim.lineage:
            self.close()
            return True  # its rank 0 runs here; its end, a loss or a re-join will bring us back
        if self._called is None or self._count != count:
            pause_s = seat.join.last_call_s
            self._count = count
            self._called = now + (self._ctx.settings.last_call_s if pause_s is None else pause_s)
        self._until = self._called
        survivors, broken_at = rounds.survivors()
        if newest is not None and newest.broken_at is not None:
            grace_end = broken_at + seat.join.stop_grace_s + self._ctx.settings.rejoin_slack_s
            if now < grace_end and survivors:
                self._until = grace_end
                return True
            known = all(p.before is not None for p in self._claim.present())
            if now < grace_end and known:
                return False  # all are back
        return count < seat.join.size_max and now < self._called

    def note(self, now: float) -> str:
        """For those who wait: for whom."""
        survivors, _ = self._claim.job.rounds.survivors()
        names = [f"{m.host} ({m.address})" for m in survivors][:NAMES_SHOWN_MAX]
        who = ", ".join(dict.fromkeys(names))
        if survivors and self._claim.leader_seat() is None:
            return (
                f"a member of the round before was lost, and {who} has not joined again yet; if it "
                "hangs there, end it, or run it with --on-lost restart"
            )
        if self._until is None or now >= self._until or not survivors:
            return ""
        return (
            f"a member was lost; {who} may still join again, for {self._until - now:.0f} s at most"
        )

    def close(self) -> None:
        """Too few are here."""
        self._called = self._until = None

    def deadline(self) -> float | None:
        return self._until
