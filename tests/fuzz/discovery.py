"""Targets: what anybody on the network can send to the rungs of discovery."""

from __future__ import annotations

import asyncio
import socket
from functools import cache
from typing import Any
from unittest import mock

import zeroconf._core
from zeroconf import (  # type: ignore[attr-defined]  # meant for use, only not in its __all__
    DNSOutgoing,
    DNSQuestion,
    ServiceInfo,
    ServiceStateChange,
)
from zeroconf._listener import AsyncListener
from zeroconf.const import (
    _CLASS_IN,
    _FLAGS_AA,
    _FLAGS_QR_QUERY,
    _FLAGS_QR_RESPONSE,
    _TYPE_ANY,
    _TYPE_PTR,
)

from mingled.core import events
from mingled.core.datagrams import KEY_ID_CHARS_MAX, Identity, decode, encode
from mingled.core.messages import ADDRESSES_MAX, Advert
from mingled.core.words import Label, NodeId, Nonce
from mingled.edges.broadcast import Broadcast
from mingled.edges.mdns import TYPE, Mdns
from mingled.edges.unicast import Unicast
from mingled.errors import BadInput
from mingled.net.datagrams import Datagrams
from mingled.net.resolve import Resolver
from mingled.net.udp import Packet
from tests.core.samples import ADVERT
from tests.core.test_datagrams import EACH
from tests.fuzz import loops

NODE = NodeId("0" * 31 + "9")  # not that of the samples: what it says itself it does not hear
LO = (events.Address(address="127.0.0.1", interface="lo"),)
IDENTITY = Identity(node=NODE, host="gpu1", port=29_490)
NAME = f"{ADVERT.label}-{ADVERT.claim}.{TYPE}"
OURS = Advert(
    version=1,
    key_id="none",
    label=Label("z" * 26),
    claim=Nonce("d" * 32),
    port=29_490,
    addresses=("127.0.0.1",),
)


def _check(event: events.Event) -> None:
    """An advert that was let in holds to the limits that the core relies on."""
    if isinstance(event, events.AdvertHeard):
        assert 0 < event.advert.port < 65_536
        assert len(event.advert.addresses) <= ADDRESSES_MAX
        assert len(event.advert.key_id) <= KEY_ID_CHARS_MAX
        assert event.advert.key_id.isprintable()


def close() -> None:
    """After the last input of a process that goes on."""
    if _responder.cache_info().currsize:
        loops.run(_responder().close())
        _responder.cache_clear()


# ---------------------------------------------------------------- multicast DNS


class _Nowhere(asyncio.DatagramTransport):
    """Unicast answers go here."""

    def __init__(self) -> None:
        super().__init__()
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._sock if name == "socket" else default

    def sendto(self, data: Any, addr: Any = None) -> None: ...

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self._sock.close()


class _Responder:
    """The rung over the library as it is, only that nothing goes out and nothing else comes in."""

    def __init__(self) -> None:
        self.mdns = Mdns(_check, NODE, IDENTITY)
        self.nowhere = _Nowhere()

    async def start(self) -> None:
        with mock.patch.object(zeroconf._core, "create_sockets", return_value=(None, [])):
            await self.mdns.start(LO)
        assert self.mdns._zeroconf is not None, self.mdns.state
        self.zeroconf = self.mdns._zeroconf.zeroconf
        self.mdns.advertise(OURS)
        await asyncio.sleep(0)

    async def close(self) -> None:
        await self.mdns.close()
        self.nowhere.close()

    async def forget(self) -> None:
        """Each input meets the same state."""
        cache_ = self.zeroconf.cache
        for name in cache_.names():
            cache_.async_remove_records(list(cache_.entries_with_name(name)))
        self.zeroconf.question_history.clear()
        tasks = list(self.mdns._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@cache
def _responder() -> _Responder:
    found = _Responder()
    loops.run(found.start())
    return found


def mdns_text(data: bytes) -> None:
    """A TXT record; before it the instance's name, length first. Empty: a good name."""
    size = data[0] if data else 0
    name, text = data[1 : 1 + size], data[1 + size :]
    loops.run(_text(_responder(), name.decode(errors="replace"), text))


async def _text(side: _Responder, name: str, text: bytes) -> None:
    info = ServiceInfo(
        TYPE,
        NAME,
        port=29_490,
        server="gpu2.local.",
        properties=text,
        parsed_addresses=["10.0.0.2", "fe80::2"],
    )
    records = [info.dns_pointer(), info.dns_service(), info.dns_text(), *info.dns_addresses()]
    side.zeroconf.cache.async_add_records(records)
    for state in (ServiceStateChange.Added, ServiceStateChange.Updated, ServiceStateChange.Removed):
        for instance in (NAME, name, f"{name}.{TYPE}"):
            side.mdns._changed(instance, state)
    await side.forget()


def mdns_packet(data: bytes) -> None:
    """A whole DNS message, through the library's own listener, after an honest announcement."""
    loops.run(_packet(_responder(), data))


async def _packet(side: _Responder, data: bytes) -> None:
    listener = AsyncListener(side.zeroconf)
    listener.connection_made(side.nowhere)
    for packet in (_announcement(), data):
        listener.datagram_received(packet, ("10.0.0.2", 5_353))
    await asyncio.sleep(0)
    listener.cancel_pending_timers()
    await side.forget()


# ---------------------------------------------------------------- datagrams


def datagram(data: bytes) -> None:
    """One datagram of the rungs below: as a broadcast, to this machine alone, and from another
    daemon here."""
    try:
        known = decode(data)
    except BadInput:
        known = None
    if known is not None:
        assert decode(encode(known)) == known
    loops.run(_datagram(data))


async def _datagram(data: bytes) -> None:
    port = Datagrams(IDENTITY)  # never opened: whatever it sends goes nowhere
    broadcast, unicast = Broadcast(_check, port), Unicast(_check, port, Resolver())
    for rung in (broadcast, unicast):
        await rung.start(LO)
        rung.advertise(OURS)
    for packet in (
        Packet(data, "10.0.0.2", 29_491, 1, "10.0.0.1", "broadcast"),
        Packet(data, "10.0.0.2", 29_491, 1, "10.0.0.1", "unicast"),
        Packet(data, "127.0.0.1", 29_491, 1, "127.0.0.1", None),
    ):
        port._received(packet)
    await asyncio.sleep(0)
    for rung in (broadcast, unicast):
        await rung.close()
    await port.close()


# ---------------------------------------------------------------- samples


def text_seeds() -> list[bytes]:
    good = [b"v=1", b"k=none", b"n=" + ADVERT.claim.encode(), b"p=29490", b"a0=10.0.0.2,fd00::2"]
    broken = [b"v", b"v=", b"v=x", b"v=99999999999999999999", b"k=\xff\x1b[2J", b"a1=%", b"a3=,,"]
    name = NAME.encode()
    seeds = [_strings(good), _strings(broken), _strings([*good, *broken]), b"\x00", b"\xff" * 40]
    bare = name.removesuffix(f".{TYPE}".encode())
    named = [bytes([len(n)]) + n + seeds[0] for n in (name, bare, bare + b".local.")]
    return [bytes([0]) + s for s in seeds] + named


def _strings(strings: list[bytes]) -> bytes:
    return b"".join(bytes([len(s)]) + s for s in strings)


@cache
def _announcement(*, port: int = 29_490, ttl_s: int | None = None) -> bytes:
    """As another daemon makes it; a TTL of 0: its goodbye."""
    info = _info(port)
    said = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
    for record in (
        info.dns_pointer(ttl_s),
        info.dns_service(ttl_s),
        info.dns_text(ttl_s),
        *info.dns_addresses(ttl_s),
    ):
        said.add_answer_at_time(record, 0)
    (packet,) = said.packets()
    return packet


def _info(port: int) -> ServiceInfo:
    return ServiceInfo(
        TYPE,
        NAME,
        port=port,
        server="gpu2.local.",
        parsed_addresses=["10.0.0.2", "fd00::2"],
        properties={"v": "1", "k": "none", "a0": "10.0.0.2,fd00::2"},
    )


def packet_seeds() -> list[bytes]:
    seeds = [_announcement(), _announcement(port=29_491), _announcement(ttl_s=0)]
    for name, kind, unicast in (
        (TYPE, _TYPE_PTR, False),
        (TYPE, _TYPE_PTR, True),
        (NAME, _TYPE_ANY, False),
        ("_services._dns-sd._udp.local.", _TYPE_PTR, True),
    ):
        asked = DNSOutgoing(_FLAGS_QR_QUERY)
        question = DNSQuestion(name, kind, _CLASS_IN)
        question.unicast = unicast
        asked.add_question(question)
        asked.add_answer_at_time(_info(29_490).dns_pointer(), 0)
        seeds += asked.packets()
    return seeds


def datagram_seeds() -> list[bytes]:
    return [encode(each) for each in EACH]
