"""How late the daemon's loop is, and what the daemon holds.

It asks to be woken, and looks at the clock when it is. Whatever keeps the loop, a flood or a disk,
keeps heartbeats and answers for as long.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from pathlib import Path
from typing import Protocol

from mingled.core.local import Lag
from mingled.wakes import IDLE_EVERY_S, due_s

BUSY_EVERY_S = 0.05
BUSY_SHARE = 0.02
"""Of one core, since the last beat: from here on the next beats come fast. So what comes over an
idle daemon is seen after IDLE_EVERY_S at the latest, and what holds it for longer in any case."""

LOOK_EVERY_S = 0.1
"""At its own descriptors: with thousands of them each look takes a millisecond."""

PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024

BUCKET_S = 10.0
BUCKETS = 6
"""The last minute, to ten seconds."""


class Holder(Protocol):
    """What says how much it holds."""

    @property
    def counts(self) -> dict[str, int]: ...


def _own() -> dict[str, int]:
    """What the process itself holds."""
    counts = {"tasks": len(asyncio.all_tasks())}
    try:
        # Without the one that the look itself takes.
        counts["descriptors"] = len(os.listdir("/proc/self/fd")) - 1
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        counts["resident KiB"] = pages * PAGE_KIB
    except OSError:  # no Linux, or no descriptor left to look with
        pass
    return counts


class Pulse:
    """Beats from `start` to `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._spent_s = 0.0  #: on a core, at the last beat
        self._beat_s = 0.0  #: when that was
        self._worst_s = 0.0
        self._buckets: deque[tuple[int, float]] = deque(maxlen=BUCKETS)
        self._own: dict[str, int] = {}
        self._looked_at_s = float("-inf")

    def start(self) -> None:
        self._spent_s = time.process_time()
        self._beat_s = self._loop.time()
        self._wait(due_s(self._beat_s, IDLE_EVERY_S))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def lag(self) -> Lag:
        """As far as it was looked at."""
        now = self._bucket(self._loop.time())
        recent = [worst for bucket, worst in self._buckets if bucket > now - BUCKETS]
        return Lag(minute_s=max(recent, default=0.0), worst_s=self._worst_s)

    def held(self, *holders: Holder) -> dict[str, int]:
        """What all of them and the process itself hold just now."""
        now_s = self._loop.time()
        if now_s >= self._looked_at_s + LOOK_EVERY_S:
            self._own, self._looked_at_s = _own(), now_s
        counts = dict(self._own)
        for holder in holders:
            counts |= holder.counts
        return counts

    def _wait(self, at_s: float) -> None:
        self._due_s = at_s
        self._timer = self._loop.call_at(self._due_s, self._beat)

    def _beat(self) -> None:
        now_s, spent_s = self._loop.time(), time.process_time()
        self.note(now_s, now_s - self._due_s)
        share = (spent_s - self._spent_s) / max(now_s - self._beat_s, 1e-9)
        self._spent_s, self._beat_s = spent_s, now_s
        busy = share >= BUSY_SHARE
        self._wait(now_s + BUSY_EVERY_S if busy else due_s(now_s, IDLE_EVERY_S))

    def note(self, now_s: float, late_s: float) -> None:
        """A beat that was due came this late."""
        late_s = max(0.0, late_s)
        self._worst_s = max(self._worst_s, late_s)
        bucket = self._bucket(now_s)
        if self._buckets and self._buckets[-1][0] == bucket:
            late_s = max(late_s, self._buckets.pop()[1])
        self._buckets.append((bucket, late_s))

    @staticmethod
    def _bucket(now_s: float) -> int:
        return int(now_s // BUCKET_S)
