"""Stages of unequal depths, and single blocks between stacks."""

from typing import Any

import torch
from torch import Tensor, nn

from zoo.depth.inputs import entries, pictures, vector
from zoo.depth.stack import Depths, Stack
from zoo.depth.streams import WIDTH, attention, linear


class Halves(nn.Module):
    """A transformer's block of two residual halves; alike but for attention."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(attention(*self.qkv(self.norm1(x)).chunk(3, -1)))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class TwinHalves(nn.Module):
    """A block of two halves of the same operations, as of two convolutions with norms."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.fc1(self.norm1(x).relu())
        return x + self.fc2(self.norm2(x).relu())


class Staged(nn.Module):
    """Stages of blocks with a change of width between them."""

    block: type[nn.Module] = Halves

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.embed = linear(into=4)
        self.stages = nn.ModuleList(
            nn.Sequential(*(self.block() for _ in range(depth))) for depth in depths
        )
        self.between = nn.ModuleList(linear() for _ in depths[1:])
        self.head = linear(3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for i, stage in enumerate(self.stages):
            h = stage(self.between[i - 1](h) if i else h)
        return self.head(h)


class StagedTwins(Staged):
    """The same, of blocks whose halves are alike."""

    block = TwinHalves


class ResidualBlock(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        stride = 1 if into == out else 2
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1), nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(into, out, 1, stride) if into != out else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (h + (x if self.shortcut is None else self.shortcut(x))).relu()


class ResNet(nn.Module):
    """Residual convolutions in stages; the first block of each but one has a shortcut."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        widths = [4 * 2**s for s in range(len(depths))]
        self.layers: Any = nn.ModuleList(
            nn.ModuleList(
                ResidualBlock(widths[max(s - 1, 0)] if i == 0 else widths[s], widths[s])
                for i in range(depth)
            )
            for s, depth in enumerate(depths)
        )
        self.fc = nn.Linear(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for layer in self.layers:
            for block in layer:
                h = block(h)
        return self.fc(h.mean((2, 3)))


class ConvBlock(nn.Module):
    """ConvNeXt's."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, 1, 1, groups=4)
        self.norm, self.up, self.down = nn.GroupNorm(1, 4), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(self.depthwise(x)))))


class ConvStages(nn.Module):
    """Stages of blocks with a norm and a strided convolution before each but the first."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.stages: Any = nn.ModuleList(
            nn.ModuleList(ConvBlock() for _ in range(d)) for d in depths
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, 4) for _ in depths[1:])
        self.downs = nn.ModuleList(nn.Conv2d(4, 4, 2, 2) for _ in depths[1:])
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for i, stage in enumerate(self.stages):
            h = self.downs[i - 1](self.norms[i - 1](h)) if i else h
            for block in stage:
                h = block(h)
        return self.fc(h.mean((2, 3)))


class Dense(nn.Module):
    """DenseNet: every layer reads all before it in its stage."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.embed = linear(into=4)
        self.stages: Any = nn.ModuleList()
        self.between = nn.ModuleList()
        for depth in depths:
            self.stages.append(nn.ModuleList(linear(4, WIDTH + 4 * i) for i in range(depth)))
            self.between.append(linear(into=WIDTH + 4 * depth))
        self.head = linear(3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for stage, between in zip(self.stages, self.between, strict=True):
            for layer in stage:
                h = torch.cat([h, layer(h.relu())], -1)
            h = between(h)
        return self.head(h)


class Levels(nn.Module):
    """A U-Net of blocks, with depths of its own at each level down, at the bottom and up."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.embed, self.head = linear(into=4), linear(3)
        *sides, bottom = depths
        self.down: Any = nn.ModuleList(nn.ModuleList(TwinHalves() for _ in range(d)) for d in sides)
        self.bottom = nn.ModuleList(TwinHalves() for _ in range(bottom))
        self.joins = nn.ModuleList(linear(into=2 * WIDTH) for _ in sides)
        self.up: Any = nn.ModuleList(nn.ModuleList(TwinHalves() for _ in range(d)) for d in sides)

    def forward(self, x: Tensor) -> Tensor:
        h, kept = self.embed(x), []
        for level in self.down:
            for block in level:
                h = block(h)
            kept.append(h)
        for block in self.bottom:
            h = block(h)
        for join, level in zip(self.joins, self.up, strict=True):
            h = join(torch.cat([h, kept.pop()], -1))
            for block in level:
                h = block(h)
        return self.head(h)


class TwoKinds(nn.Module):
    """Flux: blocks of two streams, then single blocks of their joint stream."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.image, self.text, self.head = linear(into=4), linear(into=4), linear(3)
        self.pairs: Any = nn.ModuleList(
            nn.ModuleDict({k: linear() for k in ("image", "text", "image_out", "text_out")})
            for _ in range(depths[0])
        )
        self.singles = nn.ModuleList(Halves() for _ in range(depths[1]))

    def forward(self, x: Tensor) -> Tensor:
        image, text = self.image(x[:, :3]), self.text(x[:, 3:])
        for block in self.pairs:
            both = torch.cat([block["image"](image), block["text"](text)], 1)
            mixed = attention(both, both, both)
            image = image + block["image_out"](mixed[:, :3])
            text = text + block["text_out"](mixed[:, 3:])
        h = torch.cat([image, text], 1)
        for single in self.singles:
            h = single(h)
        return self.head(h)


class Conditioned(nn.Module):
    """DiT: every block and the output read one embedding of the condition."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.embed, self.condition, self.head = linear(into=4), linear(into=4), linear(3)
        self.shifts = nn.ModuleList(linear(2 * WIDTH) for _ in range(depths[0]))
        self.blocks = nn.ModuleList(Halves() for _ in range(depths[0]))
        self.last_shift = linear()

    def forward(self, x: Tensor) -> Tensor:
        h, c = self.embed(x), self.condition(x.mean(1)).relu()
        for shift, block in zip(self.shifts, self.blocks, strict=True):
            moved, gate = shift(c)[:, None].chunk(2, -1)
            h = h + gate.sigmoid() * block(h + moved)
        return self.head(h + self.last_shift(c)[:, None])


class EncoderDecoder(nn.Module):
    """A transformer of two stacks; each decoder block reads the encoder's end."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.embed, self.start, self.head = linear(into=4), linear(into=4), linear(3)
        self.encoder = nn.ModuleList(Halves() for _ in range(depths[0]))
        self.decoder = nn.ModuleList(Halves() for _ in range(depths[1]))
        self.cross = nn.ModuleList(linear(2 * WIDTH) for _ in range(depths[1]))

    def forward(self, x: Tensor) -> Tensor:
        memory = self.embed(x)
        for block in self.encoder:
            memory = block(memory)
        h = self.start(x[:, :2])
        for block, cross in zip(self.decoder, self.cross, strict=True):
            h = block(h)
            h = h + attention(h, *cross(memory).chunk(2, -1))
        return self.head(h)


ONE = [((2,), (4,)), ((2,), (3,)), ((3,), (5,)), ((4,), (2,))]
TWO = [((1, 1), (2, 3)), ((1, 2), (2, 3)), ((2, 1), (3, 4)), ((2, 3), (1, 2))]
THREE = [((1, 1, 1), (2, 1, 3)), ((1, 2, 1), (2, 4, 1))]

ONE_BLOCK = [((1, 1), (2, 3)), ((1, 1), (3, 1)), ((1, 1, 1), (2, 1, 3))]
"""Names do not tell what answers to a first block with a shortcut and what to the one behind it."""
GROWING = [((2, 2), (4, 3)), ((2, 3), (3, 5))]

STACKS = [
    Stack("stages", "stages", Staged, entries, [*TWO, *THREE]),
    Stack("stages-of-twins", "one-block stages", StagedTwins, vector, [*TWO, *THREE]),
    Stack("resnet-stages", "one-block stages", ResNet, pictures, ONE_BLOCK),
    Stack("convolution-stages", "stages", ConvStages, pictures, [*TWO, *THREE]),
    Stack("densenet-stages", "growing layers", Dense, vector, GROWING),
    Stack("unet-levels", "one-block stages", Levels, vector, THREE),
    Stack("flux", "single blocks between", TwoKinds, entries, TWO),
    Stack("dit", "shared modules", Conditioned, entries, ONE),
    Stack("encoder-decoder", "stages", EncoderDecoder, entries, TWO),
]
