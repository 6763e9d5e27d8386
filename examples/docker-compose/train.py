"""A digit classifier with DistributedDataParallel, in a container.

Nothing in it knows about Docker or mingled: torchrun sets `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and
`MASTER_PORT`. Rank 0 prints.
"""

import argparse
import os
import socket

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument(
        "--batch-size", type=int, default=96, help="images a step, of all containers"
    )
    options = parser.parse_args()

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    say(f"{size} processes, rank 0 is {socket.gethostname()} ({os.environ['MASTER_ADDR']})")

    torch.manual_seed(1)
    images, held_out = digits()
    sampler = DistributedSampler(images, seed=1)
    loader = DataLoader(images, max(1, options.batch_size // size), sampler=sampler)
    model = DistributedDataParallel(network().to(device))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(1, options.epochs + 1):
        sampler.set_epoch(epoch)
        total = torch.zeros(2, device=device)  # the sum of losses, and of how many images
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()  # averages the gradients of all ranks
            optimizer.step()
            total += torch.tensor([loss.item() * len(y), len(y)], device=device)
        dist.all_reduce(total)
        say(f"epoch {epoch:2d}/{options.epochs}  loss {total[0] / total[1]:.4f}")

    x, y = held_out[rank::size]  # each image is some rank's, once
    with torch.no_grad():
        hits = (model.module(x.to(device)).argmax(1) == y.to(device)).sum()
    dist.all_reduce(hits)
    say(f"test accuracy {hits.item() / len(held_out):.1%}")
    dist.barrier()  # nobody closes connections that another one still uses
    dist.destroy_process_group()


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def digits() -> tuple[TensorDataset, TensorDataset]:
    """scikit-learn's 1797 scans of 8x8 pixels; every fifth is held out."""
    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(bunch.target)
    held_out = torch.arange(len(y)) % 5 == 0
    return TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


def say(line: str) -> None:
    if dist.get_rank() == 0:
        print(line, flush=True)


if __name__ == "__main__":
    main()
