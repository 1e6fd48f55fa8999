"""Towers that exchange features, or meet at their ends."""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.depth.inputs import entries, vector
from zoo.depth.stack import Depths, Stack
from zoo.depth.stages import Halves
from zoo.depth.streams import WIDTH, Body, linear


class StitchBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = linear(), linear()
        self.mix = nn.Parameter(torch.tensor([[0.9, 0.1], [0.1, 0.9]]))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.one(a).tanh(), self.other(b).tanh()
        return self.mix[0, 0] * a + self.mix[0, 1] * b, self.mix[1, 0] * a + self.mix[1, 1] * b


class Stitched(Body):
    """Cross-stitch towers of two tasks, with a head each."""

    def __init__(self, depths: Depths) -> None:
        super().__init__(StitchBlock, depths[0])
        self.other_head = linear(3)

    def forward(self, x: Tensor) -> Tensor:
        a = b = self.embed(x)
        for block in self.blocks:
            a, b = block(a, b)
        return torch.cat([self.head(a), self.other_head(b)], -1)


class Towers(nn.Module):
    """Two towers that never meet before the product of their ends (CLIP)."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.image: Any
        self.text: Any
        self.image, self.text = (
            nn.ModuleDict(
                {
                    "embed": linear(into=4),
                    "blocks": nn.ModuleList(Halves() for _ in range(depth)),
                    "out": linear(),
                }
            )
            for depth in depths
        )

    def forward(self, x: Tensor) -> Tensor:
        ends = []
        for tower in (self.image, self.text):
            h = tower["embed"](x)
            for block in tower["blocks"]:
                h = block(h)
            ends.append(tower["out"](h))
        return ends[0] * ends[1]


class CrossTowers(nn.Module):
    """CrossViT: two towers with depths of their own between exchanges."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.embeds = nn.ModuleList(linear(into=4) for _ in range(2))
        self.groups: Any = nn.ModuleList(
            nn.ModuleDict(
                {
                    "small": nn.ModuleList([Halves()]),
                    "large": nn.ModuleList(Halves() for _ in range(depths[1])),
                    "to_small": linear(),
                    "to_large": linear(),
                }
            )
            for _ in range(depths[0])
        )
        self.head = linear(3, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (embed(x) for embed in self.embeds)
        for group in self.groups:
            for block in group["small"]:
                a = block(a)
            for block in group["large"]:
                b = block(b)
            a, b = a + group["to_small"](b.mean(1, keepdim=True)), b + group["to_large"](a)
        return self.head(torch.cat([a, b], -1))


PAIRS = [((2,), (4,)), ((2,), (3,)), ((3,), (5,)), ((4,), (2,))]
TWO = [((1, 1), (2, 3)), ((1, 2), (2, 3)), ((2, 1), (3, 4)), ((2, 3), (1, 2)), ((3, 2), (1, 1))]

STACKS = [
    Stack("cross-stitch", "towers", Stitched, vector, PAIRS),
    Stack("towers", "towers", Towers, entries, TWO),
    Stack("crossvit", "towers", CrossTowers, entries, TWO),
]
