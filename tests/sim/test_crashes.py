"""A daemon that crashes at any transition, before, between or after the actions that follow, and
starts again, harms nobody else."""

from __future__ import annotations

import pytest

from mingled.core.table import TRANSITIONS, State, Trigger
from tests.sim.run import run

CRASHES = 3
"""Of each kind, over as many seeds as it takes: some, none or all of its actions are done then."""

SEEDS_MAX = 1_000
"""The rarest transition comes once in 100 seeds."""


@pytest.mark.parametrize(
    ("state", "trigger", "after"), [(s, t, after) for (s, t), after in TRANSITIONS.items()]
)
def test_fault_01_a_crash_at_any_transition(state: State, trigger: Trigger, after: State) -> None:
    crashed = seed = 0
    while crashed < CRASHES and seed < SEEDS_MAX:
        played = run(seed, mine=f"{state} --{trigger}--> {after}")
        story = "\n".join(played.transcript[-60:])
        assert played.error is None, f"{story}\nseed {seed}: {played.error}"
        crashed += played.crashed
        seed += 1
    assert crashed, "nothing was tested"
