"""Models made of the layers of ``torch.nn``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import weight_norm as hooked_weight_norm
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from zoo.architecture import SIZES, Architecture, Size
from zoo.batches import CLASSES, TIME, VOCABULARY, classes, features, images, next_tokens, tokens

WIDTH: dict[Size, int] = {"base": 8, "wide": 16, "deep": 8}
DEPTH: dict[Size, int] = {"base": 2, "wide": 2, "deep": 4}


def model(
    name: str,
    build: Callable[[int, int], nn.Module],
    inputs: Callable[[], Any],
    targets: Callable[[], Any] = classes,
    *,
    family: str = "torch_nn",
    deep: bool = True,
    **marks: Any,
) -> Architecture:
    """An architecture from a function of width and depth."""
    return Architecture(
        name,
        family,
        lambda size: build(WIDTH[size], DEPTH[size]),
        inputs,
        targets,
        sizes=SIZES if deep else ("base", "wide"),
        **marks,
    )


class RecurrentLM(nn.Module):
    """A language model over a recurrent layer."""

    def __init__(
        self, kind: Callable[..., nn.RNNBase], width: int, layers: int, **options: Any
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.recurrent = kind(width, width, layers, batch_first=True, **options)
        self.head = nn.Linear(width * (1 + self.recurrent.bidirectional), VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embedding(ids))[0])


class CellLM(nn.Module):
    """A language model that steps a cell through time."""

    def __init__(self, cell: Callable[[int, int], nn.RNNCellBase], width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.cell = cell(width, width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        state = None
        outputs = []
        for x in self.embedding(ids).unbind(1):
            state = self.cell(x, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return self.head(torch.stack(outputs, 1))


class TransformerClassifier(nn.Module):
    """Tokens through ``nn.TransformerEncoder``."""

    def __init__(self, width: int, depth: int, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, 2, 2 * width, batch_first=True, norm_first=norm_first
        )
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(ids)).mean(1))


class DecoderLM(nn.Module):
    """A language model of ``nn.TransformerDecoder`` that attends to an embedded source."""

    def __init__(self, width: int, depth: int, told: bool) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.source = nn.Embedding(VOCABULARY, width)
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.decoder = nn.TransformerDecoder(layer, depth)
        self.head = nn.Linear(width, VOCABULARY)
        self.told = told

    def forward(self, source: Tensor, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        causal = {"tgt_is_causal": True} if self.told else {}
        hidden = self.decoder(self.embedding(ids), self.source(source), tgt_mask=mask, **causal)
        return self.head(hidden)


class Seq2Seq(nn.Module):
    """``nn.Transformer`` between embeddings."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.transformer = nn.Transformer(width, 2, depth, depth, 2 * width, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, source: Tensor, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        hidden = self.transformer(
            self.embedding(source), self.embedding(ids), tgt_mask=mask, tgt_is_causal=True
        )
        return self.head(hidden)


class AttentionOnly(nn.Module):
    """Residual ``nn.MultiheadAttention`` with a key and value projection of other widths."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(
            nn.MultiheadAttention(
                width, 2, kdim=6, vdim=6, add_bias_kv=True, batch_first=True, dropout=0.1
            )
            for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(depth))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, ids: Tensor, context: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = hidden + layer(norm(hidden), context, context, need_weights=False)[0]
        return self.head(hidden.mean(1))


def mlp(width: int, depth: int, wrap: Callable[[nn.Module], nn.Module] = lambda m: m) -> nn.Module:
    """A plain MLP, its hidden layers wrapped."""
    hidden: list[nn.Module] = []
    for _ in range(depth):
        hidden += [wrap(nn.Linear(width, width)), nn.GELU()]
    return nn.Sequential(nn.Linear(6, width), nn.GELU(), *hidden, nn.Linear(width, CLASSES))


def normed(width: int, depth: int, norm: Callable[[int], nn.Module]) -> nn.Module:
    """A conv net with a norm after each convolution."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
    for _ in range(depth):
        layers += [
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), norm(width), nn.ReLU(inplace=True))
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


def convolutions(width: int, depth: int, dimensions: int) -> nn.Module:
    """Residual-free convolutions in 1, 2 or 3 dimensions, of several kinds."""
    conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    pool: Any = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dimensions - 1]
    layers: list[nn.Module] = [conv(2, width, 3, padding=1)]
    for _ in range(depth):
        layers += [
            conv(width, width, 3, padding=1, groups=width, bias=False),
            nn.SiLU(),
            conv(width, width, 1),
        ]
    return nn.Sequential(*layers, pool(1), nn.Flatten(), nn.Linear(width, CLASSES))


class UNet(nn.Module):
    """Down and up again with skips; each level lies within the one before."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(levels)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(width, width, 2, 2) for _ in range(levels))
        self.merge = nn.ModuleList(nn.Conv2d(2 * width, width, 3, padding=1) for _ in range(levels))
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        skips = []
        for down in self.down:
            skips.append(hidden)
            hidden = down(hidden).relu()
        for up, merge in zip(self.up, self.merge, strict=True):
            hidden = merge(torch.cat([up(hidden), skips.pop()], 1)).relu()
        return self.last(hidden)


class Bags(nn.Module):
    """``nn.EmbeddingBag``, ``nn.Bilinear`` and ``nn.PReLU``."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(VOCABULARY, width, mode="mean")
        self.bilinear = nn.ModuleList(nn.Bilinear(width, width, width) for _ in range(depth))
        self.act = nn.ModuleList(nn.PReLU(width) for _ in range(depth))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.bag(ids)
        for bilinear, act in zip(self.bilinear, self.act, strict=True):
            hidden = hidden + act(bilinear(hidden, hidden.tanh()))
        return self.head(hidden)


class Alternating(nn.Module):
    """Blocks of two kinds in turn."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(
            _Mixing(width) if i % 2 else _Gated(width) for i in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(self.norm(hidden))


class _Mixing(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)


class _Gated(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.out(self.gate(x).sigmoid() * self.value(x))


def _recurrent(
    name: str, kind: Callable[..., nn.RNNBase], layers: int, **options: Any
) -> Architecture:
    return model(
        name,
        lambda width, depth: RecurrentLM(kind, width, layers * depth // 2, **options),
        tokens,
        next_tokens,
        deep=layers > 1,
        in_step=False,
    )


def _pairs() -> tuple[Tensor, Tensor]:
    return tokens(TIME + 2), tokens()


ARCHITECTURES = [
    _recurrent("rnn", nn.RNN, 1),
    _recurrent("lstm", nn.LSTM, 1),
    _recurrent("gru", nn.GRU, 1),
    _recurrent("rnn-2-layers", nn.RNN, 2, nonlinearity="relu"),
    _recurrent("lstm-2-layers", nn.LSTM, 2, dropout=0.1),
    _recurrent("gru-2-layers", nn.GRU, 2),
    _recurrent("lstm-bidirectional", nn.LSTM, 1, bidirectional=True),
    _recurrent("gru-bidirectional-2-layers", nn.GRU, 2, bidirectional=True),
    _recurrent("lstm-no-bias", nn.LSTM, 1, bias=False),
    model("lstm-cell", lambda w, d: CellLM(nn.LSTMCell, w), tokens, next_tokens, deep=False),
    model("gru-cell", lambda w, d: CellLM(nn.GRUCell, w), tokens, next_tokens, deep=False),
    model("transformer-encoder", lambda w, d: TransformerClassifier(w, d, False), tokens),
    model("transformer-encoder-pre", lambda w, d: TransformerClassifier(w, d, True), tokens),
    model(
        "transformer-decoder",
        lambda w, d: DecoderLM(w, d, False),
        _pairs,
        next_tokens,
        note="looks at its mask's values to see whether it is causal",
    ),
    model("transformer-decoder-told", lambda w, d: DecoderLM(w, d, True), _pairs, next_tokens),
    model("nn-transformer", Seq2Seq, _pairs, next_tokens),
    model("attention-only", AttentionOnly, lambda: (tokens(), features(4, 6))),
    model("mlp", mlp, lambda: features(6), in_step=False),
    model("weight-norm", lambda w, d: mlp(w, d, weight_norm), lambda: features(6), in_step=False),
    model(
        "weight-norm-hook",
        lambda w, d: mlp(w, d, hooked_weight_norm),
        lambda: features(6),
        in_step=False,
    ),
    model(
        "spectral-norm", lambda w, d: mlp(w, d, spectral_norm), lambda: features(6), in_step=False
    ),
    model(
        "spectral-norm-hook",
        lambda w, d: mlp(w, d, nn.utils.spectral_norm),
        lambda: features(6),
        in_step=False,
    ),
    model("orthogonal", lambda w, d: mlp(w, d, orthogonal), lambda: features(6), in_step=False),
    model(
        "batch-norm", lambda w, d: normed(w, d, nn.BatchNorm2d), lambda: images(8), in_step=False
    ),
    model(
        "group-norm",
        lambda w, d: normed(w, d, lambda c: nn.GroupNorm(2, c)),
        lambda: images(8),
        in_step=False,
    ),
    model(
        "instance-norm",
        lambda w, d: normed(
            w, d, lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True)
        ),
        lambda: images(8),
        in_step=False,
    ),
    model("conv1d", lambda w, d: convolutions(w, d, 1), lambda: features(2, 9), in_step=False),
    model("conv2d", lambda w, d: convolutions(w, d, 2), lambda: features(2, 6, 6), in_step=False),
    model(
        "conv3d", lambda w, d: convolutions(w, d, 3), lambda: features(2, 4, 4, 4), in_step=False
    ),
    model(
        "unet",
        UNet,
        lambda: images(16),
        lambda: classes(3, 16, 16, number=2),
        in_step=False,
        note="the levels of a deeper one are halves, too, of those of the base",
    ),
    model("bags", Bags, tokens),
    model("alternating", Alternating, tokens, next_tokens, in_step=False),
]
