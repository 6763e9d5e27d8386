"""A place to be reached over TCP: how doctor and the daemons that it asks find out what a firewall
lets through."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Collection

from mingled.core.messages import Place, Tried
from mingled.core.reach import is_link_local_v6, scoped
from mingled.net import quick
from mingled.net.dialing import STRANGER, Stranger, hear, try_anew
from mingled.net.listening import Speaker, listen

REACH_S = 3.0
"""For one place: two lost SYNs of the kernel's, and more of ours."""

ANEW_S = 0.5
"""A fresh connection is tried beside the one that waits."""

SILENT = f"no answer within {REACH_S:g} s"

LINKS_MAX = 16
"""A link-local address is looked for on so many."""


async def try_place(place: Place) -> Tried:
    """Connect, and read the place's word where it has one. Raises nothing of the network's."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    reason = await _reason(place)
    return Tried(
        address=place.address, port=place.port, reason=reason, took_s=loop.time() - began_s
    )


async def _reason(place: Place) -> str:
    """Why it was not reached; empty: it was."""
    ways = _ways(place.address)
    if not ways:
        return "this machine has no IPv6 link-local address to come from"
    reasons = await asyncio.gather(*(_one_way(way, place.port, place.word) for way in ways))
    return "" if "" in reasons else reasons[0]


def _ways(address: str) -> list[str]:
    """A link-local address may be on any of our links."""
    if "%" in address or not is_link_local_v6(address):
        return [address]
    links = [
        name
        for name, found in quick.addresses().items()
        if any(is_link_local_v6(a.address) for a in found)
    ]
    return [scoped(address, name) for name in links[:LINKS_MAX]]


async def _one_way(address: str, port: int, word: str) -> str:
    try:
        await try_anew(
            lambda: hear(address, port, word),
            lambda _: None,
            every_s=ANEW_S,
            within_s=REACH_S,
        )
    except Stranger:
        return STRANGER
    except OSError as error:
        if error.errno == errno.ETIMEDOUT:
            return SILENT
        return os.strerror(error.errno) if error.errno else str(error)
    except ValueError as error:  # a text that is no address
        return str(error)
    return ""


def speak(ports: Collection[int], avoid: Collection[int], word: str) -> Speaker | None:
    """On the first of `ports` that is free and not in `avoid`, on all addresses; port 0: one of the
    kernel's choice. None: there is none."""
    for port in ports:
        if port not in avoid:
            with contextlib.suppress(OSError):
                return Speaker(listen(port), word)
    return None
