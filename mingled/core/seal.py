"""The seal of a round, in two phases: PREPARE with a proof of the paths, all ACK, COMMIT.

One NACK or silence is ABORT for all, the culprit is named, and gathering goes on.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from mingled.core import actions, local, messages
from mingled.core.config import Member
from mingled.core.events import PathProven, PathRefuted
from mingled.core.held import Held
from mingled.core.lastcall import LastCall
from mingled.core.paths import Paths
from mingled.core.plain import LOOPBACK
from mingled.core.reach import scoped
from mingled.core.roster import Present, choose, config_of, members_of
from mingled.core.seat import Seat
from mingled.core.settings import doubled_s
from mingled.core.survey import Choice
from mingled.core.table import State, Trigger
from mingled.core.words import NodeId, Nonce, ParticipantId

if TYPE_CHECKING:
    from mingled.core.claim import Claim, Session


def _rank(present: Present) -> int:
    return -1 if present.entry.rank is None else present.entry.rank


def _several(choice: Choice) -> str:
    """Why a store that is to listen on one address cannot be."""
    addresses = sorted({a.address for a in (choice.master, *choice.own.values())})
    return (
        f"rank 0's store is to listen on one address (store_interface_only), and no address of its "
        f"node is reached by everybody: they came by {', '.join(addresses)}. Name a subnet that "
        "all share (--subnet), or leave store_interface_only out"
    )


class _Attempt(msgspec.Struct, kw_only=True):
    """One try to seal a round. Mutable."""

    round: int
    proof: Nonce
    leader: ParticipantId
    chosen: tuple[Present, ...]
    choice: Choice  #: of rank 0's address
    store: bool  #: rank 0's client opens the port itself
    differences: tuple[str, ...]  #: between the members' software
    port: int = 0
    members: tuple[Member, ...] = ()
    links: dict[NodeId, int]  #: every other node of the round
    unacked: set[NodeId]
    paths: Paths  #: that this node proves itself
    timeout_s: float
    until: float


class Seal:
    """Owned by a claim: counts its rounds and makes the next one."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._ctx = claim.ctx
        self.last_call = LastCall(claim)
        newest = claim.job.rounds.newest
        self.round = newest.round if newest is not None else 0  #: the last that was sealed
        self.attempt: _Attempt | None = None
        self._sealed: dict[Nonce, tuple[int, frozenset[NodeId]]] = {}  #: by proof
        self._failures = 0
        self._silences = 0  #: attempts in a row that ended because somebody said nothing
        self._reseal_at = 0.0
        self._address_failures: Counter[str] = Counter()

    # ------------------------------------------------------------ when to seal

    def consider(self, seat: Seat, now: float) -> None:
        """Somebody came, or time went on: seal if everybody is here. `seat`: who gets rank 0."""
        if now >= self._reseal_at:
            self._reseal_at = 0.0
        if not self._reseal_at:
            self._claim.survey.ask(now)
        chosen = choose(
            self._claim.present(), seat.participant, seat.join.size_min, seat.join.size_max
        )
        if chosen is None:
            self.last_call.close()
            self._note_gap(seat, now)
        elif not self._reseal_at and not self.last_call.waits(len(chosen), seat, now):
            self._start(seat, chosen, now)

    def _sessions(self, chosen: tuple[Present, ...]) -> list[Session]:
        """Of every other node of the round."""
        nodes = {p.node for p in chosen if p.node != self._ctx.node}
        return [s for s in self._claim.sessions.values() if s.card.node in nodes]

    def _note_gap(self, seat: Seat, now: float) -> None:
        """Enough are here, and yet a rank that was asked for would leave a gap."""
        present = self._claim.present()
        high = max((p for p in present if p.entry.rank is not None), default=None, key=_rank)
        count = min(len(present), seat.join.size_max)
        if high is not None and seat.join.size_min <= count <= _rank(high):
            who = f"{high.host} ({high.address or self._claim.job.home.first_address()})"
            text = f"rank {_rank(high)}, asked for by {who}, needs {_rank(high) + 1} to be here"
            self._claim.job.note(text, now)

    def _start(self, seat: Seat, chosen: tuple[Present, ...], now: float) -> None:
        sessions, survey = self._sessions(chosen), self._claim.survey
        settings = self._ctx.settings
        if survey.waits(sessions, now):
            return
        if sessions:
            fits = survey.choose(sessions, self._address_failures)
            if fits is None:
                self._shut_out(sessions, now)
                return
            if fits.own and seat.join.store_interface_only:
                self._put_off(_several(fits), now)
                return
            choice = fits
        else:
            choice = Choice(master=LOOPBACK)
        home, links = self._claim.job.home, {s.card.node: s.link for s in sessions}
        first_s, most_s = settings.prepare_timeout_s, settings.prepare_timeout_max_s
        timeout_s = doubled_s(first_s, self._silences, most_s)
        attempt = self.attempt = _Attempt(
            round=self.round + 1,
            proof=self._ctx.stream.nonce(),
            leader=seat.participant,
            chosen=chosen,
            choice=choice,
            store=seat.join.store,
            differences=self._claim.alike.between(chosen),
            links=links,
            unacked=set(links),
            paths=Paths(self._claim.job.job, home, self._ctx.node, choice.master.interface),
            timeout_s=timeout_s,
            until=now + timeout_s,
        )
        self._claim.job.to(Trigger.PREPARE)
        if attempt.store:
            address = scoped(choice.master.address, choice.master.interface)
            ask = local.OpenStore(proof=attempt.proof, address=address)
            self._ctx.do(actions.Tell(participant=seat.participant, message=ask))
        else:
            self._claim.job.open_proof(attempt.proof)

    def _shut_out(self, sessions: list[Session], now: float) -> None:
        who = ", ".join(s.there for s in self._claim.survey.shut_out(sessions)[:8])
        allowed = self._claim.job.home.listening_on()
        self._put_off(f"{who} cannot reach what --interface or --subnet leave: {allowed}", now)

    def _put_off(self, reason: str, now: float) -> None:
        """The network does not allow this round; it may later."""
        self._reseal_at = now + self._ctx.settings.reseal_max_s
        self._claim.survey.ask_again()
        self._claim.job.note(reason, now)

    # ------------------------------------------------------------ phase one

    def owns(self, participant: ParticipantId, proof: Nonce) -> bool:
        """Is this the client that was asked to open the store for the attempt under way?"""
        attempt = self.attempt
        return (
            attempt is not None
            and attempt.store
            and (attempt.leader, attempt.proof) == (participant, proof)
        )

    def port_opened(self, proof: Nonce, port: int, now: float) -> None:
        """Rank 0's port listens: PREPARE."""
        attempt = self.attempt
        if attempt is None or attempt.proof != proof or attempt.port:
            self._ctx.do(actions.CloseProof(proof=proof, keep=False))
            return
        attempt.port = port
        choice, sessions = attempt.choice, self._sessions(attempt.chosen)
        addresses = {
            s.card.node: self._claim.survey.address_of(s, choice.of(s.card.node)) for s in sessions
        }
        addresses[self._ctx.node] = choice.master.address
        chosen = [
            msgspec.structs.replace(p, address=addresses.get(p.node, p.address))
            for p in attempt.chosen
        ]
        attempt.members = members_of(chosen, attempt.leader)
        cards = {s.card.node: s.card for s in self._claim.sessions.values()}
        ring_ports = tuple(
            cards[NodeId(m.node)].ring_port if m.node in attempt.links else self._ctx.ring_port
            for m in attempt.members
        )
        for node, link in attempt.links.items():
            self._ctx.send(
                link,
                messages.Prepare(
                    claim=self._claim.nonce,
                    round=attempt.round,
                    proof=proof,
                    master_addr=choice.of(node).address,
                    master_port=port,
                    members=attempt.members,
                    ring_ports=ring_ports,
                    store=attempt.store,
                    warning=choice.warning,
                    differences=attempt.differences,
                ),
            )
        attempt.paths.ring(proof, attempt.members, ring_ports, choice.master.address)
        self._commit_if_agreed(now)

    def port_failed(self, proof: Nonce, reason: str, now: float) -> None:
        """No port: nothing is sealed, and everybody is told why."""
        if self.attempt is not None and self.attempt.proof == proof:
            self._abort(f"{self._claim.job.home.here()}: {reason}", now, backoff=True)

    def acked(self, session: Session, proof: Nonce, now: float) -> None:
        attempt = self.attempt
        if attempt is not None and attempt.port and attempt.proof == proof:
            attempt.unacked.discard(session.card.node)
            self._commit_if_agreed(now)

    def path_proven(self, event: PathProven, now: float) -> None:
        """Our own way to our successor in the ring."""
        attempt = self.attempt
        if attempt is not None and attempt.proof == event.proof:
            attempt.paths.proven(event.address, event.port, event.local)
            self._commit_if_agreed(now)

    def path_refuted(self, event: PathRefuted, now: float) -> None:
        attempt = self.attempt
        if attempt is not None and attempt.proof == event.proof:
            reason = attempt.paths.refuted(event.address, event.port, event.reason)
            self._abort(reason + self._nat(attempt), now, backoff=True)

    def _nat(self, attempt: _Attempt) -> str:
        """Of those whose address somebody rewrites: the likely cause."""
        sessions = (self._claim.sessions.get(link) for link in attempt.links.values())
        return "".join(f". {s.nat}" for s in sessions if s is not None and s.nat)

    def _commit_if_agreed(self, now: float) -> None:
        attempt = self.attempt
        assert attempt is not None
        if attempt.port and not attempt.unacked and attempt.paths.all_proven:
            self._commit(now)

    def nacked(self, session: Session, message: messages.Nack, now: float) -> None:
        attempt = self.attempt
        if attempt is None or attempt.proof != message.proof:
            return
        if session.card.node in attempt.links:
            if message.master:
                address = attempt.choice.of(session.card.node).address
                self._address_failures[address] += 1
            reason = message.reason[: messages.TEXT_CHARS_MAX] + self._nat(attempt)
            self._abort(reason, now, backoff=True)

    def session_lost(self, session: Session, reason: str, now: float) -> None:
        """A round with a node that may be dead would hang in its first collective, and before
        COMMIT an ABORT is always safe: a node that has acknowledged comes back and asks."""
        attempt = self.attempt
        if attempt is not None and attempt.links.get(session.card.node) == session.link:
            self._abort(f"{session.there}: {reason}", now)

    def entries_changed(self, session: Session, now: float) -> None:
        """A Join came in: does the attempt still hold?"""
        attempt = self.attempt
        if attempt is None:
            return
        here = {e.participant for e in session.entries}
        chosen = {p.entry.participant for p in attempt.chosen if p.node == session.card.node}
        if not chosen <= here:
            self._abort(f"a participant on {session.there} has just ended", now)

    def local_ended(self, participant: ParticipantId, now: float) -> None:
        """A seat of our own ended while an attempt is under way."""
        attempt = self.attempt
        if attempt is not None and any(p.entry.participant == participant for p in attempt.chosen):
            self._abort(f"a participant on {self._claim.job.home.here()} has just ended", now)

    def asked_for_outcome(self, session: Session, proof: Nonce, now: float) -> None:
        """A follower acknowledged, lost its link, and is back. The loss ended the attempt, if it
        was not sealed before."""
        claim, node = self._claim, session.card.node
        round_, nodes = self._sealed.get(proof, (0, frozenset()))
        if node in nodes:
            commit = messages.Commit(claim=claim.nonce, round=round_, proof=proof)
            self._ctx.send(session.link, commit)
            claim.job.attachments.relink((claim.nonce, round_), session.link, node, now)
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
        if not attempt.store:
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
            pause = doubled_s(settings.reseal_min_s, self._failures, settings.reseal_max_s)
            self._failures += 1
            self._reseal_at = now + pause
            self._claim.survey.ask_again()
        job.note(reason, now)
        job.settle(now)

    # ------------------------------------------------------------ phase two

    def _commit(self, now: float) -> None:
        attempt, claim, job = self.attempt, self._claim, self._claim.job
        assert attempt is not None
        self.attempt, self.round = None, attempt.round
        self._failures = self._silences = 0
        self.last_call.close()
        self._sealed[attempt.proof] = (attempt.round, frozenset(attempt.links))
        if len(self._sealed) > 8:  # nobody is unsure of an older round for so long
            del self._sealed[next(iter(self._sealed))]
        job.to(Trigger.COMMIT)
        if not attempt.store:
            # The store's place must be free before rank 0 starts to listen there.
            self._ctx.do(actions.CloseProof(proof=attempt.proof, keep=True))
            self._ctx.ports[attempt.port] = job.job
        participants = {p.entry.participant for p in attempt.chosen}
        claim.released |= participants
        claim.alike.sealed(attempt.chosen)
        for session in claim.sessions.values():
            session.entries = tuple(e for e in session.entries if e.participant not in participants)
        held = Held(
            self._ctx,
            job.job,
            claim.nonce,
            attempt.round,
            attempt.members,
            master=(attempt.choice.master.address, attempt.port),
            leads=True,
            links={n: link for n, link in attempt.links.items() if link in claim.sessions},
            proof=None if attempt.store else attempt.proof,
            now=now,
        )
        job.sealed(held, now)
        self._release_local(attempt.members[0], attempt, now)  # rank 0 first: a client that knocks
        commit = messages.Commit(claim=claim.nonce, round=attempt.round, proof=attempt.proof)
        for link in attempt.links.values():  # before the store listens backs off for 0.4 s
            self._ctx.send(link, commit)
        for member in attempt.members[1:]:
            self._release_local(member, attempt, now)
        job.note("", now)
        claim.refuse_hasty(now)
        job.settle(now)

    def _release_local(self, member: Member, attempt: _Attempt, now: float) -> None:
        job = self._claim.job
        seat = job.seats.get(ParticipantId(member.participant))
        if seat is None or member.node != self._ctx.node:
            return
        master = attempt.choice.master
        for sentence in (attempt.choice.warning, *attempt.differences):
            job.warn(seat, sentence)
        config = config_of(
            member,
            attempt.members,
            job=job.job,
            form=seat.join.form,
            round_=attempt.round,
            claim=self._claim.nonce,
            master_addr=scoped(master.address, master.interface),
            master_port=attempt.port,
            local=master,
            leader_link=None,
        )
        job.release(seat, config, now)

    # ------------------------------------------------------------ time

    def tick(self, now: float) -> bool:
        """False if nothing is under way."""
        attempt = self.attempt
        if attempt is None:
            return False
        if now >= attempt.until:
            self._silences += 1
            self._abort(self._silent(attempt), now, backoff=True)
        return True

    def _silent(self, attempt: _Attempt) -> str:
        silent = (p for p in attempt.chosen if p.node in attempt.unacked)
        hosts = sorted({f"{p.host} ({p.address})" for p in silent})
        timeout_s = attempt.timeout_s
        if not attempt.port:
            what = "its client opened no store" if attempt.store else "no port could be opened"
            return f"{self._claim.job.home.here()}: {what} within {timeout_s:g} s"
        if hosts:
            return f"no answer to PREPARE within {timeout_s:g} s from {', '.join(hosts)}"
        return f"{self._claim.job.home.here()}: its own path was not proven within {timeout_s:g} s"

    def deadline(self) -> float | None:
        if self.attempt is not None:
            return self.attempt.until
        seat = self._claim.leader_seat()
        if self._claim.job.state is not State.LEADING or seat is None:
            return None
        if self._claim.plain.leads(seat):  # a newer join of rank 0's process: nothing to seal now
            return None
        return self._reseal_at or self._claim.survey.deadline() or self.last_call.deadline()
