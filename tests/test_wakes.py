"""Periodic work that comes due together."""

from hypothesis import given
from hypothesis import strategies as st

from mingled.wakes import due_s


@given(st.floats(0, 1e9), st.sampled_from([0.001, 0.5, 10.0, 15.0]))
def test_it_is_ahead_and_not_further_than_one_period(now_s: float, every_s: float) -> None:
    due = due_s(now_s, every_s)
    assert now_s < due <= now_s + 1.001 * every_s + 1e-6


@given(st.floats(0, 9.99), st.floats(0, 9.99))
def test_whenever_timers_were_set_they_come_due_at_once(one_s: float, other_s: float) -> None:
    assert due_s(70 + one_s, 10.0) == due_s(70 + other_s, 10.0) == 80.0
