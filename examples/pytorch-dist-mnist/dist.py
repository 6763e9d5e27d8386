"""MNIST with DistributedDataParallel, on one machine or many, by `python dist.py`.

Who the others are is taken from the first of these that is there:

1. `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`: torchrun or mingle-wait has started us.
2. `SING_RANK`, `SING_WORLD_SIZE` and `SING_MASTER_ADDR`, or `SING_JOB_NAME` and
   `SING_HOSTNAME_SUFFIX`, from which rank 0's name follows: a scheduler has.
3. A job's name and size (`--job`, `--world-size`, or `SING_*`): mingled finds the others.
4. Nothing: train alone, and say so.

Images: the IDX files of MNIST in `--data` (or `MNIST_DIR`), gzipped or not; without, the 1797
digits that come with scikit-learn. Nothing is downloaded.
"""

import argparse
import gzip
import logging
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

PORT = "29500"  # of rank 0's store, where whoever starts us names its address only


def main() -> None:
    options = arguments()
    source = find_the_others(options.job, options.world_size)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank_0 = os.environ["MASTER_ADDR"]
    say(f"{dist.get_world_size()} processes, found by {source}; rank 0 is at {rank_0}")

    begin = time.monotonic()
    train_set, test_set = mnist(options.data) if options.data else digits()
    say(f"{len(train_set)} images to train on, {len(test_set)} to test, {device.type}")
    model = train(train_set, options, device)
    say(f"test accuracy {accuracy(model, test_set, device):.1%}")
    say(f"done after {time.monotonic() - begin:.0f} s")
    dist.barrier()  # nobody closes connections that another one still uses
    dist.destroy_process_group()


def find_the_others(job: str | None, size: int | None) -> str:
    """Have `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` set; returns who knew them."""
    env = os.environ
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        return "the launcher's variables"
    job = job or env.get("SING_JOB_NAME")
    size = size or int(env.get("SING_WORLD_SIZE", "0"))
    rank = int(env["SING_RANK"]) if "SING_RANK" in env else None
    master = env.get("SING_MASTER_ADDR")
    if not master and job and env.get("SING_HOSTNAME_SUFFIX"):
        master = f"{job}-0.{env['SING_HOSTNAME_SUFFIX']}"
    if master and size and rank is not None:
        env.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR=master)
        env.setdefault("MASTER_PORT", PORT)
        return "SING_*"
    if job:
        if not size:
            sys.exit(f"job {job}: how many processes? Add --world-size N, or set SING_WORLD_SIZE")
        import mingled

        logging.basicConfig(level="INFO", format="%(message)s")  # who is here, who is missing
        mingled.join(job, world_size=size, rank=rank).apply()
        return f"mingled, job {job}"
    env.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    return "nobody (no job is named: alone)"


def train(images: TensorDataset, options: argparse.Namespace, device: torch.device) -> nn.Module:
    """Every rank on its share of each epoch; all end with the same weights."""
    torch.manual_seed(options.seed)
    model = DistributedDataParallel(network(images.tensors[0].shape[-1]).to(device))
    sampler = DistributedSampler(images, seed=options.seed)
    per_rank = max(1, options.batch_size // dist.get_world_size())
    loader = DataLoader(images, per_rank, sampler=sampler)
    # MNIST is large enough for three epochs; the digits are a fortieth of it.
    epochs = options.epochs or (3 if len(images) > 10_000 else 12)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-2, total_steps=epochs * len(loader)
    )
    for epoch in range(1, epochs + 1):
        sampler.set_epoch(epoch)
        total = torch.zeros(2, device=device)  # the sum of losses, and of how many images
        for x, y in loader:
            loss = functional.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()  # averages the gradients of all ranks
            optimizer.step()
            schedule.step()
            total += torch.tensor([loss.item() * len(y), len(y)], device=device)
        dist.all_reduce(total)
        say(f"epoch {epoch:2d}/{epochs}  loss {total[0] / total[1]:.4f}")
    return model.module


@torch.no_grad()
def accuracy(model: nn.Module, images: TensorDataset, device: torch.device) -> float:
    """Of all test images, each counted once: rank r takes every size-th from the r-th on."""
    model.eval()
    mine = torch.arange(dist.get_rank(), len(images), dist.get_world_size())
    hits = torch.zeros(1, device=device)
    for part in mine.split(1000):
        x, y = images[part]
        hits += (model(x.to(device)).argmax(1) == y.to(device)).sum()
    dist.all_reduce(hits)
    return hits.item() / len(images)


def network(side: int) -> nn.Module:
    """Two convolutions, for square grey images of `side` pixels."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(32 * (side // 4) ** 2, 64)),
        *(nn.ReLU(), nn.Linear(64, 10)),
    )


def mnist(folder: Path) -> tuple[TensorDataset, TensorDataset]:
    """The four IDX files of MNIST, or of a data set in its form, such as Fashion-MNIST."""
    sets = []
    for part in ("train", "t10k"):
        images, labels = idx(folder, f"{part}-images", 3), idx(folder, f"{part}-labels", 1)
        x = torch.from_numpy(images).unsqueeze(1).float() / 255
        sets.append(TensorDataset(x, torch.from_numpy(labels).long()))
    return sets[0], sets[1]


def idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """One IDX file: two zeros, 8 for bytes, the number of dimensions; each size as four bytes, the
    highest first; then the bytes. Both `-idx3-ubyte` and `.idx3-ubyte` are about, `.gz` or not."""
    found = sorted(folder.glob(f"{name}[-.]idx{dimensions}-ubyte*"))
    if not found:
        sys.exit(f"{folder} has no {name}-idx{dimensions}-ubyte, gzipped or not: is it MNIST?")
    raw = found[0].read_bytes()
    data = gzip.decompress(raw) if found[0].suffix == ".gz" else raw
    shape = np.frombuffer(data[4 : 4 + 4 * dimensions], ">u4")
    pixels = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).copy()
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(pixels) != shape.prod():
        sys.exit(f"{found[0]} is no IDX file of {dimensions} dimensions, or is cut off")
    return pixels.reshape(shape)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """scikit-learn's 8x8 digits; every fifth is held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(bunch.target)
    held_out = torch.arange(len(y)) % 5 == 0
    return TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


def say(line: str) -> None:
    if dist.get_rank() == 0:
        print(line, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train on MNIST, on one machine or many.")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("MNIST_DIR"), help="folder of MNIST's IDX files"
    )
    parser.add_argument("--job", help="let mingled find the others of this job")
    parser.add_argument("--world-size", type=int, metavar="N", help="how many they are")
    parser.add_argument("--epochs", type=int, help="default: 3 for MNIST, 12 for the digits")
    parser.add_argument("--batch-size", type=int, default=128, help="images a step, of all ranks")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
