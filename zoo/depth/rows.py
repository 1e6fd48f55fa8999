"""Lists of layers of which some stand apart: the first, the last, one that reads more."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.depth.inputs import entries, vector
from zoo.depth.published import last_apart, perceptron
from zoo.depth.stack import Depths, Pair, Stack
from zoo.depth.streams import WIDTH, attention, linear


class Field(nn.Module):
    """NeRF as it is published: one list of all layers, of which the one behind ``depths[1]`` others
    reads the input again. Nothing has to follow it.
    """

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        number, self.skip = depths
        more = {0: 4, self.skip + 1: WIDTH + 4}
        self.points = nn.ModuleList(linear(into=more.get(i, WIDTH)) for i in range(number))
        self.density, self.feature = linear(1), linear()
        self.views = nn.ModuleList([linear(into=WIDTH + 4)])
        self.colour = linear(3)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i, layer in enumerate(self.points):
            h = layer(h).relu()
            if i == self.skip:
                h = torch.cat([x, h], -1)
        density, h = self.density(h), torch.cat([self.feature(h), x], -1)
        for layer in self.views:
            h = layer(h).relu()
        return torch.cat([self.colour(h), density], -1)


def field(pair: Pair) -> dict[str, str]:
    """The layer behind the skip answers to that one, the first to the first, those before and
    behind to those there, in order; all others together where the base has none behind.
    """
    stretches = [[list(range(1, skip + 1)), list(range(skip + 2, number))] for number, skip in pair]
    if not stretches[0][1]:
        stretches = [[before + behind] for before, behind in stretches]
    base, target = (f"points.{skip + 1}" for _, skip in pair)
    inner = {
        f"points.{i}": f"points.{ours[at * len(ours) // len(theirs)]}"
        for ours, theirs in zip(*stretches, strict=True)
        for at, i in enumerate(theirs)
    }
    return {"points.0": "points.0", target: base, **inner}


class Hyper(nn.Module):
    """A network that makes the weights of a layer, from the input."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.hyper, self.head = perceptron(4, depths[0], 4 * WIDTH), linear(3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.hyper(self.code(x)).unflatten(-1, (WIDTH, 4))
        return self.head((weights @ x[..., None])[..., 0].relu())

    def code(self, x: Tensor) -> Tensor:
        return x


class Coded(Hyper):
    """The same from an embedding that is learned."""

    def __init__(self, depths: Depths) -> None:
        super().__init__(depths)
        self.embedding = nn.Parameter(torch.randn(4))

    def code(self, x: Tensor) -> Tensor:
        return self.embedding


class Alike(nn.Module):
    """Two towers whose ends are normalised, and compared."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.one, self.other = (perceptron(4, depths[0], WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        ends = self.one(x), self.other(x.flip(1))
        one, other = (nn.functional.normalize(end, dim=-1) for end in ends)
        return (one * other).sum(-1, keepdim=True)


class Tokens(nn.Module):
    """FT-Transformer's block: the first one has no norm before its attention, and the last one asks
    for the first token alone.
    """

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.attention, self.out = linear(3 * WIDTH), linear()
        self.ffn_norm, self.up, self.down = nn.LayerNorm(WIDTH), linear(), linear()
        if not first:
            self.attention_norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, asked: int | None) -> Tensor:
        h = self.attention_norm(x) if hasattr(self, "attention_norm") else x
        q, k, v = self.attention(h).chunk(3, -1)
        x = x[:, :asked] + self.out(attention(q[:, :asked], k, v))
        return x + self.down(self.up(self.ffn_norm(x)).relu())


class Tabular(nn.Module):
    """A stack of these."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.embed, self.token = linear(into=4), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.blocks = nn.ModuleList(Tokens(i == 0) for i in range(depths[0]))
        self.norm, self.head = nn.LayerNorm(WIDTH), linear(3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(x.shape[0], 1, -1), self.embed(x)], 1)
        for i, block in enumerate(self.blocks, 1):
            h = block(h, 1 if i == len(self.blocks) else None)
        return self.head(self.norm(h[:, 0]).relu())


def _apart(*names: str) -> Callable[[Pair], dict[str, str]]:
    def rule(pair: Pair) -> dict[str, str]:
        (n,), (m,) = pair
        return {t: b for name in names for t, b in last_apart(name, n, m, first=True)}

    return rule


DEPTHS = [((2,), (3,)), ((2,), (4,)), ((3,), (5,))]

STACKS = [
    Stack(
        "nerf-one-list",
        "rows",
        Field,
        vector,
        [((4, 2), (8, 4)), ((4, 1), (8, 4)), ((4, 2), (8, 6)), ((3, 1), (7, 3))],
        field,
    ),
    Stack("hypernetwork", "rows", Hyper, vector, DEPTHS, _apart("hyper")),
    Stack("hypernetwork-of-a-code", "rows", Coded, vector, DEPTHS, _apart("hyper")),
    Stack("normalised-towers", "rows", Alike, vector, DEPTHS, _apart("one", "other")),
    Stack("ft-transformer", "rows", Tabular, entries, DEPTHS),
]
