"""One event loop for all inputs of a process: to make one costs more than an input."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import cache
from typing import Any

_failures: list[BaseException] = []


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(_failed)
    return loop


def _failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    _failures.append(context.get("exception") or AssertionError(context["message"]))


def run(work: Coroutine[Any, Any, None]) -> None:
    """What the loop would only log is raised, too."""
    _failures.clear()
    _loop().run_until_complete(work)
    if _failures:
        raise _failures[0]


def close() -> None:
    """After the last input of a process that goes on."""
    if _loop.cache_info().currsize:
        _loop().close()
        _loop.cache_clear()
