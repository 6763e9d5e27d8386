"""TCP on a network that loses packets: what the kernel's own patience is too slow for."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

TCP_THIN_LINEAR_TIMEOUTS = 16
"""Linux: a stream with few packets in flight is repeated at even intervals (from 0.2 s) for six
times, instead of 0.2, 0.4, 0.8, ... 12.8 s. At 30% loss half of all tries fail."""

TCP_RTO_MAX_MS = 44
"""Linux 6.15: the longest pause between two tries; 120 s otherwise."""

RTO_MAX_MS = 1_000
"""The least that the kernel takes."""

T = TypeVar("T")


def persist(sock: socket.socket) -> None:
    """Repeat lost packets of this connection soon, as far as the kernel can."""
    for option, value in ((TCP_THIN_LINEAR_TIMEOUTS, 1), (TCP_RTO_MAX_MS, RTO_MAX_MS)):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def try_anew(
    attempt: Callable[[], Awaitable[T]],
    discard: Callable[[T], None],
    *,
    every_s: float,
    within_s: float,
) -> T:
    """The first attempt that succeeds, a fresh one being started every `every_s` beside those that
    still wait. An attempt that is answered (refused, unreachable) ends them all with its error;
    `discard` takes what a later attempt brought too late. Raises `OSError` (ETIMEDOUT) after
    `within_s`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    running: set[asyncio.Future[T]] = set()
    winner: asyncio.Future[T] | None = None
    try:
        while (left := until - loop.time()) > 0:
            running.add(asyncio.ensure_future(attempt()))
            done, running = await asyncio.wait(
                running, timeout=min(every_s, left), return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                winner = min(done, key=lambda f: f.exception() is not None)
                running |= done - {winner}
                return winner.result()
        raise OSError(errno.ETIMEDOUT, f"no answer within {within_s:g} s")
    finally:
        for other in running:
            other.cancel()
            other.add_done_callback(lambda f: _late(f, discard))


def _late(future: asyncio.Future[T], discard: Callable[[T], None]) -> None:
    if not future.cancelled() and future.exception() is None:
        discard(future.result())
