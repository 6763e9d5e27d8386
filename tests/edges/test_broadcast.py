"""Daemons that share a UDP port on loopback: what one broadcasts the others hear.

Each test has a port of its own, so that nobody else is heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from mingled.core import events
from mingled.core.datagrams import (
    Announce,
    Ask,
    Bye,
    Datagram,
    Echo,
    Echoed,
    Here,
    Identity,
    Relay,
    Who,
    decode,
    encode,
)
from mingled.core.events import Address
from mingled.core.messages import Advert
from mingled.core.words import Label, NodeId, Nonce
from mingled.edges.broadcast import ONCE_IN_S, Broadcast
from mingled.net import udp
from mingled.net.datagrams import RELAYS_PER_S, Arrival, Cap, Datagrams
from mingled.net.udp import ALL_NODES, EVERYBODY, EVERYBODY_HERE, Target, targets

LO = (Address(address="127.0.0.1", interface="lo", prefix=8),)
PATIENCE_S = 60
"""Nothing here takes that long: a test that hangs fails."""


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def new_node() -> NodeId:
    return NodeId(secrets.token_hex(16))


class Side:
    """One daemon's port, its broadcast rung, and what came of both."""

    def __init__(self, port: int, host: str = "gpu1") -> None:
        identity = Identity(node=new_node(), host=host, port=29_490)
        self.datagrams = Datagrams(identity, port=port)
        self.events: asyncio.Queue[events.Event] = asyncio.Queue()
        self.arrivals: asyncio.Queue[Arrival] = asyncio.Queue()
        self.rung = Broadcast(self.events.put_nowait, self.datagrams)
        self.datagrams.subscribe(self.arrivals.put_nowait)

    async def start(self) -> None:
        await self.datagrams.start(LO)
        await self.rung.start(LO)

    async def close(self) -> None:
        await self.rung.close()
        await self.datagrams.close()

    async def next(self) -> events.Event:
        async with asyncio.timeout(PATIENCE_S):
            return await self.events.get()

    async def arrival(self, kind: type[Datagram]) -> Arrival:
        """The next one of that kind; others are passed over."""
        async with asyncio.timeout(PATIENCE_S):
            while not isinstance((arrival := await self.arrivals.get()).datagram, kind):
                pass
            return arrival


MakeSide = Callable[..., Awaitable[Side]]


@pytest.fixture
async def side() -> AsyncIterator[MakeSide]:
    port = free_port()
    async with contextlib.AsyncExitStack() as stack:

        async def make(**options: Any) -> Side:
            made = Side(**({"port": port} | options))
            await made.start()
            stack.push_async_callback(made.close)
            return made

        yield make


def new_advert(**changes: Any) -> Advert:
    values: dict[str, Any] = {
        "version": 1,
        "key_id": "none",
        "label": new_label(),
        "claim": Nonce(secrets.token_hex(16)),
        "port": 29_490,
        "addresses": ("127.0.0.1",),
    }
    return Advert(**(values | changes))


def new_label() -> Label:
    return Label("".join(secrets.choice("abcdefghijklmnopqrstuvwxyz234567") for _ in range(26)))


def heard(advert: Advert) -> events.Event:
    return events.AdvertHeard(advert=advert, rung="broadcast")


def gone(advert: Advert) -> events.Event:
    return events.AdvertGone(label=advert.label, claim=advert.claim, rung="broadcast")


@contextlib.contextmanager
def stranger(port: int = 0) -> Any:
    """A socket of somebody else."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.setblocking(False)
        yield sock


# ---------------------------------------------------------------- adverts


async def test_what_is_advertised_is_heard_by_all_and_so_is_its_end(side: MakeSide) -> None:
    first, second, third = await side(), await side(), await side()
    one = new_advert()
    first.rung.advertise(one)
    assert await second.next() == heard(one)
    assert await third.next() == heard(one)
    first.rung.withdraw(one.label, one.claim)
    for other in (second, third):
        while (event := await other.next()) == heard(one):
            pass
        assert event == gone(one)
    assert first.events.empty()  # nothing of its own
    first.rung.withdraw(one.label, one.claim)
    port = first.datagrams.port
    assert first.rung.state == f"broadcast: UDP {port} on {EVERYBODY_HERE}"


async def test_a_leader_that_asks_repeats_its_advert_instead(side: MakeSide) -> None:
    """It may have got lost, and a rival that hears it knows as much as by a question."""
    first, second = await side(), await side()
    one = new_advert()
    first.rung.advertise(one)
    first.rung.ask(one.label, unicast=True)  # it has just been said
    assert await second.next() == heard(one)
    await asyncio.sleep(ONCE_IN_S)
    first.rung.ask(one.label, unicast=False)
    assert await second.next() == heard(one)
    kinds = {type(second.arrivals.get_nowait().datagram) for _ in range(second.arrivals.qsize())}
    assert kinds == {Announce}


async def test_who_comes_late_hears_of_it_by_asking(side: MakeSide) -> None:
    first = await side()
    one = new_advert()
    first.rung.advertise(one)
    second = await side()
    second.rung.ask(one.label, unicast=True)
    assert await second.next() == heard(one)


async def test_one_answer_serves_all_who_ask(side: MakeSide) -> None:
    first, second, third = await side(), await side(), await side()
    one = new_advert()
    first.rung.advertise(one)
    assert await third.next() == heard(one)
    for _ in range(20):
        second.datagrams.broadcast(Ask(node=second.datagrams.node, labels=(one.label,)))
    assert await third.next() == heard(one)
    two = new_advert()
    second.rung.advertise(two)
    assert await third.next() == heard(two)  # no second answer before it


async def test_what_another_host_has_just_asked_is_not_asked_again(side: MakeSide) -> None:
    first, second, third = await side(), await side(), await side()
    label, other = new_label(), new_label()
    first.rung.ask(label, unicast=False)
    assert (await third.arrival(Ask)).datagram.node == first.datagrams.node
    await second.arrival(Ask)
    second.rung.ask(label, unicast=False)
    second.rung.ask(other, unicast=False)
    asked = await third.arrival(Ask)
    assert asked.datagram == Ask(node=second.datagrams.node, labels=(other,))
    assert asked.means == "broadcast"


async def test_only_what_was_heard_and_nobody_confirms_is_gone(side: MakeSide) -> None:
    first, second, third = await side(), await side(), await side()
    lives, dies = new_advert(), new_advert()
    first.rung.advertise(lives)
    third.rung.advertise(dies)
    assert {await second.next(), await second.next()} == {heard(lives), heard(dies)}
    await third.datagrams.close()  # without a goodbye
    ghost = new_advert()
    for doubted in (ghost, lives, dies):
        second.rung.doubt(doubted.label, doubted.claim)
        second.rung.doubt(doubted.label, doubted.claim)
    while (event := await second.next()) == heard(lives):
        pass
    assert event == gone(dies)
    second.rung.doubt(dies.label, dies.claim)
    assert second.events.empty()


class Wire:
    """Instead of a daemon's port: where what it sends goes to."""

    def __init__(self, side: Side, *addresses: Address) -> None:
        self.side = side
        self.sent: list[tuple[str, str, type[Datagram]]] = []
        self.broken: set[str] = set()  #: hosts that nothing can be sent to
        side.datagrams.targets = targets(addresses)
        side.datagrams._udp.send = self._send  # type: ignore[assignment,method-assign]

    def _send(self, data: bytes, host: str, port: int, interface: str = "", _: str = "") -> None:
        if host in self.broken:
            raise OSError(101, "Network is unreachable")
        self.sent.append((interface, "6" if ":" in host else "4", type(decode(data))))

    def taken(self) -> list[tuple[str, str, type[Datagram]]]:
        sent, self.sent = self.sent, []
        return sent

    async def hear(self, datagram: Datagram, host: str) -> None:
        packet = udp.Packet(encode(datagram), host, 29_491, 1, "", "broadcast")
        self.side.datagrams._received(packet)
        await asyncio.sleep(0.01)  # its answer is a timer's


V4 = Address(address="10.77.0.2", interface="eth0", prefix=24)
V6 = Address(address="fd77::2", interface="eth0", prefix=64)
V6_ALONE = Address(address="fd78::2", interface="eth1", prefix=64)


async def test_where_both_families_are_ipv6_is_for_what_is_said_again(side: MakeSide) -> None:
    wire = Wire(await side(), V4, V6, V6_ALONE)
    rung, label = wire.side.rung, new_label()
    narrow, wide = [("eth0", "4"), ("eth1", "6")], [("eth0", "4"), ("eth0", "6"), ("eth1", "6")]

    def sent(kind: type[Datagram]) -> list[tuple[str, str]]:
        taken = wire.taken()
        assert {k for *_, k in taken} <= {kind}
        return [(interface, six) for interface, six, _ in taken]

    rung.ask(label, unicast=True)
    assert sent(Ask) == narrow
    rung.ask(label, unicast=False)
    assert sent(Ask) == wide
    rung.ask(label, unicast=True)
    assert sent(Ask) == narrow
    one, two = new_advert(label=label), new_advert(label=label)
    rung.advertise(one)
    assert sent(Announce) == narrow
    rung.withdraw(label, one.claim)
    assert sent(Bye) == narrow
    rung.advertise(one)
    assert sent(Announce) == narrow
    # Its asker over IPv6 cannot have heard that: it need not wait until a second is over.
    await wire.hear(Ask(node=new_node(), labels=(label,)), "fe80::7%lo")
    assert sent(Announce) == wide
    rung.withdraw(label, one.claim)
    assert sent(Bye) == wide
    rung.advertise(two)  # somebody waits who hears nothing else
    assert sent(Announce) == wide
    rung.withdraw(label, two.claim)
    assert sent(Bye) == wide


async def test_a_leader_that_asks_repeats_its_advert_over_ipv6_too(side: MakeSide) -> None:
    wire = Wire(await side(), V4, V6)
    one = new_advert()
    wire.side.rung.advertise(one)
    await asyncio.sleep(ONCE_IN_S)
    assert wire.taken() == [("eth0", "4", Announce)] * 2  # the first word may get lost
    wire.side.rung.ask(one.label, unicast=False)
    assert wire.taken() == [("eth0", "4", Announce), ("eth0", "6", Announce)]


async def test_a_question_over_ipv4_does_not_stand_for_one_over_both(side: MakeSide) -> None:
    asked = new_label()
    both = Wire(await side(), V4, V6)
    await both.hear(Ask(node=new_node(), labels=(asked,)), "10.77.0.9")
    both.side.rung.ask(asked, unicast=True)
    assert both.taken() == []
    both.side.rung.ask(asked, unicast=False)
    assert both.taken() == [("eth0", "4", Ask), ("eth0", "6", Ask)]
    await both.hear(Ask(node=new_node(), labels=(asked,)), "fe80::7%lo")
    both.side.rung.ask(asked, unicast=False)
    assert both.taken() == []
    four = Wire(await side(), V4)
    await four.hear(Ask(node=new_node(), labels=(asked,)), "10.77.0.9")
    four.side.rung.ask(asked, unicast=False)
    assert four.taken() == []


async def test_ipv6_takes_over_where_ipv4_fails(side: MakeSide) -> None:
    wire = Wire(await side(), V4, V6)
    wire.broken.add("10.77.0.255")
    wire.side.rung.ask(new_label(), unicast=True)
    assert wire.taken() == [("eth0", "6", Ask)]
    assert "; does not work on eth0 10.77.0.255: " in wire.side.rung.state


async def test_a_link_local_address_gets_the_receivers_interface(side: MakeSide) -> None:
    first, second = await side(), await side()
    first.rung.advertise(new_advert(addresses=("fe80::1%eth7", "10.0.0.1")))
    event = await second.next()
    assert isinstance(event, events.AdvertHeard)
    assert event.advert.addresses == ("fe80::1%lo", "10.0.0.1")


# ---------------------------------------------------------------- hostile or broken


async def test_garbage_is_dropped_and_the_loop_goes_on(side: MakeSide) -> None:
    first, second = await side(), await side()
    whole = encode(Who(node=new_node()))
    with stranger() as sock:
        for n in range(10_000):
            data = (secrets.token_bytes(40), b"{" * 1_400, whole[: n % len(whole)])[n % 3]
            with contextlib.suppress(BlockingIOError):
                sock.sendto(data, (EVERYBODY_HERE, first.datagrams.port))
    one = new_advert()
    first.rung.advertise(one)
    while second.events.empty():  # where it was lost in a full buffer, it is said again
        first.rung.ask(one.label, unicast=False)
        await asyncio.sleep(0.05)
    assert await second.next() == heard(one)
    assert first.events.empty()
    assert second.arrivals.qsize() < 10


async def test_what_is_remembered_of_others_is_bounded(
    side: MakeSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mingled.net.hearsay.HEARD_MAX", 3)
    monkeypatch.setattr("mingled.edges.broadcast.ASKED_MAX", 3)
    first, second = await side(), await side()
    adverts = [new_advert() for _ in range(6)]
    for one in adverts:
        second.datagrams.broadcast(Announce(node=second.datagrams.node, advert=one))
        second.datagrams.broadcast(Ask(node=second.datagrams.node, labels=(one.label,)))
    for one in adverts:
        assert await first.next() == heard(one)
        await first.arrival(Ask)
    assert len(first.rung._asked) == 3
    assert [claim for _, claim in first.rung._hearsay._heard] == [a.claim for a in adverts[3:]]


async def test_a_relay_is_believed_from_loopback_only_and_never_relayed(side: MakeSide) -> None:
    first, second = await side(), await side()
    far = Relay(by=new_node(), address="10.9.9.9", port=29_491, interface="eth0")
    told = Announce(node=new_node(), advert=new_advert(), relay=far)
    both: asyncio.Queue[Arrival] = asyncio.Queue()
    for one in (first, second):
        one.datagrams.subscribe(both.put_nowait)
    packet = udp.Packet(encode(told), "192.0.2.1", 29_491, 1, "", "unicast")
    first.datagrams._received(packet)
    with stranger() as sock:
        sock.sendto(encode(told), ("127.0.0.1", first.datagrams.port))
        async with asyncio.timeout(PATIENCE_S):
            arrival = await both.get()
            assert arrival == Arrival(told, "10.9.9.9", 29_491, "eth0", "unicast")
            sock.sendto(encode(Who(node=new_node())), (EVERYBODY_HERE, first.datagrams.port))
            rest = [(await both.get()).datagram for _ in range(2)]
    assert {type(datagram) for datagram in rest} == {Who}
    assert first.events.empty()  # not by broadcast
    assert second.events.empty()


async def test_a_port_that_another_program_holds_is_named_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mingled.net.datagrams.REOPEN_AFTER_S", 0.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        port = int(sock.getsockname()[1])
        first = Side(port)
        assert first.rung.state == "broadcast: not started"
        await first.start()
        first.rung.ask(new_label(), unicast=False)
        assert first.rung.state == (
            f"broadcast: does not work: another program holds UDP port {port} for itself alone"
        )
    second = Side(port)
    await second.start()
    one = new_advert()
    first.rung.advertise(one)
    assert await second.next() == heard(one)
    assert first.rung.state == f"broadcast: UDP {port} on {EVERYBODY_HERE}"
    await first.close()
    await second.close()
    first.rung.advertise(one)
    first.rung.ask(one.label, unicast=True)
    first.rung.doubt(one.label, one.claim)
    assert first.rung.state == "broadcast: not started"


async def test_a_firewall_that_forbids_sending_is_named(
    side: MakeSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await side()

    def forbidden(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(first.datagrams._udp, "send", forbidden)
    first.rung.ask(new_label(), unicast=False)
    assert first.rung.state == (
        f"broadcast: does not work: {EVERYBODY_HERE}: "
        f"a firewall on this machine forbids UDP to {EVERYBODY_HERE}"
    )


async def test_answers_are_capped() -> None:
    cap = Cap(3)
    assert [cap.allows(100.0) for _ in range(4)] == [True, True, True, False]
    assert cap.allows(100.5)
    assert not cap.allows(100.6)
    assert [cap.allows(1_000.0) for _ in range(4)] == [True, True, True, False]
    assert RELAYS_PER_S > 100


# ---------------------------------------------------------------- who is there, echoes


async def test_who_is_there_is_answered_by_all(side: MakeSide) -> None:
    hosts = ("gpu1", "gpu2", "gpu3")
    sides = [await side(host=host) for host in hosts]
    asker = await side(host="laptop")
    asker.datagrams.broadcast(Who(node=asker.datagrams.node))
    answers = [await asker.arrival(Here) for _ in hosts]
    assert {
        (a.datagram.node, a.datagram.host) for a in answers if isinstance(a.datagram, Here)
    } == {(s.datagrams.node, host) for s, host in zip(sides, hosts, strict=True)}
    assert {(a.host, a.means) for a in answers} == {("127.0.0.1", "unicast")}


async def test_an_echo_says_how_it_came_and_comes_back_as_it_was_asked(side: MakeSide) -> None:
    first = await side(host="gpu1")
    with stranger() as sock:
        for to, by, back in (
            ("127.0.0.1", "unicast", True),
            (EVERYBODY_HERE, "broadcast", False),
        ):
            echo = Echo(node=new_node(), token="7", by="multicast", back=back, pad="x" * 900)
            sock.sendto(encode(echo), (to, first.datagrams.port))
            async with asyncio.timeout(PATIENCE_S):
                data, source = await asyncio.get_running_loop().sock_recvfrom(sock, 2_000)
            assert source == ("127.0.0.1", first.datagrams.port)
            assert decode(data) == Echoed(
                node=first.datagrams.node,
                to="one",
                token="7",
                by=by,  # type: ignore[arg-type]  # a Literal
                sent_by="unicast",
                host="gpu1",
                interface="lo",
                address="127.0.0.1",
                pad="x" * 900,
            )


# ---------------------------------------------------------------- where to


def test_where_a_broadcast_goes() -> None:
    def at(address: str, interface: str, prefix: int = 0, virtual: bool = False) -> Address:
        return Address(address=address, interface=interface, prefix=prefix, virtual=virtual)

    assert targets(LO) == targets(()) == (Target(EVERYBODY_HERE, ""),)
    assert targets(
        [
            *LO,
            at("172.17.0.1", "docker0", 16, virtual=True),
            at("10.77.0.2", "eth0", 24),
            at("10.77.0.9", "eth0", 24),  # keepalived's
            at("10.77.0.10", "eth0", 32),
            at("10.77.0.11", "eth0", 32),
            at("10.77.0.3", "eth1", 32),
            at("10.77.0.4", "eth2"),
            at("fd00::2", "eth0", 64),
            at("fe80::2%eth0", "eth0", 64),
        ]
    ) == (
        Target("10.77.0.255", "eth0", "10.77.0.2"),
        Target(EVERYBODY, "eth0", "10.77.0.10"),
        Target(EVERYBODY, "eth1", "10.77.0.3"),
        Target(EVERYBODY, "eth2", "10.77.0.4"),
        Target(ALL_NODES, "eth0"),
        Target("172.17.255.255", "docker0", "172.17.0.1"),
    )
    many = [at(f"10.{n}.0.1", f"eth{n}", 24) for n in range(100)]
    assert len(targets(many)) == udp.TARGETS_MAX
