"""NCCL on this machine's GPUs, one process each: under mingle-wait, and from within the script."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

JOB = f"nccl-{os.getpid()}"

pytestmark = [pytest.mark.gpu, pytest.mark.torch, pytest.mark.usefixtures("runtime")]

ADD_UP = """
dist.barrier(device_ids=[local])
total = torch.full((1_000_000,), float(dist.get_rank() + 1), device=f"cuda:{local}")
dist.all_reduce(total)
print(json.dumps({
    "rank": dist.get_rank(), "size": dist.get_world_size(), "gpu": local,
    "sum": total[-1].item(), "backend": dist.get_backend(),
    "interface": os.environ["NCCL_SOCKET_IFNAME"],
}), flush=True)
dist.destroy_process_group()
"""

WORKER = f"""
import json, os
import torch, torch.distributed as dist
local = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(local)
dist.init_process_group("nccl", device_id=torch.device("cuda", local))
{ADD_UP}"""

IN_THE_SCRIPT = f"""
import json, os, sys
import torch, torch.distributed as dist
import mingled.torch
cfg = mingled.torch.init_process_group("nccl", job=sys.argv[1], world_size=int(sys.argv[2]))
local = cfg.local_rank
torch.cuda.set_device(local)
{ADD_UP}"""


@pytest.fixture
def gpus() -> int:
    """How many there are. Skips without any, and says why."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    import torch

    count = int(torch.cuda.device_count())
    if count == 0:
        pytest.skip(f"no GPU here that torch {torch.__version__} can use")
    if not torch.distributed.is_nccl_available():
        pytest.skip(f"torch {torch.__version__} was built without NCCL")
    return count


def added_up(outs: Iterable[str], count: int) -> None:
    lines = [line for out in outs for line in out.splitlines() if line.startswith("{")]
    told: list[dict[str, Any]] = sorted(
        (json.loads(line) for line in lines), key=lambda w: w["rank"]
    )
    assert [(one["rank"], one["gpu"]) for one in told] == [(n, n) for n in range(count)]
    total = count * (count + 1) / 2
    wanted = {(count, total, "nccl", "=lo")}
    assert {(w["size"], w["sum"], w["backend"], w["interface"]) for w in told} == wanted


def test_torchrun_under_mingle_wait(gpus: int, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(WORKER)
    ours = (sys.executable, "-m", "mingled.cli.wait", "--job", JOB, "--nnodes", "1", "--")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "gpu")
    done = subprocess.run(
        [*ours, *torchrun, str(script)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    added_up([done.stdout], gpus)


def test_one_process_a_gpu_from_within_the_script(gpus: int) -> None:
    words = [sys.executable, "-c", IN_THE_SCRIPT, JOB, str(gpus)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True) for _ in range(gpus)]
    outs = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        outs.append(out)
    added_up(outs, gpus)
