"""Host names by mDNS between responders on this machine's loopback."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
from zeroconf import (  # type: ignore[attr-defined]  # meant for use, only not in its __all__
    DNSAddress,
    DNSOutgoing,
    DNSQuestion,
    RecordUpdate,
    RecordUpdateListener,
)
from zeroconf import Zeroconf as Responder
from zeroconf.asyncio import AsyncZeroconf
from zeroconf.const import _CLASS_IN, _FLAGS_QR_QUERY, _TYPE_A

from mingled.core import events
from mingled.core.words import ParticipantId
from mingled.edges.names import TYPE, Names

PATIENCE_S = 60


class Resolver(RecordUpdateListener):
    """What is said of one name, as it is said: an address, or `gone`."""

    def __init__(self, zeroconf: Responder, name: str) -> None:
        self._zeroconf, self._name = zeroconf, f"{name}.local."
        self.said: asyncio.Queue[str] = asyncio.Queue()
        zeroconf.async_add_listener(self, None)

    def async_update_records(self, zc: Responder, now: float, records: list[RecordUpdate]) -> None:
        for update in records:
            record = update.new
            if record.name == self._name and isinstance(record, DNSAddress):
                word = ".".join(map(str, record.address)) if record.ttl > 1 else "gone"
                self.said.put_nowait(word)

    def ask(self) -> None:
        out = DNSOutgoing(_FLAGS_QR_QUERY)
        out.add_question(DNSQuestion(self._name, _TYPE_A, _CLASS_IN))
        self._zeroconf.async_send(out)

    async def until(self, word: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.said.get() != word:
                pass


class Side:
    """One daemon's names, and what it says of them."""

    def __init__(self, zeroconf: Responder) -> None:
        self.zeroconf = zeroconf
        self.refused: asyncio.Queue[events.Event] = asyncio.Queue()
        self.names = Names(self.refused.put_nowait)


@pytest.fixture
async def sides() -> AsyncIterator[tuple[Side, Side]]:
    open_ = [AsyncZeroconf(interfaces=["127.0.0.1"]) for _ in range(2)]
    first, second = (Side(each.zeroconf) for each in open_)
    for each in open_:
        await each.zeroconf.async_wait_for_start()
    yield first, second
    for side in (first, second):
        await side.names.close()
    for each in open_:
        await each.async_close()


def participant(number: int) -> ParticipantId:
    return ParticipantId(f"{number:032x}")


@pytest.fixture
def name() -> str:
    return f"bert-{secrets.token_hex(4)}-0"


async def test_a_name_is_said_and_answered_until_it_is_withdrawn(
    sides: tuple[Side, Side], name: str
) -> None:
    first, second = sides
    resolver = Resolver(second.zeroconf, name)
    first.names.attach(first.zeroconf)
    first.names.publish(participant(1), name, "127.0.0.9")
    await resolver.until("127.0.0.9")
    second.zeroconf.cache.async_remove_records(
        second.zeroconf.cache.async_entries_with_name(f"{name}.local.")
    )
    resolver.ask()
    await resolver.until("127.0.0.9")
    first.names.withdraw(participant(1))
    await resolver.until("gone")
    assert not first.zeroconf.registry.async_get_infos_server(f"{name}.local.")
    assert first.refused.empty()


async def test_a_name_of_somebody_else_is_left_to_him(sides: tuple[Side, Side], name: str) -> None:
    first, second = sides
    for side in sides:
        side.names.attach(side.zeroconf)
    resolver = Resolver(second.zeroconf, name)
    first.names.publish(participant(1), name, "127.0.0.9")
    await resolver.until("127.0.0.9")
    second.names.publish(participant(2), name, "127.0.0.8")
    async with asyncio.timeout(PATIENCE_S):
        refused = await second.refused.get()
    assert refused == events.NameRefused(
        participant=participant(2),
        name=f"{name}.local",
        reason="that is the name of 127.0.0.9, which keeps it",
    )
    assert not second.zeroconf.registry.async_get_infos_server(f"{name}.local.")
    # When he has gone it may be had.
    first.names.withdraw(participant(1))
    await resolver.until("gone")
    second.names.publish(participant(2), name, "127.0.0.8")
    await Resolver(first.zeroconf, name).until("127.0.0.8")


async def test_without_a_network_it_is_said_and_made_up_for(
    sides: tuple[Side, Side], name: str
) -> None:
    first, second = sides
    first.names.publish(participant(1), name, "127.0.0.9")
    refused = first.refused.get_nowait()
    assert isinstance(refused, events.NameRefused)
    assert "mDNS does not work here" in refused.reason
    resolver = Resolver(second.zeroconf, name)
    first.names.attach(first.zeroconf)
    await resolver.until("127.0.0.9")
    await first.names.close()
    await resolver.until("gone")


async def test_what_is_withdrawn_before_it_is_said_is_never_said(
    sides: tuple[Side, Side], name: str
) -> None:
    first, second = sides
    first.names.attach(first.zeroconf)
    resolver = Resolver(second.zeroconf, name)
    other = f"{name}1"
    first.names.publish(participant(1), name, "127.0.0.9")
    first.names.withdraw(participant(1))
    first.names.publish(participant(2), other, "127.0.0.9")
    await Resolver(second.zeroconf, other).until("127.0.0.9")
    assert resolver.said.empty()
    assert (
        TYPE not in first.zeroconf.registry.async_get_types()
        or len(first.zeroconf.registry.async_get_infos_type(TYPE)) == 1
    )
