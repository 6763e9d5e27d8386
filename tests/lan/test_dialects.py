"""Each framework itself, told in its dialect: two processes on two nodes add up their ranks."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from mingled.lab import Lan

from .conftest import MakeLan, absent
from .helpers import BIN, Env, nothing_left, over, python, wait

pytestmark = pytest.mark.torch

SAY = "import os; os.write(1, f'sum {int(total)} of {count}\\n'.encode())\n"

END = """
import torch.distributed
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""

TORCH = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total, count = torch.tensor(dist.get_rank() + 1), dist.get_world_size()
dist.all_reduce(total)
"""

ACCELERATE = """
import torch
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
count = accelerator.num_processes
total = accelerator.reduce(torch.tensor(accelerator.process_index + 1), "sum")
"""

DEEPSPEED = """
import torch, deepspeed
deepspeed.ops.__compatible_ops__.clear()  # or it compiles one for shared memory, for a minute
deepspeed.init_distributed("gloo")
total, count = torch.tensor(deepspeed.comm.get_rank() + 1), deepspeed.comm.get_world_size()
deepspeed.comm.all_reduce(total)
"""

LIGHTNING = """
import torch
from lightning.fabric import Fabric
fabric = Fabric(accelerator="cpu", strategy="ddp", devices=1, num_nodes=2)
fabric.launch()
count = fabric.world_size
total = fabric.all_reduce(torch.tensor(fabric.global_rank + 1.0), reduce_op="sum")
"""

JAX = """
import os, jax
jax.distributed.initialize(
    num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"])
)
"""

JAX_JOINS = """
import mingled.jax
cfg = mingled.jax.initialize("bert", world_size=2)
assert cfg.world_size == 2
"""

JAX_SUM = """
import numpy
from jax.experimental import multihost_utils
count = jax.process_count()
total = multihost_utils.process_allgather(numpy.array([jax.process_index() + 1])).sum()
"""

QUIET: Env = {"JAX_PLATFORMS": "cpu", "TORCH_SHOW_CPP_STACKTRACES": None}


def needs(*names: str) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            absent(f"{name} is not installed: scripts/bootstrap --with frameworks")


def agree(lan: Lan, dialect: str, script: str, *flags: str, end: str = END) -> None:
    """That CMD on both nodes, by mingle-wait, comes to one sum; nothing stays behind."""
    cmd = [sys.executable, "-c", script + SAY + end]
    shape = flags or ("--world-size", "2")
    runs = [wait(node, "bert", *shape, "--for", dialect, cmd=cmd, env=QUIET) for node in lan.nodes]
    for done in [running.well() for running in runs]:
        assert "sum 3 of 2\n" in done.out, done
    nothing_left(lan)


@pytest.mark.parametrize(
    ("dialect", "script"),
    [("torch", TORCH), ("accelerate", ACCELERATE), ("lightning", LIGHTNING)],
)
def test_processes_of_torch(lan: MakeLan, dialect: str, script: str) -> None:
    needs("torch", dialect)
    agree(lan(nodes=2), dialect, script)


def test_one_process_on_each_node_by_its_number_of_nodes(lan: MakeLan) -> None:
    needs("torch")
    agree(lan(nodes=2), "torch", TORCH, "--nnodes", "2")


def test_deepspeed(lan: MakeLan) -> None:
    needs("torch", "deepspeed")
    agree(lan(nodes=2), "deepspeed", DEEPSPEED)


def test_the_launcher_of_deepspeed_without_ssh(lan: MakeLan, tmp_path: Path) -> None:
    """It reads the hostfile, and starts the processes of its own node."""
    needs("torch", "deepspeed")
    both = lan(nodes=2)
    script = tmp_path / "train.py"
    script.write_text(DEEPSPEED + SAY + END)
    line = (
        f"exec {BIN}/deepspeed --hostfile=$MINGLE_HOSTFILE --no_ssh --node_rank=$NODE_RANK "
        f"--master_addr=$MASTER_ADDR --master_port=$MASTER_PORT --no_local_rank {script}"
    )
    cmd = ["sh", "-c", line]
    runs = [
        wait(node, "bert", "--nnodes", "2", "--for", "deepspeed", cmd=cmd, env=QUIET)
        for node in both.nodes
    ]
    for done in [running.well() for running in runs]:
        assert "sum 3 of 2\n" in done.out, done
    nothing_left(both)


def test_jax(lan: MakeLan, tmp_path: Path) -> None:
    """Its gloo, which only CPUs need, listens at what the machine's own name stands for."""
    needs("jax")
    both = lan(nodes=2)
    for node in both.nodes:
        over(node, tmp_path, "/etc/hosts", f"127.0.0.1 localhost\n{node.address} {node.name}\n")
    agree(both, "jax", JAX + JAX_SUM, end="")


def test_jax_in_a_script_that_joins_by_itself(lan: MakeLan) -> None:
    """Names need not mean anything here."""
    needs("jax")
    both = lan(nodes=2)
    script = JAX_JOINS + "import jax\n" + JAX_SUM + SAY
    runs = [python(node, script, env=QUIET) for node in both.nodes]
    for done in [running.well() for running in runs]:
        assert "sum 3 of 2\n" in done.out, done
    nothing_left(both)
