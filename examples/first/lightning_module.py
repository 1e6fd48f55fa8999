"""Lightning: two callbacks; the optimizer and its schedule are those of the module.

python examples/first/lightning_module.py
"""

import argparse
import pathlib
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flerm_fx import BaseProfile
from flerm_fx.integrations.lightning import MatchCallback, RecordCallback

CONTEXT = 8


class NextByte(L.LightningModule):
    """Guesses a byte of text from the eight before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 16)
        self.layers = nn.Sequential(
            nn.Linear(16 * CONTEXT, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 256),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of shape (B, 256)."""
        logits: torch.Tensor = self.layers(self.embedding(tokens).flatten(1))
        return logits

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        """Nats per byte."""
        tokens, following = batch
        loss = nn.functional.cross_entropy(self(tokens), following)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Adam, at a rate that falls along a cosine from the best of the narrow model."""
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return [optimizer], [{"scheduler": cosine, "interval": "step"}]


def main(folder: str = "example-out", steps: int = 200) -> float:
    """Returns the wide model's last loss."""
    text = torch.tensor(list(pathlib.Path(argparse.__file__).read_bytes()))
    windows = text.unfold(0, CONTEXT + 1, 1)
    data = TensorDataset(windows[:, :CONTEXT], windows[:, CONTEXT])
    loader = DataLoader(data, batch_size=64, shuffle=True)

    def fit(width: int, callback: L.Callback) -> float:
        L.seed_everything(0, verbose=False)
        trainer = L.Trainer(
            max_epochs=1,
            max_steps=steps,
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
        )
        trainer.fit(NextByte(width), loader)
        return float(trainer.callback_metrics["loss"])

    path = f"{folder}/base.safetensors"
    fit(32, RecordCallback(path=path))
    return fit(512, MatchCallback(BaseProfile.load(path)))


if __name__ == "__main__":
    print(f"loss {main():.2f} nats per byte, at the narrow model's learning rate")
