"""The third rung: adverts by unicast, to and from peers that somebody named, where neither
multicast nor broadcast gets through: routed subnets, clouds, pods.

Naming peers on one side is enough: who is asked and does not lead remembers the asker, and who
leads tells its own peers again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from mingled.core import events
from mingled.core.datagrams import Announce, Ask, Bye
from mingled.core.events import Address
from mingled.core.messages import Advert
from mingled.core.peers import PEERS_MAX, parse_peer
from mingled.core.words import Label, Nonce
from mingled.errors import BadInput
from mingled.net.datagrams import Arrival, Cap, Datagrams
from mingled.net.hearsay import Hearsay
from mingled.net.resolve import Resolved, Resolver

PLACES_MAX = 256
"""Addresses asked at once, of all peers together."""

ASKER_S = 60.0
"""Who asked is told of a leader for this long; whoever still waits asks every 15 s."""

ASKERS_MAX = 1_024
"""Remembered, 200 bytes each; the oldest go."""

TOLD_MAX = 512
"""Addresses that one claim's goodbye goes to."""

TELL_AFTER_S = (1.0, 2.0, 4.0, 8.0)
"""Pauses before peers are told again of what is led here; then TELL_EVERY_S. A peer that starts
later and names nobody itself learns of it in no other way."""

TELL_EVERY_S = 15.0
JITTER = 0.2  #: pauses are stretched by up to this share: nodes must not speak in chorus

ANSWERS_PER_S = 500.0
"""To those who ask: a thousand that wait get through in seconds, a forged sender gets no more."""

TASKS_MAX = 256
"""Questions under way, each waiting for DNS; a job has one at a time."""

NOTES_MAX = 1_024
"""Troubles remembered, so that each is said once per job and peer."""

log = logging.getLogger(__name__)

Place = tuple[str, int | None]


class _Led:
    """What is advertised here, and who was told."""

    def __init__(self, advert: Advert, peers: tuple[str, ...]) -> None:
        self.advert = advert
        self.peers = peers
        self.told: dict[Place, None] = {}
        self.telling: asyncio.Task[None] | None = None


class Unicast:
    """Adverts to and from named peers, over the port that `datagrams` holds (its maker starts and
    closes it). `peers`: of all jobs, as `parse_peer` takes them."""

    def __init__(
        self,
        emit: Callable[[events.Event], None],
        datagrams: Datagrams,
        resolver: Resolver,
        peers: Sequence[str] = (),
    ) -> None:
        self._emit = emit
        self._datagrams = datagrams
        self._resolver = resolver
        self._peers = tuple(peers)
        self._led: dict[Nonce, _Led] = {}
        self._askers: dict[tuple[Label, Place], float] = {}  #: until when they are remembered
        self._hearsay = Hearsay(emit, "peers")
        self._answers = Cap(ANSWERS_PER_S)
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: set[Label] = set()
        self._found: dict[str, Resolved] = {}  #: by peer, as it was last
        self._noted: dict[tuple[Label, str], str] = {}
        self._open = False
        datagrams.subscribe(self._arrived)

    @property
    def state(self) -> str:
        if not self._open:
            return "peers: not started"
        if self._datagrams.trouble:
            return f"peers: does not work: {self._datagrams.trouble}"
        named = dict.fromkeys((*self._peers, *self._found))
        if not named:
            return "peers: none named"
        return f"peers: {', '.join(map(self._describe, named))}"

    def _describe(self, peer: str) -> str:
        found = self._found.get(peer)
        if found is None:
            return peer
        if found.trouble:
            return f"{peer} {found.trouble}"
        count = len(found.addresses)
        return f"{peer} ({count} addresses)" if count > 1 else peer

    async def start(self, addresses: Sequence[Address]) -> None:
        self._open = True

    async def close(self) -> None:
        for led in list(self._led.values()):
            self.withdraw(led.advert.label, led.advert.claim)
        self._hearsay.close()
        self._open = False
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def readdress(self, addresses: Sequence[Address]) -> None:
        """The core advertises anew what has changed."""

    def ask_peers(self, peers: Sequence[str]) -> None:
        """From now on these are asked for every job; what was known of the others is forgotten."""
        if self._peers == tuple(peers):
            return
        for gone in set(self._peers) - set(peers):
            self._found.pop(gone, None)
        self._peers = tuple(peers)
        for led in self._led.values():  # the new ones have not heard of it yet
            self._tell_anew(led)

    # ------------------------------------------------------------ actions

    def advertise(self, advert: Advert, peers: Sequence[str] = ()) -> None:
        if not self._open:
            return
        led = self._led.setdefault(advert.claim, _Led(advert, tuple(peers)))
        led.advert, led.peers = advert, tuple(peers)
        self._tell_waiting(led)
        self._tell_anew(led)

    def withdraw(self, label: Label, claim: Nonce) -> None:
        led = self._led.pop(claim, None)
        if led is None:
            return
        if led.telling is not None:
            led.telling.cancel()
        bye = Bye(node=self._datagrams.node, label=label, claim=claim)
        for host, port in led.told:
            self._datagrams.send(bye, host, port)

    def ask(self, label: Label, *, unicast: bool, peers: Sequence[str] = ()) -> None:
        every = self._every(peers)
        if self._open and every and label not in self._asking and len(self._tasks) < TASKS_MAX:
            self._asking.add(label)
            task = self._spawn(self._ask(label, every))
            task.add_done_callback(lambda _: self._asking.discard(label))

    def doubt(self, label: Label, claim: Nonce) -> None:
        source = self._hearsay.doubt(label, claim) if self._open else None
        if source is not None:
            self._datagrams.send(Ask(node=self._datagrams.node, labels=(label,)), *source)

    # ------------------------------------------------------------ out

    def _every(self, peers: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._peers, *peers)))[:PEERS_MAX]

    async def _ask(self, label: Label, peers: tuple[str, ...]) -> None:
        question = Ask(node=self._datagrams.node, labels=(label,))
        places = await self._places(label, peers)
        said = [(peer, self._datagrams.send(question, *place)) for peer, place in places]
        self._sent(label, said)

    def _tell_anew(self, led: _Led) -> None:
        if led.telling is not None:
            led.telling.cancel()
        led.telling = self._spawn(self._tell_on(led))

    async def _tell_on(self, led: _Led) -> None:
        """Until it is withdrawn, or advertised anew."""
        pauses = iter(TELL_AFTER_S)
        while True:
            label = led.advert.label
            every = self._every(led.peers)
            places = await self._places(label, every)
            self._sent(label, [(peer, self._tell(led, place)) for peer, place in places])
            pause_s = next(pauses, TELL_EVERY_S)
            await asyncio.sleep(pause_s * random.uniform(1, 1 + JITTER))
            if pause_s == TELL_AFTER_S[0]:  # once more: datagrams get lost
                self._tell_waiting(led)
            if not every:
                return

    def _tell_waiting(self, led: _Led) -> None:
        for place in self._waiting(led.advert.label):
            self._tell(led, place)

    def _tell(self, led: _Led, place: Place) -> str:
        """Why it could not be told; empty: it was, as far as this machine knows."""
        if len(led.told) < TOLD_MAX:
            led.told[place] = None
        return self._datagrams.send(Announce(node=self._datagrams.node, advert=led.advert), *place)

    async def _places(self, label: Label, peers: tuple[str, ...]) -> list[tuple[str, Place]]:
        """Where these peers are now. What does not resolve is told to those who wait."""
        hosts: list[tuple[str, str, int | None]] = []
        for peer in peers:
            with contextlib.suppress(BadInput):  # checked where they were named
                hosts.append((peer, *parse_peer(peer)))
        found = await asyncio.gather(*(self._resolver.resolve(host) for _, host, _ in hosts))
        places: dict[Place, str] = {}
        for (peer, _, port), resolved in zip(hosts, found, strict=True):
            self._found.pop(peer, None)
            self._found[peer] = resolved
            if resolved.trouble:
                self._note(label, peer, resolved.trouble)
            for address in resolved.addresses:
                places.setdefault((address, port), peer)
        while len(self._found) > PEERS_MAX:
            del self._found[next(iter(self._found))]
        return [(peer, place) for place, peer in places.items()][:PLACES_MAX]

    def _sent(self, label: Label, said: list[tuple[str, str]]) -> None:
        """A peer is in trouble where none of its addresses can be sent to."""
        failures = dict(said)
        for peer, reason in said:
            if not reason:
                failures[peer] = ""
        for peer, reason in failures.items():
            if reason:
                self._note(label, peer, f"cannot be asked: {reason}")
            else:
                self._noted.pop((label, peer), None)

    def _note(self, label: Label, peer: str, trouble: str) -> None:
        """Say it, unless that was the last that was said of this peer."""
        if self._noted.get((label, peer)) == trouble:
            return
        self._noted[label, peer] = trouble
        if len(self._noted) > NOTES_MAX:
            del self._noted[next(iter(self._noted))]
        sentence = (
            f"peer {peer} {trouble} (on {self._datagrams.host}); correct --peers, or wait until "
            "it is up: it is asked again"
        )
        self._emit(events.DiscoveryNoted(label=label, sentence=sentence))

    # ------------------------------------------------------------ in

    def _arrived(self, arrival: Arrival) -> None:
        if not self._open or arrival.means != "unicast":
            return
        match arrival.datagram:
            case Ask(labels=labels):
                for label in labels:
                    self._asked_for(label, (arrival.host, arrival.port))
            case _:
                self._hearsay.take(arrival, self._led)

    def _asked_for(self, label: Label, place: Place) -> None:
        now_s = asyncio.get_running_loop().time()
        self._askers.pop((label, place), None)
        self._askers[label, place] = now_s + ASKER_S
        if len(self._askers) > ASKERS_MAX:
            del self._askers[next(iter(self._askers))]
        for led in self._led.values():
            if led.advert.label == label and self._answers.allows(now_s):
                self._tell(led, place)

    def _waiting(self, label: Label) -> list[Place]:
        """Who asked for it within the last minute."""
        now_s = asyncio.get_running_loop().time()
        for key in [key for key, until_s in self._askers.items() if until_s < now_s]:
            del self._askers[key]
        return [place for wanted, place in self._askers if wanted == label]

    # ------------------------------------------------------------ tasks

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # One that is cancelled before its first step never awaits its work.
        task.add_done_callback(lambda _: work.close())
        return task

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("bug: peers could not be spoken to")
