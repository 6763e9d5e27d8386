"""What the daemon does for others that ask who is there and what can be reached from here: it
introduces itself, tries places, opens a test port. `mingled.core.hail` decides what is allowed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from mingled import __version__
from mingled.core import actions, events
from mingled.core.messages import Listening, Message, Nic, Place, Presence, Tried
from mingled.core.words import NodeId
from mingled.edges import machine
from mingled.edges.places import speak, try_place
from mingled.net.listening import Speaker, ephemeral_ports

TEST_PORT_S = 10.0
"""A test port is open for this long: a firewall's answer is known after 3 s."""

TEST_PORTS_MAX = 4
"""Open at once; whoever asks for more is told that none is free."""

TRIES_AT_ONCE = 64
"""Of all askers together; 256 places that do not answer take 12 s, within the core's patience."""

TRIES_MAX = 1_024
"""Waiting, of all askers together; more are not tried."""

BUSY = "not tested: this daemon has too many tests to do just now"

REMEMBERED_S = 5.0
"""Interfaces and GPUs are read anew no sooner: a LAN of doctors asks everybody at once."""

log = logging.getLogger(__name__)

Machine = tuple[tuple[Nic, ...], tuple[str, ...], str]


class Visits:
    """Of one daemon. `send` takes a link and a message; `discovery` and `up_s` tell what only the
    daemon knows."""

    def __init__(
        self,
        emit: Callable[[events.Event], None],
        send: Callable[[int, Message], None],
        *,
        node: NodeId,
        discovery: Callable[[], Sequence[str]],
        up_s: Callable[[], float],
    ) -> None:
        self._emit = emit
        self._send = send
        self._node = node
        self._discovery = discovery
        self._up_s = up_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Semaphore(TRIES_AT_ONCE)
        self._trying = 0
        self._speakers: set[Speaker] = set()
        self._reading = asyncio.Lock()
        self._machine: Machine = ((), (), "")
        self._read_at_s = float("-inf")

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for speaker in self._speakers:
            speaker.close()
        self._speakers.clear()

    # ------------------------------------------------------------ actions

    def perform(self, action: actions.Introduce | actions.TryPlaces | actions.OpenTestPort) -> None:
        match action:
            case actions.Introduce():
                self._spawn(self._introduce(action))
            case actions.TryPlaces():
                self.try_places(action.link, action.places)
            case actions.OpenTestPort():
                self.open_test_port(action.link, action.base, action.count, action.avoid)

    def try_places(self, link: int, places: Sequence[Place]) -> None:
        """Ends in one PlacesTried, unless all is closed before."""
        self._spawn(self._try(link, tuple(places)))

    def open_test_port(self, link: int, base: int, count: int, avoid: Collection[int]) -> None:
        """Send Listening over the link: a port in that range, or 0."""
        self._spawn(self._listen(link, range(base, base + count), frozenset(avoid)))

    # ------------------------------------------------------------ behind them

    async def _introduce(self, action: actions.Introduce) -> None:
        nics, gpus, hash_ = await self._known()
        presence = Presence(
            node=action.card,
            release=__version__,
            seen_address=action.remote,
            clock_s=time.time(),
            machine=hash_,
            nics=nics,
            gpus=gpus,
            labels=action.labels,
            jobs=action.jobs,
            discovery=tuple(self._discovery()),
            up_s=self._up_s(),
        )
        self._send(action.link, presence)

    async def _known(self) -> Machine:
        """Read beside the loop: a driver may take its time."""
        loop = asyncio.get_running_loop()
        async with self._reading:
            if loop.time() >= self._read_at_s + REMEMBERED_S:
                self._machine = await asyncio.to_thread(_read)
                self._read_at_s = loop.time()
            return self._machine

    async def _try(self, link: int, places: tuple[Place, ...]) -> None:
        results = await asyncio.gather(*(self._one(place) for place in places))
        self._emit(events.PlacesTried(link=link, results=tuple(results)))

    async def _one(self, place: Place) -> Tried:
        if self._trying >= TRIES_MAX:
            return Tried(address=place.address, port=place.port, reason=BUSY, took_s=0.0)
        self._trying += 1
        try:
            async with self._turn:
                return await try_place(place)
        finally:
            self._trying -= 1

    async def _listen(self, link: int, ports: range, avoid: frozenset[int]) -> None:
        taken = ephemeral_ports()
        speaker = None
        if len(self._speakers) < TEST_PORTS_MAX:
            free = [port for port in ports if port not in taken]
            speaker = speak(free, avoid, self._node)
        if speaker is None:
            self._send(link, Listening(port=0))
            return
        self._speakers.add(speaker)
        try:
            self._send(link, Listening(port=speaker.port))
            await asyncio.sleep(TEST_PORT_S)
        finally:
            speaker.close()
            self._speakers.discard(speaker)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("bug: a visitor was not answered", exc_info=error)


def _read() -> Machine:
    return machine.nics(), machine.gpu_names(), machine.machine()
