"""The exact candidates by way of a child process: the same, and never none."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from mingled.errors import BadInput
from mingled.net import interfaces
from mingled.net.apart import exact_candidates
from mingled.net.facts import Facts
from mingled.net.interfaces import candidates

from .machines import link, machine


def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Instead of Python, this shell script."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


async def test_the_same_as_in_this_process() -> None:
    assert await exact_candidates(["lo"]) == candidates(["lo"], exact=True)
    assert await exact_candidates(subnets=["127.0.0.0/8"]) == candidates(["127.0.0.1"])


async def test_modules_of_the_working_directory_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('taken')")
    monkeypatch.chdir(tmp_path)
    found = await exact_candidates(["lo"])
    assert found == candidates(["lo"], exact=True)


@pytest.mark.parametrize("script", ["exit 3", "echo nonsense", "kill -9 $$", "echo '[{}]'"])
async def test_a_child_that_fails_leaves_the_quick_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    python(tmp_path, monkeypatch, script)
    assert await exact_candidates(["lo"]) == candidates(["lo"])


async def test_what_was_seen_is_read_again_by_the_child_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(**_: object) -> Facts:
        raise AssertionError("the interfaces were listed")

    here = candidates(["lo"])
    monkeypatch.setattr(interfaces, "facts", none)
    assert await exact_candidates(["lo"]) == here
    python(tmp_path, monkeypatch, "exit 3")
    seen = machine(link("eth0", "ethernet", "10.0.0.1/24"))
    (only,) = await exact_candidates(seen=seen)
    assert (only.interface, only.address) == ("eth0", "10.0.0.1")


async def test_a_python_that_is_gone_leaves_the_quick_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert await exact_candidates(["lo"]) == candidates(["lo"])


async def test_a_child_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python(tmp_path, monkeypatch, "exec sleep 1000")
    assert await exact_candidates(["lo"], timeout_s=0.1) == candidates(["lo"])


async def test_cancelled_it_leaves_no_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    python(tmp_path, monkeypatch, f"echo $$ > {fifo}; exec sleep 1000")
    asking = asyncio.create_task(exact_candidates(["lo"]))
    pid = int(await asyncio.to_thread(fifo.read_text))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_malformed_subnet_is_refused() -> None:
    with pytest.raises(BadInput, match="not a subnet"):
        await exact_candidates(subnets=["nonsense"])
