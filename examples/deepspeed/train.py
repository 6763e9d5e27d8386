"""A digit classifier with DeepSpeed, whose ZeRO shards the optimizer's state over the ranks.

torchrun sets `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`, and
`deepspeed.init_distributed` reads them, as `torch.distributed` does.
"""

import argparse
import os

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=96, help="images a step, of all ranks")
    parser.add_argument("--local_rank", type=int, help="from DeepSpeed's own launcher; unused")
    options = parser.parse_args()

    gpus = get_accelerator().device_name() == "cuda"
    if gpus:
        get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    else:  # what CPUs of one machine share would be compiled now, for a minute; nodes share none
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if gpus else "gloo", verbose=False)
    size = dist.get_world_size()
    torch.manual_seed(1)
    images, held_out = digits()
    per_rank = max(1, options.batch_size // size)
    model = network()
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        # torch's own optimizer: DeepSpeed's are compiled at first use, and that needs CUDA.
        optimizer=torch.optim.Adam(model.parameters(), lr=2e-3),
        config={
            "train_micro_batch_size_per_gpu": per_rank,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": 1},
            "zero_allow_untested_optimizer": True,
        },
    )
    say(f"{size} processes on {engine.device}, ZeRO stage {engine.zero_optimization_stage()}")
    sampler = DistributedSampler(images, seed=1)
    loader = DataLoader(images, per_rank, sampler=sampler)
    for epoch in range(1, options.epochs + 1):
        sampler.set_epoch(epoch)
        total = torch.zeros(2, device=engine.device)  # the sum of losses, and of how many images
        for x, y in loader:
            loss = nn.functional.cross_entropy(engine(x.to(engine.device)), y.to(engine.device))
            engine.backward(loss)
            engine.step()
            total += torch.tensor([loss.item() * len(y), len(y)], device=engine.device)
        dist.all_reduce(total)
        say(f"epoch {epoch:2d}/{options.epochs}  loss {total[0] / total[1]:.4f}")

    x, y = held_out[dist.get_rank() :: size]  # each image is some rank's, once
    with torch.no_grad():
        hits = (engine(x.to(engine.device)).argmax(1) == y.to(engine.device)).sum()
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
