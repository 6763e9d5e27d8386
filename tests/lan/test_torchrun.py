"""Real torch on real LANs: torchrun's workers, and plain scripts, add up their ranks."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from .conftest import MakeLan, absent
from .helpers import BIN, nothing_left, python, wait

pytestmark = pytest.mark.torch

TRAIN = """
import os
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
torch.manual_seed(dist.get_rank())
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
weight = model.module.weight.detach().sum()
total = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(total)
line = f"rank {dist.get_rank()} of {dist.get_world_size()} local {os.environ['LOCAL_RANK']}"
line += f" sum {total.item()} weight {weight:.6f}\\n"
os.write(1, line.encode())  # in one piece: two workers share this pipe
dist.barrier()
dist.destroy_process_group()
"""

JOIN = """
import sys
import mingled

cfg = mingled.join("bert", world_size=2)
cfg.apply()
exec(open(sys.argv[1]).read())
cfg.leave()
"""


@pytest.fixture(autouse=True)
def _needs_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        absent("torch is not installed")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(TRAIN)
    return path


def reports(outs: list[str]) -> list[list[str]]:
    """What each rank printed, by rank."""
    lines = [line.split() for out in outs for line in out.splitlines() if "rank " in line]
    return sorted(lines, key=lambda words: int(words[1]))


def test_torchrun_with_two_processes_on_each_node(lan: MakeLan, script: Path) -> None:
    both = lan(nodes=2)
    torchrun = [str(BIN / "torchrun"), "--nproc-per-node", "2", str(script)]
    runs = [wait(node, "bert", "--nnodes", "2", cmd=torchrun) for node in both.nodes]
    said = reports([running.well().out for running in runs])
    assert [words[:8] for words in said] == [
        ["rank", str(rank), "of", "4", "local", str(rank % 2), "sum", "10"] for rank in range(4)
    ]
    assert len({words[9] for words in said}) == 1  # one model
    nothing_left(both)


def test_a_script_that_joins_by_itself(lan: MakeLan, script: Path) -> None:
    both = lan(nodes=2)
    runs = [python(node, JOIN, str(script)) for node in both.nodes]
    said = reports([running.well().out for running in runs])
    assert [words[1:8:2] for words in said] == [["0", "2", "0", "3"], ["1", "2", "0", "3"]]
    assert len({words[9] for words in said}) == 1


def test_three_scripts_on_two_nodes(lan: MakeLan, script: Path) -> None:
    both = lan(nodes=2)
    cmd = [sys.executable, str(script)]
    runs = [
        wait(node, "bert", "--world-size", "3", cmd=cmd) for node in (*both.nodes, both.node(2))
    ]
    said = reports([running.well().out for running in runs])
    assert [words[7] for words in said] == ["6", "6", "6"]
    assert sorted(words[5] for words in said) == ["0", "0", "1"]
