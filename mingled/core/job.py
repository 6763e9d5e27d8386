"""One job on one node: its local seats, and whether this node searches, follows or leads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from mingled.core import actions, local, messages
from mingled.core.claim import Claim
from mingled.core.config import Config, Member
from mingled.core.context import Context
from mingled.core.events import Address, AdoptAsked, Holder, JoinAsked
from mingled.core.held import Held
from mingled.core.messages import Advert, Contest, Message
from mingled.core.pursuit import Pursuit
from mingled.core.search import Search
from mingled.core.seat import Seat, rank_conflict, shape_conflict
from mingled.core.secrets import label_of
from mingled.core.table import State, Trigger, step
from mingled.core.views import Views
from mingled.core.words import Form, JobId, Nonce, ParticipantId
from mingled.errors import (
    Cancelled,
    Conflict,
    DaemonError,
    Indeterminate,
    JoinTimeout,
    MingleError,
    NotPermitted,
    Refused,
)

_OUTCOME_OPEN = (State.PREPARED, State.UNSURE)
_BETWEEN = (State.PROVING, State.PREPARED, State.UNSURE, State.PREPARING)


class Job:
    """Mutable; lives from its first seat to the end of its last round here. Every change of
    `state` goes through `to`, hence through the one table."""

    def __init__(self, ctx: Context, job: JobId) -> None:
        self.ctx = ctx
        self.job = job
        self.label = label_of(job, ctx.cluster_key)
        self.state = State.IDLE
        self.seats: dict[ParticipantId, Seat] = {}
        self.claim: Claim | None = None
        self.pursuit: Pursuit | None = None
        self.helds: list[Held] = []
        self.search = Search(self)
        self.views = Views(self)
        self.note_text = ""
        self.story: deque[str] = deque(maxlen=ctx.settings.story_max)

    @property
    def over(self) -> bool:
        """Nothing is left to do here."""
        return self.state is State.IDLE and not self.seats and not self.helds

    def to(self, trigger: Trigger) -> None:
        before, self.state = self.state, step(self.state, trigger)
        self.story.append(f"{before} --{trigger}--> {self.state}")

    def waiting(self) -> list[Seat]:
        return [s for s in self.seats.values() if s.waiting and s.ending is None]

    def note(self, text: str, now: float) -> None:
        """A sentence about the wait, shown to everybody who waits."""
        if text != self.note_text:
            self.note_text = text
            self.progressed(now)

    def found(self, now: float) -> None:
        """Another node is in touch."""
        for seat in self.seats.values():
            if seat.found_at is None:
                seat.found_at = now

    def progressed(self, now: float) -> None:
        self.views.progressed(now)

    # ------------------------------------------------------------ seats come

    def join(self, event: JoinAsked, now: float) -> None:
        """A new local participant, or a refusal that says who is in its way."""
        self._replace(event.holder, event.participant, now)
        settings = self.ctx.settings
        seat = Seat(event.participant, event.join, event.holder, now, settings.hint_after_s)
        obstacle = self._obstacle(seat)
        if obstacle is not None:
            self.ctx.do(_failed(seat.participant, obstacle))
            self.ctx.do(actions.Release(participant=seat.participant))
            return
        self._warn_twice(seat)
        self.seats[seat.participant] = seat
        self.settle(now)
        if self.pursuit is not None:
            self.pursuit.entries_changed()
        self.progressed(now)

    def _obstacle(self, seat: Seat) -> MingleError | None:
        entry, where = seat.entry(), f"job {self.job} on {self.ctx.host}"
        for other in self.seats.values():
            if other.holder.uid != seat.holder.uid:
                return NotPermitted(
                    f"{where} belongs to {other.holder.user}, you are {seat.holder.user}; "
                    "choose another job ID"
                )
        for other in self.waiting():
            sentence = shape_conflict(other.entry(), entry, here=other.who(), there=seat.who())
            if sentence is None and entry.rank is not None and other.join.rank == entry.rank:
                sentence = rank_conflict(entry.rank, here=other.who(), there=seat.who())
            if sentence is not None:
                return Refused(f"{where}: {sentence}")
        if self.claim is not None:
            sentence = self.claim.conflict(entry, seat.who())
            if sentence is not None:
                return Refused(f"{where}: {sentence}")
        if len(self.seats) >= self.ctx.settings.seats_max:
            return Refused(f"{where}: {len(self.seats)} participants already; leave some first")
        return None

    def _replace(self, holder: Holder, newer: ParticipantId, now: float) -> None:
        """One process holds one seat of a job: a notebook cell that runs twice takes its own
        place."""
        for seat in list(self.seats.values()):
            if seat.holder.identity == holder.identity and seat.participant != newer:
                if seat.ending is not None:
                    continue
                if seat.waiting:
                    sentence = f"job {self.job}: a newer join of the same process took this place"
                    self.ctx.do(_failed(seat.participant, Cancelled(sentence)))
                else:
                    notice = local.Notice(
                        kind="warning",
                        sentence=f"job {self.job}: this replaces the earlier join of {seat.who()}",
                    )
                    self.ctx.do(actions.Tell(participant=newer, message=notice))
                self.end_seat(seat, left=True, reason="replaced by a newer join", now=now)

    def _warn_twice(self, seat: Seat) -> None:
        if seat.join.form is not Form.LAUNCHER:
            return
        twin = next((s for s in self.waiting() if s.join.form is Form.LAUNCHER), None)
        if twin is not None:
            sentence = (
                f"job {self.job}: two launchers on {self.ctx.host}, {twin.who()} and "
                f"{seat.who()}; with --nnodes one per node is normal"
            )
            for participant in (seat.participant, twin.participant):
                notice = local.Notice(kind="warning", sentence=sentence)
                self.ctx.do(actions.Tell(participant=participant, message=notice))

    # ------------------------------------------------------------ seats go

    def vanished(self, seat: Seat, now: float) -> None:
        """Its connection ended. While it waits that withdraws it; later the process counts."""
        seat.connected = False
        if seat.waiting:
            self.end_seat(seat, left=False, reason="its client has gone", now=now)
        elif not seat.holder.watched and seat.adopt_by is None:
            self.end_seat(seat, left=False, reason="its connection ended", now=now)

    def holder_ended(self, seat: Seat, status: int | None, now: float) -> None:
        """The process that held the lease is no more."""
        if seat.adopt_by is not None:
            return  # the lease waits for the shell that takes it over
        if status is None:
            self.end_seat(seat, left=False, reason="ended, status unknown", now=now)
        elif status == 0:
            self.end_seat(seat, left=True, reason="exit 0", now=now)
        else:
            how = f"killed by signal {status & 0x7F}" if status & 0x7F else f"exit {status >> 8}"
            self.end_seat(seat, left=False, reason=how, now=now)

    def leave(
        self, uid: int, only: ParticipantId | None, lost: bool, reason: str, now: float
    ) -> int:
        """End seats of one user (root: of anybody); how many."""
        mine = [
            s
            for s in self.seats.values()
            if uid in (0, s.holder.uid) and only in (None, s.participant) and s.ending is None
        ]
        for seat in mine:
            if seat.waiting:
                error = Cancelled(f"job {self.job}: left on {self.ctx.host} before it started")
                self.ctx.do(_failed(seat.participant, error))
            self.end_seat(seat, left=not lost, reason=reason or "leave", now=now)
        return len(mine)

    def end_seat(self, seat: Seat, *, left: bool, reason: str, now: float) -> None:
        """Out with it, unless an outcome is open: then as soon as that is known."""
        if seat.waiting and self.state in _OUTCOME_OPEN:
            seat.ending = reason
            return
        if self.seats.pop(seat.participant, None) is None:
            return
        self.ctx.do(actions.Release(participant=seat.participant))
        if seat.waiting:
            if self.claim is not None:
                self.claim.seal.local_ended(seat.participant, now)
            if self.pursuit is not None:
                self.pursuit.seat_ended(seat.participant, f"{self.ctx.host}: {reason}")
            self.progressed(now)
        else:
            for held in self.helds:
                held.seat_ended(seat.participant, left, reason, self.seats.values())
        self._prune()
        self.settle(now)

    def settle_open_endings(self, now: float) -> None:
        """The outcome is known: seats that ended meanwhile are told of now."""
        for seat in [s for s in self.seats.values() if s.ending is not None]:
            reason, seat.ending = seat.ending or "", None
            self.end_seat(seat, left=False, reason=reason, now=now)
        self._prune()
        self.settle(now)

    def fail_waiting(
        self, code: str, sentence: str, now: float, only: Iterable[ParticipantId] = ()
    ) -> None:
        """The other side said no: to some, or to all."""
        chosen = set(only) or set(self.seats)
        for seat in self.waiting():
            if seat.participant in chosen:
                failed = local.Failed(code=code, sentence=sentence)
                self.ctx.do(actions.Tell(participant=seat.participant, message=failed))
                self.end_seat(seat, left=False, reason=sentence, now=now)

    # ------------------------------------------------------------ seats are released

    def release(self, seat: Seat, config: Config, now: float) -> None:
        """The rendezvous is done for this one. If it ended while that was open, it has been told
        so, and the round is about to be."""
        seat.config = config
        seat.deadline = seat.hint_at = None
        if seat.ending is not None:
            return
        if seat.join.adopt:
            seat.token = self.ctx.stream.nonce()
            seat.adopt_by = now + self.ctx.settings.adopt_s
        ready = local.Ready(
            participant=seat.participant,
            config=config,
            token=seat.token,
            found_s=(now if seat.found_at is None else seat.found_at) - seat.since,
            waited_s=now - seat.since,
        )
        self.ctx.do(actions.Tell(participant=seat.participant, message=ready))

    def adopt(self, seat: Seat, event: AdoptAsked, now: float) -> local.Local:
        """The evaluating shell takes the lease over."""
        if event.uid not in (0, seat.holder.uid):
            error: MingleError = NotPermitted(
                f"job {self.job}: the lease on {self.ctx.host} is {seat.holder.user}'s"
            )
            return local.Failed(code=error.code, sentence=str(error))
        if event.holder is None:
            sentence = (
                f"job {self.job}: no process {event.pid} on {self.ctx.host} to hold the lease"
            )
            return local.Failed(code=DaemonError.code, sentence=sentence)
        seat.token = seat.adopt_by = None
        seat.holder = event.holder
        self.ctx.do(actions.Rehold(participant=seat.participant, request=event.request))
        self._replace(event.holder, seat.participant, now)
        return local.Done(count=1)

    def hold(
        self,
        *,
        claim: Nonce,
        round_: int,
        members: tuple[Member, ...],
        master: tuple[str, int],
        hub: int | None,
        spokes: dict[int, str],
        proof: Nonce | None,
        now: float,
    ) -> Held:
        """A round is sealed: watch over it."""
        held = Held(
            self.ctx,
            self.job,
            claim,
            round_,
            members,
            master=master,
            hub=hub,
            spokes=spokes,
            proof=proof,
            now=now,
        )
        self.helds.append(held)
        return held

    def reattach(self, claim: Nonce, round_: int, link: int, node: str) -> None:
        """A daemon of a sealed round is back over another link."""
        for held in self.helds:
            if (held.claim, held.round) == (claim, round_):
                held.spokes[link] = node

    def _prune(self) -> None:
        """Drop rounds that concern nobody here any more, and their links and ports."""
        for held in list(self.helds):
            mine = any(held.member(p) is not None for p in self.seats)
            if mine or (held.hub is None and held.spokes and held.live):
                continue
            self.helds.remove(held)
            if held.proof is not None:
                self.ctx.ports.pop(held.master[1], None)
                self.ctx.do(actions.FreePort(proof=held.proof))
            for link in (held.hub, *held.spokes):
                if link is not None and not self._in_use(link):
                    self.ctx.do(actions.CloseLink(link=link))

    def _in_use(self, link: int) -> bool:
        return (
            (self.pursuit is not None and self.pursuit.link == link)
            or (self.claim is not None and link in self.claim.sessions)
            or any(link == h.hub or link in h.spokes for h in self.helds)
        )

    # ------------------------------------------------------------ what to do next

    def settle(self, now: float) -> None:
        """Bring the state in line with who waits here. Never while an outcome is open."""
        if self.state in _BETWEEN:
            return
        waiting = self.waiting()
        explicit = any(s.join.rank == 0 for s in waiting)
        if self.state is State.LEADING:
            self._settle_leading(now)
        elif explicit:
            self._drop_pursuit()
            self.start_claim(now)
        elif self.state is State.IDLE and waiting:
            self.to(Trigger.SEARCH)
            self.search.begin(now)
        elif not waiting and self.state in (State.SEARCHING, State.CONNECTING):
            self._rest()
        elif not waiting and self.state is State.FOLLOWING:
            assert self.pursuit is not None
            claim = self.pursuit.claim
            if not any(s.config and s.config.claim == claim for s in self.seats.values()):
                self._rest()

    def _settle_leading(self, now: float) -> None:
        claim = self.claim
        assert claim is not None
        holds = any(
            s.config is not None and s.config.claim == claim.nonce and s.config.rank == 0
            for s in self.seats.values()
        )
        if claim.leader_seat() is not None or holds:
            claim.seal.consider(now)
            return
        claim.end(f"rank 0 of job {self.job} on {self.ctx.host} has ended")
        self._drop_claim()
        if self.waiting():
            self.to(Trigger.SEARCH)
            self.search.begin(now)
        else:
            self.to(Trigger.REST)

    def _rest(self) -> None:
        self._drop_pursuit()
        self.to(Trigger.REST)
        self.note_text = ""

    def _drop_pursuit(self) -> None:
        pursuit, self.pursuit = self.pursuit, None
        if pursuit is None:
            return
        if self._in_use(pursuit.link):
            pursuit.abandon()
        else:
            pursuit.close()

    def _drop_claim(self) -> None:
        """Its followers were told where to go; links that a sealed round needs stay."""
        claim, self.claim = self.claim, None
        self._prune()
        for link in claim.sessions if claim is not None else ():
            if not self._in_use(link):
                self.ctx.do(actions.CloseLink(link=link))

    def start_claim(self, now: float) -> None:
        """Lead: rank 0 is asked for here, or nobody else was heard."""
        if self.state is not State.SEARCHING:
            self.search.ask_anew(now)
        self.to(Trigger.CLAIM)
        self.claim = Claim(self, now)
        for heard in self.ctx.book.of(self.label):
            self.claim.contests.heard(heard.advert, now)
        self.progressed(now)
        self.claim.seal.consider(now)

    def connect(self, advert: Advert, trigger: Trigger = Trigger.CONNECT) -> None:
        """Follow this advert."""
        self.to(trigger)
        self.pursuit = Pursuit(self, advert)

    def lose_leader(self, reason: str, now: float) -> None:
        """The leader is gone or never was: search on."""
        led = self.pursuit is not None and self.pursuit.leader is not None
        self._drop_pursuit()
        self.to(Trigger.LOSE)
        self.note(reason, now)
        if led:
            self.search.begin(now)
        else:  # a ghost: the search goes on, or enough of them would keep us from ever leading
            self.search.try_adverts(now)
        self.settle(now)

    def follow_instead(self, advert: Advert, note: str, now: float) -> None:
        """Our leader yielded."""
        self._drop_pursuit()
        self.connect(advert)
        self.note(note, now)
        self.settle(now)

    def yield_to(self, advert: Advert, winner: Contest, remote: str, now: float) -> None:
        """A rival leads. An explicit rank 0 here has lost its place, and is told to whom."""
        assert self.claim is not None
        self.claim.yield_to(advert, winner.node.host)
        self._drop_claim()
        self.connect(advert, Trigger.YIELD)
        sentence = (
            f"job {self.job}: rank 0 is {winner.node.host} ({remote}), claimed there by "
            f"{winner.user or 'somebody'}; this claim on {self.ctx.host} yields: give this node "
            "another rank, or this job another ID"
        )
        explicit = [s.participant for s in self.waiting() if s.join.rank == 0]
        if explicit:
            self.fail_waiting(Conflict.code, sentence, now, only=explicit)
        self.settle(now)

    def outcome_unknown(self, where: str, now: float) -> None:
        """Acknowledged, and then no word: neither success nor failure may be said."""
        assert self.pursuit is not None
        assert self.pursuit.prepare is not None
        round_ = self.pursuit.prepare.round
        members = {m.participant for m in self.pursuit.prepare.members}
        error = Indeterminate(
            f"job {self.job}, round {round_}: the link to {where} broke after this node had "
            "agreed, so nobody here knows whether the round was sealed; look at rank 0 before "
            "you start again"
        )
        self._drop_pursuit()
        for seat in [s for s in self.waiting() if s.participant in members]:
            self.ctx.do(_failed(seat.participant, error))
            seat.ending = "indeterminate"
        self.to(Trigger.GIVE_UP)
        self.search.begin(now)
        self.settle_open_endings(now)

    # ------------------------------------------------------------ discovery and links

    def advert_heard(self, advert: Advert, now: float) -> None:
        """New or changed; it is in the book."""
        if self.claim is not None:
            self.claim.contests.heard(advert, now)
        elif self.state is State.SEARCHING:
            self.search.try_adverts(now)
        elif self.state is State.FOLLOWING and self.pursuit is not None:
            self.pursuit.rival(advert)

    def advert_gone(self, claim: Nonce) -> None:
        if self.claim is not None:
            self.claim.contests.gone(claim)

    def addresses_changed(self) -> None:
        if self.claim is not None:
            self.claim.advertise()

    def owns(self, link: int) -> bool:
        return self._in_use(link) or (self.claim is not None and self.claim.contests.owns(link))

    def link_opened(self, link: int, local_: Address, remote: str, now: float) -> None:
        if self.pursuit is not None and self.pursuit.link == link:
            self.pursuit.opened(local_, remote, now)
        elif self.claim is not None and self.claim.contests.owns(link):
            self.claim.contests.opened(link, now)
        else:
            self.ctx.do(actions.CloseLink(link=link))

    def link_lost(self, link: int, reason: str, now: float) -> None:
        """It could not be opened, or it ended."""
        for held in self.helds:
            held.link_closed(link, reason, self.seats.values())
        if self.claim is not None:
            self.claim.contests.failed(link, now)
            self.claim.drop(link, reason, now)
        if self.pursuit is not None and self.pursuit.link == link:
            self.pursuit.failed(reason, now)
        self._prune()

    def received(self, link: int, remote: str, message: Message, now: float) -> None:
        """A frame on one of this job's links."""
        claim = self.claim
        if claim is not None and claim.contests.owns(link):
            if isinstance(message, Contest):
                claim.contests.answered(link, message, remote, now)
            elif isinstance(message, messages.Refuse):
                claim.contests.stale(link)
        elif self.pursuit is not None and self.pursuit.link == link:
            self.pursuit.received(message, now)
        elif claim is not None and link in claim.sessions:
            claim.received(claim.sessions[link], message, now)
        elif isinstance(message, messages.Ping):
            self.ctx.send(link, messages.Pong(claim=message.claim))
        for held in self.helds:
            if not isinstance(message, messages.Ended | messages.Gone):
                break
            if (message.claim, message.round) != (held.claim, held.round):
                continue
            if isinstance(message, messages.Ended):
                held.ended(link, message, self.seats.values())
            elif link == held.hub:
                held.gone(message, self.seats.values())
        self._prune()

    # ------------------------------------------------------------ time

    def tick(self, now: float) -> None:
        for seat in list(self.seats.values()):
            if seat.participant in self.seats:
                self._tick_seat(seat, now)
        if self.state is State.SEARCHING:
            self.search.tick(now)
        if self._asks():
            self.search.ask(now)
        if self.pursuit is not None:
            self.pursuit.tick(now)
        if self.claim is not None:
            self.claim.tick(now)
        self.views.tick(now)

    def _tick_seat(self, seat: Seat, now: float) -> None:
        if seat.adopt_by is not None and now >= seat.adopt_by:
            seat.adopt_by = seat.token = None
            self.end_seat(seat, left=False, reason="no shell took the lease over", now=now)
        elif seat.deadline is not None and now >= seat.deadline and self.state not in _BETWEEN:
            self.ctx.do(_failed(seat.participant, JoinTimeout(self.views.timed_out(seat, now))))
            self.end_seat(seat, left=False, reason="timed out", now=now)
        elif seat.hint_at is not None and now >= seat.hint_at:
            seat.hint_at = None
            self.views.hint(seat)

    def _asks(self) -> bool:
        """Somebody waits, and it is not known that one leader has everybody: a leader asks too,
        since the announcements of two may both have been lost."""
        return self.state in (State.SEARCHING, State.LEADING) and bool(self.waiting())

    def deadline(self) -> float | None:
        times: list[float | None] = [self.views.deadline()]
        for seat in self.seats.values():
            times += [seat.adopt_by, seat.hint_at]
            if self.state not in _BETWEEN:
                times.append(seat.deadline)
        if self.state is State.SEARCHING:
            times.append(self.search.deadline())
        if self._asks():
            times.append(self.search.ask_at)
        if self.pursuit is not None:
            times.append(self.pursuit.deadline())
        if self.claim is not None:
            times.append(self.claim.deadline())
        return min((t for t in times if t is not None), default=None)

    def stop(self, reason: str, now: float) -> None:
        """The daemon ends. It commits nothing any more; the others are told what it knows."""
        why = f"mingled on {self.ctx.host} stops: {reason}"
        error: MingleError = DaemonError(f"job {self.job}: {why}")
        if self.state in _OUTCOME_OPEN:
            error = Indeterminate(
                f"job {self.job}: {why}, between this node's agreement and the outcome of the "
                "round; look at rank 0 before you start again"
            )
        for seat in self.waiting():
            self.ctx.do(_failed(seat.participant, error))
            self.end_seat(seat, left=False, reason=why, now=now)
        if self.claim is not None:
            self.claim.end(why)
            self._drop_claim()


def _failed(participant: ParticipantId, error: MingleError) -> actions.Tell:
    return actions.Tell(
        participant=participant, message=local.Failed(code=error.code, sentence=str(error))
    )
