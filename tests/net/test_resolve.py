"""Names to addresses: look-ups that are shared, bounded, remembered for a moment, or fail."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mingled.net import resolve
from mingled.net.resolve import ADDRESSES_MAX, Resolved, Resolver, name_servers


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text("# here\nsearch lab\nnameserver 10.0.0.53\n")
    (tmp_path / "two").write_text("nameserver 10.0.0.53\nnameserver 10.0.0.54\n")
    monkeypatch.setattr(resolve, "RESOLV_CONF", path)
    return path


def failing(error: Exception) -> Callable[[str], tuple[str, ...]]:
    def look_up(_: str) -> tuple[str, ...]:
        raise error

    return look_up


async def test_an_address_stands_for_itself_and_this_host_resolves() -> None:
    resolver = Resolver()
    assert await resolver.resolve("10.0.0.7") == Resolved(("10.0.0.7",))
    assert await resolver.resolve("fd00::7") == Resolved(("fd00::7",))
    assert "127.0.0.1" in (await resolver.resolve("localhost")).addresses


async def test_many_who_ask_at_once_share_one_look_up_and_its_answer_is_kept() -> None:
    asked: list[str] = []
    go = threading.Event()

    def look_up(name: str) -> tuple[str, ...]:
        asked.append(name)
        go.wait()
        return ("10.0.0.1", "10.0.0.1", "10.0.0.2")

    resolver = Resolver(look_up)
    waiting = [asyncio.create_task(resolver.resolve("head")) for _ in range(9)]
    await asyncio.sleep(0)
    go.set()
    assert set(await asyncio.gather(*waiting)) == {Resolved(("10.0.0.1", "10.0.0.2"))}
    assert await resolver.resolve("head") == Resolved(("10.0.0.1", "10.0.0.2"))
    assert asked == ["head"]


async def test_a_server_that_never_answers_is_waited_for_once_and_named(
    conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    go = threading.Event()

    def look_up(name: str) -> tuple[str, ...]:
        asked.append(name)
        go.wait()
        return ("10.0.0.1",)

    resolver = Resolver(look_up, timeout_s=0.05)
    late = "cannot be looked up: the DNS server 10.0.0.53 does not answer within 0.05 s"
    for _ in range(3):
        assert await resolver.resolve("head") == Resolved((), late)
    monkeypatch.setattr(resolve, "RESOLV_CONF", conf.with_name("two"))
    late = "the DNS servers 10.0.0.53, 10.0.0.54 do not answer within 0.05 s"
    assert (await resolver.resolve("head")).trouble.endswith(late)
    assert asked == ["head"]
    go.set()  # its answer is taken by whoever asks next
    while not (found := await resolver.resolve("head")).addresses:
        pass
    assert found == Resolved(("10.0.0.1",))


async def test_an_answer_that_comes_too_late_is_asked_for_anew() -> None:
    asked: list[str] = []

    def look_up(name: str) -> tuple[str, ...]:
        asked.append(name)
        if len(asked) == 1:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return ("10.0.0.1",)

    resolver = Resolver(look_up)
    assert (await resolver.resolve("head")).trouble
    assert await resolver.resolve("head") == Resolved(("10.0.0.1",))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (socket.gaierror(socket.EAI_NONAME, ""), "does not resolve: the DNS server 10.0.0.53"),
        (socket.gaierror(socket.EAI_AGAIN, ""), "the DNS server 10.0.0.53 cannot answer now"),
        (UnicodeError("label too long"), "does not resolve: it is no host name"),
        (OSError("Too many open files"), "does not resolve: Too many open files"),
    ],
)
async def test_failures_are_told_apart(conf: Path, error: Exception, says: str) -> None:
    found = await Resolver(failing(error)).resolve("head")
    assert not found.addresses
    assert says in found.trouble


async def test_what_comes_back_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    many = tuple(f"10.0.{n // 256}.{n % 256}" for n in range(ADDRESSES_MAX + 1))
    assert len((await Resolver(lambda _: many).resolve("head")).addresses) == ADDRESSES_MAX
    assert (await Resolver(lambda _: ()).resolve("head")).trouble.startswith("does not resolve")
    monkeypatch.setattr(resolve, "NAMES_MAX", 2)
    go = threading.Event()

    def look_up(_: str) -> tuple[str, ...]:
        go.wait()
        return ("10.0.0.1",)

    resolver = Resolver(look_up)
    waiting = [asyncio.create_task(resolver.resolve(name)) for name in ("a", "b", "c")]
    assert (await waiting[2]).trouble.startswith("is not looked up")
    go.set()
    assert [bool((await task).addresses) for task in waiting] == [True, True, False]


async def test_a_machine_that_lets_nobody_start_threads_is_no_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    resolver = Resolver(lambda _: ("10.0.0.1",))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        for _ in range(2):
            assert (await resolver.resolve("head")).trouble.startswith("is not looked up")
    assert await resolver.resolve("head") == Resolved(("10.0.0.1",))


def test_name_servers(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    assert name_servers(conf) == ("127.0.0.1",)
    conf.write_bytes(b"nameserver\nnameserver 10.0.0.53\nnameserver fd00::53 # x\n\xff\n")
    assert name_servers(conf) == ("10.0.0.53", "fd00::53")


def test_a_look_up_that_hangs_does_not_hold_up_the_end() -> None:
    script = """
import asyncio, threading
from mingled.net.resolve import Resolver
hang = lambda name: threading.Event().wait() and ()
print(asyncio.run(Resolver(hang, timeout_s=0.01).resolve("head")).trouble)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert "does not answer" in done.stdout
