"""The first rung: adverts as `_mingle._tcp` services over multicast DNS, by python-zeroconf.

Instance names are unique by construction (they carry the claim's nonce), so RFC 6762 probing is
skipped as its section 8.1 allows: an announcement is out in a millisecond instead of 1.2 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from zeroconf import (  # type: ignore[attr-defined]  # meant for use, only not in its __all__
    DNSOutgoing,
    DNSQuestion,
    IPVersion,
    ServiceInfo,
    ServiceStateChange,
    Zeroconf,
    current_time_millis,
)
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf
from zeroconf.const import _CLASS_IN, _FLAGS_QR_QUERY, _TYPE_PTR, _TYPE_SRV

from mingled.core import events
from mingled.core.events import Address
from mingled.core.messages import ADDRESSES_MAX, Advert
from mingled.core.words import Label, NodeId, Nonce
from mingled.errors import BadInput

TYPE = "_mingle._tcp.local."

TTL_S = 4_500
"""75 minutes for all records. With the usual 120 s for host records, a leader in the cache of a
daemon that had browsed since boot could not be resolved after 145 s."""

RESOLVE_MS = 3_000
"""For an advert whose records came in pieces: the library asks for the rest."""

RESOLVING_MAX = 64
"""Adverts being resolved at once; forged ones must not pile up tasks."""

DOUBT_S = 2.0
"""RFC 6762 10.4: a doubted record that nobody confirms within this is dropped."""

log = logging.getLogger(__name__)


class Mdns:
    """Adverts in and out over multicast DNS."""

    def __init__(self, emit: Callable[[events.Event], None], node: NodeId) -> None:
        self._emit = emit
        self._server = f"mingle-{node}.local."
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._published: dict[Nonce, ServiceInfo] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._about: dict[Nonce, asyncio.Task[None]] = {}  #: announcing or resolving a claim
        self.state = "mdns: not started"  #: one line for status

    async def start(self, addresses: Sequence[Address]) -> None:
        """Browse from now on. A network without multicast is no error here: `state` says it."""
        try:
            self._zeroconf = AsyncZeroconf(
                interfaces=_interfaces(addresses), ip_version=_ip_version(addresses)
            )
            await self._zeroconf.zeroconf.async_wait_for_start()
        except Exception as error:  # the library raises its own, OSError, and others
            self._zeroconf = None
            reason = str(error)
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                reason = "another program holds UDP port 5353 for itself alone"
            self.state = f"mdns: does not work: {reason}"
            log.warning("%s", self.state)
            return
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, TYPE, handlers=[self._changed])
        names = ", ".join(f"{a.interface} {a.address}" for a in addresses) or "no interface"
        self.state = f"mdns: browsing {TYPE} on {names}"

    async def close(self) -> None:
        """Say goodbye for what is published."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._zeroconf is not None:
            if self._browser is not None:
                await self._browser.async_cancel()
            await self._zeroconf.async_close()

    # ------------------------------------------------------------ actions

    def advertise(self, advert: Advert) -> None:
        if self._zeroconf is not None:
            info = self._info(advert)
            known = advert.claim in self._published
            self._published[advert.claim] = info
            self._spawn(self._publish(info, update=known), advert.claim)

    def withdraw(self, claim: Nonce) -> None:
        info = self._published.pop(claim, None)
        if self._zeroconf is not None and info is not None:
            self._break_off(claim)  # no announcement may follow the goodbye
            self._spawn(self._unpublish(info))

    def ask(self, *, unicast: bool) -> None:
        """One question for all adverts, unless another host has just asked the same."""
        if self._zeroconf is None:
            return
        zeroconf = self._zeroconf.zeroconf
        question = DNSQuestion(TYPE, _TYPE_PTR, _CLASS_IN)
        now = current_time_millis()
        if zeroconf.question_history.suppresses(question, now, set()):
            return  # RFC 6762 7.3: its answer comes to us as well
        if not unicast:
            zeroconf.question_history.add_question_at_time(question, now, set())
        question.unicast = unicast
        self._send(question)

    def doubt(self, label: Label, claim: Nonce) -> None:
        self._spawn(self._doubt(label, claim))

    async def readdress(self, addresses: Sequence[Address]) -> None:
        """The machine's addresses changed."""
        if self._zeroconf is not None:
            await self._zeroconf.async_update_interfaces(
                interfaces=_interfaces(addresses), ip_version=_ip_version(addresses)
            )

    # ------------------------------------------------------------ out

    def _info(self, advert: Advert) -> ServiceInfo:
        return ServiceInfo(
            TYPE,
            f"{advert.label}-{advert.claim}.{TYPE}",
            port=advert.port,
            properties={
                "v": str(advert.version),
                "k": advert.key_id,
                "n": advert.claim,
                "p": str(advert.port),
            },
            server=self._server,
            host_ttl=TTL_S,
            other_ttl=TTL_S,
            parsed_addresses=list(advert.addresses),
        )

    async def _publish(self, info: ServiceInfo, *, update: bool) -> None:
        assert self._zeroconf is not None
        if update:
            announced = await self._zeroconf.async_update_service(info)
        else:
            announced = await self._zeroconf.async_register_service(
                info, cooperating_responders=True
            )
        await announced

    async def _unpublish(self, info: ServiceInfo) -> None:
        assert self._zeroconf is not None
        await (await self._zeroconf.async_unregister_service(info))

    def _send(self, question: DNSQuestion) -> None:
        assert self._zeroconf is not None
        out = DNSOutgoing(_FLAGS_QR_QUERY)
        out.add_question(question)
        self._zeroconf.zeroconf.async_send(out)

    async def _doubt(self, label: Label, claim: Nonce) -> None:
        if self._zeroconf is None:
            return
        zeroconf = self._zeroconf.zeroconf
        name = f"{label}-{claim}.{TYPE}"
        asked_at = current_time_millis()
        self._send(DNSQuestion(name, _TYPE_SRV, _CLASS_IN))
        await asyncio.sleep(DOUBT_S)
        records = zeroconf.cache.async_entries_with_name(name)
        if any(record.created > asked_at for record in records):
            return
        pointers = [
            r
            for r in zeroconf.cache.async_all_by_details(TYPE, _TYPE_PTR, _CLASS_IN)
            if getattr(r, "alias", "").lower() == name.lower()
        ]
        zeroconf.cache.async_remove_records([*records, *pointers])
        self._emit(events.AdvertGone(label=label, claim=claim, rung="mdns"))

    # ------------------------------------------------------------ in

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        named = _parse_name(name)
        if named is None:
            return
        label, claim = named
        if claim in self._published:
            return
        if state_change is ServiceStateChange.Removed:
            self._break_off(claim)
            self._emit(events.AdvertGone(label=label, claim=claim, rung="mdns"))
            return
        info = AsyncServiceInfo(service_type, name)
        if info.load_from_cache(zeroconf):
            self._heard(info, label, claim)
        elif len(self._tasks) < RESOLVING_MAX:
            self._spawn(self._resolve(zeroconf, info, label, claim), claim)

    async def _resolve(
        self, zeroconf: Zeroconf, info: AsyncServiceInfo, label: Label, claim: Nonce
    ) -> None:
        if await info.async_request(zeroconf, RESOLVE_MS):
            self._heard(info, label, claim)

    def _heard(self, info: ServiceInfo, label: Label, claim: Nonce) -> None:
        text = info.decoded_properties
        try:
            version = int(text.get("v") or 0)
        except ValueError:
            return
        if version < 1 or not info.port:
            return
        advert = Advert(
            version=version,
            key_id=(text.get("k") or "")[:16],
            label=label,
            claim=claim,
            port=info.port,
            addresses=tuple(info.parsed_scoped_addresses()[:ADDRESSES_MAX]),
        )
        self._emit(events.AdvertHeard(advert=advert, rung="mdns"))

    def _break_off(self, claim: Nonce) -> None:
        task = self._about.pop(claim, None)
        if task is not None:
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None], claim: Nonce | None = None) -> None:
        task = asyncio.create_task(self._guard(work))
        if claim is not None:
            self._break_off(claim)
            self._about[claim] = task
            task.add_done_callback(lambda done: self._over(claim, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # One that is cancelled before its first step never awaits its work.
        task.add_done_callback(lambda _: work.close())

    def _over(self, claim: Nonce, task: asyncio.Task[None]) -> None:
        if self._about.get(claim) is task:
            del self._about[claim]

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self.state = f"mdns: failed: {error}"
            log.warning("%s", self.state)


def _parse_name(name: str) -> tuple[Label, Nonce] | None:
    instance = name.removesuffix("." + TYPE)
    label, _, claim = instance.partition("-")
    with contextlib.suppress(BadInput):
        return Label(label), Nonce(claim)
    return None


def _interfaces(addresses: Sequence[Address]) -> list[str]:
    """One address of each interface, IPv4 where it has one."""
    chosen: dict[str, str] = {}
    for a in sorted(addresses, key=lambda a: ":" in a.address):
        chosen.setdefault(a.interface, a.address)
    return list(chosen.values()) or ["127.0.0.1"]


def _ip_version(addresses: Sequence[Address]) -> IPVersion:
    families = {":" in a for a in _interfaces(addresses)}
    if families == {True}:
        return IPVersion.V6Only
    return IPVersion.V4Only if families == {False} else IPVersion.All
