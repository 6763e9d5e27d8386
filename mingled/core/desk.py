"""Where local participants of one job come and go: joins, refusals, leases and their ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mingled.core import actions, local
from mingled.core.events import AdoptAsked, Holder, JoinAsked, ReattachAsked
from mingled.core.home import NO_WISH, Wish
from mingled.core.reach import permitted
from mingled.core.seat import Seat, failed_by, rank_conflict, shape_conflict, tell_failed
from mingled.core.secrets import NO_KEY_ID
from mingled.core.software import own_flaw, same_conflict
from mingled.core.table import BETWEEN, OUTCOME_OPEN, Trigger
from mingled.core.words import Form, ParticipantId
from mingled.errors import (
    BadInput,
    Cancelled,
    DaemonError,
    Indeterminate,
    JoinTimeout,
    MingleError,
    NotPermitted,
    Refused,
)

if TYPE_CHECKING:
    from mingled.core.job import Job


def _wish_words(wish: Wish) -> str:
    interfaces, subnets = wish
    return " ".join(
        [*(f"--interface {name}" for name in interfaces), *(f"--subnet {net}" for net in subnets)]
    )


class Desk:
    """Of one job on one node. What an end means for the rendezvous is the job's to decide."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ctx = job.ctx
        self._name = f"job {job.job}"

    def tick(self, now: float) -> None:
        for seat in list(self._job.seats.values()):
            if seat.participant in self._job.seats:
                self._tick(seat, now)

    def join(self, event: JoinAsked, now: float) -> None:
        """A new local participant, or a refusal that says who is in its way."""
        join = event.join
        # No news to a framework's own rendezvous, whose round is over, and to whoever says itself
        # that the run before has failed.
        quiet = join.store or bool(join.lost)
        self._replace(event.holder, event.participant, join.lost, now, quiet=quiet)
        settings = self._ctx.settings
        seat = Seat(event.participant, event.join, event.holder, now, settings.hint_after_s)
        seat.before = self._before(seat)
        obstacle = self._obstacle(seat, now)
        if obstacle is not None:
            self._ctx.do(tell_failed(seat.participant, obstacle))
            self._ctx.do(actions.Release(participant=seat.participant))
            self._job.rounds.prune(now)
            self._job.settle(now)
            return
        self._warn_twice(seat)
        self._job.seats[seat.participant] = seat
        self._job.rounds.prune(now)
        self._job.settle(now)
        if self._job.pursuit is not None:
            self._job.pursuit.entries_changed()
        self._job.progressed(now)

    def _before(self, seat: Seat) -> int | None:
        taken = set()
        for other in self._job.seats.values():
            rank = other.before if other.config is None else other.config.rank
            if rank is not None:
                taken.add(rank)
        former = self._ctx.former
        return former.own(self._job.job, seat.join.form, seat.holder.identity, taken)

    def reattach(self, event: ReattachAsked, now: float) -> None:
        """A participant that was released by a daemon which is gone: watch it, and its round."""
        seat = Seat(event.participant, event.join, event.holder, now, 0.0)
        error = self._foreign(seat) or self._flaw_of_secrets(seat) or self._full(seat)
        if error is not None:
            self._ctx.do(actions.Answer(request=event.request, message=failed_by(error)))
            return
        self._ctx.do(actions.Seated(participant=seat.participant, request=event.request))
        self._ctx.do(actions.Answer(request=event.request, message=local.Done(count=1)))
        known = self._job.seats.get(seat.participant)
        if known is not None:  # only its connection was gone
            known.connected, known.holder = True, event.holder
            known.alive(now)
            return
        seat.config = event.config
        seat.deadline = seat.hint_at = None
        seat.alive(now)
        self._replace(event.holder, event.participant, "", now)
        self._job.seats[seat.participant] = seat
        self._job.name(seat)
        self._job.attachments.take_up(event.config, seat.participant, now)
        self._job.rounds.prune(now)
        self._job.settle(now)

    def _foreign(self, seat: Seat) -> MingleError | None:
        """One owner per job per node."""
        for other in self._job.seats.values():
            if other.holder.uid != seat.holder.uid:
                return NotPermitted(
                    f"{self._name} on {self._ctx.host} belongs to {other.holder.user}, you are "
                    f"{seat.holder.user}; choose another job ID"
                )
        return None

    def _flaw_of_secrets(self, seat: Seat) -> MingleError | None:
        """With other secrets it would wait in vain, or in bad company."""
        join, where = seat.join, f"{self._name} on {self._ctx.host}"
        if join.secret != self._job.secret:
            return Refused(
                f"{where}: {seat.who()} brings {'another' if join.secret else 'no'} secret, "
                f"and the job here has {'one' if self._job.secret else 'none'}; give all of them "
                "the same --secret-file"
            )
        if join.key_id and join.key_id != self._ctx.key_ids[0]:
            return Refused(
                f"{where}: its daemon presents {_key(self._ctx.key_ids[0])}, your key file has "
                f"{_key(join.key_id)}; use the same (mingle key id), or MINGLE_KEY_FILE to name it"
            )
        return None

    def _obstacle(self, seat: Seat, now: float) -> MingleError | None:
        entry, where = seat.entry(), f"{self._name} on {self._ctx.host}"
        foreign = self._foreign(seat) or self._flaw_of_secrets(seat)
        if foreign is not None:
            return foreign
        flaw = self._flaw_of_wish(seat)
        if flaw is not None:
            return flaw
        sentence = None if seat.join.wait else self._job.rounds.runs(now)
        sentence = sentence or own_flaw(entry.stated)
        if sentence is not None:
            return Refused(f"{where}: {sentence}")
        for other in self._job.waiting():
            mine, here, there = other.entry(), other.who(), seat.who()
            sentence = shape_conflict(mine, entry, here=here, there=there)
            if sentence is None and entry.rank is not None and other.join.rank == entry.rank:
                sentence = rank_conflict(entry.rank, here=here, there=there)
            if sentence is None:
                sentence = same_conflict(mine.stated, entry.stated, here=here, there=there)
            if sentence is not None:
                return Refused(f"{where}: {sentence}")
        twin = None if seat.join.adopt else self._plain_twin(seat)
        if twin is not None:  # an evaluating shell's second join is known as its own at Adopt
            return Refused(f"{where}: {self._twice(twin, seat)}")
        if self._job.claim is not None:
            sentence = self._job.claim.foreign(entry, seat.who())
            if sentence is not None:
                return NotPermitted(f"{where}: {sentence}")
            sentence = self._job.claim.conflict(entry, seat.who(), self._ctx.node)
            if sentence is not None:
                return Refused(f"{where}: {sentence}")
        return self._full(seat)

    def _flaw_of_wish(self, seat: Seat) -> MingleError | None:
        """The interfaces or subnets that it names: are they here, and do all name the same?"""
        wish, host = seat.join.wish, self._ctx.host
        if wish == NO_WISH:
            return None
        others = self._job.seats.values()
        other = next((s for s in others if s.join.wish not in (wish, NO_WISH)), None)
        if other is not None:
            return Refused(
                f"{self._name} on {host}: {seat.who()} asks for {_wish_words(wish)}, "
                f"{other.who()} for {_wish_words(other.join.wish)}; use one on each node"
            )
        interfaces, subnets = wish
        for one in [*(((i,), ()) for i in interfaces), *(((), (s,)) for s in subnets), wish]:
            if not permitted(self._ctx.addresses, *one):
                there = ", ".join(f"{a.interface} {a.address}" for a in self._ctx.addresses)
                return BadInput(
                    f"{self._name}: {host} has nothing for {_wish_words(one)}; for a job it has "
                    f"{there or 'no address'}: correct it (mingle interfaces says why each is, or "
                    "is not, used)"
                )
        return None

    def _full(self, seat: Seat) -> MingleError | None:
        count = len(self._job.seats)
        if count < self._ctx.settings.seats_max or seat.participant in self._job.seats:
            return None
        where = f"{self._name} on {self._ctx.host}"
        return Refused(f"{where}: {count} participants already; leave some first")

    def _plain_twin(self, seat: Seat) -> Seat | None:
        """Who runs here with the same rank, in the plain form, which has no roster to be full."""
        for other in self._job.seats.values():
            plain = seat.join.form is other.join.form is Form.PLAIN
            same = plain and seat.join.rank == other.join.rank and seat is not other
            if same and not other.waiting and other.holder.identity != seat.holder.identity:
                return other
        return None

    @staticmethod
    def _twice(one: Seat, other: Seat) -> str:
        return rank_conflict(other.join.rank or 0, here=one.who(), there=other.who())

    def _replace(
        self,
        holder: Holder,
        newer: ParticipantId,
        lost: str,
        now: float,
        *,
        quiet: bool = False,
    ) -> None:
        """One process holds one seat of a job: a notebook cell that runs twice takes its own
        place, and so does a shell that evaluates the printed text twice, which is above the process
        that joins. `lost`: what ended the run before, if that failed."""
        for seat in list(self._job.seats.values()):
            shell = seat.join.adopt and seat.holder.identity in holder.ancestors
            same = shell or seat.holder.identity == holder.identity
            if same and seat.participant != newer and seat.ending is None:
                sentence = f"{self._name}: a newer join of the same process took this place"
                self._ctx.do(tell_failed(seat.participant, Cancelled(sentence)))
                held = self._job.rounds.newest
                over = held is not None and "lost" in held.fates.values()
                if not (seat.waiting or over or quiet):
                    notice = local.Notice(
                        kind="warning",
                        sentence=f"{self._name} on {self._ctx.host}: this replaces the earlier "
                        f"join of {seat.who()}, whose round is over for it",
                    )
                    self._ctx.do(actions.Tell(participant=newer, message=notice))
                reason = lost or "replaced by a newer join"
                self._job.end_seat(seat, left=not lost, reason=reason, now=now, again=True)

    def _warn_twice(self, seat: Seat) -> None:
        if seat.join.form is not Form.LAUNCHER:
            return
        twin = next((s for s in self._job.waiting() if s.join.form is Form.LAUNCHER), None)
        if twin is not None:
            sentence = (
                f"{self._name}: two launchers on {self._ctx.host}, {twin.who()} and "
                f"{seat.who()}; with --nnodes one per node is normal"
            )
            for participant in (seat.participant, twin.participant):
                notice = local.Notice(kind="warning", sentence=sentence)
                self._ctx.do(actions.Tell(participant=participant, message=notice))

    def vanished(self, seat: Seat, now: float) -> None:
        """Its connection ended. While it waits that withdraws it; later the process counts."""
        seat.connected = False
        if seat.waiting:
            self._job.end_seat(seat, left=False, reason="its client has gone", now=now)
        elif not seat.holder.watched and seat.adopt_by is None:
            self._job.end_seat(seat, left=False, reason="its connection ended", now=now)

    def holder_ended(self, seat: Seat, status: int | None, now: float) -> None:
        """The process that held the lease is no more."""
        if seat.adopt_by is not None:
            return  # the lease waits for the shell that takes it over
        if status is None:
            self._job.end_seat(seat, left=False, reason="ended, status unknown", now=now)
        elif status == 0:
            self._job.end_seat(seat, left=True, reason="exit 0", now=now)
        else:
            how = f"killed by signal {status & 0x7F}" if status & 0x7F else f"exit {status >> 8}"
            self._job.end_seat(seat, left=False, reason=how, now=now)

    def leave(
        self,
        uid: int,
        only: ParticipantId | None,
        lost: bool,
        reason: str,
        now: float,
        *,
        closes: bool = False,
    ) -> int:
        """End seats of one user (root: of anybody); how many."""
        mine = [
            s
            for s in self._job.seats.values()
            if uid in (0, s.holder.uid) and only in (None, s.participant) and s.ending is None
        ]
        for seat in mine:
            when = "before it started" if seat.waiting else "while it ran"
            error = Cancelled(f"{self._name}: left on {self._ctx.host} {when} (mingle leave)")
            self._ctx.do(tell_failed(seat.participant, error))
            self._job.end_seat(
                seat, left=not lost, reason=reason or "leave", now=now, closes=closes
            )
        return len(mine)

    def adopt(self, seat: Seat, event: AdoptAsked, now: float) -> local.Local:
        """The evaluating shell takes the lease over."""
        if event.uid not in (0, seat.holder.uid):
            error: MingleError = NotPermitted(
                f"{self._name}: the lease on {self._ctx.host} is {seat.holder.user}'s"
            )
            return local.Failed(code=error.code, sentence=str(error))
        if event.holder is None:
            sentence = f"{self._name}: no process {event.pid} on {self._ctx.host} to hold the lease"
            return local.Failed(code=DaemonError.code, sentence=sentence)
        seat.token = seat.adopt_by = None
        seat.holder = event.holder
        self._ctx.do(actions.Rehold(participant=seat.participant, request=event.request))
        self._replace(event.holder, seat.participant, "", now)
        twin = self._plain_twin(seat)
        if twin is not None:
            sentence = f"{self._name} on {self._ctx.host}: {self._twice(twin, seat)}"
            self._job.end_seat(seat, left=True, reason="its rank is taken", now=now)
            return local.Failed(code=Refused.code, sentence=sentence)
        self._job.rounds.prune(now)
        self._job.settle(now)
        return local.Done(count=1)

    def _tick(self, seat: Seat, now: float) -> None:
        if seat.adopt_by is not None and now >= seat.adopt_by:
            seat.adopt_by = seat.token = None
            self._job.end_seat(seat, left=False, reason="no shell took the lease over", now=now)
        elif seat.expect_at is not None and now >= seat.expect_at:
            self._beat_missed(seat, now)
        elif seat.deadline is not None and now >= seat.deadline and self._job.state not in BETWEEN:
            error = JoinTimeout(self._job.views.timed_out(seat, now))
            self._ctx.do(tell_failed(seat.participant, error))
            self._job.end_seat(seat, left=False, reason="timed out", now=now)
        elif seat.hint_at is not None and now >= seat.hint_at:
            seat.hint_at = None
            self._job.views.hint(seat)

    def _beat_missed(self, seat: Seat, now: float) -> None:
        """Its process is there, but says nothing. Once that has lasted it is lost; should it go on
        after all, it finds here that it may join again."""
        beat_s, missed_max = seat.join.heartbeat_s or 0.0, self._ctx.settings.heartbeats_missed
        seat.beats_missed += 1
        seat.expect_at = now + beat_s
        if seat.beats_missed >= missed_max:
            reason = f"stopped: no sign of life for {seat.beats_missed * beat_s:.0f} s"
            self._job.rounds.disown(seat.participant, reason)
            self._job.end_seat(seat, left=False, reason=reason, now=now)

    def stop(self, reason: str, now: float) -> None:
        """The daemon ends. It commits nothing any more; the others are told what it knows."""
        why = f"mingled on {self._ctx.host} stops: {reason}"
        error: MingleError = DaemonError(f"{self._name}: {why}")
        if self._job.state in OUTCOME_OPEN:
            error = Indeterminate(
                f"{self._name}: {why}, between this node's agreement and the outcome of the "
                "round; look at rank 0 before you start again"
            )
        for seat in self._job.waiting():
            self._ctx.do(tell_failed(seat.participant, error))
            self._job.end_seat(seat, left=False, reason=why, now=now)
        if self._job.claim is not None:
            self._job.claim.end(why)
            self._job.drop_claim(now)
            self._job.to(Trigger.REST)


def _key(key_id: str) -> str:
    return "no key" if key_id == NO_KEY_ID else f"key {key_id}"
