"""A short sweep for every test run; `python -m tests.sim --seeds A..B` goes on from there."""

from __future__ import annotations

from collections import Counter

import pytest

from mingled.core import job, table
from mingled.core.table import State, Trigger
from tests.sim.run import run, sweep


def test_invariants_hold_over_500_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Counter[tuple[State, Trigger]]()

    def step(state: State, trigger: Trigger) -> State:
        taken[state, trigger] += 1
        return table.step(state, trigger)

    monkeypatch.setattr(job, "step", step)
    result = sweep(range(500))
    failed = result.failed
    assert failed is None, "\n".join((*failed.transcript[-60:], f"{failed.seed}: {failed.error}"))
    assert result.released > 3500, "the simulation must get somewhere, too"
    unused = set(table.TRANSITIONS) - set(taken)
    assert not unused, "every line of the table is taken by some seed"


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = run(7, transcript=True), run(7, transcript=True)
    assert first == second
    assert len(first.transcript) > 50
