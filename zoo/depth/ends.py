"""Ends of chains beside layers of their kind, and recurrence unrolled in time."""

import torch
from torch import Tensor, nn

from zoo.batches import features
from zoo.depth.inputs import entries, vector
from zoo.depth.stack import Depths, Stack
from zoo.depth.streams import WIDTH, linear


class Plain(nn.Module):
    """A multilayer perceptron, with a head and an entrance of the same operation."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.entrance, self.head = linear(into=4), linear(3)
        self.layers = nn.ModuleList(linear() for _ in range(depths[0]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.entrance(x).relu()
        for layer in self.layers:
            h = layer(h).relu()
        return self.head(h)


class Radiance(Plain):
    """NeRF: one of the hidden layers reads the input again, behind layers and before others."""

    def __init__(self, depths: Depths) -> None:
        super().__init__(depths)
        self.skip = linear(into=WIDTH + 4)
        self.after = nn.ModuleList(linear() for _ in range(depths[1]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.entrance(x).relu()
        for layer in self.layers:
            h = layer(h).relu()
        h = self.skip(torch.cat([h, x], -1)).relu()
        for layer in self.after:
            h = layer(h).relu()
        return self.head(h)


class SplineLayer(nn.Module):
    def __init__(self, out: int = WIDTH, into: int = WIDTH) -> None:
        super().__init__()
        self.base, self.spline = linear(out, into), linear(out, 3 * into)

    def forward(self, x: Tensor) -> Tensor:
        bumps = torch.cat([torch.exp(-((x - c) ** 2)) for c in (-1.0, 0.0, 1.0)], -1)
        return self.base(nn.functional.silu(x)) + self.spline(bumps)


class Splines(nn.Module):
    """KAN: every layer is a base branch beside one of basis functions, the ends too."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.first, self.last = SplineLayer(into=4), SplineLayer(3)
        self.layers = nn.ModuleList(SplineLayer() for _ in range(depths[0]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for layer in self.layers:
            h = layer(h)
        return self.last(h)


class Crosses(nn.Module):
    """DCN's cross layers, each of which reads the list's input beside what goes through it."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.embed, self.head = linear(into=4), linear(3)
        self.cross = nn.ModuleList(linear() for _ in range(depths[0]))

    def forward(self, x: Tensor) -> Tensor:
        first = self.embed(x)
        return self.head(self.crossed(first))

    def crossed(self, first: Tensor) -> Tensor:
        h = first
        for layer in self.cross:
            h = first * layer(h) + h
        return h


class DeepCrosses(Crosses):
    """The same beside a perceptron, as in DCN."""

    def __init__(self, depths: Depths) -> None:
        super().__init__(depths)
        self.head = linear(3, 2 * WIDTH)
        self.deep = nn.ModuleList(linear() for _ in range(depths[1]))

    def forward(self, x: Tensor) -> Tensor:
        first = h = self.embed(x)
        for layer in self.deep:
            h = layer(h).relu()
        return self.head(torch.cat([self.crossed(first), h], -1))


class Conditioned(nn.Module):
    """Blocks of two layers that the list's input enters as a scale."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.embed, self.head = linear(into=4), linear(3)
        self.blocks = nn.ModuleList(
            nn.Sequential(linear(), nn.ReLU(), linear()) for _ in range(depths[0])
        )

    def forward(self, x: Tensor) -> Tensor:
        first = h = self.embed(x)
        for block in self.blocks:
            h = h + first * block(h)
        return self.head(h)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.change, self.gate = linear(), linear()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).sigmoid()
        return gate * self.change(x).relu() + (1 - gate) * x


class Highway(Conditioned):
    """A highway network: each layer mixes what it reads with what it makes of it."""

    def __init__(self, depths: Depths) -> None:
        super().__init__(depths)
        self.blocks = nn.ModuleList(Gate() for _ in range(depths[0]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


class Recommender(nn.Module):
    """DLRM: embeddings stand beside a perceptron, and their products before another."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(WIDTH))
        self.dense, self.meeting, self.head = linear(into=4), linear(into=WIDTH + 1), linear(3)
        self.bottom = nn.ModuleList(linear() for _ in range(depths[0]))
        self.top = nn.ModuleList(linear() for _ in range(depths[1]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.dense(x).relu()
        for layer in self.bottom:
            h = layer(h).relu()
        h = self.meeting(torch.cat([h, (h * self.table).sum(-1, keepdim=True)], -1)).relu()
        for layer in self.top:
            h = layer(h).relu()
        return self.head(h)


class Cells(nn.Module):
    """A stack of recurrent cells, unrolled over the steps of the sample."""

    kind: type[nn.Module] = nn.GRUCell

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.embed, self.head = linear(into=4), linear(3)
        self.cells = nn.ModuleList(self.kind(WIDTH, WIDTH) for _ in range(depths[0]))

    def forward(self, x: Tensor) -> Tensor:
        states = [x.new_zeros(x.shape[0], WIDTH) for _ in self.cells]
        memories = list(states)
        h = states[0]
        for step in range(x.shape[1]):
            h = self.embed(x[:, step])
            for i, cell in enumerate(self.cells):
                if isinstance(cell, nn.LSTMCell):
                    states[i], memories[i] = cell(h, (states[i], memories[i]))
                else:
                    states[i] = cell(h, states[i])
                h = states[i]
        return self.head(h)


class LongCells(Cells):
    """The same of LSTM cells."""

    kind = nn.LSTMCell


def _one_step() -> Tensor:
    return features(1, 4)


FROM_ONE = [((1,), (2,)), ((1,), (3,)), ((2,), (3,)), ((3,), (2,))]
ONE = [((2,), (4,)), ((2,), (3,)), ((3,), (5,)), ((4,), (2,))]
TWO = [((1, 1), (2, 3)), ((1, 2), (2, 3)), ((2, 1), (3, 4)), ((2, 3), (1, 2))]

STACKS = [
    Stack("mlp-depth", "ends of chains", Plain, vector, ONE),
    Stack("nerf", "ends of chains", Radiance, vector, TWO),
    Stack(
        "kan",
        "ends of chains",
        Splines,
        vector,
        [((1,), (2,)), ((2,), (3,)), ((2,), (4,)), ((3,), (5,))],
    ),
    Stack("dlrm", "ends of chains", Recommender, vector, [((2, 2), (4, 3)), ((2, 3), (3, 6))]),
    Stack("dcn-cross", "ends of chains", Crosses, vector, FROM_ONE),
    Stack(
        "dcn",
        "ends of chains",
        DeepCrosses,
        vector,
        [((2, 2), (3, 3)), ((2, 2), (4, 3)), ((3, 2), (2, 4)), ((1, 2), (2, 3)), ((3, 2), (2, 1))],
    ),
    Stack("conditioned", "ends of chains", Conditioned, vector, FROM_ONE),
    Stack("highway", "ends of chains", Highway, vector, FROM_ONE),
    Stack("gru-cells", "unrolled recurrence", Cells, entries, ONE),
    Stack("lstm-cells", "unrolled recurrence", LongCells, entries, ONE),
    Stack("gru-cells-one-step", "unrolled recurrence", Cells, _one_step, FROM_ONE),
    Stack("lstm-cells-one-step", "unrolled recurrence", LongCells, _one_step, FROM_ONE),
]
