"""Constructs that models are made of, one at a time: ties, gates, mutation, branches, dtypes."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from zoo.batches import CLASSES, TIME, VOCABULARY, features, images, next_tokens, tokens
from zoo.torch_nn import model


class Block(nn.Module):
    """A residual MLP block with a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def branch(self, x: Tensor) -> Tensor:
        """What is added to the residual stream."""
        return self.down(F.gelu(self.up(self.norm(x))))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Stack(nn.Module):
    """An input layer, blocks, and a head."""

    def __init__(self, width: int, depth: int, block: type[nn.Module] = Block) -> None:
        super().__init__()
        self.first = nn.Linear(6, width)
        self.blocks = nn.ModuleList(block(width) for _ in range(depth))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Any:
        hidden = self.first(x)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


class ReZero(Block):
    """A gate that is 0 at first."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * self.branch(x)


class LayerScale(Block):
    """A small gate for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.branch(x)


class Highway(nn.Module):
    """A gate between a layer and its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width)
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).sigmoid()
        return gate * self.layer(x).tanh() + (1 - gate) * x


class Checkpointed(Block):
    """Activations are computed again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return x + checkpoint(self.branch, x, use_reentrant=False)


class InPlace(Block):
    """Adds to its input in place."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        y += x
        y[..., 0] *= 0.5
        return y.mul_(1.5)


class Counting(Block):
    """Keeps a count and a mean of what it has seen, in buffers that it updates in place."""

    steps: Tensor
    mean: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.steps.add_(1)
                self.mean.lerp_(x.mean(0), 0.1)
        return x + self.branch(x - self.mean)


class NestedNoGrad(Block):
    """Regions without gradients within each other."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = 1 + self.up.weight.square().mean()
            with torch.enable_grad():
                shift = self.up.bias.mean() * 0.1
            scale = scale + x.detach().abs().mean(-1, keepdim=True)
        return x + self.branch(x) / scale + shift


class Exponential(nn.Module):
    """A scan whose rates are minus the exponential of a parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rate_log = nn.Parameter(torch.arange(1.0, width + 1).log())
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        decay = (-self.rate_log.exp() * F.softplus(self.inner(x))).exp()
        return x * decay + self.inner(x)


class Tied(nn.Module):
    """The embedding is the head, and each layer is used twice."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        for block in self.blocks:
            hidden = block(block(hidden))
        return self.head(hidden)


class ALiBi(nn.Module):
    """Attention with biases linear in the distance, written with einsum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Parameter(torch.randn(3, 2, width, width // 2) / math.sqrt(width))
        self.out = nn.Parameter(torch.randn(2, width // 2, width) / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = torch.einsum("btd,shde->sbhte", self.norm(x), self.qkv)
        place = torch.arange(x.shape[1], device=x.device)
        bias = -(place[:, None] - place).abs() * torch.tensor([0.5, 0.25])[:, None, None]
        scores = torch.einsum("bhte,bhse->bhts", q, k) / math.sqrt(k.shape[-1]) + bias
        mixed = torch.einsum("bhts,bhse->bhte", scores.softmax(-1), v)
        return x + torch.einsum("bhte,hed->btd", mixed, self.out)


class Mixer(nn.Module):
    """MLPs over tokens and over channels in turn."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.over_tokens = nn.Sequential(nn.Linear(TIME, width), nn.GELU(), nn.Linear(width, TIME))
        self.over_channels = Block(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over_tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.over_channels(x)


class Fourier(nn.Module):
    """A filter in the frequency domain, complex weights and a complex buffer."""

    phase: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(TIME // 2 + 1, width, 2) * 0.5)
        self.register_buffer("phase", torch.polar(torch.ones(1), torch.tensor([0.3])))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=1) * torch.view_as_complex(self.filter) * self.phase
        return x + torch.fft.irfft(spectrum, n=x.shape[1], dim=1)


class TokenModel(nn.Module):
    """Blocks over embedded tokens."""

    def __init__(self, width: int, depth: int, block: type[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(block(width) for _ in range(depth))
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


class DenseNet(nn.Module):
    """Each layer sees all before it."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(3 + i * width, width, 3, padding=1) for i in range(depth)
        )
        self.head = nn.Linear(3 + depth * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x).relu()], 1)
        return self.head(x.mean((2, 3)))


class LayerDrop(Stack):
    """Skips blocks at random."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        for block in self.blocks:
            keep = 1.0 if not self.training else (torch.rand(()) > 0.3).to(x.dtype)
            hidden = hidden + keep * (block(hidden) - hidden)
        return self.head(hidden)


class Siamese(nn.Module):
    """One encoder for two inputs, and their similarity."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.encoder = Stack(width, depth)
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        a, b = self.encoder(one), self.encoder(other)
        return F.cosine_similarity(a, b, dim=-1) * self.temperature


class Contrastive(Siamese):
    """Similarities between all examples of the batch."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        a, b = (F.normalize(self.encoder(x), dim=-1) for x in (one, other))
        return a @ b.T * self.temperature.exp()


class Autoencoder(nn.Module):
    """Down to a code and up again."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([nn.Linear(6, width), *(Block(width) for _ in range(depth))])
        self.code = nn.Linear(width, 2)
        self.decoder = nn.ModuleList([nn.Linear(2, width), *(Block(width) for _ in range(depth))])
        self.out = nn.Linear(width, 6)

    def encoded(self, x: Tensor) -> Tensor:
        """The code."""
        for layer in self.encoder:
            x = layer(x)
        return self.code(x)

    def forward(self, x: Tensor) -> Any:
        x = self.encoded(x)
        for layer in self.decoder:
            x = layer(x)
        return self.out(x)


class VAE(Autoencoder):
    """Mean and scale of a code, and one draw of it."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__(width, depth)
        self.log_scale = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Any:
        mean = self.encoded(x)
        log_scale = self.log_scale(mean)
        hidden = mean + log_scale.exp() * torch.randn_like(mean)
        for layer in self.decoder:
            hidden = layer(hidden)
        return {"mean": mean, "log_scale": log_scale, "logits": self.out(hidden)}


class Branching(Stack):
    """Takes a path that depends on its input's values."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        for block in self.blocks:
            if hidden.abs().mean() > 1e-3:
                hidden = block(hidden)
        return self.head(hidden)


class HardMixture(nn.Module):
    """Experts that see only the examples sent to them, in a loop of Python."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 2)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        weight, choice = self.router(x).softmax(-1).max(-1)
        mixed = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (choice == index).nonzero()[:, 0]
            if len(rows):
                mixed = mixed.index_add(0, rows, expert(x[rows]) * weight[rows, None])
        return x + mixed


class _Cube(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class CustomFunction(Block):
    """An autograd function of its own, without a forward-mode derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return x + _Cube.apply(self.branch(x))  # type: ignore[no-untyped-call]


class ParameterInput(nn.Module):
    """Parameters as inputs of layers: learned queries through a linear, normed prototypes."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(4, width))
        self.prototypes = nn.Parameter(torch.randn(CLASSES, width))
        self.project = nn.Linear(width, width)
        self.first = nn.Linear(6, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        for block in self.blocks:
            hidden = block(hidden)
        weights = (hidden @ self.project(self.queries).T).softmax(-1)
        hidden = hidden + weights @ self.queries
        return hidden @ self.norm(self.prototypes).T


class Several(Stack):
    """Returns a tuple: a list of hidden states, integers, then the logits in a dict."""

    def forward(self, x: Tensor) -> Any:
        hidden = [self.first(x)]
        for block in self.blocks:
            hidden.append(block(hidden[-1]))
        logits = self.head(hidden[-1])
        return logits.argmax(-1), {"scores": logits}, hidden


class Frozen(Stack):
    """Parts are frozen, parts unused."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__(width, depth)
        self.first.requires_grad_(False)
        self.unused = nn.Linear(width, width)


class Detached(Stack):
    """A side head on features that are detached."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__(width, depth)
        self.side = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden) + self.side(hidden.detach())


class Recursive(nn.Module):
    """One block over and over, as often as the model is deep."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(6, width)
        self.block = Block(width)
        self.head = nn.Linear(width, CLASSES)
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        for _ in range(self.depth):
            hidden = self.block(hidden)
        return self.head(hidden)


class MultiPath(nn.Module):
    """Parallel branches of unlike kinds into one sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 1)
        self.three = nn.Conv2d(width, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.one(x) + self.three(x).relu() + self.depthwise(x).tanh()) / 3


class Images(nn.Module):
    """Blocks over images."""

    def __init__(self, width: int, depth: int, block: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(block(width) for _ in range(depth)))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def _six() -> Tensor:
    return features(6)


def _two() -> tuple[Tensor, Tensor]:
    return features(6), features(6, seed=4)


def _stack(name: str, block: type[nn.Module], **marks: Any) -> Any:
    return model(name, lambda w, d: Stack(w, d, block), _six, family="oddities", **marks)


def _words(name: str, block: type[nn.Module], **marks: Any) -> Any:
    return model(
        name,
        lambda w, d: TokenModel(w, d, block),
        tokens,
        next_tokens,
        family="oddities",
        **marks,
    )


ARCHITECTURES = [
    _stack("residual", Block),
    _stack("rezero", ReZero),
    _stack("layerscale", LayerScale),
    _stack("highway", Highway),
    _stack("checkpointed", Checkpointed),
    _stack("in-place", InPlace),
    _stack("counting-buffers", Counting),
    _stack("nested-no-grad", NestedNoGrad),
    _stack("exponential", Exponential, note="each inner layer is used twice"),
    _stack("custom-function", CustomFunction),
    _stack("hard-mixture", HardMixture),
    _words("alibi-einsum", ALiBi),
    _words("mixer", Mixer),
    _words("fourier", Fourier),
    model("tied-twice", Tied, tokens, next_tokens, family="oddities"),
    model(
        "densenet",
        DenseNet,
        lambda: images(8),
        family="oddities",
        deep=False,
        note="layers are no copies of each other: their inputs grow",
    ),
    model("layerdrop", LayerDrop, _six, family="oddities"),
    model(
        "siamese",
        Siamese,
        _two,
        lambda: features(),
        family="oddities",
    ),
    model(
        "contrastive",
        Contrastive,
        _two,
        lambda: torch.arange(3),
        family="oddities",
        note="couples the examples of a batch",
    ),
    model("autoencoder", Autoencoder, _six, _six, family="oddities", in_step=False),
    model("vae", VAE, _six, _six, family="oddities", in_step=False),
    model("branching", Branching, _six, family="oddities", note="branches on data"),
    model("parameter-input", ParameterInput, _six, family="oddities"),
    model("several-outputs", Several, _six, family="oddities"),
    model("frozen", Frozen, _six, family="oddities"),
    model("detached", Detached, _six, family="oddities", detaches=True),
    model(
        "recursive",
        Recursive,
        _six,
        family="oddities",
        in_step=False,
        note="a deeper one has no more parameters: the base's block answers to the whole block",
    ),
    model(
        "multi-path",
        lambda w, d: Images(w, d, MultiPath),
        lambda: images(8),
        family="oddities",
    ),
]
