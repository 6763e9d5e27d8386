"""What people are told of a job: progress, hints, timeouts, status. Decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mingled.core import actions, local, lookalikes
from mingled.core.messages import NAMES_SHOWN_MAX, Seen
from mingled.core.seat import Seat
from mingled.core.secrets import NO_KEY_ID
from mingled.core.table import BETWEEN, State
from mingled.core.words import Form

if TYPE_CHECKING:
    from mingled.core.job import Job


NOTED_MAX = 64
"""Different sentences about discovery, each told once; the rest would be noise."""


class Views:
    """Of one job. Progress is coalesced: at once after a pause, else every `progress_every_s`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._due: float | None = None
        self._sent_at = float("-inf")
        self._told: dict[str, local.Progress] = {}
        self._noted: set[str] = set()

    def progressed(self, now: float) -> None:
        if self._due is None:
            self._due = max(now, self._sent_at + self._job.ctx.settings.progress_every_s)

    def tick(self, now: float) -> None:
        if self._due is None or now < self._due or self._job.state in BETWEEN:
            return
        self._due, self._sent_at = None, now
        if self._job.claim is not None:
            self._job.claim.send_progress(now)
        progress = self.progress(now)
        waiting = self._job.waiting()
        self._told = {
            s.participant: self._told[s.participant] for s in waiting if s.participant in self._told
        }
        for seat in waiting:
            if seat.connected and self._told.get(seat.participant) != progress:
                self._told[seat.participant] = progress
                self._job.ctx.do(actions.Tell(participant=seat.participant, message=progress))

    def deadline(self) -> float | None:
        """Not while a round is being sealed: its outcome is the better news, and 1,000 waiters
        must not be told of each other in its way."""
        return None if self._job.state in BETWEEN else self._due

    def progress(self, now: float) -> local.Progress:
        """As a waiting client sees it."""
        job = self._job
        theirs = None
        leader: str | None = None
        if job.claim is not None:
            theirs, leader = job.claim.progress(now), job.ctx.host
        elif job.pursuit is not None and job.pursuit.leader is not None:
            theirs, leader = job.pursuit.progress, job.pursuit.leader.host
        waiting = job.waiting()
        shape = waiting[0].join if waiting else None
        here = tuple(
            Seen(
                host=job.ctx.host,
                rank=s.join.rank,
                address=job.home.first_address(),
                port=job.ctx.link_port,
            )
            for s in waiting
        )
        return local.Progress(
            job=job.job,
            state=job.state.value,
            leader=leader,
            here=theirs.here if theirs else len(here),
            size_min=theirs.size_min if theirs else shape.size_min if shape else 0,
            size_max=theirs.size_max if theirs else shape.size_max if shape else 0,
            present=theirs.present if theirs else here[:NAMES_SHOWN_MAX],
            missing=theirs.missing if theirs else (),
            running=theirs.running if theirs else None,
            note=theirs.note if theirs else job.note_text,
        )

    def hint(self, seat: Seat) -> None:
        """Nobody was heard for a while: what to look at."""
        job = self._job
        heard = job.pursuit is not None and job.pursuit.leader is not None
        if not seat.waiting or heard or (job.claim is not None and job.claim.sessions):
            return
        alike = lookalikes.advertised(job)
        if alike:
            job.warn(seat, alike)
        sentence = (
            f"job {job.job}: nobody else was heard for {job.ctx.settings.hint_after_s:g} s. This "
            f"node listens on {job.home.listening_on()}. Do the others use the same --job, and are "
            "they on the same switch or network? Where nothing but unicast passes, name one of "
            f"them: --peers HOST. Next: mingle doctor --job {job.job}{self._other_keys()}"
        )
        notice = local.Notice(kind="hint", sentence=sentence)
        job.ctx.do(actions.Tell(participant=seat.participant, message=notice))

    def _other_keys(self) -> str:
        """Others are heard that have another key, perhaps those who are waited for."""
        ctx = self._job.ctx
        heard = ctx.book.others(ctx.key_ids)
        if not heard:
            return ""
        named = ", ".join(
            f"{address} has {f'key {key_id}' if key_id != NO_KEY_ID else 'no key'}"
            for key_id, address in heard.items()
        )
        own = ctx.key_ids[0]
        mine = f"key {own}" if own != NO_KEY_ID else "no key"
        return (
            f". Another cluster key is in use on this network, as adverts say: {named}, {ctx.host} "
            f"has {mine}; one job needs the same on all its machines (mingle key id)"
        )

    def discovery_noted(self, sentence: str) -> None:
        """What a rung of discovery has against the search, to those who still search: once."""
        job = self._job
        searching = job.state in (State.SEARCHING, State.CONNECTING, State.LEADING)
        if not searching or sentence in self._noted or len(self._noted) >= NOTED_MAX:
            return
        self._noted.add(sentence)
        notice = local.Notice(kind="warning", sentence=f"job {job.job}: {sentence}")
        for seat in job.waiting():
            job.ctx.do(actions.Tell(participant=seat.participant, message=notice))

    def timed_out(self, seat: Seat, now: float) -> str:
        """What was seen and what was missing, in one sentence."""
        job, progress = self._job, self.progress(now)
        start = f"job {job.job}: no rendezvous on {job.ctx.host} within {now - seat.since:.0f} s: "
        note = f" (last: {progress.note})" if progress.note else ""
        if progress.leader is None:
            return (
                f"{start}no rank 0 was heard on {job.home.listening_on()}; start mingle-wait with "
                f"the same --job on the other machines, or see mingle doctor{note}"
                f"{self._other_keys()}"
            )
        if seat.join.form is Form.PLAIN:
            return (
                f"{start}rank 0 on {progress.leader} was heard but did not admit us; "
                f"look at mingle status there{note}"
            )
        if progress.running is not None:
            return (
                f"{start}round {progress.running.round} still runs on "
                f"{', '.join(progress.running.hosts)}, and a new join waits for the next one; "
                f"end it there (Ctrl-C), or choose another job ID{note}"
            )
        hosts = ", ".join(dict.fromkeys(s.host for s in progress.present))
        if progress.here >= progress.size_min and not progress.missing:
            return (
                f"{start}{progress.here} of {progress.size_min} were here ({hosts}), but no round "
                f"could be sealed{note}"
            )
        ordinal = "node rank" if seat.join.form is Form.LAUNCHER else "rank"
        ordinal += "s" if len(progress.missing) > 1 else ""
        absent = (
            f"{ordinal} {', '.join(map(str, progress.missing))} never came"
            if progress.missing
            else f"{max(0, progress.size_min - progress.here)} more never came; start them with "
            "the same --job and size, or see mingle doctor"
        )
        return (
            f"{start}{progress.here} of {progress.size_min} were here ({hosts}); {absent}{note}"
            f"{self._other_keys()}"
        )

    def report(self, now: float) -> local.Job:
        """For `mingle status`."""
        job, progress = self._job, self.progress(now)
        address = None
        if job.claim is not None:
            address = job.home.first_address() or None
        elif job.pursuit is not None:
            address = job.pursuit.remote or None
        return local.Job(
            job=job.job,
            label=str(job.label),
            state=job.state.value,
            leader=progress.leader,
            leader_address=address,
            here=progress.here,
            size_min=progress.size_min,
            size_max=progress.size_max,
            seats=tuple(
                local.Seat(
                    participant=s.participant,
                    pid=s.holder.pid,
                    user=s.holder.user,
                    form=s.join.form,
                    rank=s.config.rank if s.config else s.join.rank,
                    state="waiting" if s.waiting else "released",
                    for_s=now - s.since,
                )
                for s in job.seats.values()
            ),
            rounds=tuple(h.report(now) for h in job.rounds.helds),
            nodes=self._nodes(progress),
            missing=progress.missing if job.waiting() else (),
            note=job.note_text,
            story=tuple(job.story),
        )

    def _nodes(self, progress: local.Progress) -> tuple[Seen, ...]:
        """Every node of the job that is known here, once."""
        job = self._job
        found: dict[str, Seen] = {}
        for seen in progress.present:
            found.setdefault(seen.address, seen)
        newest = job.rounds.newest
        for member in newest.members.values() if newest is not None else ():
            seen = Seen(
                host=member.host, rank=member.rank, user=member.user, address=member.address
            )
            found.setdefault(member.address, seen)
        return tuple(found.values())
