"""torch's own TCPStore, opened and connected to on loopback; and what is said without torch."""

from __future__ import annotations

import importlib.util
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from mingled.errors import BadInput, Lost
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
