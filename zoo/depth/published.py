"""Networks as published code writes them: lists of all layers, flat lists, kinds in turn."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from zoo.depth.inputs import entries, pictures, vector
from zoo.depth.stack import Depths, Pair, Stack
from zoo.depth.stages import Halves
from zoo.depth.streams import WIDTH, attention, linear


def perceptron(into: int, hidden: int, out: int) -> nn.Sequential:
    """Layers with activations between them, all in one list."""
    widths = [into, *[WIDTH] * hidden, out]
    layers = ((linear(o, i), nn.ReLU()) for i, o in pairwise(widths))
    return nn.Sequential(*[module for pair in layers for module in pair][:-1])


def last_apart(name: str, n: int, m: int, first: bool = False) -> Iterator[tuple[str, str]]:
    """What answers to what in such a list: the last layer to the last one, and the first if so."""
    yield f"{name}.{2 * m}", f"{name}.{2 * n}"
    if first:
        yield f"{name}.0", f"{name}.0"
    for j in range(first, m):
        yield f"{name}.{2 * j}", f"{name}.{2 * (first + (j - first) * (n - first) // (m - first))}"


class Interactions(nn.Module):
    """xDeepFM: a linear part, a compressed interaction network, of which the first layer reads the
    embeddings twice, and a perceptron, which only meet in the output.
    """

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.wide, self.embed = linear(1, 4), linear(3 * WIDTH, 4)
        self.interactions = nn.ModuleList(nn.Conv1d(9, 3, 1) for _ in range(depths[0]))
        self.read, self.mlp = linear(1, 3 * depths[0]), perceptron(3 * WIDTH, depths[1], 1)

    def forward(self, x: Tensor) -> Tensor:
        fields = h = self.embed(x).unflatten(1, (3, WIDTH))
        found = []
        for layer in self.interactions:
            h = layer((fields[:, :, None] * h[:, None]).flatten(1, 2)).relu()
            found.append(h.sum(2))
        wide: Tensor = self.wide(x) + self.read(torch.cat(found, 1))
        return wide + self.mlp(fields.flatten(1))


class Operator(nn.Module):
    """DeepONet: two perceptrons, of which the last layers meet in the output."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.branch, self.trunk = (perceptron(4, depth, WIDTH) for depth in depths)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.branch(x) * self.trunk(x.flip(1))).sum(-1, keepdim=True) + self.bias


class Crossed(nn.Module):
    """Flamingo: every second layer has gated attention to something else before it."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.embed, self.memory, self.head = linear(into=4), linear(into=4), linear(3)
        self.layers: Any = nn.ModuleList(
            nn.ModuleDict(
                {"cross": linear(2 * WIDTH), "out": linear(), "decoder": Halves()}
                if i % 2
                else {"decoder": Halves()}
            )
            for i in range(depths[0])
        )

    def forward(self, x: Tensor) -> Tensor:
        h, memory = self.embed(x), self.memory(x[:, :2])
        for layer in self.layers:
            if "cross" in layer:
                h = h + layer["out"](attention(h, *layer["cross"](memory).chunk(2, -1))).tanh()
            h = layer["decoder"](h)
        return self.head(h)


class Joined(nn.Module):
    """A residual block of a diffusion U-Net."""

    def __init__(self, into: int = 4) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(1, into), nn.Conv2d(into, 4, 3, 1, 1)
        self.skip = nn.Conv2d(into, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.skip(x) + self.conv(self.norm(x).relu())
        return out


class FlatLevels(nn.Module):
    """A U-Net of two levels whose blocks are in one list down and one up; the last block of a level
    up has a convolution behind it.
    """

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        (depth,) = depths
        self.stem, self.down = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.inputs: Any = nn.ModuleList(
            nn.ModuleList(Joined() for _ in range(depth)) for _ in range(2)
        )
        self.middle = Joined()
        self.outputs: Any = nn.ModuleList(
            nn.ModuleList([Joined(8), *[nn.Conv2d(4, 4, 3, 1, 1)] * (i == depth)])
            for i in range(2 * depth + 2)
        )
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        kept = [h]
        for level, blocks in enumerate(self.inputs):
            if level:
                h = self.down(h)
                kept.append(h)
            for block in blocks:
                h = block(h)
                kept.append(h)
        h = self.middle(h)
        for joined, *up in self.outputs:
            h = joined(torch.cat([h, kept.pop()], 1))
            if up:
                h = up[0](nn.functional.interpolate(h, scale_factor=2.0))
        return self.head(h)


def flat_levels(pair: Pair) -> dict[str, str]:
    """Level by level, each with one block more than its depth."""
    (n,), (m,) = ((depth + 1 for depth in depths) for depths in pair)
    blocks = {
        f"outputs.{level * m + j}.0": f"outputs.{level * n + j * n // m}.0"
        for level in range(2)
        for j in range(m)
    }
    return {**blocks, f"outputs.{m - 1}.1": f"outputs.{n - 1}.1"}


class ConvolutionsWithNorms(nn.Module):
    """An encoder of blocks of a convolution with a norm, of which the first reads the input."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4 if i else 3, 4, 3, 1, 1), nn.GroupNorm(1, 4), nn.ReLU())
            for i in range(depths[0])
        )
        self.head = linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.encoder:
            x = block(x)
        return self.head(x.mean((2, 3)))


def first_apart(pair: Pair) -> dict[str, str]:
    """The first block answers to the first one, and the others to the others."""
    (n,), (m,) = pair
    inner = {f"encoder.{j}": f"encoder.{1 + (j - 1) * (n - 1) // (m - 1)}" for j in range(1, m)}
    return {"encoder.0": "encoder.0", **inner}


class Skips(nn.Module):
    """WaveNet: a list for each part of a layer; what all layers skip to is summed at the end, and
    the last residual is read by nothing.
    """

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.start, self.end, self.head = linear(into=4), linear(), linear(3)
        self.filters, self.gates, self.residuals, self.skips = (
            nn.ModuleList(linear() for _ in range(depths[0])) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        total = torch.zeros_like(h)
        parts = zip(self.filters, self.gates, self.residuals, self.skips, strict=True)
        for filtered, gate, residual, skip in parts:
            gated = filtered(h).tanh() * gate(h).sigmoid()
            total = total + skip(gated)
            h = h + residual(gated)
        return self.head(self.end(total.relu()).relu())


STACKS = [
    Stack(
        "xdeepfm",
        "published",
        Interactions,
        vector,
        [((2, 2), (4, 4)), ((2, 1), (4, 2)), ((2, 1), (3, 3))],
        lambda pair: dict(last_apart("mlp", pair[0][1], pair[1][1])),
    ),
    Stack(
        "deeponet",
        "published",
        Operator,
        vector,
        [((2, 2), (3, 5)), ((2, 3), (3, 5))],
        lambda pair: {
            target: base
            for name, n, m in zip(("branch", "trunk"), *pair, strict=True)
            for target, base in last_apart(name, n, m, first=True)
        },
    ),
    Stack(
        "gated-cross-attention",
        "published",
        Crossed,
        entries,
        [((2,), (4,)), ((4,), (8,)), ((4,), (2,))],
        lambda pair: {
            "layers.{i}.decoder": "layers.{i // 2 * n // m * 2 + i % 2}.decoder"
            if pair[0] < pair[1]
            else ["layers.{i}.decoder", "layers.{i + 2}.decoder"],
        },
    ),
    Stack(
        "flat-levels", "published", FlatLevels, pictures, [((1,), (3,)), ((2,), (5,))], flat_levels
    ),
    Stack(
        "convolutions-with-norms",
        "published",
        ConvolutionsWithNorms,
        pictures,
        [((2,), (3,)), ((2,), (4,)), ((3,), (5,))],
        first_apart,
    ),
    Stack("wavenet", "published", Skips, vector, [((2,), (4,)), ((2,), (3,)), ((3,), (2,))]),
]
