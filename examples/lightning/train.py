"""A digit classifier with Lightning, on the nodes that torchrun says.

torchrun starts every process and tells it its rank; Lightning notices that by itself
(`TorchElasticEnvironment`) and starts none. It only wants to hear again how many nodes and how many
processes on each there are, and refuses to go on where that is not what torchrun says.
"""

import argparse
import os

import lightning
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=96, help="images a step, of all ranks")
    options = parser.parse_args()
    nodes, processes = int(os.environ["GROUP_WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])

    lightning.seed_everything(1, verbose=False)
    images, held_out = digits()
    per_rank = max(1, options.batch_size // (nodes * processes))
    trainer = lightning.Trainer(
        num_nodes=nodes,
        devices=processes,
        strategy="ddp",
        max_epochs=options.epochs,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
    )
    model = Classifier()
    # Lightning gives each rank its share, and shuffles anew in each epoch.
    trainer.fit(model, DataLoader(images, per_rank, shuffle=True))
    # Where shares are uneven a held-out image or two counts twice: `test` warns of it.
    trainer.test(model, DataLoader(held_out, 120), verbose=False)
    if trainer.is_global_zero:
        print(f"test accuracy {trainer.callback_metrics['accuracy']:.1%}", flush=True)
    dist.barrier()  # nobody closes connections that another one still uses
    dist.destroy_process_group()


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
        )

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        x, y = batch
        loss = functional.cross_entropy(self.network(x), y)
        # The mean over the epoch's steps and over all ranks.
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        if self.trainer.is_global_zero:
            epoch, epochs = self.current_epoch + 1, self.trainer.max_epochs
            loss = self.trainer.callback_metrics["loss"]
            print(f"epoch {epoch:2d}/{epochs}  loss {loss:.4f}", flush=True)

    def test_step(self, batch: list[torch.Tensor]) -> None:
        x, y = batch
        right = (self.network(x).argmax(1) == y).float().mean()
        self.log("accuracy", right, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """scikit-learn's 1797 scans of 8x8 pixels; every fifth is held out."""
    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(bunch.target)
    held_out = torch.arange(len(y)) % 5 == 0
    return TensorDataset(x[~held_out], y[~held_out]), TensorDataset(x[held_out], y[held_out])


if __name__ == "__main__":
    main()
