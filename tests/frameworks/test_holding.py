"""A peer's death is held back, and nothing else is."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from mingled.frameworks import holding
from mingled.frameworks.holding import HOLD_S, hold_peer_loss, of_a_peer

GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:7\nmore")


class DistError(RuntimeError):
    """As torch has it."""


class DistNetworkError(DistError):
    """As torch has it."""


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it was held, each time; nobody waits here."""
    found: list[float] = []
    monkeypatch.setattr(holding, "wait_for_agent", found.append)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "bert")
    monkeypatch.setenv("RANK", "3")
    return found


def fails(error: BaseException, **options: Any) -> None:
    @hold_peer_loss(**options)
    def train() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        train()
    assert raised.value is error


@pytest.mark.parametrize(
    ("error", "peers"),
    [
        (GLOO, True),
        (RuntimeError("NCCL error: remote process exited"), True),
        (RuntimeError("Socket Timeout"), True),
        (DistNetworkError("failed to recv"), True),
        (RuntimeError("CUDA out of memory"), False),
        (ValueError("broken pipe"), False),
        (ConnectionResetError("connection reset by peer"), False),  # the script's own download
        (KeyboardInterrupt(), False),
    ],
)
def test_which_errors_are_held(
    slept: list[float], capsys: pytest.CaptureFixture[str], error: BaseException, peers: bool
) -> None:
    assert of_a_peer(error) is peers
    fails(error)
    assert slept == ([HOLD_S] if peers else [])
    assert bool(capsys.readouterr().err) is peers


def test_a_line_says_so(slept: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    fails(GLOO, hold_s=7.0)
    assert capsys.readouterr().err == (
        "mingle: job bert: rank 3: a peer is gone ([gloo/transport/tcp/pair.cc:534] Connection "
        "closed by peer [10.0.0.1]:7); waits up to 7 s to be started anew\n"
    )
    assert slept == [7.0]


def test_without_torchrun_nothing_is_held(
    slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    fails(GLOO)
    assert slept == []


def test_without_an_error_nothing_is_held(slept: list[float]) -> None:
    with hold_peer_loss():
        pass
    assert slept == []


def test_without_stderr_it_is_held_too(slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as Python has it where descriptor 2 is closed
    fails(GLOO)
    assert slept == [HOLD_S]


@pytest.mark.torch
def test_torchs_own_errors_are_held() -> None:
    distributed = pytest.importorskip("torch.distributed")
    for name in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        assert of_a_peer(getattr(distributed, name)("whatever it says")), name


def test_nobody_waits_for_an_agent_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([7, 7, 7, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    holding.wait_for_agent(3600.0)
    assert list(parents) == []
