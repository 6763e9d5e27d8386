"""From the last join to everybody released, and the multicast packets of a job's start."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from benchmarks.fleet import Fleet, Span
from benchmarks.result import Result, result

BARRIER = "bare asyncio TCP barrier"

GOALS_MS = {8: 15.0, 64: 60.0}
"""Medians."""

PACKETS_MAX = 6

QUIET_S = 1.0
"""An announcement is repeated for half a second, a goodbye for a quarter."""


def last_join(fleet: Fleet, repeat: int) -> list[Result]:
    """The last one is a follower, or rank 0 itself; given ranks."""
    size = len(fleet)
    return [
        _one_late(fleet, repeat, f"{who} last", late)
        for who, late in (("a follower", size - 1), ("rank 0", 0))
    ]


def _one_late(fleet: Fleet, repeat: int, who: str, late: int) -> Result:
    size = len(fleet)
    ours, bare = _in_turn(
        repeat,
        lambda: _after_last(
            _joined(fleet, lambda job: fleet.last_late("join", late=late, job=job, rank=None))
        ),
        lambda: _after_last(fleet.last_late("barrier", late=late, job=fleet.job())),
    )
    goal = GOALS_MS.get(size)
    return result(
        f"release-{size}-{who.replace(' ', '-')}",
        f"last join to all released, N={size}, {who}",
        ours,
        against=(BARRIER, bare),
        goal=("median", goal) if goal else None,
    )


def all_at_once(fleet: Fleet, repeat: int) -> list[Result]:
    """Nobody has a rank: who leads is found out as well."""
    size = len(fleet)
    ours, bare = _in_turn(
        repeat,
        lambda: _after_first(
            _joined(fleet, lambda job: fleet.all_at_once("join", job=job, rank=None))
        ),
        lambda: _after_first(fleet.all_at_once("barrier", job=fleet.job())),
    )
    return [
        result(
            f"release-at-once-{size}",
            f"all join at once, automatic ranks, N={size}",
            ours,
            against=(BARRIER, bare),
            note="includes the search for a leader, 50 to 250 ms by design",
        )
    ]


TO_ALL = "(udp port 5353 or udp port 29491) and ether multicast"
"""mDNS and broadcast, which tcpdump counts as multicast, too."""


def packets(fleet: Fleet, repeat: int, settle_s: float) -> list[Result]:
    """Multicast of one job's start, from rank 0's join until it is quiet again."""
    fleet.settle(settle_s)
    size = len(fleet)
    followers = range(1, size)
    return [
        _multicast(fleet, repeat, "rank 0 last", [followers, [0]]),
        _multicast(fleet, repeat, "rank 0 first", [[0], followers]),
    ]


def _multicast(fleet: Fleet, repeat: int, who: str, groups: list[Sequence[int]]) -> Result:
    size = len(fleet)
    counts = []
    questions = 0
    for _ in range(repeat):
        time.sleep(QUIET_S)
        # Every node sees what is sent to all, so the last one's card has each packet once.
        with fleet.lan.capture(size, TO_ALL) as seen:
            spans = fleet.in_order("join", *groups, job=fleet.job(), rank=None)
            time.sleep(QUIET_S)
        fleet.leave()
        since_unix_s = spans[0].start + time.time() - time.monotonic()
        counted = [packet for packet in seen if packet.at_s >= since_unix_s]
        questions = sum("? " in packet.text for packet in counted)
        counts.append(float(len(counted)))
    return result(
        f"packets-{size}-{who.replace(' ', '-')}",
        f"multicast packets of a job's start, N={size}, {who}",
        counts,
        unit="packets",
        goal=("median", PACKETS_MAX),
        note=f"the last time {questions} questions, {counts[-1] - questions:.0f} announcements",
    )


def _joined(fleet: Fleet, join: Callable[[str], list[Span]]) -> list[Span]:
    spans = join(fleet.job())
    fleet.leave()
    return spans


def _after_last(spans: list[Span]) -> float:
    """Seconds from the last one's join to the last one's release."""
    return max(span.end for span in spans) - max(span.start for span in spans)


def _after_first(spans: list[Span]) -> float:
    return max(span.end for span in spans) - min(span.start for span in spans)


def _in_turn(
    repeat: int, ours: Callable[[], float], other: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Milliseconds of both, after one of each that does not count."""
    took: tuple[list[float], list[float]] = ([], [])
    for round_ in range(repeat + 1):
        for values, measure in zip(took, (ours, other), strict=True):
            value = measure()
            if round_:
                values.append(value * 1000)
    return took
