"""Your own loop: tune nothing on the wide model, train it at the narrow one's learning rate.

python examples/first/plain_loop.py
"""

import argparse
import pathlib

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import flerm_fx

CONTEXT = 8
RATE = 1e-2  # the best of the narrow model


class NextByte(nn.Module):
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


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that the narrow model was tuned with."""
    return torch.optim.Adam(model.parameters(), lr=RATE)


def train(model: nn.Module, loader: DataLoader[tuple[torch.Tensor, ...]], steps: int) -> float:
    """An ordinary loop; returns the mean loss of its last fifth, in nats."""
    optimizer, losses = adam(model), []
    for _, (tokens, following) in zip(range(steps), loader, strict=False):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens), following)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    last = losses[-max(1, steps // 5) :]
    return sum(last) / len(last)


def main(steps: int = 300, width: int = 512) -> dict[str, float]:
    """Returns the wide model's loss, without multipliers and with them."""
    torch.manual_seed(0)
    text = torch.tensor(list(pathlib.Path(argparse.__file__).read_bytes()))
    windows = text.unfold(0, CONTEXT + 1, 1)
    data = TensorDataset(windows[:, :CONTEXT], windows[:, CONTEXT])
    loader = DataLoader(data, batch_size=64, shuffle=True)

    profile = flerm_fx.record_seeds(lambda: NextByte(32), adam, loader, seeds=2)
    compiled = flerm_fx.compile(NextByte(width), profile)

    return {
        "standard": train(NextByte(width), loader, steps),
        "compiled": train(compiled, loader, steps),
    }


if __name__ == "__main__":
    for name, loss in main().items():
        print(f"{name}: loss {loss:.2f} after 300 steps at the narrow model's learning rate")
