"""How late the loop is, and what is held."""

import asyncio
import socket
import time

import pytest

from mingled import pulse
from mingled.core.local import Lag
from mingled.pulse import BUCKET_S, BUCKETS, Pulse


async def test_a_loop_that_is_kept_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "IDLE_EVERY_S", 0.001)
    beating = Pulse()
    beating.start()
    assert beating.lag == Lag()
    time.sleep(0.05)  # noqa: ASYNC251  what this is about
    for _ in range(3):
        await asyncio.sleep(0)
    assert beating.lag.minute_s == beating.lag.worst_s > 0.02
    beating.close()
    beating.close()


async def test_a_minute_is_forgotten_and_the_worst_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    beating = Pulse()
    now = asyncio.get_running_loop().time()
    beating.note(now - BUCKETS * BUCKET_S, 0.3)
    assert beating.lag == Lag(minute_s=0.0, worst_s=0.3)
    beating.note(now, 0.2)
    beating.note(now, 0.1)
    beating.note(now, -1.0)  # a timer may come a tick early
    assert beating.lag == Lag(minute_s=0.2, worst_s=0.3)


async def test_what_is_held_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "LOOK_EVERY_S", 0.0)
    held = Pulse().held

    class Jar:
        counts: dict[str, int] = {"cookies": 3}  # noqa: RUF012  a fake

    before = held(Jar())
    assert before["cookies"] == 3
    assert before["resident KiB"] > 1_000
    with socket.socket():
        waiting = asyncio.create_task(asyncio.Event().wait())
        now = held()
    assert now["descriptors"] == before["descriptors"] + 1
    assert now["tasks"] == before["tasks"] + 1
    waiting.cancel()
