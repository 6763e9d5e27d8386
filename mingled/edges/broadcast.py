"""The second rung: adverts by UDP broadcast, for networks that drop multicast.

Over IPv6 broadcast is ff02::1, all nodes of the link. Where an interface has both families, IPv4
says it at first, as mostly that is enough; what is said again, or was asked for over IPv6, goes by
both (`wide`), for hosts of IPv6 only. Nothing is sent while nobody leads or asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mingled.core import events
from mingled.core.datagrams import Announce, Ask, Bye, Datagram
from mingled.core.events import Address
from mingled.core.messages import Advert
from mingled.core.words import Label, Nonce
from mingled.net.datagrams import Arrival, Datagrams
from mingled.net.hearsay import Hearsay
from mingled.net.udp import ALL_NODES

ONCE_IN_S = 1.0
"""An advert is said no more often than this, however many ask: one answer serves them all. And
what another host has asked within this need not be asked again (RFC 6762, 7.3)."""

AT_FIRST_AGAIN_S = 0.06
"""What is new is said once more after this. Who searches leads itself after 0.05 to 0.25 s, and at
30% loss one in eleven hears neither this rung's first word nor multicast DNS's."""

ASKED_MAX = 1_024
"""Labels remembered as asked for by others; the oldest go."""


class _Asked(NamedTuple):
    """When others asked last: at all, and over IPv6."""

    at_s: float
    six_at_s: float


_NEVER = _Asked(-ONCE_IN_S, -ONCE_IN_S)


class _Led:
    """What is advertised here."""

    def __init__(self, advert: Advert, *, wide: bool) -> None:
        self.advert = advert
        self.wide = wide  #: from now on, and so its goodbye
        self.said_at_s = -ONCE_IN_S
        self.next: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        if self.next is not None:
            self.next.cancel()
            self.next = None


class Broadcast:
    """Adverts in and out by broadcast, over the port that `datagrams` holds (its maker starts and
    closes it)."""

    def __init__(self, emit: Callable[[events.Event], None], datagrams: Datagrams) -> None:
        self._datagrams = datagrams
        self._led: dict[Nonce, _Led] = {}
        self._asked: dict[Label, _Asked] = {}
        self._hearsay = Hearsay(emit, "broadcast")
        self._failures: dict[str, str] = {}  #: by target, of what was sent last
        self._open = False
        datagrams.subscribe(self._arrived)

    @property
    def state(self) -> str:
        if not self._open:
            return "broadcast: not started"
        if self._datagrams.trouble:
            return f"broadcast: does not work: {self._datagrams.trouble}"
        names = [f"{t.interface} {t.host}".strip() for t in self._datagrams.targets]
        works = [name for name in names if name not in self._failures]
        failures = ", ".join(
            f"{name}: {reason}" for name, reason in self._failures.items() if name in names
        )
        if not works:
            return f"broadcast: does not work: {failures}"
        state = f"broadcast: UDP {self._datagrams.port} on {', '.join(works)}"
        return f"{state}; does not work on {failures}" if failures else state

    async def start(self, addresses: Sequence[Address]) -> None:
        self._open = True

    async def close(self) -> None:
        for led in list(self._led.values()):
            self.withdraw(led.advert.label, led.advert.claim)
        self._hearsay.close()
        self._open = False

    async def readdress(self, addresses: Sequence[Address]) -> None:
        self._failures.clear()

    # ------------------------------------------------------------ actions

    def advertise(self, advert: Advert, peers: Sequence[str] = ()) -> None:
        if not self._open:
            return
        wide = self._asked.get(advert.label, _NEVER).six_at_s > _NEVER.six_at_s
        led = self._led.setdefault(advert.claim, _Led(advert, wide=wide))
        led.advert = advert
        led.cancel()
        self._say(led)
        led.next = asyncio.get_running_loop().call_later(AT_FIRST_AGAIN_S, self._say_again, led)

    def withdraw(self, label: Label, claim: Nonce) -> None:
        led = self._led.pop(claim, None)
        if led is not None:
            led.cancel()
            bye = Bye(node=self._datagrams.node, label=label, claim=claim)
            self._broadcast(bye, wide=led.wide)

    def ask(self, label: Label, *, unicast: bool, peers: Sequence[str] = ()) -> None:
        """`unicast`: for the first time in a search."""
        if not self._open:
            return
        wide = not unicast
        now_s = asyncio.get_running_loop().time()
        led = [led for led in self._led.values() if led.advert.label == label]
        # A leader that asks looks for rivals, and they hear its advert as well as any question. So
        # an advert that got lost is repeated, too, for as long as somebody waits.
        for own in led:
            if now_s - own.said_at_s >= ONCE_IN_S and own.next is None:
                own.wide = own.wide or wide
                self._say(own)
        asked = self._asked.get(label, _NEVER)
        asked_at_s = asked.six_at_s if wide and self._both else asked.at_s
        if not led and now_s - asked_at_s >= ONCE_IN_S:
            self._ask(label, wide=wide)

    def doubt(self, label: Label, claim: Nonce) -> None:
        if self._open and self._hearsay.doubt(label, claim) is not None:
            self._ask(label, wide=True)

    # ------------------------------------------------------------ out

    @property
    def _both(self) -> bool:
        """Whether IPv6 is spoken at all: then a question over IPv4 alone was not ours."""
        return any(target.host == ALL_NODES for target in self._datagrams.targets)

    def _ask(self, label: Label, *, wide: bool) -> None:
        self._broadcast(Ask(node=self._datagrams.node, labels=(label,)), wide=wide)

    def _broadcast(self, datagram: Datagram, *, wide: bool) -> None:
        failed = self._datagrams.broadcast(datagram, wide=wide)
        self._failures = {f"{t.interface} {t.host}".strip(): why for t, why in failed.items()}

    def _say(self, led: _Led) -> None:
        led.next = None
        led.said_at_s = asyncio.get_running_loop().time()
        self._broadcast(Announce(node=self._datagrams.node, advert=led.advert), wide=led.wide)

    def _say_again(self, led: _Led) -> None:
        """Part of what was just said: whoever asks later is answered as if it had not been."""
        said_at_s = led.said_at_s
        self._say(led)
        led.said_at_s = said_at_s

    def _say_after(self, led: _Led, pause_s: float) -> None:
        led.next = asyncio.get_running_loop().call_later(pause_s, self._say, led)

    def _asked_for(self, label: Label, *, six: bool) -> None:
        """Another host asked: say what is led here, unless that has just been said to all."""
        now_s = asyncio.get_running_loop().time()
        before = self._asked.pop(label, _NEVER)
        self._asked[label] = _Asked(now_s, now_s if six else before.six_at_s)
        if len(self._asked) > ASKED_MAX:
            del self._asked[next(iter(self._asked))]
        for led in self._led.values():
            if led.advert.label != label:
                continue
            if six and not led.wide:  # what was said so far did not reach it
                led.wide = True
                led.cancel()
                self._say_after(led, 0.0)
            elif led.next is None:
                self._say_after(led, max(0.0, led.said_at_s + ONCE_IN_S - now_s))

    # ------------------------------------------------------------ in

    def _arrived(self, arrival: Arrival) -> None:
        if not self._open or arrival.means == "unicast":
            return
        match arrival.datagram:
            case Ask(labels=labels):
                for label in labels:
                    self._asked_for(label, six=":" in arrival.host)
            case _:
                self._hearsay.take(arrival, self._led)
