"""Where connections come from; fresh attempts beside the ones that wait."""

import asyncio
import errno
import socket

import pytest

from mingled.core.events import Address
from mingled.net import dialing
from mingled.net.dialing import connect, persist, sources_for, try_anew

WAN = Address(address="192.0.2.7", interface="eth0", prefix=24)
LAN = Address(address="10.0.0.7", interface="eth1", prefix=24)
SIX = Address(address="fd00::7", interface="eth1", prefix=64)
LOCAL = Address(address="fe80::7", interface="eth1", prefix=64)
HERE = Address(address="127.0.0.1", interface="lo")
"""Without a prefix, so that no address is in its subnet."""


@pytest.mark.parametrize(
    ("address", "routed", "expected"),
    [
        ("10.0.0.9", "192.0.2.7", [LAN]),  # in its subnet
        ("198.51.100.1", "10.0.0.7", [LAN]),
        ("198.51.100.1", "192.0.2.7", [WAN]),
        ("198.51.100.1", "203.0.113.5", [WAN, LAN]),  # the kernel would, but may not
        ("198.51.100.1", "", [WAN, LAN]),
        ("2001:db8::1", "", [SIX]),
        ("fe80::9%eth1", "", [LOCAL]),
    ],
)
def test_the_source_is_the_kernels_choice_where_no_subnet_fits(
    monkeypatch: pytest.MonkeyPatch, address: str, routed: str, expected: list[Address]
) -> None:
    monkeypatch.setattr(dialing, "_routed", lambda _: routed)
    assert sources_for(address, [WAN, LAN, SIX, LOCAL]) == expected


@pytest.mark.parametrize("address", ["2001:db8::1", "fe80::9%eth1"])
def test_without_a_source_of_the_family_there_is_none(address: str) -> None:
    with pytest.raises(OSError) as caught:
        sources_for(address, [WAN, LAN])
    assert caught.value.errno == errno.EADDRNOTAVAIL


async def test_the_kernel_says_from_where_it_would_connect() -> None:
    gone = Address(address="192.0.2.7", interface="eth0")
    with (
        socket.create_server(("127.0.0.2", 0)) as server,
        await connect("127.0.0.2", server.getsockname()[1], [gone, HERE]) as sock,
    ):
        assert sock.getsockname()[0] == "127.0.0.1"


async def test_each_source_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = [Address(address=f"192.0.2.{n}", interface="eth0") for n in (7, 8)]
    monkeypatch.setattr(dialing, "_routed", lambda _: "")
    with socket.create_server(("127.0.0.2", 0)) as server:
        port = server.getsockname()[1]
        with await connect("127.0.0.2", port, [*gone, HERE]) as sock:
            assert sock.getsockname()[0] == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):  # the last error
        await connect("127.0.0.2", port, [*gone, HERE])
    with pytest.raises(OSError) as caught:
        await connect("127.0.0.2", port, gone)
    assert caught.value.errno == errno.EADDRNOTAVAIL


async def test_a_source_that_waits_does_not_keep_the_others_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, never, ended = dialing._connect, asyncio.Event(), asyncio.Event()

    async def silent(address: str, port: int, source: Address, quick_ack: bool) -> socket.socket:
        if source is not WAN:
            return await real(address, port, source, quick_ack)
        try:
            await never.wait()
        finally:
            ended.set()
        raise AssertionError

    monkeypatch.setattr(dialing, "_connect", silent)
    monkeypatch.setattr(dialing, "_routed", lambda _: "")
    monkeypatch.setattr(dialing, "STAGGER_S", 0.01)
    with (
        socket.create_server(("127.0.0.2", 0)) as server,
        await connect("127.0.0.2", server.getsockname()[1], [WAN, HERE]) as sock,
    ):
        assert sock.getsockname()[0] == "127.0.0.1"
    await ended.wait()


async def test_a_refusal_is_an_answer_though_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    never = asyncio.Event()

    async def wait() -> socket.socket:
        await never.wait()
        raise AssertionError

    async def refused() -> socket.socket:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    async def unreachable() -> socket.socket:
        raise OSError(errno.EHOSTUNREACH, "no way")

    async def connected() -> socket.socket:
        return socket.socket()

    monkeypatch.setattr(dialing, "STAGGER_S", 0.01)
    for ways in ([wait, refused], [refused, wait], [refused, unreachable, wait]):
        with pytest.raises(ConnectionRefusedError):
            await dialing._first_of(ways)
    with pytest.raises(OSError, match="no way"):
        await dialing._first_of([unreachable, unreachable])
    with await dialing._first_of([refused, unreachable, wait, connected]):
        pass  # perhaps a firewall on the way had refused


async def test_two_connections_at_once_leave_one() -> None:
    made: list[socket.socket] = []
    gate = asyncio.Event()

    async def make() -> socket.socket:
        await gate.wait()
        made.append(socket.socket())
        return made[-1]

    async def fail() -> socket.socket:
        await gate.wait()
        raise OSError(errno.ENETUNREACH, "no way")

    asyncio.get_running_loop().call_later(3 * dialing.STAGGER_S, gate.set)
    with await dialing._first_of([make, fail, make]) as winner:
        await asyncio.sleep(0)  # the other's end is told
        assert [sock for sock in made if sock.fileno() >= 0] == [winner]


async def test_a_later_attempt_wins_where_the_first_waits_for_ever() -> None:
    started = 0
    never = asyncio.Event()

    async def attempt() -> int:
        nonlocal started
        started += 1
        mine = started
        if mine < 3:
            await never.wait()
        return mine

    assert await try_anew(attempt, lambda _: None, every_s=0.01, within_s=30) == 3


async def test_an_answer_ends_all_attempts() -> None:
    async def refused() -> int:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    with pytest.raises(ConnectionRefusedError):
        await try_anew(refused, lambda _: None, every_s=30, within_s=60)


async def test_a_neighbor_that_was_not_found_is_looked_for_again() -> None:
    """The kernel gives up after three lost questions, all that waited at once."""
    given_up = asyncio.Event()
    started = 0

    async def attempt() -> int:
        nonlocal started
        started += 1
        mine = started
        if mine == 3:
            asyncio.get_running_loop().call_soon(given_up.set)
        if mine <= 3:
            await given_up.wait()
            raise OSError(errno.EHOSTUNREACH, "no way")
        return mine

    assert await try_anew(attempt, lambda _: None, every_s=0.01, within_s=30) == 4


async def test_a_router_that_says_unreachable_is_believed() -> None:
    started = 0

    async def rejected() -> int:
        nonlocal started
        started += 1
        raise OSError(errno.EHOSTUNREACH, "no way")

    with pytest.raises(OSError, match="no way"):
        await try_anew(rejected, lambda _: None, every_s=30, within_s=60)
    assert started == dialing.AT_ONCE_BELIEVED


async def test_a_host_that_is_never_found_is_unreachable() -> None:
    async def attempt() -> int:
        await asyncio.sleep(0.02)
        raise OSError(errno.EHOSTUNREACH, "no way")

    with pytest.raises(OSError, match="no way"):
        await try_anew(attempt, lambda _: None, every_s=0.01, within_s=0.1)


async def test_silence_ends_in_a_timeout() -> None:
    with pytest.raises(TimeoutError) as caught:
        await try_anew(asyncio.Event().wait, lambda _: None, every_s=0.01, within_s=0.05)
    assert caught.value.errno == errno.ETIMEDOUT


async def test_what_comes_too_late_is_discarded() -> None:
    both, gate, late = asyncio.Event(), asyncio.Event(), asyncio.Event()
    discarded: list[int] = []
    count = 0

    async def attempt() -> int:
        nonlocal count
        count += 1
        mine = count
        if mine == 2:
            both.set()
        await gate.wait()
        return mine

    def discard(value: int) -> None:
        discarded.append(value)
        late.set()

    task = asyncio.ensure_future(try_anew(attempt, discard, every_s=0.01, within_s=30))
    await both.wait()
    gate.set()
    winner = await task
    await late.wait()
    assert winner not in discarded


async def test_called_off_it_leaves_no_attempt() -> None:
    three, never = asyncio.Event(), asyncio.Event()
    ended = count = 0

    async def attempt() -> int:
        nonlocal count, ended
        count += 1
        if count == 3:
            three.set()
        try:
            await never.wait()
        finally:
            ended += 1
        return count

    before = asyncio.all_tasks()
    task = asyncio.ensure_future(try_anew(attempt, lambda _: None, every_s=0.01, within_s=3600))
    await three.wait()
    task.cancel()
    while running := asyncio.all_tasks() - before:
        await asyncio.wait(running)
    assert ended == count >= 3


def test_any_tcp_socket_can_be_made_persistent() -> None:
    with socket.socket() as sock:
        persist(sock)  # an older kernel lacks an option: no error
