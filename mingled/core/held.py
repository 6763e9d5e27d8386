"""A sealed round that still runs: who of it is still there, told to whoever wants to know.

The leader's daemon is the hub: every other daemon of the round keeps its link to it and reports
the end of its own participants there; the hub tells all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from mingled.core import actions, local
from mingled.core.config import Member
from mingled.core.messages import NAMES_SHOWN_MAX, TEXT_CHARS_MAX, Ended, Gone, Running
from mingled.core.words import JobId, Nonce, ParticipantId

if TYPE_CHECKING:
    from mingled.core.context import Context
    from mingled.core.seat import Seat

Fate = Literal["running", "left", "lost", "unwatched"]


class Held:
    """One sealed round on one node. `hub` is the link to the leader's daemon, None there."""

    def __init__(
        self,
        ctx: Context,
        job: JobId,
        claim: Nonce,
        round_: int,
        members: tuple[Member, ...],
        *,
        master: tuple[str, int],
        hub: int | None,
        spokes: dict[int, str],
        proof: Nonce | None,
        now: float,
    ) -> None:
        self._ctx = ctx
        self.job = job
        self.claim = claim
        self.round = round_
        self.members = members
        self.master = master
        self.hub = hub
        self.spokes = spokes  #: at the hub: link to each other daemon, and its node id
        self.proof = proof  #: at the hub: names the port reservation
        self.since = now
        self.fates: dict[int, Fate] = dict.fromkeys((m.rank for m in members), "running")
        self._by_id = {m.participant: m for m in members}

    def links(self) -> tuple[int, ...]:
        return tuple(self.spokes) if self.hub is None else (self.hub, *self.spokes)

    def reattach(self, link: int, node: str) -> None:
        """At the hub: a daemon is back over another link, and watches again."""
        self.spokes[link] = node
        for member in self.members:
            if member.node == node and self.fates[member.rank] == "unwatched":
                self.fates[member.rank] = "running"

    def member(self, participant: ParticipantId) -> Member | None:
        return self._by_id.get(participant)

    @property
    def live(self) -> bool:
        return any(fate == "running" for fate in self.fates.values())

    def running(self, now: float) -> Running:
        """For those who come late."""
        here = [m.host for m in self.members if self.fates[m.rank] == "running"]
        return Running(
            round=self.round,
            since_s=now - self.since,
            hosts=tuple(dict.fromkeys(here))[:NAMES_SHOWN_MAX],
            size=len(self.members),
        )

    def seat_ended(
        self, participant: ParticipantId, left: bool, reason: str, seats: Iterable[Seat]
    ) -> None:
        """A local member is no more: tell the hub, or be it."""
        member = self.member(participant)
        if member is None or self.fates[member.rank] != "running":
            return
        if self.hub is not None:
            self._ctx.send(
                self.hub,
                Ended(
                    claim=self.claim,
                    round=self.round,
                    participant=participant,
                    left=left,
                    reason=reason,
                ),
            )
        self._note(member, "left" if left else "lost", reason, seats)

    def ended(self, link: int, message: Ended, seats: Iterable[Seat]) -> None:
        """At the hub: another daemon reports one of its own participants. Its own only."""
        member = self.member(message.participant)
        if member is not None and self.spokes.get(link) == member.node:
            self._note(member, "left" if message.left else "lost", _cut(message.reason), seats)

    def gone(self, message: Gone, seats: Iterable[Seat]) -> None:
        """From the hub."""
        if message.rank in self.fates:
            member = self.members[message.rank]
            self._note(member, "left" if message.left else "lost", _cut(message.reason), seats)

    def link_closed(self, link: int, reason: str, seats: Iterable[Seat]) -> None:
        """A daemon of the round is gone. Its participants may well go on: unwatched, not lost."""
        if link == self.hub:
            self.hub = None
            node = self.members[0].node
        elif link in self.spokes:
            node = self.spokes.pop(link)
        else:
            return
        for member in self.members:
            if member.node == node:
                self._note(member, "unwatched", reason, seats)

    def _note(self, member: Member, fate: Fate, reason: str, seats: Iterable[Seat]) -> None:
        known = self.fates[member.rank]
        if known == fate or known in ("left", "lost") or fate == "running":
            return
        self.fates[member.rank] = fate
        if fate != "unwatched":
            gone = Gone(
                claim=self.claim,
                round=self.round,
                rank=member.rank,
                left=fate == "left",
                reason=reason,
            )
            for link, node in self.spokes.items():
                if node != member.node:
                    self._ctx.send(link, gone)
        word = local.Gone(
            job=self.job,
            round=self.round,
            rank=member.rank,
            host=member.host,
            address=member.address,
            how=fate,
            reason=reason,
        )
        for seat in seats:
            mine = self.member(seat.participant)
            if mine is not None and mine is not member and seat.connected:
                self._ctx.do(actions.Tell(participant=seat.participant, message=word))

    def report(self, now: float) -> local.Round:
        return local.Round(
            round=self.round,
            since_s=now - self.since,
            master_addr=self.master[0],
            master_port=self.master[1],
            members=tuple(
                local.RoundMember(
                    rank=m.rank,
                    host=m.host,
                    address=m.address,
                    nproc=m.nproc,
                    state=self.fates[m.rank],
                )
                for m in self.members
            ),
        )


def _cut(text: str) -> str:
    return text[:TEXT_CHARS_MAX]
