"""An autoencoder as a LightningModule, on handwritten digits."""

import logging
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
Batches = DataLoader[tuple[Tensor, ...]]


class LitAutoEncoder(lightning.LightningModule):
    """Squeezes an image of 64 pixels through eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 64) to their reconstructions."""
        image: Tensor = self.decoder(self.encoder(x))
        return image

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return F.mse_loss(self(batch[0]), batch[0])

    def test_step(self, batch: tuple[Tensor], batch_idx: int) -> None:
        """Log the loss of a batch."""
        self.log("test_loss", F.mse_loss(self(batch[0]), batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def load_data(partition_id: int, num_partitions: int) -> tuple[Batches, Batches]:
    """This client's digits: batches to train on and to test on."""
    images = torch.tensor(load_digits().data, dtype=torch.float32)[partition_id::num_partitions]
    train, test = (TensorDataset(part) for part in (images[:-40] / 16, images[-40:] / 16))
    return DataLoader(train, batch_size=32, shuffle=True), DataLoader(test, batch_size=40)


def trainer(**options: Any) -> lightning.Trainer:
    """A trainer on the CPU that writes and shows nothing."""
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
