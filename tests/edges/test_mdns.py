"""Two responders on this machine's loopback: what one publishes the other hears, and nothing else.

Other daemons may be heard there too, so each test looks for its own label only.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from mingled.core import events
from mingled.core.events import Address
from mingled.core.messages import Advert
from mingled.core.words import Label, NodeId, Nonce
from mingled.edges import mdns
from mingled.edges.mdns import TYPE, Mdns

LO = (Address(address="127.0.0.1", interface="lo"),)

PATIENCE_S = 60
"""Nothing here takes that long: a test that hangs fails."""


class Side:
    """One responder and what it heard of one label."""

    def __init__(self, label: Label) -> None:
        self.label = label
        self.heard: asyncio.Queue[events.AdvertHeard | events.AdvertGone] = asyncio.Queue()
        self.mdns = Mdns(self._emit, NodeId(secrets.token_hex(16)))

    def _emit(self, event: events.Event) -> None:
        match event:
            case events.AdvertHeard(advert=advert) if advert.label == self.label:
                self.heard.put_nowait(event)
            case events.AdvertGone(label=label) if label == self.label:
                self.heard.put_nowait(event)

    async def next(self) -> events.AdvertHeard | events.AdvertGone:
        async with asyncio.timeout(PATIENCE_S):
            return await self.heard.get()


@pytest.fixture
def label() -> Label:
    return Label("".join(secrets.choice("abcdefghijklmnopqrstuvwxyz234567") for _ in range(26)))


@pytest.fixture
async def sides(label: Label) -> AsyncIterator[tuple[Side, Side]]:
    pair = (Side(label), Side(label))
    for side in pair:
        await side.mdns.start(LO)
    yield pair
    for side in pair:
        await side.mdns.close()


def advert(label: Label, **changes: Any) -> Advert:
    values: dict[str, Any] = {
        "version": 1,
        "key_id": "none",
        "label": label,
        "claim": Nonce(secrets.token_hex(16)),
        "port": 29_490,
        "addresses": ("127.0.0.1",),
    }
    return Advert(**(values | changes))


async def test_what_is_published_is_heard_and_so_is_its_end(sides: tuple[Side, Side]) -> None:
    first, second = sides
    one = advert(first.label)
    first.mdns.advertise(one)
    assert await second.next() == events.AdvertHeard(advert=one, rung="mdns")
    two = advert(first.label, port=29_491)
    second.mdns.advertise(two)
    assert await first.next() == events.AdvertHeard(
        advert=two, rung="mdns"
    )  # nothing of its own in between
    first.mdns.withdraw(one.claim)
    assert await second.next() == events.AdvertGone(label=one.label, claim=one.claim, rung="mdns")
    first.mdns.withdraw(one.claim)
    assert first.mdns.state == f"mdns: browsing {TYPE} on lo 127.0.0.1"


async def test_a_responder_that_closes_says_goodbye(label: Label) -> None:
    first, second = Side(label), Side(label)
    await first.mdns.start(LO)
    await second.mdns.start(LO)
    one = advert(label)
    first.mdns.advertise(one)
    assert await second.next() == events.AdvertHeard(advert=one, rung="mdns")
    await first.mdns.close()
    assert await second.next() == events.AdvertGone(label=label, claim=one.claim, rung="mdns")
    await second.mdns.close()


async def test_who_comes_late_hears_of_it_by_asking(label: Label) -> None:
    first, second = Side(label), Side(label)
    await first.mdns.start(LO)
    one = advert(label)
    first.mdns.advertise(one)
    await second.mdns.start(LO)
    second.mdns.ask(unicast=True)
    second.mdns.ask(unicast=False)
    assert await second.next() == events.AdvertHeard(advert=one, rung="mdns")
    await first.mdns.close()
    await second.mdns.close()


async def test_an_advert_that_changes_is_heard_again(sides: tuple[Side, Side]) -> None:
    first, second = sides
    one = advert(first.label)
    first.mdns.advertise(one)
    assert await second.next() == events.AdvertHeard(advert=one, rung="mdns")
    moved = advert(first.label, claim=one.claim, port=29_555)
    first.mdns.advertise(moved)
    heard = await second.next()
    while heard == events.AdvertHeard(advert=one, rung="mdns"):
        heard = await second.next()
    assert heard == events.AdvertHeard(advert=moved, rung="mdns")


async def test_what_is_no_advert_of_ours_is_not_heard(sides: tuple[Side, Side]) -> None:
    first, second = sides
    stranger = AsyncZeroconf(interfaces=["127.0.0.1"])
    label, claim = first.label, secrets.token_hex(16)
    bad: list[tuple[str, dict[Any, Any], int]] = [
        ("My Printer (2)", {"v": "1"}, 1),
        (f"{label}", {"v": "1"}, 1),
        (f"{label}-{claim[:-1]}", {"v": "1"}, 1),
        (f"{label.upper()}-{claim}", {"v": "1"}, 1),
        (f"{label}-{claim[::-1]}", {"v": "one"}, 1),
        (f"{label}-{secrets.token_hex(16)}", {"v": ""}, 1),
        (f"{label}-{secrets.token_hex(16)}", {b"\xff": b"\xff", "v": b"\xff1"}, 1),
        (f"{label}-{secrets.token_hex(16)}", {"v": "-1"}, 1),
        (f"{label}-{secrets.token_hex(16)}", {}, 1),
        (f"{label}-{secrets.token_hex(16)}", {"v": "1"}, 0),
    ]

    async def register(name: str, properties: dict[Any, Any], port: int) -> None:
        info = ServiceInfo(
            TYPE,
            f"{name}.{TYPE}",
            port=port,
            properties=properties,
            server="stranger.local.",
            parsed_addresses=["127.0.0.1"],
        )
        await (await stranger.async_register_service(info, cooperating_responders=True))

    await asyncio.gather(*(register(*one) for one in bad))
    one = advert(label)
    first.mdns.advertise(one)
    assert await second.next() == events.AdvertHeard(advert=one, rung="mdns")
    assert second.mdns.state.startswith("mdns: browsing")
    await stranger.async_close()


async def test_only_what_nobody_confirms_is_gone(sides: tuple[Side, Side]) -> None:
    first, second = sides
    one = advert(first.label)
    first.mdns.advertise(one)
    assert await second.next() == events.AdvertHeard(advert=one, rung="mdns")
    ghost = Nonce(secrets.token_hex(16))
    second.mdns.doubt(one.label, one.claim)
    second.mdns.doubt(one.label, ghost)
    assert await second.next() == events.AdvertGone(label=one.label, claim=ghost, rung="mdns")


async def test_a_network_without_multicast_is_no_error(
    label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(**_: object) -> AsyncZeroconf:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(mdns, "AsyncZeroconf", taken)
    side = Side(label)
    await side.mdns.start(LO)
    assert side.mdns.state == (
        "mdns: does not work: another program holds UDP port 5353 for itself alone"
    )
    one = advert(label)
    side.mdns.advertise(one)
    side.mdns.ask(unicast=True)
    side.mdns.doubt(label, one.claim)
    side.mdns.withdraw(one.claim)
    await side.mdns.readdress(LO)
    await side.mdns.close()
    assert side.heard.empty()
