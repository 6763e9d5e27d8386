"""A tiny model over gloo that goes on where the last checkpoint ends. Started by torchrun, with the
folder of the checkpoint as argument.

Every rank says in one line what it has done, and goes on until the file `enough` is in the folder.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

PAUSE_S = 0.05
"""Between two steps: two cores are shared by everybody."""


def main() -> None:
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    step = _load(folder, model)
    begun = step
    _say(f"begins at {begun}, rank {rank} of {size} at {os.environ['MASTER_ADDR']}")
    while True:
        goes_on = torch.tensor([int(not (folder / "enough").exists())])
        dist.broadcast(goes_on, 0)
        if not goes_on.item():
            break
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        step += 1
        dist.barrier()
        if rank == 0:
            _save(folder, model, step)
        dist.barrier()
        _say(f"did {step}")
        time.sleep(PAUSE_S)
    _say(f"ends at {step}, begun at {begun}")
    dist.barrier()
    os._exit(0)  # what gloo takes down at the end sometimes aborts the process


def _load(folder: Path, model: torch.nn.Module) -> int:
    """The step of the last checkpoint; the same on every rank, as rank 0 has it."""
    path = folder / "checkpoint.pt"
    step = torch.zeros(1, dtype=torch.int64)
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        step[0] = saved["step"]
    dist.broadcast(step, 0)
    return int(step.item())


def _save(folder: Path, model: torch.nn.Module, step: int) -> None:
    new = folder / "checkpoint.new"
    torch.save({"step": step, "model": model.state_dict()}, new)
    new.replace(folder / "checkpoint.pt")


def _say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


if __name__ == "__main__":
    main()
