"""A digit classifier with Hugging Face's Accelerate.

`accelerate launch` or torchrun starts the processes; `Accelerator()` reads what they set, and
`prepare` gives each process its share of every batch and averages the gradients.
"""

import argparse

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=96, help="images a step, of all ranks")
    options = parser.parse_args()

    # Without a GPU it must be told so: else each process started by torchrun would train alone.
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    size = accelerator.num_processes
    say(f"{size} processes, {accelerator.distributed_type}, on {accelerator.device}")
    set_seed(1)
    images, held_out = digits()
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loader = DataLoader(images, max(1, options.batch_size // size), shuffle=True)
    model, optimizer, loader, test_loader = accelerator.prepare(
        model, optimizer, loader, DataLoader(held_out, 60)
    )
    for epoch in range(1, options.epochs + 1):
        model.train()
        losses = []
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
        mean = accelerator.reduce(torch.stack(losses).mean(), "mean")
        say(f"epoch {epoch:2d}/{options.epochs}  loss {mean.item():.4f}")

    model.eval()
    hits = []
    with torch.no_grad():
        for x, y in test_loader:
            # Without what was repeated to give every rank as much.
            guess, label = accelerator.gather_for_metrics((model(x).argmax(1), y))
            hits.append(guess == label)
    say(f"test accuracy {torch.cat(hits).float().mean().item():.1%}")
    accelerator.wait_for_everyone()  # nobody closes connections that another one still uses
    accelerator.end_training()


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
    """On rank 0 alone; `accelerator.print` does so on one process of each node."""
    if PartialState().is_main_process:
        print(line, flush=True)


if __name__ == "__main__":
    main()
