"""Several streams between blocks, and last blocks that lack what nothing reads."""

import torch
from torch import Tensor, nn

from zoo.depth.inputs import entries, vector
from zoo.depth.stack import Depths, Stack

WIDTH = 6


def linear(out: int = WIDTH, into: int = WIDTH) -> nn.Linear:
    """A linear map of the usual width."""
    return nn.Linear(into, out)


class Body(nn.Module):
    """An embedding, blocks, a head."""

    def __init__(self, block: type[nn.Module], depth: int, heads: int = 1) -> None:
        super().__init__()
        self.embed = linear(into=4)
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.head = linear(3, heads * WIDTH)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one head."""
    return nn.functional.scaled_dot_product_attention(q, k, v)


class ReversibleBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = linear(), linear()

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a = a + self.f(b).tanh()
        return a, b + self.g(a).relu()


class Reversible(Body):
    """RevNet: two streams, each added to by a function of the other."""

    def __init__(self, depths: Depths) -> None:
        super().__init__(ReversibleBlock, depths[0], heads=2)

    def forward(self, x: Tensor) -> Tensor:
        a = b = self.embed(x)
        for block in self.blocks:
            a, b = block(a, b)
        return self.head(torch.cat([a, b], -1))


class MomentumBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.f = nn.LayerNorm(WIDTH), linear()

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + 0.1 * self.f(self.norm(x)).tanh()
        return x + v, v


class Momentum(Body):
    """A momentum residual network: position and velocity."""

    def __init__(self, depths: Depths) -> None:
        super().__init__(MomentumBlock, depths[0])

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        v = torch.zeros_like(h)
        for block in self.blocks:
            h, v = block(h, v)
        return self.head(h)


class EdgeBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.edge, self.message, self.node = linear(), linear(), linear()

    def forward(self, h: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        e = e + self.edge(e + h[:, :, None] + h[:, None]).tanh()
        return h + self.node(h + self.message(e).relu().sum(2)).tanh(), e


class EdgeNetwork(Body):
    """Features of nodes and of edges, each updated from the other; both are read."""

    def __init__(self, depths: Depths) -> None:
        super().__init__(EdgeBlock, depths[0])
        self.edges, self.edge_head = linear(into=4), linear(3)

    def forward(self, x: Tensor) -> Tensor:
        h, e = self.embed(x), self.edges(x[:, :, None] * x[:, None])
        for block in self.blocks:
            h, e = block(h, e)
        return self.head(h) + self.edge_head(e).mean(2)


class EdgeNetworkOfNodes(EdgeNetwork):
    """The same, of which only nodes are read."""

    def __init__(self, depths: Depths) -> None:
        super().__init__(depths)
        del self.edge_head

    def forward(self, x: Tensor) -> Tensor:
        h, e = self.embed(x), self.edges(x[:, :, None] * x[:, None])
        for block in self.blocks:
            h, e = block(h, e)
        return self.head(h)


class EquivariantBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.message, self.coordinates, self.node = linear(into=2 * WIDTH + 1), linear(1), linear()

    def forward(self, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        apart = x[:, :, None] - x[:, None]
        n = h.shape[1]
        pair = torch.cat(
            [
                h[:, :, None].expand(-1, n, n, -1),
                h[:, None].expand(-1, n, n, -1),
                apart.square().sum(-1, keepdim=True),
            ],
            -1,
        )
        m = self.message(pair).tanh()
        return h + self.node(m.sum(2)).tanh(), x + (apart * self.coordinates(m)).mean(2)


class Equivariant(Body):
    """EGNN: the last block's coordinates are read by nothing."""

    def __init__(self, depths: Depths) -> None:
        super().__init__(EquivariantBlock, depths[0])

    def forward(self, x: Tensor) -> Tensor:
        h, place = self.embed(x), x[..., :3]
        for block in self.blocks:
            h, place = block(h, place)
        return self.head(h.mean(1))


class VectorBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.gate, self.update = linear(), linear(into=2 * WIDTH), linear(into=2 * WIDTH)

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        mixed = self.mix(v)
        both = torch.cat([s, mixed.square().sum(1)], -1)
        return s + self.update(both).tanh(), v + self.gate(both).sigmoid()[:, None] * mixed


class Vectors(Body):
    """PaiNN: scalars and vectors; the last block's vectors are read by a head of their own."""

    def __init__(self, depths: Depths) -> None:
        super().__init__(VectorBlock, depths[0])
        self.vectors, self.vector_head = linear(into=4), linear(3)

    def forward(self, x: Tensor) -> Tensor:
        s, v = self.embed(x.mean(1)), self.vectors(x)
        for block in self.blocks:
            s, v = block(s, v)
        return self.head(s) + self.vector_head(v).sum(1)


class BackcastBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear(into=4), linear()
        self.backcast, self.forecast = linear(4), linear(3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.second(self.first(x).relu()).relu()
        return x - self.backcast(h), self.forecast(h)


class Backcasts(nn.Module):
    """N-BEATS: doubly residual, and the last backcast is read by nothing."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BackcastBlock() for _ in range(depths[0]))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for block in self.blocks:
            x, forecast = block(x)
            total = total + forecast
        assert isinstance(total, Tensor)
        return total


class JointBlock(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        for side in ("image", "text"):
            setattr(self, f"{side}_norm", nn.LayerNorm(WIDTH))
            for part in "qkv":
                setattr(self, f"{side}_{part}", linear())
            if side == "image" or not last:
                setattr(self, f"{side}_out", linear())
                setattr(self, f"{side}_up", linear(2 * WIDTH))
                setattr(self, f"{side}_down", linear(into=2 * WIDTH))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        part = self.get_submodule
        normed = {
            "image": part("image_norm")(image),
            "text": part("text_norm")(text),
        }
        q, k, v = (
            torch.cat([part(f"{side}_{p}")(normed[side]) for side in normed], 1) for p in "qkv"
        )
        mixed = attention(q, k, v).tensor_split([image.shape[1]], 1)
        found = []
        for side, stream, m in zip(normed, (image, text), mixed, strict=True):
            if hasattr(self, f"{side}_out"):
                stream = stream + part(f"{side}_out")(m)
                up = part(f"{side}_up")(stream)
                stream = stream + part(f"{side}_down")(nn.functional.gelu(up))
            found.append(stream)
        return found[0], found[1]


class Joint(nn.Module):
    """MM-DiT: two modalities with weights of their own meet in each block's attention."""

    def __init__(self, depths: Depths) -> None:
        super().__init__()
        (depth,) = depths
        self.image, self.text = linear(into=4), linear(into=4)
        self.blocks = nn.ModuleList(JointBlock(i == depth - 1) for i in range(depth))
        self.head = linear(3)

    def forward(self, x: Tensor) -> Tensor:
        image, text = self.image(x[:, :3]), self.text(x[:, 3:])
        for block in self.blocks:
            image, text = block(image, text)
        return self.head(image)


class PairBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias, self.q, self.k, self.v, self.out = linear(1), *(linear() for _ in range(4))
        self.left, self.right, self.pair = linear(), linear(), linear()

    def forward(self, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.q(s) @ self.k(s).mT + self.bias(z).squeeze(-1)
        s = s + self.out(scores.softmax(-1) @ self.v(s))
        outer = self.left(s)[:, :, None] * self.right(s)[:, None]
        return s, z + self.pair(outer)


class Pairs(Body):
    """Evoformer: a sequence and its pairs, each read by the other; both are read at the end."""

    def __init__(self, depths: Depths) -> None:
        super().__init__(PairBlock, depths[0])
        self.pairs, self.pair_head = linear(into=4), linear(3)

    def forward(self, x: Tensor) -> Tensor:
        s, z = self.embed(x), self.pairs(x[:, :, None] + x[:, None])
        for block in self.blocks:
            s, z = block(s, z)
        return self.head(s) + self.pair_head(z).mean(2)


class HyperBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Parameter(torch.ones(3) / 3)
        self.mix = nn.Parameter(torch.eye(3))
        self.write = nn.Parameter(torch.ones(3))
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), linear(), linear()

    def forward(self, streams: Tensor) -> Tensor:
        h = torch.einsum("s,bsd->bd", self.read, streams)
        h = self.down(self.up(self.norm(h)).relu())
        mixed = torch.einsum("st,btd->bsd", self.mix, streams)
        return mixed + self.write[:, None] * h[:, None]


class Hyper(Body):
    """Hyper-connections: three copies of the stream, mixed by learned matrices."""

    def __init__(self, depths: Depths) -> None:
        super().__init__(HyperBlock, depths[0])

    def forward(self, x: Tensor) -> Tensor:
        streams = self.embed(x)[:, None].expand(-1, 3, -1)
        for block in self.blocks:
            streams = block(streams)
        return self.head(streams.sum(1))


class LatentBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (linear() for _ in range(4))
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), linear(), linear()

    def forward(self, latents: Tensor, data: Tensor) -> Tensor:
        read = attention(self.q(latents), self.k(data), self.v(data))
        latents = latents + self.out(read)
        return latents + self.down(self.up(self.norm(latents)).relu())


class Latents(Body):
    """Perceiver: latents read the same data in each block."""

    def __init__(self, depths: Depths) -> None:
        super().__init__(LatentBlock, depths[0])
        self.latents = nn.Parameter(torch.randn(2, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        data = self.embed(x)
        latents = self.latents.expand(x.shape[0], -1, -1)
        for block in self.blocks:
            latents = block(latents, data)
        return self.head(latents.mean(1))


class CellBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates = linear(4 * WIDTH)

    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = self.gates(h).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh() + h, c


class Gated(Body):
    """A memory beside the stream that runs through depth, as a highway LSTM has it."""

    def __init__(self, depths: Depths) -> None:
        super().__init__(CellBlock, depths[0])

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        c = torch.zeros_like(h)
        for block in self.blocks:
            h, c = block(h, c)
        return self.head(h)


PAIRS = [((2,), (4,)), ((2,), (3,)), ((3,), (5,)), ((4,), (2,))]

STACKS = [
    Stack("reversible", "streams", Reversible, vector, PAIRS),
    Stack("momentum", "streams", Momentum, vector, PAIRS),
    Stack("nodes-and-edges", "streams", EdgeNetwork, entries, PAIRS),
    Stack("nodes-of-edges", "streams", EdgeNetworkOfNodes, entries, PAIRS),
    Stack("egnn", "unused tails", Equivariant, entries, PAIRS),
    Stack("painn", "streams", Vectors, entries, PAIRS),
    Stack("nbeats", "unused tails", Backcasts, vector, PAIRS),
    Stack("joint-attention", "unused tails", Joint, entries, PAIRS),
    Stack("evoformer", "streams", Pairs, entries, PAIRS),
    Stack("hyper-connections", "streams", Hyper, vector, PAIRS),
    Stack("perceiver-read", "streams", Latents, entries, PAIRS),
    Stack("highway-memory", "streams", Gated, vector, PAIRS),
]
