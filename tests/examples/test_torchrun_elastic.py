"""`examples/torchrun-elastic`: a node comes late, and rank 0 is lost, in one training."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from mingled.lab import Lan
from tests.lan.conftest import MakeLan
from tests.lan.helpers import nothing_left, processes

from .documented import commands, copy_of, needs, typed, who_says

pytestmark = [pytest.mark.lan, pytest.mark.torch]

EXAMPLE = "torchrun-elastic"
BEGINS = re.compile(r"(\d) processes begin at step (\d+), kept by")


def test_one_comes_late_and_rank_0_is_lost(lan: MakeLan, tmp_path: Path) -> None:
    needs("torch", "sklearn")
    three = lan(nodes=3)
    (line,) = commands(EXAMPLE, "torchrun --rdzv-backend mingle")
    disks = {n: copy_of(EXAMPLE, tmp_path / f"disk{n}") for n in (1, 2, 3)}
    runs = {n: typed(three.node(n), line, disks[n]) for n in (1, 2)}
    first = who_says(runs, "step 20/2000")
    assert BEGINS.findall(runs[first].out) == [("2", "0")]

    runs[3] = typed(three.node(3), line, disks[3])
    leader = who_says(runs, "3 processes begin at step", "step 100/2000")
    assert leader in (1, 2)  # who has been there leads on: it has the checkpoint
    grown = int(BEGINS.findall(runs[leader].out)[-1][1])
    assert grown > 0
    assert grown % 20 == 0

    kill_all(three, leader)
    lost = runs.pop(leader).end()
    ends = {n: running.well() for n, running in runs.items()}
    (said,) = [done.out for done in ends.values() if "test accuracy" in done.out]
    size, step = BEGINS.findall(said)[-1]
    done = [int(number) for number in re.findall(r"step (\d+)/2000", lost.out)]
    assert size == "2"
    assert int(step) in (done[-1], done[-1] + 20)
    assert float(re.findall(r"test accuracy ([\d.]+)%", said)[0]) > 90
    nothing_left(three)


def kill_all(lan: Lan, number: int) -> None:
    """SIGKILL to torchrun and its worker on that node, in this order."""
    lines = {pid: line for pid, line in processes(lan.node(number)) if "train.py" in line}
    assert lines
    for pid in sorted(lines, key=lambda pid: "rdzv" not in lines[pid]):
        os.kill(pid, signal.SIGKILL)
