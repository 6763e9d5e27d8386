"""The plain form: a rank and no size, so there is no round to seal. Rank 0 is released after one
search window without a rival, and everybody else once it has joined."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mingled.core import actions, messages
from mingled.core.events import Address
from mingled.core.roster import plain_config
from mingled.core.words import Form, Nonce

if TYPE_CHECKING:
    from mingled.core.claim import Claim, Session
    from mingled.core.seat import Seat

LOOPBACK = Address(address="127.0.0.1", interface="lo")
"""Rank 0's address where all participants are on one node, and only there."""


class Plain:
    """Owned by a claim."""

    def __init__(self, claim: Claim, now: float) -> None:
        self._claim = claim
        self._ctx = claim.ctx
        self.port: int | None = None  #: once rank 0 is released
        self._open_at = now + self._ctx.settings.search_max_s
        self._proof: Nonce | None = None
        self._opening = False

    def leads(self, seat: Seat | None) -> bool:
        """Whether a claim with `seat` as rank 0 has nothing to seal."""
        return self.port is not None or (seat is not None and seat.join.form is Form.PLAIN)

    def consider(self, now: float) -> None:
        """Release rank 0 if it is time, and whoever else is here then."""
        if self.port is not None:
            self._release(now)
        elif now >= self._due and not self._opening:
            self._opening = True
            self._proof = self._ctx.stream.nonce()
            self._claim.job.open_proof(self._proof)

    def owns(self, proof: Nonce) -> bool:
        return self._opening and proof == self._proof

    def opened(self, port: int, now: float) -> None:
        """The port is ours."""
        assert self._proof is not None
        self._opening = False
        self.port = port
        self._ctx.ports[port] = self._claim.job.job
        self._ctx.do(actions.CloseProof(proof=self._proof, keep=True))
        self._release(now)
        for session in self._claim.sessions.values():
            self.admit(session)

    def failed(self, reason: str, now: float) -> None:
        self._opening = False
        self._open_at = now + self._ctx.settings.reseal_min_s
        self._claim.job.note(reason, now)

    def admit(self, session: Session) -> None:
        """Whoever has joined a released rank 0 is released by its port. Said again to those that
        were told over another link: it may have broken first."""
        plain = [e for e in session.entries if e.form is Form.PLAIN]
        if self.port is None or not (plain or session.plain):
            return
        claim = self._claim
        differences = claim.alike.from_us(session, plain)
        claim.released.update(e.participant for e in plain)
        session.plain += tuple(plain)
        session.entries = tuple(e for e in session.entries if e.form is not Form.PLAIN)
        admit = messages.Admit(claim=claim.nonce, master_port=self.port, differences=differences)
        self._ctx.send(session.link, admit)

    def _release(self, now: float) -> None:
        assert self.port is not None
        addresses = self._claim.job.home.addresses or (LOOPBACK,)
        # With several interfaces nobody knows yet by which one the others will come.
        single = len({a.interface for a in addresses}) == 1
        local = addresses[0] if single else None
        for seat in self._claim.job.waiting():
            if seat.join.form is Form.PLAIN and seat.join.rank is not None:
                config = plain_config(
                    job=self._claim.job.job,
                    claim=self._claim.nonce,
                    rank=seat.join.rank,
                    master_addr=addresses[0].address,
                    master_port=self.port,
                    local=local,
                    leader_host=self._ctx.host,
                )
                self._claim.job.release(seat, config, now)

    def deadline(self) -> float | None:
        seat = self._claim.leader_seat()
        if seat is None or seat.join.form is not Form.PLAIN or self.port is not None:
            return None
        return None if self._opening else self._due

    @property
    def _due(self) -> float:
        return max(self._open_at, self._claim.contests.until)

    def close(self) -> None:
        """The claim is over."""
        if self._proof is not None:
            if self._opening:
                self._ctx.do(actions.CloseProof(proof=self._proof, keep=False))
            elif self.port is not None:
                self._ctx.ports.pop(self.port, None)
                self._ctx.do(actions.FreePort(proof=self._proof))
        self._opening = False
