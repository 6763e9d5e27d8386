"""`mingled.jax` with a JAX and a daemon that are stand-ins; with real ones: tests/lan."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mingled.jax
from mingled import client
from mingled.core.words import Form
from mingled.errors import BadInput
from tests.frameworks.samples import launched, sealed
from tests.frameworks.test_ddp import FakeDaemon


class FakeJax:
    """Remembers how it was initialized."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def is_initialized(self) -> bool:
        return bool(self.calls)

    def initialize(self, **arguments: Any) -> None:
        self.calls.append(arguments)
        if self.error is not None:
            raise self.error


@pytest.fixture
def jax(monkeypatch: pytest.MonkeyPatch) -> FakeJax:
    fake = FakeJax()
    library = SimpleNamespace(make_gloo_tcp_collectives=lambda **given: given)
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(distributed=fake))
    monkeypatch.setitem(sys.modules, "jaxlib", SimpleNamespace(_jax=library))
    monkeypatch.setitem(sys.modules, "jaxlib._jax", library)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    return fake


@pytest.fixture
def daemon(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    fake = FakeDaemon()
    fake.config = sealed()
    monkeypatch.setattr(client, "join", fake.join)
    # A copy: what is applied goes with the test.
    ours = ("MINGLE", "NCCL_", "GLOO_", "CUDA_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    monkeypatch.setattr(os, "environ", clean)
    return fake


def test_what_was_found_is_given(jax: FakeJax, daemon: FakeDaemon) -> None:
    cfg = mingled.jax.initialize("bert", world_size=4, rank=1, initialization_timeout=7)
    (request,) = daemon.requests
    assert (request.form, request.size_max, request.rank) == (Form.PROCESS, 4, 1)
    assert jax.calls == [
        {
            "coordinator_address": "10.0.0.1:29512",
            "num_processes": 4,
            "process_id": 1,
            "local_device_ids": [1],
            "initialization_timeout": 7,
        }
    ]
    cfg.leave()


def test_one_process_on_each_node_sees_all_devices(jax: FakeJax, daemon: FakeDaemon) -> None:
    daemon.config = launched(1, 1)
    with mingled.jax.initialize("bert", nnodes=2, rank=1):
        pass
    (request,) = daemon.requests
    assert (request.form, request.size_max, request.rank) == (Form.LAUNCHER, 2, 1)
    assert "local_device_ids" not in jax.calls[0]
    assert jax.calls[0]["num_processes"] == 2


def test_gloo_is_bound_to_the_proven_interface_once(jax: FakeJax, daemon: FakeDaemon) -> None:
    for _ in range(2):
        jax.calls.clear()
        with mingled.jax.initialize("bert", world_size=4):
            pass
    make = sys.modules["jaxlib._jax"].make_gloo_tcp_collectives
    assert make(distributed_client="it") == {"distributed_client": "it", "interface": "eth0"}


def test_a_failure_of_jax_is_a_loss(jax: FakeJax, daemon: FakeDaemon) -> None:
    jax.error = RuntimeError("deadline")
    with pytest.raises(RuntimeError, match="deadline"):
        mingled.jax.initialize("bert", world_size=4)
    assert daemon.leases[0].ends == [(True, "RuntimeError")]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"world_size": 4, "process_id": 0}, "finds process_id itself"),
        ({"nnodes": "2:4"}, "want one number, as in nnodes=4"),
        ({"rank": 0}, "add world_size=W, or nnodes=N"),
    ],
)
def test_refused_before_anybody_waits(
    jax: FakeJax, daemon: FakeDaemon, arguments: dict[str, Any], why: str
) -> None:
    with pytest.raises(BadInput, match="job bert: ") as caught:
        mingled.jax.initialize("bert", **arguments)
    assert why in str(caught.value)
    assert daemon.requests == []


def test_twice_in_one_process(jax: FakeJax, daemon: FakeDaemon) -> None:
    jax.calls.append({})
    with pytest.raises(BadInput, match="initialized already"):
        mingled.jax.initialize("bert", world_size=4)
    assert daemon.requests == []


def test_without_jax(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="job bert: JAX is not installed"):
        mingled.jax.initialize("bert", world_size=4)
    assert daemon.requests == []
