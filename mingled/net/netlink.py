"""The one place that loads pyroute2, and only when asked: it costs 110 ms and 13 MiB.

pyroute2 runs an asyncio loop of its own below its blocking calls, so inside a running loop it works
on a thread of its own only.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from mingled.errors import MingleError

T = TypeVar("T")


class NoNetlink(MingleError):
    """Netlink does not answer here: another system than Linux, or a sandbox that forbids it."""


def ask(question: Callable[[Any], T]) -> T:
    """What `question` makes of an open `IPRoute`. Blocks for some milliseconds.

    Raises:
        NoNetlink: with the reason, as the end of a sentence.
    """
    if sys.platform != "linux":
        raise NoNetlink(f"{sys.platform} has no netlink")
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _ask(question)
    with ThreadPoolExecutor(1, "netlink") as pool:
        return pool.submit(_ask, question).result()


def _ask(question: Callable[[Any], T]) -> T:
    try:
        from pyroute2.iproute.linux import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError
    except ImportError as error:
        raise NoNetlink(f"pyroute2 cannot be imported ({error})") from error
    try:
        with IPRoute() as ipr:
            return question(ipr)
    except (OSError, NetlinkError) as error:  # seccomp, or a socket family that is switched off
        raise NoNetlink(f"the kernel refuses netlink ({error})") from error
