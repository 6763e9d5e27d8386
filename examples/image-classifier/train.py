"""An image classifier that survives the loss of a machine: DDP, TensorBoard, checkpoints.

An ordinary script for torchrun, which sets `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and
`MASTER_PORT`. After each epoch every node keeps a checkpoint on its own disk, in
`checkpoints/latest.pt`; at a start the newest of all goes to everybody. So it does not matter which
node was lost, and no shared folder is needed (but one may be used: `--out`). Rank 0 writes
TensorBoard's files to `runs`.
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
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torch.utils.tensorboard import SummaryWriter


def main() -> None:
    options = arguments()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(options.seed)
    images, held_out = digits()
    sampler = DistributedSampler(images, seed=options.seed)
    loader = DataLoader(images, max(1, options.batch_size // size), sampler=sampler)
    model = network().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    path = options.out / "checkpoints" / "latest.pt"
    epoch, step = resume(path, model, optimizer)
    ddp = DistributedDataParallel(model)
    # What was logged beyond the checkpoint is done again: TensorBoard is to forget the first time.
    writer = SummaryWriter(options.out / "runs", purge_step=step + 1) if rank == 0 else None

    while epoch < options.epochs:
        sampler.set_epoch(epoch)  # another order in each epoch, the same in a repeated one
        ddp.train()
        total = torch.zeros(2, device=device)  # the sum of losses, and of how many images
        for x, y in loader:
            loss = nn.functional.cross_entropy(ddp(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()  # averages the gradients of all ranks
            optimizer.step()
            step += 1
            total += torch.tensor([loss.item() * len(y), len(y)], device=device)
            if writer:
                writer.add_scalar("loss/step", loss.item(), step)
        epoch += 1
        dist.all_reduce(total)
        right = accuracy(model, held_out, device)
        if writer:
            writer.add_scalar("loss/epoch", total[0] / total[1], step)
            writer.add_scalar("accuracy", right, step)
            writer.flush()
        if os.environ["LOCAL_RANK"] == "0":
            save(path, epoch, step, model, optimizer)
        dist.barrier()  # every node has this epoch's, before anybody begins the next
        say(f"epoch {epoch:2d}/{options.epochs}  step {step}  loss {total[0] / total[1]:.4f}")

    say(f"test accuracy {accuracy(model, held_out, device):.1%}")
    if writer:
        writer.close()
    dist.barrier()  # nobody closes connections that another one still uses
    dist.destroy_process_group()


def resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Load the newest checkpoint that any node has, on all of them; its epoch and step."""
    mine = {"step": 0, "epoch": 0}
    if path.exists():
        mine = torch.load(path, map_location="cpu", weights_only=True)
    steps = [0] * dist.get_world_size()
    dist.all_gather_object(steps, mine["step"])
    newest = max(range(len(steps)), key=steps.__getitem__)
    shared = [mine | {"host": socket.gethostname()} if dist.get_rank() == newest else None]
    dist.broadcast_object_list(shared, src=newest)
    (state,) = shared
    if state["step"] == 0:
        say(f"starts anew with {len(steps)} processes")
        return 0, 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    where = f"after epoch {state['epoch']}, step {state['step']}, kept by {state['host']}"
    say(f"resumes with {len(steps)} processes {where}")
    return state["epoch"], state["step"]


def save(path: Path, epoch: int, step: int, model: nn.Module, optimizer: torch.optim.Optimizer):
    """In one piece or not at all: a node may die at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{socket.gethostname()}")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({"epoch": epoch, "step": step, **state}, new)
    new.replace(path)


@torch.no_grad()
def accuracy(model: nn.Module, images: TensorDataset, device: torch.device) -> float:
    """Of all held-out images, each counted once: this rank takes every size-th."""
    model.eval()
    x, y = images[dist.get_rank() :: dist.get_world_size()]
    hits = (model(x.to(device)).argmax(1) == y.to(device)).sum()
    dist.all_reduce(hits)
    return hits.item() / len(images)


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3)),
        *(nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def digits() -> tuple[TensorDataset, TensorDataset]:
    """scikit-learn's 1797 scans of 8x8 pixels; every fifth is held out. Yours go here."""
    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(bunch.target)
    held_out = torch.arange(len(y)) % 5 == 0
    return TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


def say(line: str) -> None:
    if dist.get_rank() == 0:
        print(line, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train an image classifier on several machines.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=96, help="images a step, of all ranks")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(), help="for checkpoints and runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
