"""Models and inputs that many tests go through."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.convnet import ConvNet
from models.resmlp import ResMLP
from models.transformer import Transformer


class Oddity(nn.Module):
    """Tied weights, an unused and a frozen parameter, expansion, in-place activation, views."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.randn(8), requires_grad=False)
        self.log_scale = nn.Parameter(torch.zeros(8))
        self.mix = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        batch, time = tokens.shape
        h = self.embedding(tokens) + self.cls.expand(batch, time, 8)  # (B, T, 8)
        with torch.no_grad():
            rotation = torch.arange(time)[:, None] * self.frozen
        h = self.mix(h) * self.log_scale.exp() + rotation
        h = self.act(self.norm(h))
        return {"hidden": h, "logits": self.head(h)}


class Writes(nn.Module):
    """Assigns to slices of a buffer of its own, as many models do."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 3)
        self.shift = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(x.shape[0], 2, 3, dtype=x.dtype)
        y[:, 0] = self.left(x)
        y[:, 1] = x[:, :3].tanh() * self.shift
        return y.view(-1, 6).mul_(2.0)


class DataDependent(nn.Module):
    """Branches on data, which does not export."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.second = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        if h.sum() > 1e9:
            return h
        return self.second(h)


def tokens(examples: int = 6, time: int = 8, vocabulary: int = 17) -> Tensor:
    """Seeded token ids."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocabulary, (examples, time), generator=generator)


def features(*shape: int) -> Tensor:
    """Seeded normal inputs."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _transformer(norm: Any, tied: bool = False) -> Callable[[], tuple[nn.Module, Tensor]]:
    def make() -> tuple[nn.Module, Tensor]:
        model = Transformer(vocab=17, width=16, depth=2, heads=2, context=8, norm=norm, tied=tied)
        return model, tokens()

    return make


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (nn.Linear(5, 3), features(7, 5)),
    "mlp": lambda: (
        nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)),
        features(7, 5),
    ),
    "resmlp": lambda: (ResMLP(in_features=12, out_features=5, width=16, depth=3), features(9, 12)),
    "pre-norm": _transformer("pre"),
    "post-norm": _transformer("post"),
    "post-pre-residual": _transformer("post-pre-residual"),
    "tied": _transformer("pre", tied=True),
    "convnet": lambda: (ConvNet(), features(5, 3, 16, 16)),
    "oddity": lambda: (Oddity(), tokens(6, 5, 11)),
    "writes": lambda: (Writes(), features(5, 4)),
}


def slow(*values: Any) -> Any:
    """Values of a test that runs with the slow ones."""
    return pytest.param(*values, marks=pytest.mark.slow)


# For tests in which each norm takes seconds.
NORMS_SLOW = [
    slow(name) if name in ("post-norm", "post-pre-residual", "tied") else name for name in CASES
]


def make(name: str) -> tuple[nn.Module, Tensor]:
    """A case by name, seeded."""
    torch.manual_seed(0)
    return CASES[name]()


def random_updates(model: nn.Module) -> dict[str, Tensor]:
    """A seeded normal update for each trainable parameter."""
    generator = torch.Generator().manual_seed(2)
    return {
        name: torch.randn(
            p.shape, generator=generator, dtype=p.dtype if p.is_complex() else None
        ).to(p)
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def target_for(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        output = copy.deepcopy(model)(inputs)
    logits = output["logits"] if isinstance(output, dict) else output
    generator = torch.Generator().manual_seed(3)
    return torch.randint(logits.shape[-1], logits.shape[:-1], generator=generator)
