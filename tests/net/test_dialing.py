"""Fresh attempts beside the ones that wait."""

import asyncio
import errno
import socket

import pytest

from mingled.net.dialing import persist, try_anew


async def test_a_later_attempt_wins_where_the_first_waits_for_ever() -> None:
    started = 0
    never = asyncio.Event()

    async def attempt() -> int:
        nonlocal started
        started += 1
        mine = started
        if mine < 3:
            await never.wait()
        return mine

    assert await try_anew(attempt, lambda _: None, every_s=0.01, within_s=30) == 3


async def test_an_answer_ends_all_attempts() -> None:
    async def refused() -> int:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    with pytest.raises(ConnectionRefusedError):
        await try_anew(refused, lambda _: None, every_s=30, within_s=60)


async def test_silence_ends_in_a_timeout() -> None:
    with pytest.raises(TimeoutError) as caught:
        await try_anew(asyncio.Event().wait, lambda _: None, every_s=0.01, within_s=0.05)
    assert caught.value.errno == errno.ETIMEDOUT


async def test_what_comes_too_late_is_discarded() -> None:
    both, gate, late = asyncio.Event(), asyncio.Event(), asyncio.Event()
    discarded: list[int] = []
    count = 0

    async def attempt() -> int:
        nonlocal count
        count += 1
        mine = count
        if mine == 2:
            both.set()
        await gate.wait()
        return mine

    def discard(value: int) -> None:
        discarded.append(value)
        late.set()

    task = asyncio.ensure_future(try_anew(attempt, discard, every_s=0.01, within_s=30))
    await both.wait()
    gate.set()
    winner = await task
    await late.wait()
    assert winner not in discarded


async def test_called_off_it_leaves_no_attempt() -> None:
    three, never = asyncio.Event(), asyncio.Event()
    ended = count = 0

    async def attempt() -> int:
        nonlocal count, ended
        count += 1
        if count == 3:
            three.set()
        try:
            await never.wait()
        finally:
            ended += 1
        return count

    before = asyncio.all_tasks()
    task = asyncio.ensure_future(try_anew(attempt, lambda _: None, every_s=0.01, within_s=3600))
    await three.wait()
    task.cancel()
    while running := asyncio.all_tasks() - before:
        await asyncio.wait(running)
    assert ended == count >= 3


def test_any_tcp_socket_can_be_made_persistent() -> None:
    with socket.socket() as sock:
        persist(sock)  # an older kernel lacks an option: no error
