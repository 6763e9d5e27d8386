"""Whatever is reported, in whatever order: nothing raises, nothing spins, nothing grows, nobody is
answered twice. `tests/fuzz/shell.py` makes the events and checks; `test_odd_orders.py` has what it
found."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mingled.core import events
from mingled.core.adverts import AdvertBook
from mingled.core.job import Job
from mingled.core.pursuit import Pursuit
from mingled.core.table import State
from tests.fuzz.shell import FRAMES, Broken, play

RUNS = 120
RUN_BYTES = 1_500
"""About two hundred events."""


PLANTED_RUNS = 1_500
"""At most, to find a bug; the rarest takes a roster that is almost right, one run in 200."""


def seeded(seed: int) -> bytes:
    return random.Random(seed).randbytes(RUN_BYTES)


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=80, max_size=800))
def test_any_events_in_any_order(data: bytes) -> None:
    play(data).drain()


def test_long_runs_get_everywhere_and_end_with_nothing_kept() -> None:
    seen, ready, failed = set(), 0, 0
    said: set[type] = set()
    for seed in range(RUNS):
        shell = play(seeded(seed))
        happened = [event for _, arrow, event in shell.log if arrow == "<-"]
        said |= {type(event) for event in happened}
        said |= {type(e.message) for e in happened if isinstance(e, events.FrameReceived)}
        seen |= {line.partition(" ")[0] for job in shell.core.jobs.values() for line in job.story}
        ready, failed = ready + len(shell.ready), failed + len(shell.failed)
        shell.drain()
    assert ready > RUNS / 4
    assert failed > RUNS
    assert said == {*events.Event.__subclasses__(), *FRAMES}
    assert seen >= set(State) - {State.UNSURE}  # which takes a longer story than most are


def played() -> None:
    for seed in range(PLANTED_RUNS):
        play(seeded(seed)).drain()


def _released_twice(release: Callable[..., None]) -> Callable[..., None]:
    def twice(*args: Any) -> None:
        release(*args)
        release(*args)

    return twice


@pytest.mark.parametrize(
    ("of", "name", "planted", "error"),
    [
        (Job, "deadline", lambda _: 0.0, Broken),
        (Job, "release", _released_twice(Job.release), Broken),
        (AdvertBook, "_drop", lambda *_: None, Broken),
        (Pursuit, "_flaw", lambda *_: None, (Broken, LookupError)),
    ],
)
def test_a_planted_bug_is_found(
    of: type,
    name: str,
    planted: object,
    error: type[Exception] | tuple[type[Exception], ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(of, name, planted)
    with pytest.raises(error):
        played()
