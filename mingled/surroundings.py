"""What the daemon's own machine looks like from outside, and that it changes: a lease renewed, a
cable out, a VPN up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from mingled.core.events import Address
from mingled.core.peers import check_subnets
from mingled.errors import DaemonError
from mingled.net import interfaces
from mingled.net.apart import exact_candidates
from mingled.net.monitor import Monitor

POLL_S = 30.0
"""How often to look where the kernel does not tell; a look costs about a millisecond, and
twenty where there are 200 interfaces."""

SETTLE_S = 2.0
"""A daemon that has just started has a rendezvous to hold: what netlink knows of the interfaces can
wait until then."""

log = logging.getLogger(__name__)


class Surroundings:
    """`only`, `subnets`: what the user allows. `moved` is called, and awaited, after each change.

    At first interfaces are judged by what is quickly read, names and addresses; after SETTLE_S, and
    after each change, by all that netlink knows (what kind each is, how fast).
    """

    def __init__(
        self, only: Sequence[str], subnets: Sequence[str], moved: Callable[[], Awaitable[None]]
    ) -> None:
        check_subnets(subnets)
        self._only = only
        self._subnets = subnets
        self._moved = moved
        self._changed = asyncio.Event()
        self._monitor = Monitor(self._told)
        self._task: asyncio.Task[None] | None = None
        self._seen = interfaces.facts(exact=False)
        self.addresses: tuple[Address, ...] = interfaces.candidates(only, subnets, seen=self._seen)
        interfaces.remember(self._seen)

    @property
    def restricted(self) -> bool:
        """Connections may come from these addresses only."""
        return bool(self._only or self._subnets)

    def check(self, host: str) -> None:
        """Is there what the user allows? Raises `DaemonError` with what there is instead."""
        reason = interfaces.refusal(self._only, self._subnets, host=host, seen=self._seen)
        if reason is not None:
            raise DaemonError(reason)

    @property
    def own(self) -> frozenset[str]:
        """Every address of this machine, the unusable ones too."""
        return frozenset(a.address for link in self._seen.links for a in link.addresses)

    async def start(self) -> None:
        """Follow what changes, from now on."""
        polled = not self._monitor.start()
        self._task = asyncio.create_task(self._follow(POLL_S if polled else None))

    async def close(self) -> None:
        self._monitor.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _told(self) -> None:
        interfaces.forget()
        self._changed.set()

    async def _follow(self, every_s: float | None) -> None:
        anew, pause_s = True, SETTLE_S
        while True:
            try:
                async with asyncio.timeout(pause_s if anew else every_s):
                    await self._changed.wait()
                anew = True  # something that only netlink sees, perhaps
            except TimeoutError:
                pass
            self._changed.clear()
            try:
                await self._look(anew=anew)
            except Exception:
                # Whatever an interface in the making does to us, the next change is followed.
                log.exception("bug: a change of addresses was not followed")
            anew = False

    async def _look(self, *, anew: bool) -> None:
        # Not in the loop: each interface costs 0.1 ms, and a driver may take its time to answer.
        quick = await asyncio.to_thread(interfaces.facts, exact=False)
        if not self._changed.is_set():  # else it may be out of date already
            interfaces.remember(quick)
        same = quick == self._seen
        if same and not anew:
            return
        self._seen = quick
        before = self.addresses
        self.addresses = await exact_candidates(self._only, self._subnets, seen=quick)
        if before != self.addresses:
            words = ", ".join(f"{a.interface} {a.address}" for a in self.addresses) or "none"
            log.info("addresses are now: %s", words)
        if not same or before != self.addresses:
            await self._moved()
