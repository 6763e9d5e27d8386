"""Rendezvous after rendezvous on one set of daemons, with kills: nothing stays behind.

`python -m benchmarks.soak` does it 2,000 times, and measures the slope of the memory.
"""

from __future__ import annotations

import pytest

from benchmarks import soak as benchmark
from mingled.lab import available

from .conftest import absent

RENDEZVOUS = 40


def test_nothing_is_left_after_forty_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    possible = available()
    if possible.kind == "none":
        absent(possible.reason)
    monkeypatch.setattr(benchmark, "SAMPLE_EVERY", 10)
    monkeypatch.setattr(benchmark, "DAEMON_KILLED_EVERY", 15)
    soaked = benchmark.soak(RENDEZVOUS, seed=7)
    assert soaked.leaks() == []
    assert (soaked.rendezvous, soaked.daemon_kills) == (RENDEZVOUS, 2)
    assert soaked.kills > 0
    assert [len(samples) for samples in soaked.samples.values()] == [5, 5]
