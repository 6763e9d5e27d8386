"""Training that nodes may join late, and leave for ever, under an elastic torchrun.

An ordinary script for torchrun: whenever a node comes or is lost, torchrun ends this script on all
nodes and starts it anew, with new ranks, a new world size and a new rank 0. So all there is to do
here is to keep a checkpoint every `--every` steps, and to begin with the newest. Each node keeps
its own, and at a start the newest of all nodes' goes to everybody: no folder is shared, and rank 0
may be lost like any other.

SIGTERM, by which torchrun ends it, keeps its usual meaning: a handler in Python would not be called
while the process waits for a rank that is gone.
"""

import argparse
import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    options = arguments()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(options.seed)
    images, labels, held_out_images, held_out_labels = digits(device)
    model = network().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    path = options.out / "checkpoint.pt"
    step = resume(path, model, optimizer)
    ddp = DistributedDataParallel(model)

    while step < options.steps:
        draw = torch.Generator().manual_seed(options.seed * 1_000_000 + step)
        chosen = torch.randint(len(labels), (options.batch_size,), generator=draw)[rank::size]
        loss = nn.functional.cross_entropy(ddp(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # averages the gradients of all ranks
        optimizer.step()
        step += 1

        if step % options.every == 0 or step == options.steps:
            dist.all_reduce(loss.detach())
            if os.environ["LOCAL_RANK"] == "0":
                save(path, step, model, optimizer)
            say(f"step {step}/{options.steps}  loss {loss / size:.4f}")

    with torch.no_grad():
        mine = slice(rank, None, size)  # each held-out image is some rank's, once
        hits = (model(held_out_images[mine]).argmax(1) == held_out_labels[mine]).sum()
    dist.all_reduce(hits)
    say(f"test accuracy {hits.item() / len(held_out_labels):.1%}")
    dist.barrier()  # nobody closes connections that another one still uses
    dist.destroy_process_group()


def resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the newest checkpoint that any node has, on all of them; its step."""
    mine = {"step": 0}
    if path.exists():
        mine = torch.load(path, map_location="cpu", weights_only=True)
    steps = [0] * dist.get_world_size()
    dist.all_gather_object(steps, mine["step"])
    newest = max(range(len(steps)), key=steps.__getitem__)
    shared = [mine | {"host": socket.gethostname()} if dist.get_rank() == newest else None]
    dist.broadcast_object_list(shared, src=newest)
    (state,) = shared
    if state["step"]:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    say(f"{len(steps)} processes begin at step {state['step']}, kept by {state['host']}")
    return state["step"]


def save(path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """In one piece or not at all: a node may die at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{socket.gethostname()}")
    torch.save(
        {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, new
    )
    new.replace(path)


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def digits(device: torch.device) -> tuple[torch.Tensor, ...]:
    """scikit-learn's 1797 scans of 8x8 pixels and their labels; then the same of the held-out ones,
    every fifth."""
    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32, device=device).unsqueeze(1) / 16
    y = torch.tensor(bunch.target, device=device)
    held_out = torch.arange(len(y)) % 5 == 0
    return x[~held_out], y[~held_out], x[held_out], y[held_out]


def say(line: str) -> None:
    if dist.get_rank() == 0:
        print(line, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train on nodes that come and go.")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=20, help="steps between two checkpoints")
    parser.add_argument("--batch-size", type=int, default=96, help="images a step, of all ranks")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the checkpoint")
    return parser.parse_args()


if __name__ == "__main__":
    main()
