"""The claims that one rung has heard of in datagrams, and the doubts about them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container

import msgspec

from mingled.core import events
from mingled.core.datagrams import Announce, Bye, scoped
from mingled.core.words import Label, Nonce
from mingled.net.datagrams import Arrival

HEARD_MAX = 4_096
"""As many adverts as the core remembers, 200 bytes each; the oldest go."""

DOUBT_S = 2.0
"""As RFC 6762 10.4 has it: what nobody confirms within this is dropped."""

Claim = tuple[Label, Nonce]
Source = tuple[str, int]


class Hearsay:
    """Tells what comes and what goes: by a goodbye, or doubted and confirmed by nobody."""

    def __init__(self, emit: Callable[[events.Event], None], rung: events.Rung) -> None:
        self._emit = emit
        self._rung = rung
        self._heard: dict[Claim, tuple[float, Source]] = {}  #: when, and from where
        self._doubts: dict[Claim, asyncio.TimerHandle] = {}

    def take(self, arrival: Arrival, own: Container[Nonce]) -> None:
        """Announce and Bye; others are not for us. `own`: claims of this daemon."""
        match arrival.datagram:
            case Announce(advert=advert) if advert.claim not in own:
                self.add(advert.label, advert.claim, (arrival.host, arrival.port))
                usable = scoped(advert.addresses, arrival.interface)
                advert = msgspec.structs.replace(advert, addresses=usable)
                self._emit(events.AdvertHeard(advert=advert, rung=self._rung))
            case Bye(label=label, claim=claim):
                if self.remove(label, claim):
                    self._gone(label, claim)

    def add(self, label: Label, claim: Nonce, source: Source) -> None:
        self._heard.pop((label, claim), None)
        self._heard[label, claim] = (asyncio.get_running_loop().time(), source)
        if len(self._heard) > HEARD_MAX:
            self.remove(*next(iter(self._heard)))

    def remove(self, label: Label, claim: Nonce) -> bool:
        """Whether it had been heard."""
        doubt = self._doubts.pop((label, claim), None)
        if doubt is not None:
            doubt.cancel()
        return self._heard.pop((label, claim), None) is not None

    def doubt(self, label: Label, claim: Nonce) -> Source | None:
        """Where it was heard from; None: it never was, or is doubted already. Ask there again."""
        known = self._heard.get((label, claim))
        if known is None or (label, claim) in self._doubts:
            return None
        loop = asyncio.get_running_loop()
        self._doubts[label, claim] = loop.call_later(
            DOUBT_S, self._decide, label, claim, loop.time()
        )
        return known[1]

    def close(self) -> None:
        for doubt in self._doubts.values():
            doubt.cancel()
        self._doubts.clear()

    def _decide(self, label: Label, claim: Nonce, doubted_at_s: float) -> None:
        del self._doubts[label, claim]
        heard_at_s, _ = self._heard[label, claim]
        if heard_at_s <= doubted_at_s:
            del self._heard[label, claim]
            self._gone(label, claim)

    def _gone(self, label: Label, claim: Nonce) -> None:
        self._emit(events.AdvertGone(label=label, claim=claim, rung=self._rung))
