"""The leader's side of one job: admit, gather, tell everybody. The seal itself is in seal.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from mingled.core import actions, messages
from mingled.core.codec import check_version
from mingled.core.contest import Contests
from mingled.core.events import Address
from mingled.core.messages import NAMES_SHOWN_MAX, Advert, Entry, Join, NodeCard, Seen
from mingled.core.roster import Present, missing_ranks
from mingled.core.seal import Seal
from mingled.core.seat import Seat, rank_conflict, shape_conflict
from mingled.core.table import State
from mingled.core.words import Form, NodeId, Nonce, ParticipantId
from mingled.errors import Refused, VersionSkew

if TYPE_CHECKING:
    from mingled.core.job import Job

ADVERT_VERSION = 1


class Session(msgspec.Struct, kw_only=True):
    """One follower's daemon. Mutable."""

    link: int
    local: Address
    remote_address: str
    card: NodeCard
    entries: tuple[Entry, ...]
    plain: tuple[Entry, ...] = ()  #: admitted in the plain form, and still there
    heard_at: float


class Claim:
    """A claim to lead one job, from its advert to its withdrawal, over any number of rounds."""

    def __init__(self, job: Job, now: float) -> None:
        self.job = job
        self.ctx = job.ctx
        self.nonce: Nonce = self.ctx.stream.nonce()
        self.sessions: dict[int, Session] = {}
        self.arrivals: dict[ParticipantId, int] = {}
        self.released: set[ParticipantId] = set()
        self.seal = Seal(self, now)
        self.contests = Contests(self)
        self.ping_at = now + self.ctx.settings.heartbeat_every_s
        self.advertise()

    # ------------------------------------------------------------ the advert

    def advert(self) -> Advert:
        return Advert(
            version=ADVERT_VERSION,
            key_id=self.ctx.key_id,
            label=self.job.label,
            claim=self.nonce,
            port=self.ctx.link_port,
            addresses=self.ctx.candidates(),
        )

    def advertise(self) -> None:
        self.ctx.do(actions.Advertise(advert=self.advert()))

    def withdraw(self) -> None:
        self.ctx.do(actions.Withdraw(label=self.job.label, claim=self.nonce))

    # ------------------------------------------------------------ who is here

    def leader_seat(self) -> Seat | None:
        """The waiting seat that gets rank 0: the one that asked for it, else the first that can."""
        seats = [s for s in self.job.waiting() if s.can_lead]
        return min(seats, key=lambda s: s.join.rank is None, default=None)

    def entry(self) -> Entry | None:
        """What newcomers must agree with."""
        seat = self.leader_seat() or next(iter(self.job.seats.values()), None)
        return seat.entry() if seat else None

    def present(self) -> list[Present]:
        """Everybody who waits, here and elsewhere, by arrival."""
        found = [
            Present(
                entry=seat.entry(),
                node=self.ctx.node,
                host=self.ctx.host,
                address="",
                order=self._arrival(seat.participant),
            )
            for seat in self.job.waiting()
        ]
        for session in self.sessions.values():
            found += [
                Present(
                    entry=entry,
                    node=session.card.node,
                    host=session.card.host,
                    address=session.remote_address,
                    order=self._arrival(entry.participant),
                )
                for entry in session.entries
            ]
        return sorted(found, key=lambda p: p.order)

    def _arrival(self, participant: ParticipantId) -> int:
        return self.arrivals.setdefault(participant, len(self.arrivals))

    def progress(self, now: float) -> messages.Progress:
        present = self.present()
        entry = self.entry()
        low, high = (entry.size_min, entry.size_max) if entry else (0, 0)
        running = next((h for h in reversed(self.job.rounds.helds) if h.live and h.members), None)
        return messages.Progress(
            claim=self.nonce,
            here=len(present),
            size_min=low,
            size_max=high,
            present=tuple(Seen(host=p.host, rank=p.entry.rank) for p in present[:NAMES_SHOWN_MAX]),
            missing=missing_ranks(present, low)[:NAMES_SHOWN_MAX],
            running=running.running(now) if running else None,
            note=self.job.note_text,
        )

    def send_progress(self, now: float) -> None:
        progress = self.progress(now)
        for session in self.sessions.values():
            if session.entries:
                self.ctx.send(session.link, progress)

    # ------------------------------------------------------------ followers come and go

    def joined(self, link: int, local: Address, remote: str, join: Join, now: float) -> None:
        """A daemon states its participants: for the first time, again, or over a new link."""
        try:
            check_version(join.version, f"job {self.job.job}: {join.node.host} ({remote})")
        except VersionSkew as error:
            self._refuse(link, error.code, str(error), close=True)
            return
        if join.node.node == self.ctx.node:
            sentence = (
                f"job {self.job.job}: {remote} is this very daemon on {self.ctx.host}, or copies "
                "its node id; restart mingled there"
            )
            self._refuse(link, Refused.code, sentence, close=True)
            return
        for old in [
            s for s in self.sessions.values() if s.card.node == join.node.node and s.link != link
        ]:
            self.ctx.do(actions.CloseLink(link=old.link))
            self.job.link_lost(old.link, "it came back over a new link", now)
        known = self.sessions.get(link)
        session = Session(
            link=link,
            local=local,
            remote_address=remote,
            card=join.node,
            entries=(),
            heard_at=now,
        )
        self.sessions[link] = session
        self.job.found(now)
        self.ctx.send(
            link,
            messages.Welcome(claim=self.nonce, node=self.ctx.card(), seen_address=remote),
        )
        session.plain = tuple(e for e in join.entries if e.participant in self.released)
        before = known.entries if known else ()
        for entry in join.entries:
            # One at a time, so that each is compared with those before it.
            if entry.participant not in self.released and self._admit(session, entry):
                session.entries = (*session.entries, entry)
        if join.prepared is not None:
            self.seal.asked_for_outcome(session, join.prepared, now)
        self.seal.entries_changed(session, now)
        if session.entries != before:
            self.job.progressed(now)
        self._admit_plain(session)
        self.seal.consider(now)

    def _admit(self, session: Session, entry: Entry) -> bool:
        there = f"{session.card.host} ({session.remote_address})"
        mine, sentence = self.entry(), None
        if entry.rank == 0:
            sentence = f"{there} follows, yet asks for rank 0, the leader's: {self._here()}"
        elif mine is not None:
            sentence = shape_conflict(mine, entry, here=self._here(), there=there)
        sentence = sentence or self.conflict(entry, there, session.card.node)
        if sentence is None:
            return True
        self.ctx.send(
            session.link,
            messages.Refuse(
                claim=self.nonce,
                code=Refused.code,
                sentence=f"job {self.job.job}: {sentence}",
                participants=(entry.participant,),
            ),
        )
        return False

    def conflict(self, entry: Entry, there: str, node: NodeId) -> str | None:
        """Why this one cannot be in a round with those who are present, naming both sides."""
        for other in self.present():
            here = f"{other.host} ({other.address})" if other.address else self._here()
            if other.entry.participant == entry.participant:
                return f"one participant is stated twice, by {here} and by {there}"
            sentence = shape_conflict(other.entry, entry, here=here, there=there)
            if sentence is not None:
                return sentence
            if entry.rank is not None and entry.rank == other.entry.rank:
                return rank_conflict(entry.rank, here=here, there=there)
        for session in self.sessions.values():
            # A node settles itself which of its own processes holds a rank.
            if session.card.node != node and entry.rank in [e.rank for e in session.plain]:
                here = f"{session.card.host} ({session.remote_address})"
                return rank_conflict(entry.rank or 0, here=here, there=there)
        return None

    def _here(self) -> str:
        addresses = self.ctx.addresses
        return f"{self.ctx.host} ({addresses[0].address})" if addresses else self.ctx.host

    def _refuse(self, link: int, code: str, sentence: str, *, close: bool) -> None:
        self.ctx.send(link, messages.Refuse(claim=self.nonce, code=code, sentence=sentence))
        if close:
            self.ctx.do(actions.CloseLink(link=link))

    def _admit_plain(self, session: Session) -> None:
        """Plain form: whoever has joined a released rank 0 is released by its port."""
        port = self.seal.open_port
        if port is None:
            return
        plain = [e for e in session.entries if e.form is Form.PLAIN]
        if plain:
            self.released.update(e.participant for e in plain)
            session.plain += tuple(plain)
            session.entries = tuple(e for e in session.entries if e.form is not Form.PLAIN)
            self.ctx.send(session.link, messages.Admit(claim=self.nonce, master_port=port))

    def admit_plain_all(self) -> None:
        for session in self.sessions.values():
            self._admit_plain(session)

    def drop(self, link: int, reason: str, now: float) -> None:
        """A follower's link is gone."""
        session = self.sessions.pop(link, None)
        if session is None:
            return
        self.seal.session_lost(session, reason, now)
        if session.entries:
            self.job.progressed(now)

    def received(self, session: Session, message: messages.Message, now: float) -> None:
        session.heard_at = now
        match message:
            case Join():
                same = message.node.node == session.card.node  # a link speaks for one node
                if same and message.claim == self.nonce and message.label == self.job.label:
                    self.joined(session.link, session.local, session.remote_address, message, now)
            case messages.Ack() if message.claim == self.nonce:
                self.seal.acked(session, message.proof, now)
            case messages.Nack() if message.claim == self.nonce:
                self.seal.nacked(session, message.proof, message.reason, now)
            case messages.Rival() if message.advert.label == self.job.label:
                if message.advert.claim != self.nonce and self.ctx.book.add(message.advert):
                    self.job.advert_heard(message.advert, now)
            case messages.Ping():
                self.ctx.send(session.link, messages.Pong(claim=self.nonce))
            case _:
                pass  # Pong, or nothing that a follower says to its leader

    # ------------------------------------------------------------ time

    def tick(self, now: float) -> None:
        if now >= self.ping_at:
            self.ping_at = now + self.ctx.settings.heartbeat_every_s
            silence_s = self.ctx.settings.silence_max_s
            for session in list(self.sessions.values()):
                if now - session.heard_at >= silence_s:
                    self.ctx.do(actions.CloseLink(link=session.link))
                    self.job.link_lost(session.link, f"silent for {silence_s:g} s", now)
                else:
                    self.ctx.send(session.link, messages.Ping(claim=self.nonce))
        self.seal.tick(now)
        if self.job.state is State.LEADING and self.job.claim is self:
            self.contests.tick(now)

    def deadline(self) -> float | None:
        times = [self.seal.deadline()]
        if self.sessions:
            times.append(self.ping_at)
        if self.job.state is State.LEADING:
            times.append(self.contests.deadline())
        return min((t for t in times if t is not None), default=None)

    # ------------------------------------------------------------ the end

    def end(self, reason: str) -> None:
        """The claim is over: whoever still waits with us searches again. Links stay open where a
        round still needs them."""
        self.withdraw()
        self.contests.close()
        self.seal.close()
        for session in self.sessions.values():
            self.ctx.send(session.link, messages.Dismiss(claim=self.nonce, reason=reason))

    def yield_to(self, advert: Advert, host: str) -> None:
        """A rival leads; everybody here goes there."""
        self.withdraw()
        self.contests.close()
        self.seal.close()
        for session in self.sessions.values():
            self.ctx.send(
                session.link, messages.Redirect(claim=self.nonce, advert=advert, host=host)
            )
