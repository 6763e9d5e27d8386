"""Host names by multicast DNS for as long as a participant holds its rank: `bert-0.local`.

Unlike the names of adverts these may be another machine's. So each is asked for first (RFC 6762,
8.1), the owner keeps it, and it is announced only when nobody has answered.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from zeroconf import (  # type: ignore[attr-defined]  # meant for use, only not in its __all__
    DNSAddress,
    DNSOutgoing,
    DNSQuestion,
    ServiceInfo,
    Zeroconf,
    current_time_millis,
)
from zeroconf.const import (
    _CLASS_IN,
    _FLAGS_AA,
    _FLAGS_QR_QUERY,
    _FLAGS_QR_RESPONSE,
    _TYPE_A,
    _TYPE_AAAA,
)

from mingled.core import events
from mingled.core.datagrams import unscoped
from mingled.core.words import ParticipantId

TYPE = "_mingle-name._tcp.local."
"""The library answers for hosts of services alone: each name is the host of one that nobody asks
for and that is never announced."""

TTL_S = 120
"""RFC 6762, 10: of records that hold a host's name."""

PROBES = 3
PROBE_EVERY_S = 0.25
"""RFC 6762, 8.1."""

TWICE = (0.0, 1.0)
"""Seconds to wait before each announcement (RFC 6762, 8.3)."""

GOODBYES = (0.0, 0.125)

GOODBYE_TTL_S = 1
"""RFC 6762, 10.1: what a goodbye leaves of a record in a cache, for a second."""

REPEATED_MS = 1_000
"""The library drops a packet that it has had within this: what was said so shortly before we asked
may have been said again."""

log = logging.getLogger(__name__)


class Names:
    """Publishes names, before there is a network or after. `NameRefused` says what could not be."""

    def __init__(self, emit: Callable[[events.Event], None]) -> None:
        self._emit = emit
        self._zeroconf: Zeroconf | None = None
        self._wanted: dict[ParticipantId, ServiceInfo] = {}
        self._published: dict[ParticipantId, ServiceInfo] = {}
        self._claims: dict[ParticipantId, asyncio.Task[None]] = {}
        self._goodbyes: set[asyncio.Task[None]] = set()

    def attach(self, zeroconf: Zeroconf) -> None:
        """There is a responder now: ask for all names that are wanted."""
        self._zeroconf = zeroconf
        for participant, info in self._wanted.items():
            self._claim(participant, info)

    async def close(self) -> None:
        """Say goodbye for what is published; the responder itself is still there."""
        for participant in list(self._wanted):
            self.withdraw(participant)
        await asyncio.gather(*self._goodbyes, return_exceptions=True)
        self._zeroconf = None

    def publish(self, participant: ParticipantId, name: str, address: str) -> None:
        """`name`: without `.local`. One participant has one name."""
        self.withdraw(participant)
        info = self._wanted[participant] = ServiceInfo(
            TYPE,
            f"{participant}.{TYPE}",
            port=0,
            server=f"{name}.local.",
            host_ttl=TTL_S,
            other_ttl=TTL_S,
            parsed_addresses=list(unscoped([address])),
        )
        if self._zeroconf is None:
            self._refuse(participant, info, "mDNS does not work here (mingle status says why)")
        else:
            self._claim(participant, info)

    def withdraw(self, participant: ParticipantId) -> None:
        self._wanted.pop(participant, None)
        claim = self._claims.pop(participant, None)
        if claim is not None:
            claim.cancel()
        info = self._published.pop(participant, None)
        if info is not None and self._zeroconf is not None:
            self._zeroconf.registry.async_remove(info)
            task = asyncio.create_task(self._say(self._zeroconf, info, GOODBYES, ttl_s=0))
            self._goodbyes.add(task)
            task.add_done_callback(self._goodbyes.discard)

    # ------------------------------------------------------------ the network

    def _claim(self, participant: ParticipantId, info: ServiceInfo) -> None:
        assert self._zeroconf is not None
        work = self._take(self._zeroconf, participant, info)
        self._claims[participant] = task = asyncio.create_task(self._guard(work))
        # One that is cancelled before its first step never awaits its work.
        task.add_done_callback(lambda _: work.close())

    async def _take(
        self, zeroconf: Zeroconf, participant: ParticipantId, info: ServiceInfo
    ) -> None:
        await zeroconf.async_wait_for_start()
        began = current_time_millis()
        for number in range(PROBES):
            zeroconf.async_send(_probe(info, number))
            await asyncio.sleep(PROBE_EVERY_S)
            if self._yields(zeroconf, participant, info, began):
                return
        self._published[participant] = info
        zeroconf.registry.async_add(info)
        await self._say(zeroconf, info, TWICE, ttl_s=None)
        # Its owner was slow, or somebody asked at the same time.
        self._yields(zeroconf, participant, info, began)

    def _yields(
        self, zeroconf: Zeroconf, participant: ParticipantId, info: ServiceInfo, began_ms: float
    ) -> bool:
        """Has somebody else said since then that the name is his? Then it stays so."""
        owner = _owner(zeroconf, info, began_ms)
        if not owner:
            return False
        self._claims.pop(participant, None)  # this very task, which is not to be cancelled
        self.withdraw(participant)
        self._refuse(participant, info, f"that is the name of {owner}, which keeps it")
        return True

    async def _say(
        self, zeroconf: Zeroconf, info: ServiceInfo, pauses_s: tuple[float, ...], ttl_s: int | None
    ) -> None:
        for pause_s in pauses_s:
            await asyncio.sleep(pause_s)
            out = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
            for record in info.get_address_and_nsec_records(override_ttl=ttl_s):
                out.add_answer_at_time(record, 0)
            zeroconf.async_send(out)

    def _refuse(self, participant: ParticipantId, info: ServiceInfo, reason: str) -> None:
        name = str(info.server).removesuffix(".")
        self._emit(events.NameRefused(participant=participant, name=name, reason=reason))

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # the library raises its own, OSError, and others
            log.warning("mdns: a name could not be published: %s", error or type(error).__name__)


def _probe(info: ServiceInfo, number: int) -> DNSOutgoing:
    """Who has this name? At first with the wish for an answer at once; then by multicast, since
    another responder on this machine may have received what was meant for us alone. For addresses,
    not for ANY, which the library's own responder does not answer for a host."""
    out = DNSOutgoing(_FLAGS_QR_QUERY | _FLAGS_AA)
    for type_ in (_TYPE_A, _TYPE_AAAA):
        question = DNSQuestion(str(info.server), type_, _CLASS_IN)
        question.unicast = number == 0
        out.add_question(question)
    # What makes it a probe, so that it is answered also within a second of an announcement. The
    # library takes a pointer alone here.
    out.add_authorative_answer(info.dns_pointer())
    return out


def _owner(zeroconf: Zeroconf, info: ServiceInfo, began_ms: float) -> str:
    """The address that somebody else says for this name, then or later; empty: none."""
    own = {record.address for record in info.dns_addresses()}
    since_ms = began_ms - REPEATED_MS
    for record in zeroconf.cache.async_entries_with_name(str(info.server)):
        if not isinstance(record, DNSAddress) or record.address in own:
            continue
        if record.created >= since_ms and record.ttl > GOODBYE_TTL_S:
            return str(ipaddress.ip_address(record.address))
    return ""
