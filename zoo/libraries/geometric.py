"""Graph networks of ``torch_geometric``: inputs are nodes and edges, whose numbers differ."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.depth.stack import Depths, Stack
from zoo.libraries.library import ONE, module, stack

WIDTH = 8


def _graph() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 4, generator=generator), torch.randint(0, 6, (2, 14), generator=generator)


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


class Layers(nn.Module):
    """Convolutions between an entrance and a head, with norms and a shortcut if asked."""

    def __init__(
        self, conv: Callable[[Any], nn.Module], depth: int, norm: bool, residual: bool
    ) -> None:
        super().__init__()
        self.entrance, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3)
        self.convs = nn.ModuleList(conv(module("torch_geometric.nn")) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(depth if norm else 0))
        self.residual = residual

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Features of nodes, from those that they have and from which ones are joined."""
        h = self.entrance(x)
        for i, conv in enumerate(self.convs):
            new = conv(h, edge_index)
            if self.norms:
                new = self.norms[i](new)
            h = h + new.relu() if self.residual else new.relu()
        return cast(Tensor, self.head(h))


def _layers(
    name: str, conv: Callable[[Any], nn.Module], norm: bool = False, residual: bool = False
) -> Stack:
    def build(depths: Depths) -> nn.Module:
        return Layers(conv, depths[0], norm, residual)

    return stack(name, "torch_geometric", build, _graph, ONE)


STACKS = [
    _layers("gcn", lambda m: m.GCNConv(WIDTH, WIDTH)),
    _layers("gcn-residual", lambda m: m.GCNConv(WIDTH, WIDTH), norm=True, residual=True),
    _layers("tag", lambda m: m.TAGConv(WIDTH, WIDTH), norm=True),
    _layers("cheb", lambda m: m.ChebConv(WIDTH, WIDTH, 2)),
    _layers("sage", lambda m: m.SAGEConv(WIDTH, WIDTH), norm=True),
    _layers("gin", lambda m: m.GINConv(_perceptron(), train_eps=True), norm=True),
    _layers("gin-residual", lambda m: m.GINConv(_perceptron()), residual=True),
    _layers("gat", lambda m: m.GATConv(WIDTH, WIDTH // 2, heads=2)),
    _layers("gatv2", lambda m: m.GATv2Conv(WIDTH, WIDTH // 2, heads=2), norm=True, residual=True),
    _layers(
        "gps", lambda m: m.GPSConv(WIDTH, m.GINConv(_perceptron()), heads=2, norm="layer_norm")
    ),
    _layers("transformer-conv", lambda m: m.TransformerConv(WIDTH, WIDTH // 2, heads=2, beta=True)),
    _layers("gated-graph", lambda m: m.GatedGraphConv(WIDTH, 2)),
    _layers("res-gated", lambda m: m.ResGatedGraphConv(WIDTH, WIDTH), norm=True),
    _layers(
        "edge",
        lambda m: m.EdgeConv(
            nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        ),
    ),
]
