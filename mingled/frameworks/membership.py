"""What a launcher knows of its running round, kept by a thread beside it.

The thread listens to the daemon, tells it once a second that this process runs, and finds another
daemon where one ends. Whoever asks gets an answer from memory: nothing here blocks on a network.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable

from mingled import client
from mingled.core import local
from mingled.core.messages import Fate
from mingled.errors import Lost
from mingled.watching import News, Watch
from mingled.wording import gone_line, member

BEAT_S = 1.0
"""Between two signs of life. Ten missed ones make a stopped process lost (`Settings`)."""

STOOD_STILL_S = 15.0
"""Who was stopped for this long together with its whole machine is lost to the others by now
(`Settings.silence_sealed_s`), although its own daemon cannot know yet."""

LOOK_S = 0.5
"""A wait in the main thread is cut into pieces of this length, so that signals end it."""

Say = Callable[[str], None]


class Membership:
    """Of one participant in one sealed round, from its release until `stop`."""

    def __init__(self, lease: client.Lease, say: Say, told: client.Told) -> None:
        """`say` takes lines for a person, without the job's name; it is called from the thread."""
        self.lease = lease
        self._say = say
        config = lease.config
        self._rank = config.rank
        self._room = lease.join.size_max - len(config.members)
        self._changed = threading.Condition()
        self._fates: dict[int, Fate] = dict.fromkeys((m.rank for m in config.members), "running")
        self._named: dict[int, str] = {}  #: what is said of each that has gone
        self._returning: set[int] = set()
        self._waiting = 0
        self._over = ""  #: why the round is over for this participant
        self._finished = self._stopping = False
        self._deaf = False  #: no news will come any more: `mingle leave`, or refused
        self._watch = Watch(lease, line=say, told=told)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="mingled", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """For sentences."""
        return f"job {self.lease.config.job}"

    @property
    def nnodes(self) -> int:
        return len(self.lease.config.members)

    # ------------------------------------------------------------ asked by the launcher

    def waiting(self) -> int:
        """How many nodes wait to be in the next round, and at least 1 where this one is broken: a
        member was lost or has joined anew, or the others have gone on without this node. Newcomers
        count while there is room for them, and while nobody has finished: then the end is near."""
        with self._changed:
            if self._broken():
                return max(1, self._waiting)
            others = (fate for rank, fate in self._fates.items() if rank != self._rank)
            if self._room <= 0 or any(fate in ("finished", "left") for fate in others):
                return 0
            return min(self._waiting, self._room)

    @property
    def broken(self) -> str:
        """Why this round cannot end as it began, in a sentence; empty while it can."""
        with self._changed:
            return self._broken()

    @property
    def cancelled(self) -> str:
        """The sentence, where the job was cancelled (`mingle cancel`); else empty."""
        return self._watch.cancelled

    def until(self, happened: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Wait for the round to break, for `happened`, or for the end of the time. `nudge` makes it
        look."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._broken() and not happened():
                left_s = LOOK_S if until is None else min(LOOK_S, until - time.monotonic())
                if left_s <= 0:
                    return
                self._changed.wait(left_s)

    def nudge(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def finish(self) -> None:
        """This node's work is done: the others are told. Then wait until everybody's is, however
        long they work: they are known to live. Raises `Lost` where somebody was lost, or has begun
        anew, before its work was done, and where no news of them can come any more: then nobody can
        say that the job is done."""
        with self._changed:
            first, self._finished = not self._finished, True
            absent = self._unfinished()
        self._rouse()
        if first and absent and not self.broken:
            self._say(f"this node has finished, and waits for {', '.join(absent)}")
        self.until(lambda: not self._unfinished() or self._deaf)
        with self._changed:
            if self._unfinished():
                why = self._broken() or "no daemon tells it of the others any more"
                raise Lost(
                    f"{self.name}: this node has finished its work, but {why}; what "
                    "they had not finished is not done: look there, and run the job again from its "
                    "last checkpoint"
                )

    def stop(self) -> None:
        """End the thread; the lease goes on. Idempotent."""
        self._stopping = True
        self._rouse()
        self._thread.join()
        wake, self._wake = self._wake, -1  # closed once: its number may be somebody else's by now
        if wake >= 0:
            os.close(wake)

    # ------------------------------------------------------------ the state; under the lock

    def _broken(self) -> str:
        if self._over:
            return self._over
        gone = [rank for rank, fate in self._fates.items() if fate == "lost"]
        gone += sorted(self._returning)
        return "; ".join(self._named[rank] for rank in gone[:4])

    def _unfinished(self) -> list[str]:
        """The others whose work is not done, as far as is known."""
        done = ("finished", "left")
        return [
            f"{m.host} ({m.address})"
            for m in self.lease.config.members
            if m.rank != self._rank
            and (self._fates[m.rank] not in done or m.rank in self._returning)
        ]

    # ------------------------------------------------------------ the thread

    def _rouse(self) -> None:
        wake = self._wake
        if wake >= 0:
            os.eventfd_write(wake, 1)

    def _run(self) -> None:
        beat_at, slept_at = 0.0, _boot_clock()
        told, attachments = False, 0
        while not self._stopping:
            still_s = _boot_clock() - slept_at
            if still_s > STOOD_STILL_S:
                self._set_over(f"this process stood still for {still_s:.0f} s")
            for news in self._watch.news():
                self._hear(news)
            if self._watch.cancelled and not self._over:
                self._set_over("the job was cancelled", "its workers are stopped")
            if self._watch.gave_up and not self._deaf:
                self._deaf = True
                self.nudge()
            if attachments != self._watch.attachments:
                told, attachments = False, self._watch.attachments
            if self._finished and not told:
                self._watch.send(local.Finished())
                told = True
            if time.monotonic() >= beat_at:
                self._watch.send(local.Alive())
                beat_at = time.monotonic() + BEAT_S
            slept_at = _boot_clock()
            self._sleep(beat_at)
        self._watch.close()

    def _sleep(self, beat_at: float) -> None:
        due = beat_at if self._watch.due is None else min(beat_at, self._watch.due)
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._watch.source is not None:
            poll.register(self._watch.source, select.POLLIN)
        poll.poll(max(0.0, due - time.monotonic()) * 1000)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _hear(self, news: News) -> None:
        if isinstance(news, local.Waiting):
            with self._changed:
                self._waiting = news.count
                self._changed.notify_all()
            return
        if news.rank == self._rank:
            self._set_over(f"the others go on without this node: {news.reason}")
            return
        form = self.lease.config.form
        line = gone_line(news, form)
        with self._changed:
            known, self._fates[news.rank] = self._fates.get(news.rank), news.how
            if news.again:
                self._returning.add(news.rank)
                line = f"{member(news, form)} begins anew"
            self._named[news.rank] = line
            self._changed.notify_all()
        if line and known != news.how:
            self._say(line)

    def _set_over(self, reason: str, next_: str = "it joins again") -> None:
        with self._changed:
            first, self._over = not self._over, reason
            self._changed.notify_all()
        if first:
            self._say(f"{reason}; {next_}")


def _boot_clock() -> float:
    """Goes on while the machine is suspended, as `time.monotonic` does not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
