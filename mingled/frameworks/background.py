"""Calls of torch that may block in C++ for a minute, each in a thread of its own."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

END_S = 5.0
"""A thread that comes back from C++ while the interpreter ends is killed in the middle of it, and
takes the process along (SIGABRT instead of its exit code): its end is awaited, for so long."""

T = TypeVar("T")

_running: set[threading.Thread] = set()


def begin(call: Callable[[], T], ended: Callable[[], None] = lambda: None) -> Future[T]:
    """Its result, or what it raised, once it is there; then `ended` is called, in the thread."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # whatever torch raises, for the caller to raise
            future.set_exception(error)
        ended()
        _running.discard(thread)

    thread = threading.Thread(target=run, name="mingled-store", daemon=True)
    _running.add(thread)
    thread.start()
    return future


@atexit.register
def _await_ends() -> None:
    until = time.monotonic() + END_S
    for thread in list(_running):
        thread.join(max(0.0, until - time.monotonic()))
