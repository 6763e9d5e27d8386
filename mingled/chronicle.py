"""What has happened to each job on this node, for `mingle logs`: in memory, and bounded.

It is fed by the daemon's loop, with every event and action and with what the core says of itself,
and outlives the jobs. Each line belongs to one user, whom the job was then; nobody else reads it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

from mingled.core import actions, events, local
from mingled.core.words import Form, JobId, ParticipantId
from mingled.wording import gone_line

if TYPE_CHECKING:
    from mingled.core.config import Config

LINES_MAX = 256
"""Of one job: about 50 KiB."""

JOBS_MAX = 64
"""Of all users, 3 MiB in all; the oldest of whoever has the most goes first."""

Kind = Literal["state", "note", "came", "ended", "ready", "hint", "warning", "failed", "member"]


class _Seat:
    """A participant as the lines name it."""

    def __init__(self, join: local.Join, holder: events.Holder) -> None:
        self.job = join.job
        self.form = join.form
        self.who = f"pid {holder.pid} of {holder.user}"


class _Story:
    """Of one job."""

    def __init__(self) -> None:
        self.uid = -1  #: whose it is now
        self.lines: deque[tuple[int, local.StoryLine]] = deque(maxlen=LINES_MAX)


class Chronicle:
    """`wall_s` gives Unix time. `written` hears of each line, with a level of `logging`."""

    def __init__(
        self,
        wall_s: Callable[[], float] = time.time,
        written: Callable[[JobId, int, str], None] = lambda job, level, text: None,
    ) -> None:
        self._wall_s = wall_s
        self._written = written
        self._stories: dict[JobId, _Story] = {}  #: the one that was told of last at the end
        self._seats: dict[ParticipantId, _Seat] = {}
        self._count = 0
        self._leaving: ParticipantId | None = None

    def lines(self, job: JobId, uid: int, after: int = 0) -> tuple[local.StoryLine, ...]:
        """Those that this user may read, from the number `after` on, the oldest first."""
        story = self._stories.get(job)
        kept = story.lines if story is not None else ()
        return tuple(x for owner, x in kept if uid in (0, owner) and x.number > after)

    # ------------------------------------------------------------ what is told

    def took(self, event: events.Event) -> None:
        """An event is about to go to the core."""
        self._leaving = event.participant if isinstance(event, events.LeaveAsked) else None
        match event:
            case events.JoinAsked() | events.ReattachAsked():
                seat = self._seats[event.participant] = _Seat(event.join, event.holder)
                self._open(seat.job, event.holder.uid)
                back = isinstance(event, events.ReattachAsked)
                self._add(seat.job, "came", f"{seat.who} {'is back' if back else 'joins'}")
            case events.HolderEnded(participant=participant, status=status):
                self._of(participant, "ended", f"ended: {_how(status)}")
            case events.LeaveAsked() if event.participant is not None:
                what = "was lost" if event.lost else "has left"
                self._of(event.participant, "ended", f"{what}: {event.reason or 'leave'}")
            case events.LeaveAsked() | events.CancelAsked():
                word = "leave" if isinstance(event, events.LeaveAsked) else "cancel"
                self._add(event.job, "ended", f"mingle {word}, by uid {event.uid}", event.uid)
            case _:
                pass

    def did(self, action: actions.Action) -> None:
        """An action is performed."""
        match action:
            case actions.Tell():
                self._told(action.participant, action.message)
            case actions.Release():
                self._seats.pop(action.participant, None)
            case _:
                pass

    def changed(self, story: Iterable[tuple[JobId, actions.StoryKind, str]]) -> None:
        """What the core says that it has changed."""
        for job, kind, text in story:
            self._add(job, kind, text, level=logging.DEBUG)

    def _told(self, participant: ParticipantId, message: local.Local) -> None:
        match message:
            case local.Notice():
                level = logging.WARNING if message.kind == "warning" else logging.INFO
                self._of(participant, message.kind, message.sentence, named=False, level=level)
            case local.Ready():
                self._of(participant, "ready", _ready(message.config, message.waited_s))
            case local.Failed() if participant == self._leaving:
                pass  # it has asked for that itself, and its end is told already
            case local.Failed():
                self._of(participant, "failed", f"{message.code}: {message.sentence}")
            case local.Gone():
                form = seat.form if (seat := self._seats.get(participant)) else Form.PROCESS
                plain = f"{message.host}, rank {message.rank}, {message.how}: {message.reason}"
                level = logging.WARNING if message.how in ("lost", "unwatched") else logging.INFO
                line = gone_line(message, form) or plain
                self._of(participant, "member", line, named=False, level=level)
            case _:
                pass

    # ------------------------------------------------------------ what is kept

    def _of(
        self,
        participant: ParticipantId,
        kind: Kind,
        text: str,
        *,
        named: bool = True,
        level: int = logging.INFO,
    ) -> None:
        """`named`: it is about the participant; else of its job, and told to each of them."""
        seat = self._seats.get(participant)
        if seat is not None:
            self._add(seat.job, kind, f"{seat.who}: {text}" if named else text, level=level)

    def _open(self, job: JobId, uid: int) -> None:
        story = self._stories.pop(job, None) or _Story()
        story.uid = uid
        while len(self._stories) >= JOBS_MAX:
            most = Counter(s.uid for s in self._stories.values()).most_common(1)[0][0]
            del self._stories[next(j for j, s in self._stories.items() if s.uid == most)]
        self._stories[job] = story

    def _add(
        self,
        job: JobId,
        kind: Kind,
        text: str,
        uid: int | None = None,
        *,
        level: int = logging.INFO,
    ) -> None:
        """A line, unless it is the last one again. `uid`: only if that may change the job."""
        story = self._stories.get(job)
        if story is None or uid not in (None, 0, story.uid):
            return
        last = story.lines[-1] if story.lines else None
        if last is not None and (last[0], last[1].kind, last[1].text) == (story.uid, kind, text):
            return
        self._count += 1
        line = local.StoryLine(number=self._count, at_s=self._wall_s(), kind=kind, text=text)
        story.lines.append((story.uid, line))
        self._written(job, level, text)


def _ready(config: Config, waited_s: float) -> str:
    master = f"{config.master_addr} port {config.master_port}"
    return (
        f"released as rank {config.rank} of round {config.round} after {waited_s:.1f} s; rank 0 "
        f"is at {master}"
    )


def _how(status: int | None) -> str:
    if status is None:
        return "its status is not known"
    return f"killed by signal {status & 0x7F}" if status & 0x7F else f"exit {status >> 8}"
