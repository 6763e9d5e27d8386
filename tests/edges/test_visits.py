"""What a daemon does for others that ask: on loopback, with the core played by the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mingled.core import actions, events
from mingled.core.messages import Listening, Message, NodeCard, Place, Presence, Tried
from mingled.core.secrets import label_of
from mingled.core.words import JobId, NodeId
from mingled.edges import machine, visits
from mingled.edges.places import speak, try_place
from mingled.edges.visits import Visits
from mingled.net.dialing import STRANGER

NODE = NodeId("ab" * 16)
CARD = NodeCard(node=NODE, host="gpu1", port=29_490, ring_port=40_000, addresses=("10.0.0.1",))


INTRODUCE = actions.Introduce(
    link=2, remote="10.0.0.2", card=CARD, labels=(label_of(JobId("bert")),), jobs=3
)


class Shell:
    """The daemon around the edge: what came of it, awaited one by one."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[tuple[int, Message]] = asyncio.Queue()
        self.emitted: asyncio.Queue[events.Event] = asyncio.Queue()
        self.visits = Visits(
            self.emitted.put_nowait,
            lambda link, message: self.sent.put_nowait((link, message)),
            node=CARD.node,
            discovery=lambda: ("mdns: browsing",),
            up_s=lambda: 12.0,
        )


@pytest.fixture
async def shell() -> AsyncIterator[Shell]:
    shell = Shell()
    yield shell
    await shell.visits.close()


async def test_it_introduces_itself(shell: Shell) -> None:
    shell.visits.perform(INTRODUCE)
    link, presence = await shell.sent.get()
    assert link == 2
    assert isinstance(presence, Presence)
    assert (presence.node, presence.labels, presence.jobs) == (CARD, INTRODUCE.labels, 3)
    assert presence.seen_address == "10.0.0.2"
    assert (presence.discovery, presence.up_s) == (("mdns: browsing",), 12.0)
    assert "lo" not in {nic.name for nic in presence.nics}


async def test_it_tries_each_place(shell: Shell) -> None:
    speaker = speak((0,), (), "word")
    assert speaker is not None
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and nobody listens
        nobody = closed.getsockname()[1]
        places = (
            Place(address="127.0.0.1", port=speaker.port, word="word"),
            Place(address="127.0.0.1", port=speaker.port, word="another"),
            Place(address="127.0.0.1", port=speaker.port),
            Place(address="127.0.0.1", port=nobody),
            Place(address="not an address", port=1),
        )
        shell.visits.perform(actions.TryPlaces(link=4, places=places))
        tried = await shell.emitted.get()
    speaker.close()
    assert isinstance(tried, events.PlacesTried)
    assert tried.link == 4
    reasons = [result.reason for result in tried.results]
    assert reasons[:4] == ["", STRANGER, "", "Connection refused"]
    assert reasons[4]


async def test_a_test_port_says_the_node_id(shell: Shell) -> None:
    action = actions.OpenTestPort(link=6, base=29_900, count=50, avoid=frozenset({29_900}))
    shell.visits.perform(action)
    link, listening = await shell.sent.get()
    assert link == 6
    assert isinstance(listening, Listening)
    assert 29_900 < listening.port < 29_950
    place = Place(address="127.0.0.1", port=listening.port, word=NODE)
    assert (await try_place(place)).reason == ""
    await shell.visits.close()
    assert (await try_place(place)).reason == "Connection refused"


async def test_no_more_than_a_few_test_ports_at_once(shell: Shell) -> None:
    action = actions.OpenTestPort(link=6, base=29_950, count=49, avoid=frozenset())
    for _ in range(visits.TEST_PORTS_MAX + 1):
        shell.visits.perform(action)
    said = [(await shell.sent.get())[1] for _ in range(visits.TEST_PORTS_MAX + 1)]
    ports = sorted(message.port for message in said if isinstance(message, Listening))
    assert ports[0] == 0
    assert len(set(ports)) == visits.TEST_PORTS_MAX + 1


async def test_a_range_without_a_free_port(shell: Shell) -> None:
    shell.visits.perform(
        actions.OpenTestPort(link=6, base=29_950, count=1, avoid=frozenset({29_950}))
    )
    assert await shell.sent.get() == (6, Listening(port=0))


async def test_too_many_tests_are_not_made(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, full = asyncio.Event(), asyncio.Event()
    tries: list[Place] = []

    async def slow(place: Place) -> Tried:
        tries.append(place)
        if len(tries) == 3:
            full.set()
        await gate.wait()
        return Tried(address=place.address, port=place.port, reason="", took_s=0.0)

    monkeypatch.setattr(visits, "try_place", slow)
    monkeypatch.setattr(visits, "TRIES_MAX", 3)
    shell.visits.try_places(2, [Place(address="127.0.0.1", port=1)] * 5)
    await full.wait()
    gate.set()
    tried = await shell.emitted.get()
    assert isinstance(tried, events.PlacesTried)
    assert [result.reason for result in tried.results] == ["", "", "", visits.BUSY, visits.BUSY]


async def test_whatever_is_under_way_ends_with_it(shell: Shell) -> None:
    action = actions.OpenTestPort(link=6, base=29_800, count=50, avoid=frozenset())
    shell.visits.perform(action)
    await shell.sent.get()
    await shell.visits.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ---------------------------------------------------------------- the machine


def _gpu(root: Path, bus: str, minor: int, model: str) -> None:
    folder = root / "proc/driver/nvidia/gpus" / bus
    folder.mkdir(parents=True)
    text = f"Model: \t\t {model}\nGPU UUID: GPU-{minor}\nDevice Minor: \t {minor}\n"
    (folder / "information").write_text(text)
    (root / "dev").mkdir(exist_ok=True)
    (root / f"dev/nvidia{minor}").touch()


def test_gpus_by_the_drivers_files(tmp_path: Path) -> None:
    assert machine.gpu_names(tmp_path) == ()
    _gpu(tmp_path, "0000:01:00.0", 0, "NVIDIA H200")
    _gpu(tmp_path, "0000:02:00.0", 1, "NVIDIA A2")
    assert machine.gpu_names(tmp_path) == ("NVIDIA H200", "NVIDIA A2")
    (tmp_path / "dev/nvidia1").unlink()  # a container that was not given it
    assert machine.gpu_names(tmp_path) == ("NVIDIA H200",)


def test_the_machine_id_itself_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "machine-id"
    monkeypatch.setattr(machine, "MACHINE_ID", file)
    assert machine.machine() == ""
    file.write_text("0123456789abcdef0123456789abcdef\n")
    first = machine.machine()
    assert len(first) == 16
    assert first not in file.read_text()
    file.write_text("1123456789abcdef0123456789abcdef\n")
    assert machine.machine() != first
