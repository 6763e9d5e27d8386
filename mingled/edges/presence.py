"""Who is there: a census of the daemons on the network, for the command line.

Asked in three ways at once: over multicast DNS, by broadcast, and of named peers by unicast. Works
without a daemon on this machine, and beside several: all ports are shared. The answers to Who come
by unicast to UDP 29491, so that no more of a firewall need be open than for a daemon; if another
process here gets one, it passes it on (see `mingled.net.datagrams`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Sequence

import msgspec
from zeroconf import DNSQuestionType, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from mingled.core.datagrams import BROADCAST_PORT, KEY_ID_CHARS_MAX, Here, Who, scoped
from mingled.core.events import Address, Rung
from mingled.core.messages import ADDRESSES_MAX, HOST_CHARS_MAX
from mingled.core.peers import parse_peer
from mingled.core.words import NodeId
from mingled.errors import BadInput
from mingled.net.datagrams import Arrival, Datagrams
from mingled.net.interfaces import candidates
from mingled.net.multicast import NODE_TYPE, plan, usable
from mingled.net.resolve import Resolver

ASK_AFTER_S = (0.0, 0.5, 1.5)
"""Asked again: broadcasts, and the answers to them, get lost."""

NODES_MAX = 4_096
"""Answers remembered; a forger can make up more."""

PLACES_MAX = 256
"""Addresses of peers that are asked, of all peers together."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One daemon that answered."""

    node: NodeId
    host: str
    addresses: tuple[str, ...]  #: usable from here; the one that it answered from comes first
    port: int  #: of its peer link
    key_id: str = ""  #: of its cluster key; empty: it did not say
    rungs: tuple[Rung, ...]  #: by which it was found


class Census(msgspec.Struct, frozen=True, kw_only=True):
    nodes: tuple[Found, ...]  #: by host, then by node
    troubles: tuple[str, ...]  #: what could not be asked, and why; a sentence each


async def find_nodes(
    within_s: float,
    peers: Sequence[str] = (),
    *,
    addresses: Sequence[Address] | None = None,
    port: int = BROADCAST_PORT,
) -> Census:
    """Ask for `within_s`, and tell who has answered. `peers` as `parse_peer` takes them (`BadInput`
    otherwise); `addresses`: where to ask, by default this machine's candidates."""
    named = [(peer, *parse_peer(peer)) for peer in peers]
    where = candidates() if addresses is None else tuple(addresses)
    seeker = _Seeker()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s), asyncio.TaskGroup() as group:
            group.create_task(seeker.browse(where))
            group.create_task(seeker.call(where, named, port))
    return Census(
        nodes=tuple(sorted(seeker.found.values(), key=lambda f: (f.host, f.node))),
        troubles=tuple(seeker.troubles),
    )


class _Seeker:
    def __init__(self) -> None:
        self.found: dict[NodeId, Found] = {}
        self.troubles: dict[str, None] = {}

    def add(self, answer: Found) -> None:
        known = self.found.get(answer.node)
        if known is None:
            if len(self.found) < NODES_MAX:
                self.found[answer.node] = answer
            return
        addresses = tuple(dict.fromkeys((*known.addresses, *answer.addresses)))
        self.found[answer.node] = msgspec.structs.replace(
            known,
            addresses=addresses[:ADDRESSES_MAX],
            rungs=tuple(sorted({*known.rungs, *answer.rungs})),
        )

    # ------------------------------------------------------------ multicast DNS

    async def browse(self, where: Sequence[Address]) -> None:
        """Until cancelled."""
        ready = plan(where).ready
        try:
            zeroconf = AsyncZeroconf(interfaces=ready.choices, ip_version=ready.ip_version)
        except Exception as error:  # the library raises its own, OSError, and others
            reason = str(error)
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                reason = "another program holds UDP port 5353 for itself alone"
            self.troubles[f"mdns: does not work: {reason}"] = None
            return
        tasks: set[asyncio.Task[None]] = set()

        def changed(
            zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
        ) -> None:
            if state_change is not ServiceStateChange.Removed and len(tasks) < NODES_MAX:
                task = asyncio.ensure_future(self._learn(zeroconf, name, ready.only_interface))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        # QM: the unicast answer to a QU might go to the daemon on this machine instead.
        browser = AsyncServiceBrowser(
            zeroconf.zeroconf, NODE_TYPE, handlers=[changed], question_type=DNSQuestionType.QM
        )
        try:
            await asyncio.Event().wait()
        finally:
            for task in list(tasks):
                task.cancel()
            await browser.async_cancel()
            await zeroconf.async_close()

    async def _learn(self, zeroconf: Zeroconf, name: str, only_interface: str) -> None:
        info = AsyncServiceInfo(NODE_TYPE, name)
        try:
            node = NodeId(name.removesuffix("." + NODE_TYPE))
        except BadInput:
            return
        if not await info.async_request(zeroconf, 3_000, DNSQuestionType.QM) or not info.port:
            return
        host = (info.decoded_properties.get("h") or "")[:HOST_CHARS_MAX]
        key_id = (info.decoded_properties.get("k") or "")[:KEY_ID_CHARS_MAX]
        self.add(
            Found(
                node=node,
                host=host if host.isprintable() else "",
                addresses=usable(info.parsed_scoped_addresses(), only_interface)[:ADDRESSES_MAX],
                port=info.port,
                key_id=key_id if key_id.isprintable() else "",
                rungs=("mdns",),
            )
        )

    # ------------------------------------------------------------ datagrams

    async def call(
        self, where: Sequence[Address], peers: list[tuple[str, str, int | None]], port: int
    ) -> None:
        """Until cancelled."""
        datagrams = Datagrams(None, port=port)

        def arrived(arrival: Arrival) -> None:
            here = arrival.datagram
            if not isinstance(here, Here):
                return
            source = arrival.host if not arrival.host.startswith("127.") else ""
            addresses = scoped(here.addresses, arrival.interface)
            if source and source in addresses:
                addresses = tuple(dict.fromkeys((source, *addresses)))
            self.add(
                Found(
                    node=here.node,
                    host=here.host,
                    addresses=addresses,
                    port=here.port,
                    key_id=here.key_id,
                    rungs=("peers",) if here.by == "unicast" else ("broadcast",),
                )
            )

        datagrams.subscribe(arrived)
        await datagrams.start(where)
        who = Who(node=datagrams.node)
        try:
            async with asyncio.TaskGroup() as group:
                for peer in peers:
                    group.create_task(self._call_peer(datagrams, who, *peer))
                asked_at_s = 0.0
                for after_s in ASK_AFTER_S:
                    await asyncio.sleep(after_s - asked_at_s)
                    asked_at_s = after_s
                    datagrams.here(who)  # this machine's daemons, whatever the network is like
                    for target, reason in datagrams.broadcast(who).items():
                        self.troubles[f"broadcast on {target.interface}: {reason}"] = None
                await asyncio.Event().wait()
        finally:
            await datagrams.close()

    async def _call_peer(
        self,
        datagrams: Datagrams,
        who: Who,
        peer: str,
        host: str,
        port: int | None,
    ) -> None:
        resolver = Resolver()
        for pause_s in (*ASK_AFTER_S[1:], 0.0):
            resolved = await resolver.resolve(host)
            if resolved.trouble:
                self.troubles[f"peer {peer} {resolved.trouble}"] = None
            for address in resolved.addresses[:PLACES_MAX]:
                reason = datagrams.send(who, address, port)
                if reason:
                    self.troubles[f"peer {peer} cannot be asked: {reason}"] = None
            await asyncio.sleep(pause_s)
