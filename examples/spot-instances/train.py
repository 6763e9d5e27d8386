"""Training on machines that may be taken away at any moment, and may come back.

An ordinary script for torchrun. On SIGTERM, which a machine that is taken away sends to what runs
there, all ranks keep a checkpoint of the very step they have reached, and end; whoever stays goes
on from there with whoever is left. For machines that go without a word there is one every `--every`
steps. Each node keeps its own, and at a start the newest of all nodes' goes to everybody.

Step s draws the same images whatever the number of nodes is: so no step is lost or done twice, and
what is learned hardly depends on who came and went.
"""

import argparse
import os
import signal
import socket
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# A rank that waits for a machine that is gone without a word hears no SIGTERM until this is over.
PEER_TIMEOUT = timedelta(seconds=30)

told_to_end = False


def main() -> None:
    signal.signal(signal.SIGTERM, on_sigterm)
    options = arguments()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PEER_TIMEOUT)
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

        # One that is to end must not do so alone: the others would hang in the next step.
        news = torch.tensor([loss.item(), float(told_to_end)], device=device)
        dist.all_reduce(news)
        if news[1] or step % options.every == 0 or step == options.steps:
            if os.environ["LOCAL_RANK"] == "0":
                save(path, step, model, optimizer)
            say(f"step {step}/{options.steps}  loss {news[0] / size:.4f}")
        if news[1]:
            dist.barrier()
            say(f"a node is to go: kept step {step}")
            sys.exit(1)  # not 0, which would mean that the training is done

    with torch.no_grad():
        mine = slice(rank, None, size)  # each held-out image is some rank's, once
        hits = (model(held_out_images[mine]).argmax(1) == held_out_labels[mine]).sum()
    dist.all_reduce(hits)
    say(f"test accuracy {hits.item() / len(held_out_labels):.1%}")
    dist.barrier()  # nobody closes connections that another one still uses
    dist.destroy_process_group()


def on_sigterm(number: int, frame: object) -> None:
    global told_to_end
    told_to_end = True


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
    parser = argparse.ArgumentParser(description="Train on machines that come and go.")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--every", type=int, default=50, help="steps between two checkpoints")
    parser.add_argument("--batch-size", type=int, default=96, help="images a step, of all ranks")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the checkpoint")
    return parser.parse_args()


if __name__ == "__main__":
    main()
