"""Two responders on this machine's loopback: what one publishes the other hears, and nothing else.

Other daemons may be heard there too, so each test looks for its own label only.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from zeroconf import IPVersion, ServiceInfo
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from mingled.core import events
from mingled.core.datagrams import Identity
from mingled.core.events import Address
from mingled.core.messages import Advert
from mingled.core.words import Label, NodeId, Nonce
from mingled.edges import mdns
from mingled.edges.mdns import TYPE, Mdns
from mingled.net import multicast
from mingled.net.multicast import NODE_TYPE

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
    first.mdns.withdraw(one.label, one.claim)
    assert await second.next() == events.AdvertGone(label=one.label, claim=one.claim, rung="mdns")
    first.mdns.withdraw(one.label, one.claim)
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
    second.mdns.ask(label, unicast=True)
    second.mdns.ask(label, unicast=False)
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


async def test_jobs_of_one_daemon_keep_their_own_addresses(sides: tuple[Side, Side]) -> None:
    """A job may be restricted to some of the machine's addresses, and the next to others."""
    first, second = sides
    one = advert(first.label, addresses=("10.0.0.1",))
    two = advert(first.label, addresses=("10.1.0.1",))
    for each in (one, two):
        first.mdns.advertise(each)
        assert await second.next() == events.AdvertHeard(advert=each, rung="mdns")
    late = Side(first.label)
    await late.mdns.start(LO)
    heard = [await late.next(), await late.next()]
    for each in (one, two):
        assert events.AdvertHeard(advert=each, rung="mdns") in heard
    await late.mdns.close()


@pytest.mark.parametrize(
    "addresses",
    [
        ("10.0.0.5", "10.0.0.9", "10.0.0.1"),
        ("fd77::1", "fd00::2", "10.0.0.5", "fd00::1", "10.0.0.1"),
        tuple(f"fdff:ffff:ffff:ffff:ffff:ffff:ffff:ff{n:02x}" for n in (*range(250, 235, -1), 16)),
    ],
)
async def test_addresses_come_in_the_leaders_order(
    sides: tuple[Side, Side], addresses: tuple[str, ...]
) -> None:
    first, second = sides
    one = advert(first.label, addresses=addresses)
    first.mdns.advertise(one)
    heard = await second.next()
    while heard != events.AdvertHeard(advert=one, rung="mdns"):  # it may come in pieces
        heard = await second.next()
    late = Side(first.label)
    await late.mdns.start(LO)
    heard = await late.next()
    while heard != events.AdvertHeard(advert=one, rung="mdns"):
        heard = await late.next()
    await late.mdns.close()


def test_what_the_leader_does_not_list_comes_last() -> None:
    some = ("10.0.0.1", "fe80::1%eth0", "10.0.0.2", "fd00::1")
    order = ["fd00::1", "192.0.2.1", "fe80::1"]
    assert mdns._sorted(some, order) == ("fd00::1", "fe80::1%eth0", "10.0.0.1", "10.0.0.2")
    assert mdns._sorted(some, [""]) == some
    many = [f"fdff:ffff:ffff:ffff:ffff:ffff:ffff:ff{n:02x}" for n in range(16)]
    strings = mdns._order(many)
    assert ",".join(strings.values()).split(",") == many
    assert all(len(f"{key}={value}") <= 255 for key, value in strings.items())


async def test_an_announcement_and_a_goodbye_go_out_twice(
    label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdns, "ANNOUNCE_AGAIN_S", 0.0)
    monkeypatch.setattr(mdns, "GOODBYE_AGAIN_S", 0.0)
    side = Side(label)
    await side.mdns.start(LO)
    assert side.mdns._zeroconf is not None
    sent: list[set[float]] = []
    monkeypatch.setattr(
        side.mdns._zeroconf.zeroconf,
        "async_send",
        lambda out: sent.append({answer.ttl for answer, _ in out.answers}),
    )
    one = advert(label)
    side.mdns.advertise(one)
    await asyncio.gather(*side.mdns._tasks)
    side.mdns.withdraw(label, one.claim)
    await asyncio.gather(*side.mdns._tasks)
    assert [ttls for ttls in sent if ttls] == [{mdns.TTL_S}] * 2 + [{0}] * 2
    monkeypatch.undo()
    await side.mdns.close()


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


async def test_only_what_was_heard_and_nobody_confirms_is_gone(sides: tuple[Side, Side]) -> None:
    first, second = sides
    one = advert(first.label)
    first.mdns.advertise(one)
    assert await second.next() == events.AdvertHeard(advert=one, rung="mdns")
    ghost, never = Nonce(secrets.token_hex(16)), Nonce(secrets.token_hex(16))
    stranger = AsyncZeroconf(interfaces=["127.0.0.1"])
    info = ServiceInfo(
        TYPE,
        f"{first.label}-{ghost}.{TYPE}",
        port=1,
        properties={"v": "1", "k": "\x1b[2J"},
        server="stranger.local.",
        parsed_addresses=["127.0.0.1"],
    )
    await (await stranger.async_register_service(info, cooperating_responders=True))
    heard = await second.next()
    assert isinstance(heard, events.AdvertHeard)
    assert (heard.advert.claim, heard.advert.key_id) == (ghost, "")
    stranger.zeroconf.registry.async_remove(info)  # and so without a goodbye
    await stranger.async_close()
    for claim in (never, one.claim, ghost):
        second.mdns.doubt(one.label, claim)
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
    side.mdns.ask(label, unicast=True)
    side.mdns.doubt(label, one.claim)
    side.mdns.withdraw(label, one.claim)
    await side.mdns.readdress(LO)
    assert side.mdns.state.startswith("mdns: does not work")
    side.mdns.advertise(one)
    monkeypatch.undo()
    other = Side(label)
    await other.mdns.start(LO)
    await side.mdns.readdress(LO)  # what was advertised meanwhile is published now
    assert await other.next() == events.AdvertHeard(advert=one, rung="mdns")
    await other.mdns.close()
    await side.mdns.close()
    side.mdns.advertise(one)
    side.mdns.doubt(label, one.claim)
    await side.mdns.readdress(LO)
    await side.mdns.close()
    assert side.heard.empty()


@pytest.mark.parametrize("by", ["ask", "advertise"])
async def test_what_could_not_start_is_tried_again_when_there_is_something_to_say(
    label: Label, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    tries: list[object] = []

    def taken(**_: object) -> AsyncZeroconf:
        tries.append(None)
        raise OSError(errno.EADDRINUSE, "Address already in use")

    side, other = Side(label), Side(label)
    side.mdns.ask(label, unicast=True)  # not started: nothing to try again
    with monkeypatch.context() as patched:
        patched.setattr(mdns, "AsyncZeroconf", taken)
        await side.mdns.start(LO)
        for _ in range(3):
            side.mdns.ask(label, unicast=True)
        assert not side.mdns._tasks  # too soon
        patched.setattr(mdns, "RETRY_AFTER_S", 0.0)
        side.mdns._retry_at_s = 0.0
        side.mdns.ask(label, unicast=True)
        await asyncio.gather(*side.mdns._tasks)
        assert len(tries) == 2
    await other.mdns.start(LO)
    side.mdns._retry_at_s = 0.0
    one = advert(label)
    if by == "ask":
        other.mdns.advertise(one)
        side.mdns.ask(label, unicast=True)
        assert await side.next() == events.AdvertHeard(advert=one, rung="mdns")
    else:
        side.mdns.advertise(one)
        assert await other.next() == events.AdvertHeard(advert=one, rung="mdns")
    assert side.mdns.state == f"mdns: browsing {TYPE} on lo 127.0.0.1"
    await side.mdns.close()
    await other.mdns.close()


async def test_a_start_that_fails_halfway_leaves_nothing_open(
    label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[AsyncZeroconf] = []

    def halfway(**options: Any) -> AsyncZeroconf:
        made.append(AsyncZeroconf(**options))
        start = made[0].zeroconf.async_wait_for_start

        async def slow(*_: object) -> None:
            monkeypatch.setattr(made[0].zeroconf, "async_wait_for_start", start)
            await start()
            raise TimeoutError

        monkeypatch.setattr(made[0].zeroconf, "async_wait_for_start", slow)
        return made[0]

    monkeypatch.setattr(mdns, "AsyncZeroconf", halfway)
    side = Side(label)
    await side.mdns.start(LO)
    assert side.mdns.state == "mdns: does not work: TimeoutError"
    assert made[0].zeroconf.done
    await side.mdns.close()


async def test_a_failing_update_ends_in_the_state(
    label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = Side(label)
    await side.mdns.start(LO)
    both = (*LO, Address(address="127.0.0.2", interface="lo2"))
    assert side.mdns._zeroconf is not None

    async def broken(**_: object) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(side.mdns._zeroconf.zeroconf, "async_update_interfaces", broken)
    await asyncio.gather(*(side.mdns.readdress(both) for _ in range(5)))
    assert side.mdns.state == "mdns: failed: [Errno 19] No such device"
    monkeypatch.undo()
    await side.mdns.readdress(LO)
    assert side.mdns.state == f"mdns: browsing {TYPE} on lo 127.0.0.1"
    await side.mdns.close()


async def test_a_node_is_told_of_when_asked_and_never_announced(label: Label) -> None:
    node = NodeId(secrets.token_hex(16))
    heard: asyncio.Queue[events.Event] = asyncio.Queue()
    idle = Mdns(heard.put_nowait, node, Identity(node=node, host="gpu1", port=29_490))
    await idle.start(LO)
    asker = AsyncZeroconf(interfaces=["127.0.0.1"])
    info = AsyncServiceInfo(NODE_TYPE, f"{node}.{NODE_TYPE}")
    assert not info.load_from_cache(asker.zeroconf)
    assert await info.async_request(asker.zeroconf, PATIENCE_S * 1_000)
    assert info.port == 29_490
    assert info.decoded_properties == {"v": "1", "h": "gpu1"}
    assert info.parsed_addresses() == ["127.0.0.1"]
    await idle.readdress((*LO, Address(address="127.0.0.2", interface="lo")))
    await asker.async_close()
    await idle.close()


# ---------------------------------------------------------------- where


def at(address: str, interface: str, virtual: bool = False) -> Address:
    return Address(address=address, interface=interface, virtual=virtual)


def test_where_it_is_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    some = (
        at("172.17.0.1", "docker0", virtual=True),
        at("10.0.0.2", "eth0"),
        at("10.0.0.3", "eth0"),
        at("fd00::2", "eth0"),
        at("fe80::2%ib0", "ib0"),
        at("10.1.0.2", "eth1"),
    )
    planned = multicast.plan(some)
    assert [str(spot) for spot in planned.spots] == [
        *("eth0 10.0.0.2", "eth0 fd00::2", "ib0 fe80::2", "eth1 10.1.0.2", "docker0 172.17.0.1")
    ]
    assert planned.ip_version is IPVersion.All
    assert not planned.left_out
    assert planned.choices[2] == planned.spots[2].index  # not an address that others have, too
    assert multicast.plan([at("fd00::2", "eth0")]).ip_version is IPVersion.V6Only
    assert multicast.plan([at("10.0.0.2", "eth0")]).ip_version is IPVersion.V4Only
    assert [str(spot) for spot in multicast.plan(()).spots] == ["lo 127.0.0.1"]
    monkeypatch.setattr(multicast, "memberships_max", lambda: 1)
    few = multicast.plan(some)
    assert [str(spot) for spot in few.spots] == ["eth0 10.0.0.2", "eth0 fd00::2", "ib0 fe80::2"]
    assert few.left_out == ("eth1", "docker0")


async def test_what_is_left_out_is_said(
    label: Label, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(multicast, "memberships_max", lambda: 1)
    side = Side(label)
    crowd = (*LO, at("10.0.0.2", "eth8"), at("10.1.0.2", "eth9"))
    await side.mdns.start(crowd)
    await side.mdns.readdress(crowd)
    assert side.mdns.state == (
        f"mdns: browsing {TYPE} on lo 127.0.0.1; left out: eth8, eth9 (igmp_max_memberships)"
    )
    assert caplog.text.count("left out: eth8, eth9") == 1
    await side.mdns.close()


async def test_an_interface_that_cannot_be_joined_is_tried_again(
    label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdns, "REJOIN_AFTER_S", 0.0)
    side = Side(label)
    await side.mdns.start((*LO, at("192.0.2.77", "eth8")))
    said = f"mdns: browsing {TYPE} on lo 127.0.0.1; cannot join on eth8 192.0.2.77"
    async with asyncio.timeout(PATIENCE_S):
        while side.mdns._tasks:
            await asyncio.wait(side.mdns._tasks)
    assert side.mdns.state == said
    assert side.mdns._rejoins == mdns.REJOIN_TIMES
    await side.mdns.readdress(LO)
    assert side.mdns.state == f"mdns: browsing {TYPE} on lo 127.0.0.1"
    await side.mdns.close()


def test_addresses_can_be_connected_to() -> None:
    some = ["fe80::1%1", "fe80::2", "fd00::1", "10.0.0.1", "fe80::3%99999"]
    assert multicast.usable(some, "") == ("fe80::1%lo", "fd00::1", "10.0.0.1")
    assert multicast.usable(["fe80::2"], "ib0") == ("fe80::2%ib0",)
    assert multicast.usable(["fe80::1%1", "fe80::1"], "lo") == ("fe80::1%lo",)


def test_a_packet_that_the_network_does_not_take_is_one_line() -> None:
    log = logging.getLogger("zeroconf")
    made = {}
    for error in (OSError(101, "Network is unreachable"), ValueError("a bug")):
        info = (type(error), error, None)
        record = log.makeRecord(log.name, logging.WARNING, "", 1, "failed", (), info)
        assert mdns.brief(record)
        made[type(error)] = record.exc_info
    assert made[OSError] is None
    assert made[ValueError] is not None
