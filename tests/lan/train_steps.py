"""A tiny model over gloo that goes on from its last checkpoint, for agents that die around it.
Started by torchrun; arguments: the folder of the checkpoint, and perhaps `bare` (a peer's death is
not held back).

Lines on stdout: `begins at STEP ...`, `did STEP at TIME` (CLOCK_MONOTONIC, which all nodes of a lab
share), `ends at STEP`. Files in the folder steer it: `enough` ends the training, after which each
host HOST waits while there is a file `linger-HOST`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from mingled.torch import hold_peer_loss

PAUSE_S = 0.05
"""Between two steps: two cores are shared by everybody."""


def main() -> None:
    folder = Path(sys.argv[1])
    held = contextlib.nullcontext() if "bare" in sys.argv[2:] else hold_peer_loss()
    with held:
        step = train(folder)
    lingers = folder / f"linger-{socket.gethostname()}"
    while lingers.exists():
        time.sleep(PAUSE_S)
    say(f"ends at {step}")
    os._exit(0)  # what gloo takes down at the end sometimes aborts the process


def train(folder: Path) -> int:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    step = load(folder, model)
    say(f"begins at {step}, rank {rank} of {size} by {os.environ['MASTER_ADDR']}")
    while True:
        goes_on = torch.tensor([int(not (folder / "enough").exists())])
        dist.broadcast(goes_on, 0)
        if not goes_on.item():
            break
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        step += 1
        if rank == 0:
            save(folder, model, step)
        dist.barrier()
        say(f"did {step} at {time.monotonic():.3f}")
        time.sleep(PAUSE_S)
    dist.barrier()
    return step


def load(folder: Path, model: torch.nn.Module) -> int:
    """The step of the last checkpoint; the same on every rank, as rank 0 has it."""
    path = folder / "checkpoint.pt"
    step = torch.zeros(1, dtype=torch.int64)
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        step[0] = saved["step"]
    dist.broadcast(step, 0)
    return int(step.item())


def save(folder: Path, model: torch.nn.Module, step: int) -> None:
    new = folder / "checkpoint.new"
    torch.save({"step": step, "model": model.state_dict()}, new)
    new.replace(folder / "checkpoint.pt")


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


if __name__ == "__main__":
    main()
