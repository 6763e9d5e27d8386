"""The seal of a round, in two phases: PREPARE with a proof of the path, all ACK, COMMIT.

One NACK or silence is ABORT for all, the culprit is named, and gathering goes on. The plain form
has no round to seal: rank 0 is let go after one search window without a rival.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from mingled.core import actions, messages
from mingled.core.config import Member
from mingled.core.events import Address
from mingled.core.held import Held
from mingled.core.roster import Present, choose, config_of, members_of, plain_config
from mingled.core.seat import Seat
from mingled.core.table import State, Trigger
from mingled.core.words import Form, NodeId, Nonce, ParticipantId

if TYPE_CHECKING:
    from mingled.core.claim import Claim, Session

LOOPBACK = Address(address="127.0.0.1", interface="lo")
"""Rank 0's address where all participants are on one node, and only there."""


class _Attempt(msgspec.Struct, kw_only=True):
    """One try to seal a round. Mutable."""

    round: int
    proof: Nonce
    leader: ParticipantId
    chosen: tuple[Present, ...]
    master: Address
    port: int = 0
    members: tuple[Member, ...] = ()
    links: dict[NodeId, int]  #: every other node of the round
    unacked: set[NodeId]
    until: float


class Seal:
    """Owned by a claim: counts its rounds and makes the next one."""

    def __init__(self, claim: Claim, now: float) -> None:
        self._claim = claim
        self._ctx = claim.ctx
        self.round = 0  #: the last that was sealed
        self.attempt: _Attempt | None = None
        self.open_port: int | None = None  #: plain form, once rank 0 is released
        self._open_at = now + self._ctx.settings.search_max_s
        self._open_proof: Nonce | None = None
        self._opening = False
        self._sealed: dict[Nonce, tuple[int, frozenset[NodeId]]] = {}  #: by proof
        self._failures = 0
        self._reseal_at = 0.0
        self._last_call: tuple[int, float] | None = None  #: count, and until when
        self._address_failures: Counter[str] = Counter()

    # ------------------------------------------------------------ when to seal

    def consider(self, now: float) -> None:
        """Somebody came, or time went on: seal if everybody is here."""
        job = self._claim.job
        if now >= self._reseal_at:
            self._reseal_at = 0.0
        if job.state is not State.LEADING:
            return
        if self.open_port is not None:
            self._release_plain(now)
        seat = self._claim.leader_seat()
        if seat is None:
            return
        if seat.join.form is Form.PLAIN:
            self._consider_plain(now)
            return
        present = self._claim.present()
        chosen = choose(present, seat.participant, seat.join.size_min, seat.join.size_max)
        if chosen is None:
            self._last_call = None
            return
        if self._reseal_at or self._last_call_is_open(len(chosen), seat, now):
            return
        self._start(seat, chosen, now)

    def _last_call_is_open(self, count: int, seat: Seat, now: float) -> bool:
        if count >= seat.join.size_max:
            return False
        if self._last_call is None or self._last_call[0] != count:
            self._last_call = (count, now + self._ctx.settings.last_call_s)
        return now < self._last_call[1]

    def _start(self, seat: Seat, chosen: tuple[Present, ...], now: float) -> None:
        nodes = {p.node for p in chosen if p.node != self._ctx.node}
        links = {s.card.node: s.link for s in self._claim.sessions.values() if s.card.node in nodes}
        self.attempt = _Attempt(
            round=self.round + 1,
            proof=self._ctx.stream.nonce(),
            leader=seat.participant,
            chosen=chosen,
            master=self._master([self._claim.sessions[link] for link in links.values()]),
            links=links,
            unacked=set(links),
            until=now + self._ctx.settings.prepare_timeout_s,
        )
        self._claim.job.to(Trigger.PREPARE)
        self._open_port(self.attempt.proof)

    def _master(self, sessions: list[Session]) -> Address:
        """The address of ours that most followers have reached; after a NACK another one."""
        reached = Counter(s.local for s in sessions)
        if not reached:
            return LOOPBACK
        return min(reached, key=lambda a: (self._address_failures[a.address], -reached[a]))

    def _open_port(self, proof: Nonce) -> None:
        settings, label = self._ctx.settings, self._claim.job.label
        base, count = settings.port_first, settings.port_count
        self._ctx.do(
            actions.OpenProof(
                job=self._claim.job.job,
                proof=proof,
                first=base + sum(label.encode()) * 7919 % count,
                base=base,
                count=count,
                avoid=frozenset(self._ctx.ports),
            )
        )

    # ------------------------------------------------------------ phase one

    def proof_opened(self, proof: Nonce, port: int, now: float) -> None:
        if self._opening and proof == self._open_proof:
            self._opened_plain(port, now)
            return
        attempt = self.attempt
        if attempt is None or attempt.proof != proof or attempt.port:
            self._ctx.do(actions.CloseProof(proof=proof, keep=False))
            return
        attempt.port = port
        chosen = [
            msgspec.structs.replace(p, address=attempt.master.address)
            if p.node == self._ctx.node
            else p
            for p in attempt.chosen
        ]
        attempt.members = members_of(chosen, attempt.leader)
        for link in attempt.links.values():
            self._ctx.send(
                link,
                messages.Prepare(
                    claim=self._claim.nonce,
                    round=attempt.round,
                    proof=proof,
                    master_addr=attempt.master.address,
                    master_port=port,
                    members=attempt.members,
                ),
            )
        if not attempt.unacked:
            self._commit(now)

    def proof_failed(self, proof: Nonce, reason: str, now: float) -> None:
        """No port: nothing is sealed, and everybody is told why."""
        if self._opening and proof == self._open_proof:
            self._opening = False
            self._open_at = now + self._ctx.settings.reseal_min_s
            self._claim.job.note(reason, now)
        elif self.attempt is not None and self.attempt.proof == proof:
            self._abort(f"{self._ctx.host}: {reason}", now, backoff=True)

    def acked(self, session: Session, proof: Nonce, now: float) -> None:
        attempt = self.attempt
        if attempt is not None and attempt.port and attempt.proof == proof:
            attempt.unacked.discard(session.card.node)
            if not attempt.unacked:
                self._commit(now)

    def nacked(self, session: Session, proof: Nonce, reason: str, now: float) -> None:
        attempt = self.attempt
        if attempt is not None and attempt.proof == proof and session.card.node in attempt.links:
            self._address_failures[attempt.master.address] += 1
            self._abort(reason[: messages.TEXT_CHARS_MAX], now, backoff=True)

    def session_lost(self, session: Session, reason: str, now: float) -> None:
        """A round with a node that may be dead would hang in its first collective, and before
        COMMIT an ABORT is always safe: a node that has acknowledged comes back and asks."""
        attempt = self.attempt
        if attempt is not None and attempt.links.get(session.card.node) == session.link:
            self._abort(f"{session.card.host} ({session.remote_address}): {reason}", now)

    def entries_changed(self, session: Session, now: float) -> None:
        """A Join came in: does the attempt still hold?"""
        attempt = self.attempt
        if attempt is None:
            return
        here = {e.participant for e in session.entries}
        chosen = {p.entry.participant for p in attempt.chosen if p.node == session.card.node}
        if not chosen <= here:
            self._abort(f"a participant on {session.card.host} has just ended", now)

    def local_ended(self, participant: ParticipantId, now: float) -> None:
        """A seat of our own ended while an attempt is under way."""
        attempt = self.attempt
        if attempt is not None and any(p.entry.participant == participant for p in attempt.chosen):
            self._abort(f"a participant on {self._ctx.host} has just ended", now)

    def asked_for_outcome(self, session: Session, proof: Nonce, now: float) -> None:
        """A follower acknowledged, lost its link, and is back. The loss ended the attempt, if it
        was not sealed before."""
        claim, node = self._claim, session.card.node
        round_, nodes = self._sealed.get(proof, (0, frozenset()))
        if node in nodes:
            commit = messages.Commit(claim=claim.nonce, round=round_, proof=proof)
            self._ctx.send(session.link, commit)
            claim.job.rounds.reattach(claim.nonce, round_, session.link, node, now)
        else:
            abort = messages.Abort(
                claim=claim.nonce,
                round=self.round + 1,
                proof=proof,
                reason="the link broke before the round was sealed",
            )
            self._ctx.send(session.link, abort)

    def _abort(self, reason: str, now: float, *, backoff: bool = False) -> None:
        attempt, job, settings = self.attempt, self._claim.job, self._ctx.settings
        assert attempt is not None
        self.attempt = None
        job.to(Trigger.ABORT)
        self._ctx.do(actions.CloseProof(proof=attempt.proof, keep=False))
        if attempt.port:
            for link in attempt.links.values():
                abort = messages.Abort(
                    claim=self._claim.nonce,
                    round=attempt.round,
                    proof=attempt.proof,
                    reason=reason,
                )
                self._ctx.send(link, abort)
        if backoff:
            pause = settings.reseal_min_s * 2.0 ** min(self._failures, 10)
            self._failures += 1
            self._reseal_at = now + min(pause, settings.reseal_max_s)
        job.note(reason, now)
        job.settle(now)

    # ------------------------------------------------------------ phase two

    def _commit(self, now: float) -> None:
        attempt, claim, job = self.attempt, self._claim, self._claim.job
        assert attempt is not None
        self.attempt, self.round = None, attempt.round
        self._failures, self._last_call = 0, None
        self._sealed[attempt.proof] = (attempt.round, frozenset(attempt.links))
        if len(self._sealed) > 8:  # nobody is unsure of an older round for so long
            del self._sealed[next(iter(self._sealed))]
        job.to(Trigger.COMMIT)
        # The store's place must be free before rank 0 starts to listen there.
        self._ctx.do(actions.CloseProof(proof=attempt.proof, keep=True))
        self._ctx.ports[attempt.port] = job.job
        participants = {p.entry.participant for p in attempt.chosen}
        claim.released |= participants
        for session in claim.sessions.values():
            session.entries = tuple(e for e in session.entries if e.participant not in participants)
        held = Held(
            self._ctx,
            job.job,
            claim.nonce,
            attempt.round,
            attempt.members,
            master=(attempt.master.address, attempt.port),
            hub=None,
            spokes={link: n for n, link in attempt.links.items() if link in claim.sessions},
            proof=attempt.proof,
            now=now,
        )
        job.rounds.add(held, now)
        self._release_local(held.members[0], attempt, now)  # rank 0 first: a client that knocks
        commit = messages.Commit(claim=claim.nonce, round=attempt.round, proof=attempt.proof)
        for link in attempt.links.values():  # before the store listens backs off for 0.4 s
            self._ctx.send(link, commit)
        for member in held.members[1:]:
            self._release_local(member, attempt, now)
        job.note("", now)
        job.settle(now)

    def _release_local(self, member: Member, attempt: _Attempt, now: float) -> None:
        job = self._claim.job
        seat = job.seats.get(ParticipantId(member.participant))
        if seat is None or member.node != self._ctx.node:
            return
        config = config_of(
            member,
            attempt.members,
            job=job.job,
            form=seat.join.form,
            round_=attempt.round,
            claim=self._claim.nonce,
            master_addr=attempt.master.address,
            master_port=attempt.port,
            local=attempt.master,
        )
        job.release(seat, config, now)

    # ------------------------------------------------------------ the plain form

    def _consider_plain(self, now: float) -> None:
        if now >= self._open_at and not self._opening and not self._claim.contests.open:
            self._opening = True
            self._open_proof = self._ctx.stream.nonce()
            self._open_port(self._open_proof)

    def _opened_plain(self, port: int, now: float) -> None:
        assert self._open_proof is not None
        self._opening = False
        self.open_port = port
        self._ctx.ports[port] = self._claim.job.job
        self._ctx.do(actions.CloseProof(proof=self._open_proof, keep=True))
        self._release_plain(now)
        self._claim.admit_plain_all()

    def _release_plain(self, now: float) -> None:
        assert self.open_port is not None
        addresses = self._ctx.addresses or (LOOPBACK,)
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
                    master_port=self.open_port,
                    local=local,
                    leader_host=self._ctx.host,
                )
                self._claim.job.release(seat, config, now)

    # ------------------------------------------------------------ time, and the end

    def tick(self, now: float) -> None:
        attempt = self.attempt
        if attempt is not None and now >= attempt.until:
            self._abort(self._silent(attempt), now, backoff=True)
        else:
            self.consider(now)

    def _silent(self, attempt: _Attempt) -> str:
        hosts = sorted({p.host for p in attempt.chosen if p.node in attempt.unacked})
        timeout_s = self._ctx.settings.prepare_timeout_s
        if not attempt.port:
            return f"{self._ctx.host}: no port could be opened within {timeout_s:g} s"
        return f"no answer to PREPARE within {timeout_s:g} s from {', '.join(hosts)}"

    def deadline(self) -> float | None:
        if self.attempt is not None:
            return self.attempt.until
        seat = self._claim.leader_seat()
        if self._claim.job.state is not State.LEADING or seat is None:
            return None
        if seat.join.form is Form.PLAIN:
            if self._opening or self._claim.contests.open:
                return None
            return self._open_at
        if self._reseal_at:
            return self._reseal_at
        return self._last_call[1] if self._last_call else None

    def close(self) -> None:
        """The claim is over, and nothing is between PREPARE and its outcome."""
        if self._opening and self._open_proof is not None:
            self._ctx.do(actions.CloseProof(proof=self._open_proof, keep=False))
        if self.open_port is not None and self._open_proof is not None:
            self._ctx.ports.pop(self.open_port, None)
            self._ctx.do(actions.FreePort(proof=self._open_proof))
        self._opening = False
