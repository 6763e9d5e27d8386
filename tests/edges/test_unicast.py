"""Daemons with a UDP port each on loopback, as if on hosts of their own: who names whom, and what
comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from mingled.core import events
from mingled.core.datagrams import Announce, Ask, Identity
from mingled.core.messages import Advert
from mingled.core.words import Label
from mingled.edges import unicast
from mingled.edges.unicast import Unicast
from mingled.net.datagrams import Datagrams
from mingled.net.resolve import Resolver
from tests.edges.test_broadcast import (
    LO,
    PATIENCE_S,
    free_port,
    new_advert,
    new_label,
    new_node,
)


class Side:
    def __init__(self, peers: tuple[str, ...], port: int, resolver: Resolver, host: str) -> None:
        identity = Identity(node=new_node(), host=host, port=29_490)
        self.port = port
        self.peer = f"127.0.0.1:{port}"
        self.datagrams = Datagrams(identity, port=port)
        self.events: asyncio.Queue[events.Event] = asyncio.Queue()
        self.rung = Unicast(self.events.put_nowait, self.datagrams, resolver, peers)

    async def start(self) -> None:
        await self.datagrams.start(LO)
        await self.rung.start(LO)

    async def close(self) -> None:
        await self.rung.close()
        await self.datagrams.close()

    async def next(self, after: events.Event | None = None) -> events.Event:
        """The next event that is not `after` once more."""
        async with asyncio.timeout(PATIENCE_S):
            while (event := await self.events.get()) == after:
                pass
            return event


MakeSide = Callable[..., Awaitable[Side]]


@pytest.fixture
async def side() -> AsyncIterator[MakeSide]:
    async with contextlib.AsyncExitStack() as stack:

        async def make(
            *peers: str,
            port: int | None = None,
            resolver: Resolver | None = None,
            host: str = "gpu1",
        ) -> Side:
            made = Side(peers, port or free_port(), resolver or Resolver(), host)
            await made.start()
            stack.push_async_callback(made.close)
            return made

        yield make


def heard(advert: Advert) -> events.Event:
    return events.AdvertHeard(advert=advert, rung="peers")


def gone(advert: Advert) -> events.Event:
    return events.AdvertGone(label=advert.label, claim=advert.claim, rung="peers")


async def test_who_leads_answers_whoever_asks_and_says_goodbye(side: MakeSide) -> None:
    first = await side()
    second = await side(first.peer)
    one = new_advert()
    first.rung.advertise(one)
    second.rung.ask(one.label, unicast=True)
    assert await second.next() == heard(one)
    second.rung.ask(new_label(), unicast=True)
    first.rung.withdraw(one.label, one.claim)
    assert await second.next(heard(one)) == gone(one)
    assert first.events.empty()
    assert (first.rung.state, second.rung.state) == ("peers: none named", f"peers: {first.peer}")


async def test_who_does_not_lead_yet_remembers_who_asked(side: MakeSide) -> None:
    first, other = await side(), await side()
    second = await side(first.peer)
    one = new_advert()
    second.rung.ask(one.label, unicast=True)
    arrived = asyncio.Event()
    first.datagrams.subscribe(lambda _: arrived.set())
    async with asyncio.timeout(PATIENCE_S):
        await arrived.wait()
    first.rung.advertise(new_advert())
    first.rung.advertise(one)
    assert await second.next() == heard(one)
    assert await second.next() == heard(one)  # once more, for loss
    assert other.events.empty()


async def test_who_leads_tells_its_own_peers_until_they_are_there(side: MakeSide) -> None:
    later = free_port()
    first = await side()
    one = new_advert()
    first.rung.advertise(one, [f"127.0.0.1:{later}"])
    second = await side(port=later)
    assert await second.next() == heard(one)
    moved = new_advert(label=one.label, claim=one.claim, port=29_999)
    first.rung.advertise(moved, [f"127.0.0.1:{later}"])
    assert await second.next(heard(one)) == heard(moved)
    await first.rung.close()
    assert await second.next(heard(moved)) == gone(moved)


async def test_peers_that_a_reload_brings_hear_of_what_is_led_already(
    side: MakeSide,
) -> None:
    first, second = await side(), await side()
    asker = await side(first.peer)
    one = new_advert()
    first.rung.advertise(one)
    asker.rung.ask(one.label, unicast=True)
    assert await asker.next() == heard(one)
    assert second.events.empty()
    first.rung.ask_peers([second.peer])
    assert await second.next() == heard(one)


async def test_peers_of_a_job_are_asked_beside_those_of_the_daemon(side: MakeSide) -> None:
    first, second = await side(), await side()
    third = await side(first.peer)
    one = new_advert()
    two = new_advert(label=one.label)
    first.rung.advertise(one)
    second.rung.advertise(two)
    third.rung.ask(one.label, unicast=True, peers=[second.peer, "no:such:peer"])
    assert [await third.next(), await third.next()] in (
        [heard(one), heard(two)],
        [heard(two), heard(one)],
    )
    assert third.rung.state == f"peers: {first.peer}, {second.peer}"


async def test_daemons_of_one_host_all_get_what_is_sent_to_it(side: MakeSide) -> None:
    port = free_port()
    here = [await side(port=port) for _ in range(3)]
    far = await side(here[0].peer)
    one = new_advert()
    far.rung.advertise(one)
    for each in here:
        assert await each.next() == heard(one)
    for each in here:  # whichever the kernel chooses, the one that leads answers
        two = new_advert()
        each.rung.advertise(two)
        far.rung.ask(two.label, unicast=True)
        assert await far.next() == heard(two)
        each.rung.withdraw(two.label, two.claim)
        assert await far.next(heard(two)) == gone(two)


async def test_the_answer_to_one_reaches_all_daemons_of_its_host(side: MakeSide) -> None:
    far = await side()
    port = free_port()
    here = [await side(far.peer, port=port) for _ in range(3)]
    one = new_advert()
    far.rung.advertise(one)
    here[0].rung.ask(one.label, unicast=True)
    for each in here:
        assert await each.next() == heard(one)


async def test_only_what_was_heard_and_nobody_confirms_is_gone(side: MakeSide) -> None:
    lives, dies = await side(), await side()
    asker = await side()
    one, two, ghost = new_advert(), new_advert(), new_advert()
    lives.rung.advertise(one, [asker.peer])
    assert await asker.next() == heard(one)
    dies.rung.advertise(two, [asker.peer])
    assert await asker.next(heard(one)) == heard(two)
    await dies.datagrams.close()  # without a goodbye
    for doubted in (ghost, one, two):
        asker.rung.doubt(doubted.label, doubted.claim)
    while (event := await asker.next(heard(one))) == heard(two):
        pass
    assert event == gone(two)


# ---------------------------------------------------------------- names


async def test_a_name_of_many_addresses_is_asked_at_each(side: MakeSide) -> None:
    addresses = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    resolver = Resolver(lambda _: addresses)
    first = await side()
    second = await side(f"head:{first.port}", resolver=resolver)
    came: asyncio.Queue[str] = asyncio.Queue()
    first.datagrams.subscribe(lambda arrival: came.put_nowait(arrival.address))
    second.rung.ask(new_label(), unicast=True)
    async with asyncio.timeout(PATIENCE_S):
        assert {await came.get() for _ in addresses} == set(addresses)
    assert second.rung.state == f"peers: head:{first.port} (3 addresses)"


async def test_a_peer_in_trouble_is_named_once_per_change(
    side: MakeSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mingled.net.resolve.CACHED_S", 0.0)
    answers: dict[str, tuple[str, ...] | Exception] = {"head": OSError("no such name")}

    def look_up(name: str) -> tuple[str, ...]:
        answer = answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    first = await side()
    second = await side(
        f"head:{first.port}", "127.0.0.1:1", resolver=Resolver(look_up), host="gpu2"
    )
    label = new_label()

    async def ask() -> None:
        second.rung.ask(label, unicast=True)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*second.rung._tasks)

    for _ in range(3):
        await ask()
    said = events.DiscoveryNoted(
        label=label,
        sentence=(
            f"peer head:{first.port} does not resolve: no such name (on gpu2); correct --peers, or "
            "wait until it is up: it is asked again"
        ),
    )
    assert await second.next() == said
    assert second.events.empty()
    assert second.rung.state == (
        f"peers: head:{first.port} does not resolve: no such name, 127.0.0.1:1"
    )
    answers["head"] = ("127.0.0.1",)
    await ask()
    assert second.events.empty()
    answers["head"] = OSError("no such name")
    await ask()
    assert await second.next() == said
    answers["head"] = ("255.255.255.255", "240.0.0.1")  # no route, or no such address
    await ask()
    one = new_advert(label=label)
    first.rung.advertise(one, [second.peer])
    while (event := await second.next()) != heard(one):
        assert isinstance(event, events.DiscoveryNoted)
        assert "cannot be asked" in event.sentence


async def test_a_dns_server_that_hangs_holds_nobody_up(side: MakeSide) -> None:
    go = threading.Event()

    def look_up(_: str) -> tuple[str, ...]:
        go.wait()
        return ()

    first = await side()
    second = await side("head", resolver=Resolver(look_up))
    label = new_label()
    for _ in range(10):
        second.rung.ask(label, unicast=True)
    assert len(second.rung._tasks) == 1
    one = new_advert()
    first.rung.advertise(one, [second.peer])
    assert await second.next() == heard(one)
    await second.close()  # at once
    go.set()


# ---------------------------------------------------------------- hostile or broken


async def test_what_is_remembered_of_others_is_bounded(
    side: MakeSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unicast, "ASKERS_MAX", 3)
    first = await side()
    labels = [new_label() for _ in range(5)]
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    first.datagrams.subscribe(arrived.put_nowait)
    second = await side()
    for label in labels:
        asked = Ask(node=second.datagrams.node, labels=(label,))
        second.datagrams.send(asked, "127.0.0.1", first.port)
        async with asyncio.timeout(PATIENCE_S):
            await arrived.get()
    assert [label for label, _ in first.rung._askers] == labels[2:]
    monkeypatch.setattr(unicast, "ASKER_S", 0.0)
    forgotten: list[Label] = [new_label()]
    asked = Ask(node=second.datagrams.node, labels=tuple(forgotten))
    second.datagrams.send(asked, "127.0.0.1", first.port)
    async with asyncio.timeout(PATIENCE_S):
        await arrived.get()
    first.rung.advertise(new_advert(label=forgotten[0]))
    assert [label for label, _ in first.rung._askers] == labels[3:]


async def test_answers_to_a_flood_are_capped(
    side: MakeSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unicast, "ANSWERS_PER_S", 5.0)
    first, second = await side(), await side()
    one = new_advert()
    first.rung.advertise(one)
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    first.datagrams.subscribe(arrived.put_nowait)
    asked = Ask(node=second.datagrams.node, labels=(one.label,))
    sent: list[object] = []
    monkeypatch.setattr(first.rung, "_tell", lambda *told: sent.append(told))
    for _ in range(40):
        second.datagrams.send(asked, "127.0.0.1", first.port)
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(40):
            await arrived.get()
    assert 5 <= len(sent) < 20


async def test_a_closed_rung_does_nothing(side: MakeSide) -> None:
    first = await side()
    await first.rung.close()
    one = new_advert()
    first.rung.advertise(one, ["127.0.0.1:1"])
    first.rung.ask(one.label, unicast=True, peers=["127.0.0.1:1"])
    first.rung.doubt(one.label, one.claim)
    first.rung.withdraw(one.label, one.claim)
    await first.rung.readdress(LO)
    first.datagrams.send(Announce(node=new_node(), advert=one), "127.0.0.1")
    assert first.rung.state == "peers: not started"
    assert first.events.empty()
