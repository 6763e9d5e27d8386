"""The one transition table. That each line is taken is shown by tests/sim/test_sweep.py."""

from __future__ import annotations

import itertools

import pytest

from mingled.core.table import TRANSITIONS, ForbiddenTransition, State, Trigger, step


def test_every_state_is_reached_from_idle() -> None:
    reached = {State.IDLE}
    while more := {b for (a, _), b in TRANSITIONS.items() if a in reached} - reached:
        reached |= more
    assert reached == set(State)


def test_every_state_leads_back_to_idle() -> None:
    back = {State.IDLE}
    while more := {a for (a, _), b in TRANSITIONS.items() if b in back} - back:
        back |= more
    assert back == set(State)


def test_every_trigger_is_used() -> None:
    assert {trigger for _, trigger in TRANSITIONS} == set(Trigger)


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(State, Trigger)))
def test_step_takes_what_the_table_has_and_nothing_else(state: State, trigger: Trigger) -> None:
    if (state, trigger) in TRANSITIONS:
        assert step(state, trigger) is TRANSITIONS[state, trigger]
    else:
        with pytest.raises(ForbiddenTransition, match=f"from {state} by {trigger}"):
            step(state, trigger)


def test_only_the_outcome_ends_an_acknowledged_round() -> None:
    """ABORT, COMMIT, or a lost link and then the same; or it is never known."""
    assert {t for s, t in TRANSITIONS if s is State.PREPARED} == {
        Trigger.COMMIT,
        Trigger.ABORT,
        Trigger.DOUBT,
    }
    assert {t for s, t in TRANSITIONS if s is State.UNSURE} == {
        Trigger.COMMIT,
        Trigger.ABORT,
        Trigger.GIVE_UP,
    }
