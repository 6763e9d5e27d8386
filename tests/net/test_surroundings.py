"""How often a daemon lists its interfaces: with hundreds of them each listing takes a while."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from mingled import surroundings
from mingled.core.events import Address
from mingled.net import interfaces
from mingled.net.facts import Facts
from mingled.net.interfaces import candidates, interface_of
from mingled.surroundings import Surroundings

from .machines import V4, FakeNetifaces


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeNetifaces:
    made = FakeNetifaces({"lo": ["127.0.0.1"], "eth0": ["10.0.0.1"], "eth1": []}, {V4: "eth0"})
    made.install(monkeypatch)
    monkeypatch.setattr(interfaces, "_known", {})
    return made


async def test_a_look_is_one_listing_outside_the_loop(
    machine: FakeNetifaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    read = interfaces.facts
    moved = asyncio.Event()

    def facts(*, exact: bool = True) -> Facts:
        threads.append(threading.current_thread())
        return read(exact=exact)

    async def exact_candidates(
        only: Sequence[str], subnets: Sequence[str], *, seen: Facts
    ) -> tuple[Address, ...]:
        return candidates(only, subnets, seen=seen)

    async def tell() -> None:
        moved.set()

    monkeypatch.setattr(interfaces, "facts", facts)
    monkeypatch.setattr(surroundings, "exact_candidates", exact_candidates)
    here = Surroundings(["eth0", "eth1"], [], tell)
    here.check("gpu1")
    assert interface_of("10.0.0.1") == "eth0"
    assert machine.asked == 1
    machine.has["eth0"], machine.has["eth1"] = [], ["10.0.0.1"]
    await here.start()
    here._told()
    assert interface_of("10.0.0.1") == "eth1"  # at once, though nobody has looked yet
    assert machine.asked == 2
    await moved.wait()
    assert [a.interface for a in here.addresses] == ["eth1"]
    assert interface_of("10.0.0.1") == "eth1"
    assert machine.asked == 3
    assert threading.main_thread() in threads[:1]
    assert threading.main_thread() not in threads[1:]
    await here.close()
