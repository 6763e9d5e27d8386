"""The leader's side of one job: admit, gather, tell everybody. The seal itself is in seal.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from mingled.core import actions, local, messages
from mingled.core.alike import Alike
from mingled.core.codec import check_version
from mingled.core.contest import Contests
from mingled.core.events import Address
from mingled.core.messages import NAMES_SHOWN_MAX, Advert, Entry, Join, NodeCard, Seen
from mingled.core.plain import Plain
from mingled.core.reach import NAT_ADVICE, bare, bare_advert, behind_nat, scoped_advert, ways
from mingled.core.roster import Present, missing_ranks
from mingled.core.seal import Seal
from mingled.core.seat import Seat, owner_conflict, rank_conflict, shape_conflict
from mingled.core.software import same_conflict
from mingled.core.survey import Survey
from mingled.core.table import State
from mingled.core.words import NodeId, Nonce, ParticipantId, Standing
from mingled.errors import Closed, NotPermitted, Refused, VersionSkew

if TYPE_CHECKING:
    from mingled.core.job import Job

ADVERT_VERSION = 1

ARRIVALS_KEPT = 64
"""Below this, who came when is not worth clearing."""


class Session(msgspec.Struct, kw_only=True):
    """One follower's daemon. Mutable."""

    link: int
    local: Address
    remote_address: str
    card: NodeCard
    entries: tuple[Entry, ...]
    source: str = ""  #: from where it connects, as it sees itself
    plain: tuple[Entry, ...] = ()  #: admitted in the plain form, and still there

    @property
    def address(self) -> str:
        """Its own, for others to connect to. Where we see another one than it does, somebody
        between has rewritten it, or passes on what is not his."""
        return self.source if behind_nat(self.remote_address, self.source) else self.remote_address

    @property
    def there(self) -> str:
        """For sentences."""
        return f"{self.card.host} ({self.remote_address})"

    @property
    def nat(self) -> str:
        """What to say where its address was rewritten on the way; empty where it was not."""
        if not behind_nat(self.remote_address, self.source):
            return ""
        return f"{self.card.host} claims {self.source}, we see {self.remote_address}: {NAT_ADVICE}"


class Claim:
    """A claim to lead one job, from its advert to its withdrawal, over any number of rounds."""

    def __init__(self, job: Job, now: float, inherits: Nonce | None = None) -> None:
        """`inherits`: the claim whose rank 0 lives on here although its daemon ended."""
        self.job = job
        self.ctx = job.ctx
        self.nonce: Nonce = self.ctx.stream.nonce()
        self.realm = job.realms[job.label]
        self.lineage = {self.nonce} if inherits is None else {self.nonce, inherits}
        self.sessions: dict[int, Session] = {}
        self.arrivals: dict[ParticipantId, int] = {}
        self._arrived = 0
        self.released: set[ParticipantId] = set()
        self.alike = Alike(self)
        self.survey = Survey(self)
        self.seal = Seal(self)
        self._translated: set[NodeId] = set()  #: behind NAT, and said so
        self.plain = Plain(self, now)
        self.contests = Contests(self)
        self.advertise()

    # ------------------------------------------------------------ the advert

    def advert(self) -> Advert:
        return Advert(
            version=ADVERT_VERSION,
            key_id=self.realm.key_id,
            label=self.realm.label,
            claim=self.nonce,
            port=self.ctx.link_port,
            addresses=self.job.home.candidates(),
        )

    def advertise(self) -> None:
        self.ctx.do(actions.Advertise(advert=self.advert(), peers=self.job.peers()))

    def withdraw(self) -> None:
        self.ctx.do(actions.Withdraw(label=self.realm.label, claim=self.nonce))

    def rekey(self) -> None:
        """Under another key, if that is the one to present now: who comes later may have no
        other."""
        if self.realm.label != self.job.label:
            self.withdraw()
            self.realm = self.job.realms[self.job.label]
            self.advertise()

    # ------------------------------------------------------------ who is here

    def leader_seat(self) -> Seat | None:
        """The waiting seat that gets rank 0: the one that asked for it, else one that was in the
        last round, else the first that can."""
        seats = [s for s in self.job.waiting() if s.can_lead]
        return min(seats, key=lambda s: (s.join.rank is None, s.before is None), default=None)

    def holds(self) -> bool:
        """Rank 0 of a round that this claim sealed, or took over, is still here."""
        return any(
            s.config is not None and s.config.claim in self.lineage and s.config.rank == 0
            for s in self.job.seats.values()
        )

    def sealed(self) -> bool:
        """A round of this claim runs, or in the plain form rank 0 is released."""
        runs = any(h.live and h.claim in self.lineage for h in self.job.rounds.helds)
        return runs or self.plain.port is not None

    def standing(self) -> Standing:
        if any(s.join.rank == 0 for s in self.job.seats.values()):
            return Standing.EXPLICIT
        seat = self.leader_seat()
        known = self.sealed() or (seat is not None and seat.before is not None)
        return Standing.INCUMBENT if known else Standing.NEWCOMER

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
                before=seat.before,
            )
            for seat in self.job.waiting()
        ]
        for session in self.sessions.values():
            taken: set[int] = set()
            for entry in session.entries:
                before = entry.before
                if before is None:
                    before = self.ctx.former.at(self.job.job, entry.form, session.address, taken)
                if before is not None:
                    taken.add(before)
                found.append(
                    Present(
                        entry=entry,
                        node=session.card.node,
                        host=session.card.host,
                        address=session.address,
                        order=self._arrival(entry.participant),
                        before=before,
                    )
                )
        return sorted(found, key=lambda p: p.order)

    def _arrival(self, participant: ParticipantId) -> int:
        if participant not in self.arrivals:
            self._arrived += 1
            self.arrivals[participant] = self._arrived
        return self.arrivals[participant]

    def _forget_arrivals(self) -> None:
        """Of those who have gone, once they are the most."""
        count = len(self.job.seats) + sum(len(s.entries) for s in self.sessions.values())
        if len(self.arrivals) > 2 * count + ARRIVALS_KEPT:
            there = {p.entry.participant for p in self.present()}
            self.arrivals = {p: n for p, n in self.arrivals.items() if p in there}

    def progress(self, now: float) -> messages.Progress:
        present = self.present()
        entry = self.entry()
        low, high = (entry.size_min, entry.size_max) if entry else (0, 0)
        newest = self.job.rounds.newest
        running = newest if newest is not None and newest.whole else None
        ports = {s.card.node: s.card.port for s in self.sessions.values()}
        return messages.Progress(
            claim=self.nonce,
            here=len(present),
            size_min=low,
            size_max=high,
            present=tuple(
                Seen(
                    host=p.host,
                    rank=p.entry.rank,
                    user=p.entry.user,
                    address=p.address or self.job.home.first_address(),
                    port=ports.get(p.node, self.ctx.link_port),
                )
                for p in present[:NAMES_SHOWN_MAX]
            ),
            missing=missing_ranks(present, low)[:NAMES_SHOWN_MAX],
            running=running.running(now) if running else None,
            note=self.seal.last_call.note(now) or self.job.note_text,
        )

    def send_progress(self, now: float) -> None:
        """To everybody who waits; and to those of a running round, how many do."""
        progress = self.progress(now)
        self.job.rounds.waiting(progress.here)
        for session in self.sessions.values():
            if session.entries:
                self.ctx.send(session.link, progress)

    # ------------------------------------------------------------ followers come and go

    def joined(self, link: int, local_: Address, remote: str, join: Join, now: float) -> None:
        """A daemon states its participants: for the first time, again, or over a new link."""
        try:
            check_version(join.version, f"job {self.job.job}: {join.node.host} ({remote})")
        except VersionSkew as error:
            self._refuse(link, error.code, str(error), close=True)
            return
        if join.job != self.job.job:
            sentence = f"job {self.job.job}: {remote} speaks of another job under its label"
            self._refuse(link, Refused.code, sentence, close=True)
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
            self.job.links.give_up(old.link, "it came back over a new link", now)
        known = self.sessions.get(link)
        session = Session(
            link=link,
            local=local_,
            remote_address=remote,
            card=join.node,
            entries=(),
            source=join.source,
        )
        self.sessions[link] = session
        self.survey.came(session)
        self._warn_of_nat(session)
        addresses = ways(session.address, join.node.addresses, local_.interface)
        self.job.watches.add(
            link,
            join.node.node,
            addresses,
            join.node.port,
            join.label,
            self.nonce,
            pings=True,
            now=now,
        )
        self.job.found(now)
        self.ctx.send(
            link,
            messages.Welcome(
                claim=self.nonce,
                node=self.job.home.card(),
                seen_address=remote,
                met_address=bare(local_.address),
                standing=self.standing(),
            ),
        )
        session.plain = tuple(e for e in join.entries if e.participant in self.released)
        before = known.entries if known else ()
        for entry in join.entries:
            # One at a time, so that each is compared with those before it.
            if entry.participant not in self.released and self._admit(session, entry, now):
                session.entries = (*session.entries, entry)
        if join.prepared is not None:
            self.seal.asked_for_outcome(session, join.prepared, now)
        self.seal.entries_changed(session, now)
        if session.entries != before:
            if len(session.entries) > len(before):
                self.job.note_text = ""  # who went before is no news any more
            self._forget_arrivals()
            self.job.progressed(now)
        self.plain.admit(session)
        self.consider(now)

    def _warn_of_nat(self, session: Session) -> None:
        """Others will not reach it: those of its round are about to find out."""
        if not session.nat or session.card.node in self._translated:
            return
        self._translated.add(session.card.node)
        notice = local.Notice(kind="warning", sentence=f"job {self.job.job}: {session.nat}")
        for seat in self.job.waiting():
            self.ctx.do(actions.Tell(participant=seat.participant, message=notice))

    def consider(self, now: float) -> None:
        """Somebody came, or time went on: is it time to release anybody?"""
        if self.job.state is not State.LEADING:
            return
        seat = self.leader_seat()
        if self.plain.leads(seat):
            self.plain.consider(now)
        elif seat is not None:
            self.seal.consider(seat, now)

    def _admit(self, session: Session, entry: Entry, now: float) -> bool:
        there, code = session.there, Refused.code
        mine, sentence = self.entry(), None
        if entry.rank == 0:
            sentence = f"{there} follows, yet asks for rank 0, the leader's: {self.job.home.here()}"
        elif mine is not None:
            sentence = self.foreign(entry, there)
            if sentence is not None:
                code = NotPermitted.code
            else:
                sentence = shape_conflict(mine, entry, here=self.job.home.here(), there=there)
        sentence = sentence or self.conflict(entry, there, session.card.node)
        if sentence is None and not entry.wait:
            sentence = self.job.rounds.runs(now)
        if sentence is None:
            return True
        self.ctx.send(
            session.link,
            messages.Refuse(
                claim=self.nonce,
                code=code,
                sentence=f"job {self.job.job}: {sentence}",
                participants=(entry.participant,),
            ),
        )
        self.job.note(f"{there} was refused: {sentence}"[: messages.TEXT_CHARS_MAX], now)
        return False

    def refuse_hasty(self, now: float) -> None:
        """A round is sealed without them, and some will not wait for the next."""
        why = self.job.rounds.runs(now)
        if why is None:
            return
        sentence = f"job {self.job.job}: {why}"
        for session in self.sessions.values():
            hasty = tuple(e.participant for e in session.entries if not e.wait)
            if hasty:
                session.entries = tuple(e for e in session.entries if e.wait)
                self.ctx.send(
                    session.link,
                    messages.Refuse(
                        claim=self.nonce,
                        code=Refused.code,
                        sentence=sentence,
                        participants=hasty,
                    ),
                )
        mine = [s.participant for s in self.job.waiting() if not s.join.wait]
        if mine:
            self.job.fail_waiting(Refused.code, sentence, now, only=mine)

    def close(self, sentence: str, now: float) -> None:
        """The run is over: nobody need wait for the next round."""
        sentence = f"job {self.job.job}: {sentence}"
        for session in self.sessions.values():
            waiting = tuple(e.participant for e in session.entries)
            if waiting:
                session.entries = ()
                self.ctx.send(
                    session.link,
                    messages.Refuse(
                        claim=self.nonce,
                        code=Closed.code,
                        sentence=sentence,
                        participants=waiting,
                    ),
                )
        mine = [s.participant for s in self.job.waiting()]
        if mine:
            self.job.fail_waiting(Closed.code, sentence, now, only=mine)

    def foreign(self, entry: Entry, there: str) -> str | None:
        """Is it another user's than any of those who are here?"""
        here = self.job.home.here()
        known = [(seat.entry(), here) for seat in self.job.seats.values()]
        for session in self.sessions.values():
            known += [(other, session.there) for other in session.entries]
        for other, where in known:
            sentence = owner_conflict(other, entry, here=where, there=there)
            if sentence is not None:
                return sentence
        return None

    def where(self, present: Present) -> str:
        """For sentences."""
        if not present.address:
            return self.job.home.here()
        return f"{present.host} ({present.address})"

    def conflict(self, entry: Entry, there: str, node: NodeId) -> str | None:
        """Why this one cannot be in a round with those who are present, naming both sides."""
        for other in self.present():
            here = self.where(other)
            if other.entry.participant == entry.participant:
                return f"one participant is stated twice, by {here} and by {there}"
            sentence = shape_conflict(other.entry, entry, here=here, there=there)
            if sentence is not None:
                return sentence
            if entry.rank is not None and entry.rank == other.entry.rank:
                return rank_conflict(entry.rank, here=here, there=there)
            sentence = same_conflict(other.entry.stated, entry.stated, here=here, there=there)
            if sentence is not None:
                return sentence
        for session in self.sessions.values():
            # A node settles itself which of its own processes holds a rank.
            if session.card.node != node and entry.rank in [e.rank for e in session.plain]:
                return rank_conflict(entry.rank or 0, here=session.there, there=there)
        return self.alike.conflict(entry, there)

    def _refuse(self, link: int, code: str, sentence: str, *, close: bool) -> None:
        self.ctx.send(link, messages.Refuse(claim=self.nonce, code=code, sentence=sentence))
        if close:
            self.ctx.do(actions.CloseLink(link=link))

    def drop(self, link: int, reason: str, now: float) -> None:
        """A follower's link is gone."""
        session = self.sessions.pop(link, None)
        if session is None:
            return
        self.survey.forget(session.card.node)
        self.seal.session_lost(session, reason, now)
        if session.entries:
            self.job.note(f"{session.there}: {reason}", now)
            self.job.progressed(now)

    def received(self, session: Session, message: messages.Message, now: float) -> None:
        match message:
            case Join():
                same = message.node.node == session.card.node  # a link speaks for one node
                if same and message.claim == self.nonce and message.label in self.job.labels:
                    self.joined(session.link, session.local, session.remote_address, message, now)
            case messages.Ack() if message.claim == self.nonce:
                self.seal.acked(session, message.proof, now)
            case messages.Nack() if message.claim == self.nonce:
                self.seal.nacked(session, message, now)
            case messages.Reached() if message.claim == self.nonce:
                self.survey.answered(session, message)
                self.consider(now)
            case messages.Rival() if message.advert.label in self.job.labels:
                advert = scoped_advert(message.advert, session.local.interface)
                if advert.claim != self.nonce and self.ctx.book.add(advert, "told"):
                    self.job.advert_heard(advert, now)
            case messages.Ping():
                self.ctx.send(session.link, messages.Pong(claim=self.nonce, node=self.ctx.node))
            case _:
                pass  # Pong, or nothing that a follower says to its leader

    # ------------------------------------------------------------ time

    def tick(self, now: float) -> None:
        self.survey.tick(now)
        if not self.seal.tick(now):
            self.consider(now)
        if self.job.state is State.LEADING and self.job.claim is self:
            self.contests.tick(now)

    def deadline(self) -> float | None:
        times = [self.seal.deadline(), self.plain.deadline()]
        if self.job.state is State.LEADING:
            times.append(self.contests.deadline())
        return min((t for t in times if t is not None), default=None)

    # ------------------------------------------------------------ the end

    def end(self, reason: str) -> None:
        """The claim is over: whoever still waits with us searches again. Links stay open where a
        round still needs them."""
        self.withdraw()
        self.contests.close()
        self.plain.close()
        for session in self.sessions.values():
            self.ctx.send(session.link, messages.Dismiss(claim=self.nonce, reason=reason))

    def yield_to(self, advert: Advert, host: str) -> None:
        """A rival leads; everybody here goes there."""
        self.withdraw()
        self.contests.close()
        self.plain.close()
        told = bare_advert(advert)
        for session in self.sessions.values():
            self.ctx.send(session.link, messages.Redirect(claim=self.nonce, advert=told, host=host))
