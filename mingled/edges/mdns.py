"""The first rung: adverts as `_mingle._tcp` services over multicast DNS, by python-zeroconf.

Instance names are unique by construction (they carry the claim's nonce), so RFC 6762 probing is
skipped as its section 8.1 allows: an announcement is out in a millisecond instead of 1.2 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from zeroconf import (  # type: ignore[attr-defined]  # meant for use, only not in its __all__
    DNSOutgoing,
    DNSQuestion,
    DNSRecord,
    ServiceInfo,
    ServiceStateChange,
    Zeroconf,
    current_time_millis,
)
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf
from zeroconf.const import _CLASS_IN, _FLAGS_QR_QUERY, _TYPE_PTR, _TYPE_SRV

from mingled.core import events
from mingled.core.datagrams import KEY_ID_CHARS_MAX, Identity, unscoped
from mingled.core.events import Address
from mingled.core.messages import ADDRESSES_MAX, Advert
from mingled.core.words import Label, NodeId, Nonce
from mingled.edges.names import Names
from mingled.errors import BadInput
from mingled.net.browsing import Browser
from mingled.net.multicast import NODE_TYPE, Plan, Spot, plan, usable
from mingled.net.udp import GROUP

TYPE = "_mingle._tcp.local."

TTL_S = 4_500
"""75 minutes for all records. With the usual 120 s for host records, a leader in the cache of a
daemon that had browsed since boot could not be resolved after 145 s."""

NODE_TTL_S = 120
"""Of what is only told to those who ask who is there."""

ANNOUNCE_AGAIN_S = 1.0
"""RFC 6762, 8.3: at least twice, a second apart. zeroconf's own three within half a second cost
more, and one burst of loss takes them all."""

GOODBYES = 2
GOODBYE_AGAIN_S = 0.125

ORDER_CHARS_MAX = 240
"""In one string of TXT, which holds 255 bytes with its key."""

ORDER_KEYS = ("a0", "a1", "a2", "a3")
"""Of TXT: the addresses, best first. As records of the host they have no order."""

RETRY_AFTER_S = 5.0
"""What could not be started is tried again, when there is something to say, no sooner than this."""

RESOLVE_MS = 3_000
"""For an advert whose records came in pieces: the library asks for the rest."""

RESOLVING_MAX = 64
"""Adverts being resolved at once; forged ones must not pile up tasks, and those of jobs that nobody
here has asked for make us ask nothing."""

WANTED_MAX = 1_024
"""Labels of jobs that were asked for here: as many as a daemon has jobs."""

DOUBT_S = 2.0
"""RFC 6762 10.4: a doubted record that nobody confirms within this is dropped."""

REJOIN_AFTER_S = 2.0
REJOIN_TIMES = 3
"""An interface that could not be joined is tried again: a fresh IPv6 address cannot be used for a
second or two (duplicate address detection)."""

log = logging.getLogger(__name__)


def brief(record: logging.LogRecord) -> bool:
    """A filter of zeroconf's log: its line says already which packet the network did not take, and
    the traceback below is the library's own way to get there."""
    if record.exc_info and isinstance(record.exc_info[1], OSError):
        record.exc_info = None
    return True


class Mdns:
    """Adverts in and out over multicast DNS. `identity`: whom to present to those who ask who is
    there; None: nobody."""

    def __init__(
        self,
        emit: Callable[[events.Event], None],
        node: NodeId,
        identity: Identity | None = None,
    ) -> None:
        self._emit = emit
        # Its own, or its addresses would replace those of the adverts in the caches of others.
        self._server = _host(node)
        self._identity = identity
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: Browser | None = None
        self._wanted: dict[Label, None] = {}  #: asked for here, the latest last
        self._published: dict[Nonce, ServiceInfo] = {}
        self._presence: ServiceInfo | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._about: dict[Nonce, asyncio.Task[None]] = {}  #: announcing or resolving a claim
        self._plan = Plan(())
        self._missing: tuple[Spot, ...] = ()  #: where it could not be joined
        self._rejoins = 0
        self._failed = False  #: since it was last seen to be well
        self._addresses: tuple[Address, ...] | None = None  #: the last that we were given
        self._retry_at_s = 0.0
        self._readdressing = asyncio.Lock()
        self._closed = False
        self.names = Names(emit)
        self.state = "mdns: not started"  #: one line for status

    async def start(self, addresses: Sequence[Address]) -> None:
        """Browse from now on. A network without multicast is no error here: `state` says it, and
        `readdress` tries again."""
        async with self._readdressing:
            await self._start(addresses)

    async def _start(self, addresses: Sequence[Address]) -> None:
        self._addresses = tuple(addresses)
        self._retry_at_s = asyncio.get_running_loop().time() + RETRY_AFTER_S
        logging.getLogger("zeroconf").addFilter(brief)
        planned = plan(addresses)
        self._say_left_out(planned)
        ready = planned.ready
        try:
            self._zeroconf = AsyncZeroconf(interfaces=ready.choices, ip_version=ready.ip_version)
            await self._zeroconf.zeroconf.async_wait_for_start()
        except Exception as error:  # the library raises its own, OSError, and others
            failed, self._zeroconf = self._zeroconf, None
            self._fail("does not work", error)
            if failed is not None:  # or each try would leave its sockets behind
                with contextlib.suppress(Exception):
                    await failed.async_close()
            return
        self._browser = Browser(self._zeroconf.zeroconf, TYPE, self._changed, self._ask_all)
        self._browser.start()
        self._present(addresses)
        self.names.attach(self._zeroconf.zeroconf)
        for claim, info in self._published.items():  # advertised before there was a network
            self._spawn(self._publish(info), claim)
        self._joined(addresses, planned)

    async def close(self) -> None:
        """Say goodbye for what is published."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.names.close()
        if self._zeroconf is not None:
            self._absent()  # never announced, so there is no goodbye to say
            if self._browser is not None:
                self._browser.close()
            closing, self._zeroconf = self._zeroconf, None
            await closing.async_close()

    @property
    def counts(self) -> dict[str, int]:
        cached = 0 if self._zeroconf is None else len(self._zeroconf.zeroconf.cache.cache)
        return {"adverts published": len(self._published), "names cached": cached}

    # ------------------------------------------------------------ actions

    def advertise(self, advert: Advert, peers: Sequence[str] = ()) -> None:
        info = self._info(advert)
        self._published[advert.claim] = info
        if self._zeroconf is not None:
            self._spawn(self._publish(info), advert.claim)
        else:
            self._try_again()

    def withdraw(self, label: Label, claim: Nonce) -> None:
        info = self._published.pop(claim, None)
        if self._zeroconf is not None and info is not None:
            self._break_off(claim)  # no announcement may follow the goodbye
            self._spawn(self._unpublish(info))

    def ask(self, label: Label, *, unicast: bool, peers: Sequence[str] = ()) -> None:
        """One question for all adverts, unless another host has just asked the same."""
        self._wanted.pop(label, None)
        self._wanted[label] = None
        if len(self._wanted) > WANTED_MAX:
            del self._wanted[next(iter(self._wanted))]
        if self._zeroconf is None:
            self._try_again()  # to browse is to ask
            return
        self._ask_all(unicast)

    def _ask_all(self, unicast: bool) -> None:
        assert self._zeroconf is not None
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
        """The machine's addresses or interfaces may have changed. What it cannot, `state` says."""
        async with self._readdressing:
            if self._closed:
                return
            self._addresses = tuple(addresses)
            try:
                if self._zeroconf is None:
                    await self._start(addresses)
                else:
                    await self._move(self._zeroconf, addresses)
            except Exception as error:  # as in _start
                self._fail("failed", error)

    def _try_again(self) -> None:
        """Whoever held the port for itself alone may have left; nobody tells us."""
        now_s = asyncio.get_running_loop().time()
        if self._addresses is not None and not self._closed and now_s >= self._retry_at_s:
            self._retry_at_s = now_s + RETRY_AFTER_S
            self._spawn(self.readdress(self._addresses))

    # ------------------------------------------------------------ interfaces

    async def _move(self, zeroconf: AsyncZeroconf, addresses: Sequence[Address]) -> None:
        planned = plan(addresses)
        self._absent()  # or the library would announce it on what is new
        if planned == self._plan and not self._missing and not self._failed:
            self._present(addresses)
            return
        self._say_left_out(planned)
        # An interface that was made again under its name may have its old address, and to the
        # library nothing has changed: it is shown the world without it first.
        before = {(spot.interface, spot.six): spot for spot in self._plan.spots}
        remade = {
            spot
            for spot in planned.spots
            if (old := before.get((spot.interface, spot.six))) and old.index != spot.index
        }
        stale = set(self._plan.spots) - set(planned.spots)
        if remade:
            rest = Plan(tuple(spot for spot in planned.spots if spot not in remade))
            await self._update(zeroconf, rest)
        self._leave(zeroconf, stale)
        await self._update(zeroconf, planned)
        self._present(addresses)
        self._joined(addresses, planned)

    async def _update(self, zeroconf: AsyncZeroconf, planned: Plan) -> None:
        ready = planned.ready
        await zeroconf.zeroconf.async_update_interfaces(
            interfaces=ready.choices, ip_version=ready.ip_version
        )

    def _leave(self, zeroconf: AsyncZeroconf, stale: Iterable[Spot]) -> None:
        """The kernel counts memberships of interfaces that are gone until they are left by their
        number, and after 20 lets nobody join. The library leaves by address, which is gone."""
        for spot in stale:
            request = struct.pack("@4s4si", socket.inet_aton(GROUP), bytes(4), spot.index)
            for reader in zeroconf.zeroconf.engine.readers:
                if not spot.six:
                    with contextlib.suppress(OSError):  # left already, or never joined there
                        reader.sock.setsockopt(
                            socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, request
                        )

    def _joined(self, addresses: Sequence[Address], planned: Plan) -> None:
        assert self._zeroconf is not None
        senders = self._zeroconf.zeroconf.engine.senders
        own = {str(sender.sock_name[0]).partition("%")[0] for sender in senders}
        numbers = {sender.multicast_index for sender in senders if sender.is_ipv6}
        if planned != self._plan:
            self._rejoins = 0
        self._plan = planned
        self._failed = False
        self._missing = tuple(
            spot
            for spot in planned.spots
            if spot.address not in own and not (spot.six and spot.index in numbers)
        )
        on = ", ".join(str(spot) for spot in planned.spots if spot not in self._missing)
        self.state = f"mdns: browsing {TYPE} on {on}" if on else "mdns: does not work"
        if self._missing:
            self.state += f"; cannot join on {', '.join(map(str, self._missing))}"
            if self._rejoins < REJOIN_TIMES:
                self._rejoins += 1
                self._spawn(self._rejoin(tuple(addresses)))
        if planned.left_out:
            self.state += f"; left out: {', '.join(planned.left_out)} (igmp_max_memberships)"

    async def _rejoin(self, addresses: tuple[Address, ...]) -> None:
        before = self._plan
        await asyncio.sleep(REJOIN_AFTER_S)
        if self._plan == before:
            await self.readdress(addresses)

    def _say_left_out(self, planned: Plan) -> None:
        if planned.left_out and planned.left_out != self._plan.left_out:
            log.warning(
                "mdns: more interfaces than net.ipv4.igmp_max_memberships allows; left out: %s",
                ", ".join(planned.left_out),
            )

    def _fail(self, how: str, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            reason = "another program holds UDP port 5353 for itself alone"
        state = f"mdns: {how}: {reason}"
        if state != self.state:  # readdress may try again and again
            log.warning("%s", state)
        self.state = state
        self._failed = True

    # ------------------------------------------------------------ who is there

    def introduce_as(self, identity: Identity) -> None:
        """From now on."""
        self._identity = identity
        if self._presence is not None:
            self._absent()
            self._present(self._addresses or ())

    def _present(self, addresses: Sequence[Address]) -> None:
        if self._identity is None or self._zeroconf is None:
            return
        self._presence = ServiceInfo(
            NODE_TYPE,
            f"{self._identity.node}.{NODE_TYPE}",
            port=self._identity.port,
            properties={"v": "1", "h": self._identity.host, **self._key_id()},
            server=self._server,
            host_ttl=NODE_TTL_S,
            other_ttl=NODE_TTL_S,
            parsed_addresses=list(unscoped(a.address for a in addresses)[:ADDRESSES_MAX]),
        )
        self._zeroconf.zeroconf.registry.async_add(self._presence)

    def _key_id(self) -> dict[str, str]:
        key_id = self._identity.key_id if self._identity is not None else ""
        return {"k": key_id} if key_id else {}

    def _absent(self) -> None:
        if self._presence is not None and self._zeroconf is not None:
            self._zeroconf.zeroconf.registry.async_remove(self._presence)
            self._presence = None

    # ------------------------------------------------------------ out

    def _info(self, advert: Advert) -> ServiceInfo:
        addresses = unscoped(advert.addresses)
        return ServiceInfo(
            TYPE,
            f"{advert.label}-{advert.claim}.{TYPE}",
            port=advert.port,
            properties={
                "v": str(advert.version),
                "k": advert.key_id,
                "n": advert.claim,
                "p": str(advert.port),
                **_order(addresses),
            },
            # A name per claim: a job may be restricted to other addresses than the next one, and
            # the records of one host replace each other in the caches of others.
            server=_host(advert.claim),
            host_ttl=TTL_S,
            other_ttl=TTL_S,
            parsed_addresses=list(addresses),
        )

    async def _publish(self, info: ServiceInfo) -> None:
        assert self._zeroconf is not None
        zeroconf = self._zeroconf.zeroconf
        await zeroconf.async_wait_for_start()
        zeroconf.registry.async_update(info)  # adds what is new, too
        zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
        await asyncio.sleep(ANNOUNCE_AGAIN_S)
        zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))

    async def _unpublish(self, info: ServiceInfo) -> None:
        assert self._zeroconf is not None
        zeroconf = self._zeroconf.zeroconf
        zeroconf.registry.async_remove(info)
        for n in range(GOODBYES):
            await asyncio.sleep(GOODBYE_AGAIN_S * n)
            zeroconf.async_send(zeroconf.generate_service_broadcast(info, 0))

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
        if not self._known(zeroconf, name):
            return
        asked_at = current_time_millis()
        self._send(DNSQuestion(name, _TYPE_SRV, _CLASS_IN))
        await asyncio.sleep(DOUBT_S)
        known = self._known(zeroconf, name)
        if not known or any(r.created > asked_at for r in known if r.type != _TYPE_PTR):
            return  # its goodbye came meanwhile, or its confirmation
        host = zeroconf.cache.async_entries_with_name(_host(claim))  # not named by what was heard
        zeroconf.cache.async_remove_records([*known, *host])
        self._emit(events.AdvertGone(label=label, claim=claim, rung="mdns"))

    def _known(self, zeroconf: Zeroconf, name: str) -> list[DNSRecord]:
        """Everything in the cache about one advert."""
        pointers = zeroconf.cache.async_all_by_details(TYPE, _TYPE_PTR, _CLASS_IN)
        named = [r for r in pointers if getattr(r, "alias", "").lower() == name.lower()]
        return [*zeroconf.cache.async_entries_with_name(name), *named]

    # ------------------------------------------------------------ in

    def _changed(self, name: str, change: ServiceStateChange) -> None:
        named = _parse_name(name)
        if named is None or self._zeroconf is None:
            return
        label, claim = named
        if claim in self._published:
            return
        if change is ServiceStateChange.Removed:
            self._break_off(claim)
            self._emit(events.AdvertGone(label=label, claim=claim, rung="mdns"))
            return
        zeroconf = self._zeroconf.zeroconf
        info = AsyncServiceInfo(TYPE, name)
        if info.load_from_cache(zeroconf):
            self._heard(info, label, claim)
        elif label in self._wanted and len(self._tasks) < RESOLVING_MAX:
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
        key_id = (text.get("k") or "")[:KEY_ID_CHARS_MAX]
        addresses = _sorted(
            usable(info.parsed_scoped_addresses(), self._plan.only_interface),
            [address for key in ORDER_KEYS for address in (text.get(key) or "").split(",")],
        )
        advert = Advert(
            version=version,
            key_id=key_id if key_id.isprintable() else "",
            label=label,
            claim=claim,
            port=info.port,
            addresses=addresses[:ADDRESSES_MAX],
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
            self._fail("failed", error)


def _host(word: NodeId | Nonce) -> str:
    return f"mingle-{word}.local."


def _order(addresses: Sequence[str]) -> dict[str, str]:
    """As many strings of TXT as it takes."""
    strings: list[str] = []
    for address in addresses:
        if strings and len(strings[-1]) + 1 + len(address) <= ORDER_CHARS_MAX:
            strings[-1] += f",{address}"
        else:
            strings.append(address)
    return dict(zip(ORDER_KEYS, strings, strict=False))


def _sorted(addresses: Sequence[str], order: Sequence[str]) -> tuple[str, ...]:
    """What is not in `order` comes last."""
    places = {address: n for n, address in enumerate(order)}
    return tuple(sorted(addresses, key=lambda a: places.get(a.partition("%")[0], len(order))))


def _parse_name(name: str) -> tuple[Label, Nonce] | None:
    instance, _, kind = name.partition(".")
    if kind != TYPE:
        return None
    label, _, claim = instance.partition("-")
    with contextlib.suppress(BadInput):
        return Label(label), Nonce(claim)
    return None
