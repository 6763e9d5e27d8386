"""When periodic work is due, so that an idle machine is woken once for all of it."""

from __future__ import annotations

import math

IDLE_EVERY_S = 10.0
"""What nobody waits for. A wake of an idle machine costs a millisecond where caches have gone cold,
whatever is done in it."""


def due_s(now_s: float, every_s: float) -> float:
    """The next whole multiple of `every_s`: timers set by it come due at the same instant."""
    due = (math.floor(now_s / every_s) + 1) * every_s
    return due if due > now_s else due + every_s  # a float's rounding
