"""What laws are fitted to in tests, small enough to be measured in milliseconds."""

import torch
from torch import Tensor, nn


class Blocks(nn.Module):
    """A residual network."""

    def __init__(self, width: int = 8, depth: int = 2, features: int = 4) -> None:
        super().__init__()
        self.inner = nn.Linear(features, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.out(x)
