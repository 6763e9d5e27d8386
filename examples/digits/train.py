"""Train a digit classifier with DistributedDataParallel: the script that `mingle demo` runs.

It is an ordinary PyTorch script: nothing in it knows about mingled. Whoever starts it puts five
variables into the environment (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`, `MASTER_PORT`),
and `init_process_group` reads them. On every machine of a LAN, with no address typed:

    mingle-wait --job digits --nnodes 3 -- torchrun train.py          # one launcher a node
    mingle-wait --job digits --world-size 3 -- python train.py    # one process a node

The data are scikit-learn's handwritten digits (1797 real 8x8 scans, part of the package, so
nothing is downloaded). One fifth is held out before training and only ever used for the accuracy.
Rank 0 alone writes: lines for people, and as the last one a JSON object (`"event": "timing"`)
with durations in seconds and wall-clock times in seconds since 1970.
"""

import time

# Taken before any slow import, so that the difference to a launcher's clock is the launch itself.
STARTED_AT = time.time()

import argparse  # noqa: E402 (the clock comes first)
import json  # noqa: E402
import os  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from datetime import timedelta  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    import torch
    from torch import nn

HELD_OUT_FRACTION = 0.2
# Long enough for a slow peer to import torch, short enough that a lost one is noticed.
PROCESS_GROUP_TIMEOUT = timedelta(minutes=2)


@dataclass(frozen=True)
class Settings:
    """What the command line decides. `batch_size` is the global one, shared by all ranks."""

    epochs: int
    batch_size: int
    lr: float
    seed: int
    threads: int


@dataclass(frozen=True)
class Digits:
    """Images as floats in [0, 1] of shape (n, 1, 8, 8); labels as integers of shape (n,)."""

    train_images: "torch.Tensor"
    train_labels: "torch.Tensor"
    test_images: "torch.Tensor"
    test_labels: "torch.Tensor"


def main(argv: list[str] | None = None) -> None:
    """Join the process group, train, evaluate, and let rank 0 report."""
    settings = parse_arguments(argv)
    rank, world_size = ranks_from_environment()
    report: dict[str, Any] = {"event": "timing", "rank": rank, "world_size": world_size}

    # 1. Importing torch takes longer than finding the other machines; hence it is measured too.
    with stopwatch(report, "import_torch_s"):
        import torch
        import torch.distributed as dist
    torch.set_num_threads(settings.threads)

    # 2. Meet the other processes. The address, port, rank and size come from the environment.
    with stopwatch(report, "init_process_group_s"):
        dist.init_process_group("gloo", timeout=PROCESS_GROUP_TIMEOUT)
    report["group_ready_at"] = time.time()
    say(rank, f"rank 0 is {socket.gethostname()}, world size {world_size}, store at {store()}")

    # 3. Every rank loads the same data, and sees its own share of them in each epoch.
    with stopwatch(report, "load_data_s"):
        digits = load_digits(settings.seed)
    say(
        rank,
        f"{len(digits.train_labels)} images to train on, "
        f"{len(digits.test_labels)} held out, {world_size} x {settings.threads} threads",
    )

    # 4. Train together, 5. then ask how well it went on the images that nobody has trained on.
    with stopwatch(report, "training_s"):
        model, loss = train(digits, settings, rank, world_size)
    with stopwatch(report, "evaluation_s"):
        accuracy = evaluate(model, digits, rank, world_size)
    say(rank, f"test accuracy {accuracy:.1%} on {len(digits.test_labels)} held-out images")

    report |= {
        "accuracy": accuracy,
        "loss": loss,
        "epochs": settings.epochs,
        "test_images": len(digits.test_labels),
        "master_addr": os.environ["MASTER_ADDR"],
        "master_port": int(os.environ["MASTER_PORT"]),
        "started_at": STARTED_AT,
        "ended_at": time.time(),
    }
    say(rank, json.dumps(report))

    # 6. Part in peace. Gloo's threads may still hold a tensor of the last all_reduce; if the
    # interpreter ends first, torch aborts the process (pytorch issue 190489). Waiting for the
    # others at a barrier gives them the time, also where DDP keeps the group's threads alive.
    dist.barrier()
    dist.destroy_process_group()


def train(
    digits: Digits, settings: Settings, rank: int, world_size: int
) -> tuple["nn.Module", float]:
    """Train on this rank's shares; the trained model and the last epoch's mean loss.

    Every rank returns the same weights: DDP averages the gradients of all ranks in each step.
    """
    import torch
    from torch.nn import functional
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

    # The same seed everywhere. (DDP would copy rank 0's initial weights to all ranks anyway.)
    torch.manual_seed(settings.seed)
    model = DistributedDataParallel(small_cnn())
    dataset = TensorDataset(digits.train_images, digits.train_labels)
    # Shuffled alike on all ranks, from which each takes every world_size-th image.
    sampler = DistributedSampler(dataset, world_size, rank, shuffle=True, seed=settings.seed)
    # A step sees batch_size images in all, so the result hardly depends on how many ranks help.
    loader = DataLoader(dataset, max(1, settings.batch_size // world_size), sampler=sampler)
    # The learning rate rises to `lr`, then falls to nearly nothing: twelve epochs are enough then.
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=settings.epochs * len(loader)
    )

    lines_wanted = 6
    mean_loss = float("nan")
    for epoch in range(1, settings.epochs + 1):
        sampler.set_epoch(epoch)  # Without this, each epoch would repeat the same order.
        totals = torch.zeros(2)  # The sum of this rank's losses, and how many images they are of.
        for images, labels in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images), labels)
            loss.backward()  # Gradients are averaged over all ranks while this runs.
            optimizer.step()
            schedule.step()
            totals += torch.tensor([loss.item() * len(labels), len(labels)])
        mean_loss = mean_over_ranks(totals)
        if epoch in (1, settings.epochs) or epoch % max(1, settings.epochs // lines_wanted) == 0:
            say(rank, f"epoch {epoch:3d}/{settings.epochs}  loss {mean_loss:.4f}")
    return model.module, mean_loss


def evaluate(model: "nn.Module", digits: Digits, rank: int, world_size: int) -> float:
    """The fraction of held-out images that are classified rightly, each counted exactly once."""
    import torch

    # No DistributedSampler here: it repeats images to make the shares equal, and would count
    # those twice. A plain stride leaves some ranks one image short instead, which is harmless.
    images, labels = digits.test_images[rank::world_size], digits.test_labels[rank::world_size]
    model.eval()
    with torch.no_grad():
        hits = (model(images).argmax(dim=1) == labels).sum().item()
    return mean_over_ranks(torch.tensor([hits, len(labels)], dtype=torch.float64))


def mean_over_ranks(sum_and_count: "torch.Tensor") -> float:
    """All ranks' sums over all ranks' counts; every rank must call it, and gets the same."""
    import torch.distributed as dist

    dist.all_reduce(sum_and_count)
    return float(sum_and_count[0] / sum_and_count[1])


def small_cnn() -> "nn.Module":
    """Two convolutions and two linear layers: about 38,000 weights, enough for 8x8 pixels."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),  # 8x8 -> 4x4
        nn.Flatten(),
        nn.Dropout(0.4),  # 1438 images are few: without it, a point of accuracy is lost.
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def load_digits(seed: int) -> Digits:
    """scikit-learn's digits, shuffled with `seed` (alike on every rank) and split 80 / 20."""
    import torch
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16  # pixels: 0 to 16
    labels = torch.tensor(bunch.target, dtype=torch.int64)

    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held_out = round(len(labels) * HELD_OUT_FRACTION)
    test, rest = order[:held_out], order[held_out:]
    return Digits(images[rest], labels[rest], images[test], labels[test])


def ranks_from_environment() -> tuple[int, int]:
    """`RANK` and `WORLD_SIZE`; ends the process with what to type when they are not set."""
    # Training alone by accident is worse than stopping: it looks like success.
    missing = [
        name
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if name not in os.environ
    ]
    if missing:
        sys.exit(
            f"{', '.join(missing)} not set: start this script through a launcher, e.g. "
            "`mingle-wait --job digits --nnodes 2 -- torchrun train.py` on two machines, "
            "or `torchrun --standalone train.py` on this one"
        )
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def store() -> str:
    """Where the ranks meet, as it was handed to us: MASTER_ADDR:MASTER_PORT."""
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def say(rank: int, line: str) -> None:
    """Print on rank 0 only, at once even into a pipe."""
    if rank == 0:
        print(line, flush=True)


@contextmanager
def stopwatch(report: dict[str, Any], name: str) -> Iterator[None]:
    """Put the seconds that the block took into `report[name]`."""
    begin = time.perf_counter()
    yield
    report[name] = round(time.perf_counter() - begin, 4)


def parse_arguments(argv: list[str] | None) -> Settings:
    """The command line as `Settings`."""
    parser = argparse.ArgumentParser(description="Train a digit classifier with DDP over gloo.")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64, help="images a step, of all ranks")
    parser.add_argument("--lr", type=float, default=1e-2, help="the highest rate of the schedule")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--threads", type=int, default=1, help="a process; more only hurts where ranks share cores"
    )
    return Settings(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
