"""Lightning: record a small transformer on real text, then train a wider one matched to it.

python -m examples.lightning_trainer --steps 60
"""

import argparse
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

import flerm_fx
from examples.corpus import BATCH, CONTEXT, batches, corpus
from flerm_fx.commands.demo.language_model import build_language_model
from flerm_fx.integrations.lightning import MatchCallback, RecordCallback

EVERY = 20


class LanguageModel(L.LightningModule):
    """Bytes to logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = build_language_model(width, depth=2, context=CONTEXT, norm="pre", seed=width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of shape (B, T, 256)."""
        logits: Tensor = self.net(tokens)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Nats per byte."""
        tokens, following = batch
        loss = nn.functional.cross_entropy(self(tokens).flatten(0, 1), following.flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """Adam with a one-cycle schedule, which sets its own rates at every step."""
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps + 1)
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]


def main(arguments: list[str] | None = None) -> tuple[float, MatchCallback]:
    """Returns the large model's last loss, and its callback."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path("example-out"))
    parser.add_argument("--resume", type=Path, help="a checkpoint of the large model")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "lightning.safetensors"
    text = corpus()
    data = [row for x, y in batches(text, options.steps) for row in zip(x, y, strict=True)]

    def train(width: int, callback: L.Callback, resume: Path | None = None) -> float:
        trainer = L.Trainer(
            max_steps=options.steps,
            accelerator="auto",
            callbacks=[callback, ModelCheckpoint(every_n_train_steps=EVERY, save_top_k=-1)],
            logger=False,
            default_root_dir=options.folder / f"width-{width}",
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader: Any = torch.utils.data.DataLoader(data, batch_size=BATCH)  # type: ignore[arg-type]
        trainer.fit(LanguageModel(width), loader, ckpt_path=resume)
        return float(trainer.callback_metrics["loss"])

    if options.resume is None:
        train(32, RecordCallback(path=path, every=EVERY))
    matched = MatchCallback(flerm_fx.BaseProfile.load(path), every=EVERY)
    loss = train(128, matched, options.resume)
    multipliers = matched.matcher.multipliers.values()
    print(f"loss {loss:.3f}; multipliers {min(multipliers):.3g} to {max(multipliers):.3g}")
    return loss, matched


if __name__ == "__main__":
    main()
