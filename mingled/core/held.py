"""A sealed round that still runs: who of it is still there, told to whoever wants to know.

The leader's daemon is the hub: every other daemon of the round keeps a link to it and reports the
end of its own participants there; the hub tells all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from mingled.core import actions, local, messages
from mingled.core.config import Member
from mingled.core.messages import (
    NAMES_SHOWN_MAX,
    TEXT_CHARS_MAX,
    Ended,
    Fate,
    Gone,
    Running,
    Waiting,
)
from mingled.core.words import JobId, Nonce, ParticipantId, distinct

STAYING: tuple[Fate, ...] = ("running", "finished")
"""Fates of those whose process is there and watched."""

ENDED: tuple[Fate, ...] = ("left", "lost")

End = Literal["finished", "left", "lost"]
"""What a daemon can report of its own."""

if TYPE_CHECKING:
    from mingled.core.context import Context
    from mingled.core.seat import Seat
    from mingled.core.watch import RoundKey


class Held:
    """One sealed round on one node. Its roster never changes; what becomes of its members does."""

    def __init__(
        self,
        ctx: Context,
        job: JobId,
        claim: Nonce,
        round_: int,
        members: tuple[Member, ...],
        *,
        master: tuple[str, int],
        leads: bool,
        links: Mapping[str, int],
        proof: Nonce | None,
        now: float,
        size: int | None = None,
    ) -> None:
        """`size`: of the whole roster, where `members` may be a part of it."""
        self._ctx = ctx
        self.job = job
        self.claim = claim
        self.round = round_
        self.members = {m.rank: m for m in members}
        self.size = len(self.members) if size is None else size
        self.master = master
        self.leads = leads  #: we are the hub
        self.links = dict(links)  #: by node: at the hub every other one, elsewhere the hub alone
        self.proof = proof  #: at the hub: names the port reservation
        self.since = now
        self.broken_at: float | None = None  #: a member was lost, or one of ours joined again
        self.fates: dict[int, Fate] = dict.fromkeys(self.members, "running")
        self.returning: set[int] = set()  #: ranks of those that join anew, as their daemons say
        self.home = {m.rank: m.node for m in members}  #: the node that speaks for it, by rank
        self._by_id = {m.participant: m for m in self.members.values()}
        self.unsaid: list[Ended] = []  #: ends of our own while there was no link to the hub
        self.unsaid_since = now
        self._waiting = 0  #: for the next round, as told last

    @property
    def key(self) -> RoundKey:
        return self.claim, self.round

    @property
    def hub(self) -> int | None:
        """The link to the leader's daemon; None at the hub, and while there is none."""
        return None if self.leads else self.links.get(self.home[0])

    def learn(self, members: Iterable[Member]) -> None:
        """Of a roster that was handed down in part: the rest, while there is any."""
        for member in members:
            new = 0 <= member.rank < self.size and member.rank not in self.members
            if new and member.participant not in self._by_id:
                self.members[member.rank] = member
                self._by_id[member.participant] = member
                self.fates[member.rank] = "running"
                self.home[member.rank] = member.node
        self.members = dict(sorted(self.members.items()))

    def member(self, participant: str) -> Member | None:
        return self._by_id.get(participant)

    @property
    def live(self) -> bool:
        return any(fate in STAYING for fate in self.fates.values())

    @property
    def working(self) -> bool:
        """Somebody's work is not done yet, as far as is known."""
        return any(fate in ("running", "unwatched") for fate in self.fates.values())

    @property
    def whole(self) -> bool:
        """It runs, and nothing has come between: whoever comes late waits for its end."""
        return self.broken_at is None and self.fates[0] in STAYING

    def running(self, now: float) -> Running:
        """For those who come late."""
        here = [m for m in self.members.values() if self.fates[m.rank] in STAYING]
        return Running(
            round=self.round,
            since_s=now - self.since,
            hosts=distinct((m.host, m.address) for m in here)[:NAMES_SHOWN_MAX],
            size=self.size,
        )

    def needs(self, link: int) -> bool:
        """Is there still anybody at its other end?"""
        nodes = {node for node, of in self.links.items() if of == link}
        return any(
            self.home[rank] in nodes and fate in (*STAYING, "unwatched")
            for rank, fate in self.fates.items()
        )

    def survivors(self, waiting: Iterable[tuple[str, str]]) -> list[Member]:
        """Members that may still join again. `waiting`: those that do already, by node and
        address; a daemon that was started anew is another node at the same address."""
        expected = [
            m
            for rank, m in self.members.items()
            if self.fates[rank] in ("running", "unwatched") or rank in self.returning
        ]
        homes = {self.home[m.rank] for m in expected}
        places = list(waiting)
        by_node = Counter(node for node, _ in places if node in homes)
        by_address = Counter(address for node, address in places if node not in homes)
        found = []
        for member in expected:
            home = self.home[member.rank]
            if by_node[home] > 0:
                by_node[home] -= 1
            elif by_address[member.address] > 0:
                by_address[member.address] -= 1
            else:
                found.append(member)
        return found

    # ------------------------------------------------------------ what becomes of its members

    def seat_ended(
        self,
        participant: ParticipantId,
        left: bool,
        reason: str,
        seats: Iterable[Seat],
        now: float,
        *,
        again: bool,
        closes: bool = False,
    ) -> None:
        """A local member is no more: tell the hub, or be it."""
        member = self.member(participant)
        if member is None or self.fates[member.rank] in ENDED:
            return
        if again:
            self._returns(member.rank, now)
        how: End = "left" if left else "lost"
        self._said(member, how, reason, seats, now, again=again, closes=closes)

    def finished(self, participant: ParticipantId, seats: Iterable[Seat], now: float) -> None:
        """A local member's work is done, and it stays."""
        member = self.member(participant)
        if member is not None and self.fates[member.rank] in ("running", "unwatched"):
            self._said(member, "finished", "its work is done", seats, now)

    def _said(
        self,
        member: Member,
        how: End,
        reason: str,
        seats: Iterable[Seat],
        now: float,
        *,
        again: bool = False,
        closes: bool = False,
    ) -> None:
        if not self.leads:
            ended = Ended(
                claim=self.claim,
                round=self.round,
                participant=ParticipantId(member.participant),
                how=how,
                reason=reason,
                again=again,
                closes=closes,
            )
            if self.hub is not None:
                self._ctx.send(self.hub, ended)
            else:
                self.unsaid.append(ended)
                self.unsaid_since = now
        self.note(member.rank, how, reason, seats, now)

    def ended(self, link: int, message: Ended, seats: Iterable[Seat], now: float) -> bool:
        """At the hub: another daemon reports one of its own participants. False: not its own."""
        member = self.member(message.participant)
        if not self.leads or member is None or self.links.get(self.home[member.rank]) != link:
            return False
        if message.again:
            self.returning.add(member.rank)
        self.note(member.rank, message.how, _cut(message.reason), seats, now)
        return True

    def gone(self, message: Gone, seats: Iterable[Seat], now: float) -> None:
        """From the hub."""
        if message.again and message.rank in self.members:
            self.returning.add(message.rank)
        self.note(message.rank, message.how, _cut(message.reason), seats, now, message.ago_s)

    def link_closed(
        self, link: int, fate: Fate, reason: str, ago_s: float, seats: Iterable[Seat], now: float
    ) -> None:
        """The link to a daemon of the round is no more."""
        for node, of in list(self.links.items()):
            if of == link:
                del self.links[node]
                self.node_gone(node, fate, reason, ago_s, seats, now)

    def node_gone(
        self, node: str, fate: Fate, reason: str, ago_s: float, seats: Iterable[Seat], now: float
    ) -> None:
        """With its daemon a node's participants may well go on: unwatched; without its host not."""
        for rank, home in self.home.items():
            if home == node:
                self.note(rank, fate, reason, seats, now, ago_s)

    def note(
        self,
        rank: int,
        fate: Fate,
        reason: str,
        seats: Iterable[Seat],
        now: float,
        ago_s: float = 0.0,
    ) -> None:
        """Once left or lost, always so; and nothing that was finished is lost."""
        known = self.fates.get(rank)
        if known is None or known == fate or known in ENDED:
            return
        if known == "finished":
            if fate not in ENDED:
                return
            fate = "left"
        self.fates[rank] = fate
        if fate == "lost":
            self.broken(now)
        member = self.members[rank]
        if self.leads:
            gone = Gone(
                claim=self.claim,
                round=self.round,
                rank=rank,
                how=fate,
                reason=reason,
                ago_s=ago_s,
                again=rank in self.returning,
            )
            for node, link in self.links.items():
                if node != self.home[rank]:
                    self._ctx.send(link, gone)
        word = self.word(member, fate, reason, ago_s)
        for seat in seats:
            mine = self.member(seat.participant)
            if mine is not None and mine is not member and seat.connected:
                self._ctx.do(actions.Tell(participant=seat.participant, message=word))

    def word(self, member: Member, fate: Fate, reason: str, ago_s: float = 0.0) -> local.Gone:
        """For a client of the round."""
        return local.Gone(
            job=self.job,
            round=self.round,
            rank=member.rank,
            host=member.host,
            address=member.address,
            how=fate,
            reason=reason,
            ago_s=ago_s,
            again=member.rank in self.returning,
        )

    def say_waiting(self, link: int) -> None:
        """At the hub, to one daemon."""
        waiting = Waiting(claim=self.claim, round=self.round, count=self._waiting)
        self._ctx.send(link, waiting)

    def disown(self, reason: str, seats: Iterable[Seat], now: float) -> None:
        """The others go on without this node's members: each is told that of itself."""
        for seat in seats:
            member = self.member(seat.participant)
            if member is not None and self.fates[member.rank] not in (*ENDED, "finished"):
                self.fates[member.rank] = "lost"
                self.broken(now)
                word = self.word(member, "lost", reason)
                self._ctx.do(actions.Tell(participant=seat.participant, message=word))

    def tell_waiting(self, count: int, seats: Iterable[Seat]) -> None:
        """So many wait for the next round: the hub says so to all, the others to their own."""
        if count == self._waiting:
            return
        self._waiting = count
        if self.leads:
            for link in self.links.values():
                self.say_waiting(link)
        told = local.Waiting(job=self.job, round=self.round, count=count)
        for seat in seats:
            if self.member(seat.participant) is not None and seat.connected:
                self._ctx.do(actions.Tell(participant=seat.participant, message=told))

    def _returns(self, rank: int, now: float) -> None:
        """One of our own joins anew, so that the round is over for this node."""
        self.returning.add(rank)
        self.broken(now)

    def broken(self, now: float) -> None:
        """It cannot end as it began: its survivors are expected to join again."""
        if self.broken_at is None:
            self.broken_at = now

    # ------------------------------------------------------------ a daemon comes back

    def attach(
        self, link: int, node: str, members: Iterable[Member], seats: Iterable[Seat], now: float
    ) -> set[str]:
        """At the hub: this daemon watches these members from now on. The nodes that it replaces."""
        members = tuple(members)
        self.learn(members)
        replaced = set()
        self.links[node] = link
        for stated in members:
            member = self.member(stated.participant)
            if member is not None and self.fates[member.rank] not in ENDED:
                replaced.add(self.home[member.rank])
                self.home[member.rank] = node
                self.note(member.rank, "running", "its daemon is back", seats, now)
        return replaced - {node}

    def attached(
        self, link: int, message: messages.Attached, seats: Iterable[Seat], now: float
    ) -> None:
        """The hub has us again, and says what has happened meanwhile."""
        old, node = self.home[0], message.node
        self.links.pop(old, None)
        self.links[node] = link
        self.learn(message.members)
        for rank, home in self.home.items():
            if home == old:
                self.home[rank] = node
        self.returning |= {rank for rank in message.returning if rank in self.members}
        seats = tuple(seats)
        for member, fate in zip(message.members, message.fates, strict=False):
            if self.home.get(member.rank) != self._ctx.node:
                self.note(member.rank, fate, "said by rank 0's daemon", seats, now)
            elif fate == "lost":
                ours = [s for s in seats if s.participant == member.participant]
                self.disown("rank 0's daemon did not hear of it for a while", ours, now)
        self.tell_waiting(0, seats)  # it says so if anybody does
        for ended in self.unsaid:
            self._ctx.send(link, ended)
        self.unsaid.clear()

    def of_node(self, node: str) -> tuple[Member, ...]:
        return tuple(m for m in self.members.values() if self.home[m.rank] == node)

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
                for m in self.members.values()
            ),
        )


def _cut(text: str) -> str:
    return text[:TEXT_CHARS_MAX]
