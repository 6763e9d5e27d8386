"""torch's own TCPStore, opened and connected to on loopback; and what is said without torch."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from mingled.errors import BadInput, Lost, MingleError
from mingled.frameworks.store import Opening, _construct, connect_store, distributed, open_store

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_two_of_a_round_share_a_store(address: str) -> None:
    opened = open_store(address)
    connected = connect_store(address, opened.port, 10)
    connected.set("key", "value")
    assert opened.get("key") == b"value"


@pytest.mark.torch
@needs_torch
def test_each_round_gets_a_store_of_its_own() -> None:
    first, second = open_store("127.0.0.1"), open_store("127.0.0.1")
    first.set("key", "value")
    assert first.port != second.port
    assert not connect_store("127.0.0.1", second.port, 10).check(["key"])


@pytest.mark.torch
@needs_torch
def test_its_port_listens_before_there_is_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where DNS does not answer, and TCPStore's own client waits for it."""
    dist, go = distributed(), threading.Event()
    TCPStore = dist.TCPStore

    def late(*given: Any, **options: Any) -> Any:
        go.wait(60)
        return TCPStore(*given, **options)

    monkeypatch.setattr(dist, "TCPStore", late)
    opening = Opening("127.0.0.1")
    with socket.create_connection(("127.0.0.1", opening.port)):
        go.set()
        assert opening.store().port == opening.port


@pytest.mark.torch
@needs_torch
def test_it_listens_as_long_as_somebody_refers_to_it() -> None:
    store = open_store("127.0.0.1")
    port = store.port
    socket.create_connection(("127.0.0.1", port)).close()
    del store
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def alone(address: str) -> Any:
    return Opening(address, interface_only=True).store()


def listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port)).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize(
    ("address", "others"), [("127.0.0.2", ("127.0.0.1", "::1")), ("::1", ("127.0.0.1",))]
)
def test_it_may_listen_on_one_address_alone(address: str, others: tuple[str, ...]) -> None:
    opened = alone(address)
    connect_store(address, opened.port, 10).set("key", "value")
    assert opened.get("key") == b"value"
    assert [listens(other, opened.port) for other in others] == [False] * len(others)
    everywhere = open_store(address)
    assert listens("127.0.0.1", everywhere.port)  # else the line above would show nothing


@pytest.mark.torch
@needs_torch
def test_one_port_on_two_addresses_is_two_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gives a port twice where the addresses differ; torch's tenants would share."""
    first = alone("127.0.0.2")
    create = socket.create_server
    monkeypatch.setattr(
        socket, "create_server", lambda at, **more: create((at[0], first.port), **more)
    )
    second = alone("127.0.0.3")
    assert first.port == second.port
    first.set("key", "value")
    assert not second.check(["key"])


@pytest.mark.torch
@needs_torch
def test_rounds_on_one_address_leave_nothing() -> None:
    """TCPStore owns the listening socket, and closes it."""
    store = alone("127.0.0.2")
    before, port = len(os.listdir("/proc/self/fd")), store.port
    for _ in range(20):  # the next is open before the last one goes, as in rounds
        store = alone("127.0.0.2")
    assert len(os.listdir("/proc/self/fd")) == before
    assert not listens("127.0.0.2", port)


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("address", ["192.0.2.1", "gpu1", "fe80::1%none"])
def test_an_address_that_is_not_ours_is_one_sentence(address: str) -> None:
    with pytest.raises(MingleError, match=f"store for {address} could not be opened") as caught:
        alone(address)
    assert "\n" not in str(caught.value)


@pytest.mark.torch
@needs_torch
def test_a_server_that_never_answers_is_given_up() -> None:
    """The kernel accepts for one that is stopped."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(Lost, match=rf"127\.0\.0\.1:{port} cannot be reached"):
            connect_store("127.0.0.1", port, 0.2)


@pytest.mark.torch
@needs_torch
def test_a_rank_0_that_came_by_env_counts_its_clients() -> None:
    """It waits in its constructor until all are there."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:
        port, fd = listener.getsockname()[1], listener.detach()
        options = {"world_size": 2, "is_master": True, "master_listen_fd": fd}
        rank_0 = pool.submit(_construct, "127.0.0.1", port, **options)
        connected = connect_store("127.0.0.1", port, 60, world_size=2)
        rank_0.result(60).set("key", "value")
        assert connected.get("key") == b"value"


@pytest.mark.torch
@needs_torch
def test_a_store_that_is_gone_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(Lost, match=rf"store at 127\.0\.0\.1:{port} cannot be reached") as caught:
        connect_store("127.0.0.1", port, 1)
    assert "\n" not in str(caught.value)


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BadInput, match=r"torch cannot be imported here .*install torch 2\.6"):
        open_store("127.0.0.1")


@pytest.mark.parametrize(
    ("version", "old"),
    [("2.5.1+cu124", True), ("1.13.1", True), ("2.6.0", False), ("2.13.0a0+git1", False)],
)
def test_a_torch_that_is_too_old(monkeypatch: pytest.MonkeyPatch, version: str, old: bool) -> None:
    module = SimpleNamespace(is_available=lambda: True)
    fake = SimpleNamespace(__version__=version, distributed=module)
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setitem(sys.modules, "torch.distributed", module)
    if old:
        with pytest.raises(BadInput, match=r"torch [12]\S+ is older than 2\.6"):
            distributed()
    else:
        assert vars(distributed()) == vars(module)


def test_a_torch_without_its_distributed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(is_available=lambda: False)
    fake = SimpleNamespace(__version__="2.13.0", distributed=module)
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setitem(sys.modules, "torch.distributed", module)
    with pytest.raises(BadInput, match=r"torch 2\.13\.0 was built without torch\.distributed"):
        distributed()


def test_an_older_store_stays_until_the_next_is_made() -> None:
    """... and no longer: a run of many rounds has two stores at most."""
    first, second = Opening("127.0.0.1"), Opening("127.0.0.1")
    first.store()
    gone = threading.Event()
    weakref.finalize(first, gone.set)
    second.keep(first)
    del first
    second.store()
    assert gone.wait(60)
