"""Real `accelerate launch` on two nodes: one line, and no accelerate config, or one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from .conftest import MakeLan, absent
from .helpers import BIN, nothing_left, wait

pytestmark = pytest.mark.torch

SCRIPT = """
import os, sys
import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
total = accelerator.reduce(torch.tensor([accelerator.process_index + 1.0]), "sum")
os.write(1, f"sum {total.item():g} of {accelerator.num_processes}\\n".encode())
accelerator.wait_for_everyone()
os._exit(0)  # what gloo takes down at the end sometimes aborts the process
"""

FILE = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
machine_rank: 0
main_process_ip: 192.0.2.1
main_process_port: 1
main_training_function: main
mixed_precision: 'no'
num_machines: 2
num_processes: {processes}
rdzv_backend: static
same_network: true
use_cpu: false
"""
"""Of somebody's other cluster: only the processes of each machine are taken from it."""


@pytest.fixture(autouse=True)
def _needs_accelerate() -> None:
    for name in ("torch", "accelerate"):
        if importlib.util.find_spec(name) is None:
            absent(f"{name} is not installed: scripts/bootstrap --with frameworks")


@pytest.mark.parametrize("file", [False, True], ids=["no file", "a file"])
@pytest.mark.parametrize("nproc", [1, 2])
def test_all_processes_of_two_machines_agree_on_a_sum(
    lan: MakeLan, tmp_path: Path, nproc: int, file: bool
) -> None:
    script, home = tmp_path / "train.py", tmp_path / "hf"
    script.write_text(SCRIPT)
    flags = ["--nnodes", "2"]
    if file:
        (home / "accelerate").mkdir(parents=True)
        text = FILE.format(processes=2 * nproc)
        (home / "accelerate" / "default_config.yaml").write_text(text)
    else:
        flags += ["--nproc-per-node", str(nproc)]
    both = lan(nodes=2)
    cmd = (str(BIN / "accelerate"), "launch", str(script))
    runs = [wait(node, "bert", *flags, cmd=cmd, env={"HF_HOME": str(home)}) for node in both.nodes]
    size = 2 * nproc
    for running in runs:
        done = running.well()
        assert done.out.count(f"sum {size * (size + 1) // 2} of {size}\n") == nproc
        assert f"--num_machines=2 --num_processes={size} --machine_rank=" in done.err
        assert "192.0.2.1" not in done.err
    nothing_left(both)


def test_machines_with_different_numbers_are_refused_by_name(lan: MakeLan, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    both = lan(nodes=2)
    cmd = (str(BIN / "accelerate"), "launch", str(script))
    runs = [
        wait(node, "bert", "--nnodes", "2", "--nproc-per-node", str(node.number), cmd=cmd)
        for node in both.nodes
    ]
    for running in runs:
        done = running.end()
        assert (done.code, done.out) == (2, "")
        assert "job bert: accelerate gives every machine the same number of processes" in done.err
        assert "gpu1 (10.77.0.1) 1" in done.err
        assert "gpu2 (10.77.0.2) 2" in done.err
    nothing_left(both)
