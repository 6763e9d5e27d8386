"""Waiting for what no event tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(there: Callable[[], bool]) -> bool:
    """Lets the loop run until it is so."""
    async with asyncio.timeout(60):
        while not there():  # noqa: ASYNC110 - nobody sets an event for it
            await asyncio.sleep(0.005)
    return True
