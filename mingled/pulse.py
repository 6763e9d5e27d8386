"""How late the event loop is: a timer that is due each second, and when it really came."""

from __future__ import annotations

import asyncio
from collections import deque

EVERY_S = 1.0

KEPT = 60
"""The worst of the last minute is what is told: a scraper that comes every 15 s misses nothing."""


class Pulse:
    """Of the running loop, from `start` to `stop`."""

    def __init__(self) -> None:
        self._late_s: deque[float] = deque(maxlen=KEPT)
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    @property
    def worst_s(self) -> float:
        """How late the loop was at worst within the last minute, in seconds; now included: while it
        was stuck no timer came."""
        loop = asyncio.get_running_loop()
        now_s = max(0.0, loop.time() - self._due) if self._timer is not None else 0.0
        return max(*self._late_s, now_s, 0.0)

    def start(self) -> None:
        self._arm()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time() + EVERY_S
        self._timer = loop.call_at(self._due, self._beat)

    def _beat(self) -> None:
        self._late_s.append(max(0.0, asyncio.get_running_loop().time() - self._due))
        self._arm()
