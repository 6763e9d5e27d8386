"""What the kernel tells of changes, and how often that is passed on."""

from __future__ import annotations

import itertools
import socket
import struct
import sys

import pytest

from mingled.net.monitor import FIRST_PAUSE_S, KNOWN_MAX, PAUSE_MAX_S, Damper, Monitor, Sieve

UP_RUNNING, UP = 0x41, 0x1
PERMANENT, TENTATIVE = 0x80, 0x40


def message(kind: int, body: bytes) -> bytes:
    length = 16 + len(body)
    return struct.pack("=IHHII", length, kind, 0, 0, 0) + body + bytes(-length % 4)


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def link(index: int, flags: int, *, new: bool = True, family: int = 0, more: bytes = b"") -> bytes:
    body = struct.pack("=BxHiII", family, 1, index, flags, 0)
    return message(16 if new else 17, body + attribute(3, b"eth0\0") + more)


def address(index: int, text: str, flags: int = PERMANENT, *, new: bool = True) -> bytes:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    packed = socket.inet_pton(family, text)
    body = struct.pack("=BBBBI", family, 24, flags, 0, index)
    return message(20 if new else 21, body + attribute(1, packed))


def route(length: int, *, table: int = 254, flags: int = 0) -> bytes:
    return message(24, struct.pack("=BBBBBBBBI", 2, length, 0, 0, table, 0, 0, 1, flags))


def test_a_change_of_a_link_matters_once() -> None:
    sieve = Sieve()
    assert sieve.matters(link(2, UP_RUNNING))
    assert not sieve.matters(link(2, UP_RUNNING | 0x1000))  # another flag
    assert sieve.matters(link(2, UP))
    assert sieve.matters(link(2, UP_RUNNING))
    assert sieve.matters(link(2, UP_RUNNING, more=attribute(10, b"\1\0\0\0")))  # in a bridge now
    assert sieve.matters(link(2, 0, new=False))
    assert sieve.matters(link(2, UP_RUNNING, more=attribute(10, b"\1\0\0\0")))


def test_an_address_that_is_renewed_does_not_matter() -> None:
    sieve = Sieve()
    assert sieve.matters(address(2, "10.0.0.1"))
    assert not sieve.matters(address(2, "10.0.0.1"))
    assert sieve.matters(address(3, "10.0.0.1"))
    assert sieve.matters(address(2, "fd00::1", TENTATIVE))
    assert sieve.matters(address(2, "fd00::1"))
    assert not sieve.matters(address(2, "fd00::1", 0))  # its lifetime changed
    assert sieve.matters(address(2, "10.0.0.1", new=False))
    assert sieve.matters(address(2, "10.0.0.1"))


@pytest.mark.parametrize(
    "noise",
    [
        address(1, "127.0.0.2"),
        address(1, "::1"),
        link(2, UP, more=attribute(11, b"signal")),
        link(2, UP, family=7),
        route(24),
        route(0, table=255),
        route(0, flags=0x200),
        message(28, bytes(12)),  # a neighbour
        b"",
    ],
)
def test_noise(noise: bytes) -> None:
    assert not Sieve().matters(noise)


def test_a_default_route_matters() -> None:
    assert Sieve().matters(route(0))


def test_every_message_of_a_datagram_is_seen() -> None:
    sieve = Sieve()
    assert sieve.matters(route(24) + link(2, UP) + address(2, "10.0.0.1"))
    assert not sieve.matters(link(2, UP) + address(2, "10.0.0.1"))


def test_what_cannot_be_read_matters_and_does_not_raise() -> None:
    assert Sieve().matters(message(16, b"short"))
    assert Sieve().matters(message(24, b""))
    assert not Sieve().matters(struct.pack("=IHHII", 3, 16, 0, 0, 0))


def test_the_memory_is_bounded_and_can_be_cleared() -> None:
    sieve = Sieve()
    for index in range(KNOWN_MAX + 1):
        assert sieve.matters(link(index, UP))
    assert len(sieve._known) == 1
    sieve.forget()
    assert sieve.matters(link(KNOWN_MAX, UP))


def calls(damper: Damper, times: list[float]) -> list[float]:
    """When it is called, for events at these times."""
    found: list[float] = []
    due: float | None = None
    for now in [*times, times[-1] + 60]:
        if due is not None and due <= now:
            damper.called(due)
            found.append(due)
            due = None
        if due is None and now != times[-1] + 60:
            due = damper.due(now)
    return found


def test_one_event_is_told_soon() -> None:
    assert calls(Damper(), [100.0]) == [100.0 + FIRST_PAUSE_S]


def test_a_group_is_told_once() -> None:
    assert len(calls(Damper(), [100.0, 100.01, 100.05])) == 1


def test_fault_17_flapping_is_damped() -> None:
    told = calls(Damper(), [n / 20 for n in range(20 * 60)])  # for a minute, 20 a second
    pauses = [later - earlier for earlier, later in itertools.pairwise(told)]
    assert len(told) < 20
    assert all(earlier <= later + 1e-6 for earlier, later in itertools.pairwise(pauses))
    assert pauses[-1] == pytest.approx(PAUSE_MAX_S)


def test_after_a_quiet_while_it_is_quick_again() -> None:
    damper = Damper()
    calls(damper, [n / 20 for n in range(20 * 60)])
    assert damper.due(1000.0) == 1000.0 + FIRST_PAUSE_S


def test_a_pause_is_halved_while_it_is_quiet() -> None:
    damper = Damper()
    for _ in range(10):
        damper.called(100.0)
    assert damper.due(100.0) == 100.0 + PAUSE_MAX_S
    damper.called(105.0)
    assert damper.due(110.5) == 110.5 + FIRST_PAUSE_S  # half of it was over by then
    damper.called(110.6)
    assert damper.due(110.7) == pytest.approx(110.6 + PAUSE_MAX_S)


async def test_where_there_is_no_netlink_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    watching = Monitor(lambda: None)
    assert not watching.start()
    watching.close()


async def test_where_netlink_is_forbidden_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise PermissionError

    monkeypatch.setattr(socket, "socket", refuse)
    watching = Monitor(lambda: None)
    assert not watching.start()
    watching.close()


async def test_it_starts_and_closes_here() -> None:
    watching = Monitor(lambda: None)
    assert watching.start()
    watching.close()
    watching.close()
