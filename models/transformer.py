"""A decoder-only transformer in the three normalisation schemes of the paper.

Milsom, Anson, Aitchison, *Function-Space Learning Rates*, ICML 2025, arXiv 2502.17405.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 16


class Transformer(nn.Module):
    r"""Token ids to the logits of each next token.

    A block adds two branches, causal attention and a feed-forward network of four times the width,
    in one of three ways. :math:`L` is the depth multiplier: a deeper model adds more branches, each
    with a variance that much smaller.

    ========================= ===========================================================
    ``norm``                  each branch
    ========================= ===========================================================
    ``"pre"``                 :math:`x \leftarrow x + L^{-1/2} f(\mathrm{norm}(x))`
    ``"post"``                :math:`x \leftarrow \mathrm{norm}(x + L^{-1/2} f(x))`
    ``"post-pre-residual"``   :math:`x \leftarrow x + L^{-1/2} \mathrm{norm}(f(x))`
    ========================= ===========================================================

    and all three normalise once more before the logits.

    Initialisation: weights are normal with standard deviation 1/sqrt(fan_in), sqrt(2/fan_in) after
    the ReLU; token and position embeddings with 1; biases are 0. With ``tied`` the token
    embedding is also the matrix of the logits, so both embeddings start with 1/sqrt(width).
    ``init_scale`` multiplies the matrices of the branches, and of those the ones for queries and
    keys only with ``qk_norm``: without it they set the temperature of the attention.

    Args:
        vocab: number of tokens.
        width: features of the residual stream in the base model.
        depth: blocks of the base model.
        heads: attention heads of the base model; None for width // 16, so that a wider model has
            more heads, not larger ones.
        context: the longest sequence.
        norm: ``"pre"``, ``"post"`` or ``"post-pre-residual"``, see above.
        tied: whether the token embedding and the matrix of the logits are one parameter.
        dropout: probability of dropping an attention weight, or a feature of a branch or embedding.
        init_scale: times the standard deviation of the branches' weights, see above.
        affine: whether layer norms have a weight and a bias (that of keys: a weight).
        qk_norm: whether queries and keys are normalised, head by head.
        width_multiplier: times ``width``, and ``heads`` where given.
        depth_multiplier: times ``depth``; the :math:`L` above.

    Raises:
        ValueError: for another ``norm``, a width that the heads do not divide, or a sequence longer
            than ``context``.

    >>> model = Transformer(vocab=50, width=32, depth=2, context=8, norm="post")
    >>> model(torch.zeros(3, 8, dtype=torch.long)).shape
    torch.Size([3, 8, 50])
    >>> tied = Transformer(vocab=50, width=32, tied=True)
    >>> tied.logits.weight is tied.tokens.weight
    True
    """

    def __init__(
        self,
        vocab: int = 256,
        width: int = 64,
        depth: int = 2,
        heads: int | None = None,
        context: int = 64,
        norm: Literal["pre", "post", "post-pre-residual"] = "pre",
        tied: bool = False,
        dropout: float = 0.0,
        init_scale: float = 1.0,
        *,
        affine: bool = False,
        qk_norm: bool = False,
        width_multiplier: int = 1,
        depth_multiplier: int = 1,
    ) -> None:
        super().__init__()
        if norm not in ("pre", "post", "post-pre-residual"):
            raise ValueError(f"norm is {norm!r}; it must be 'pre', 'post' or 'post-pre-residual'")
        width *= width_multiplier
        heads = max(width // HEAD_WIDTH, 1) if heads is None else heads * width_multiplier
        if width % heads:
            raise ValueError(
                f"width {width} is not a multiple of {heads}, the number of heads; choose another "
                "width, or pass heads"
            )
        embedding_std = 1 / math.sqrt(width) if tied else 1.0
        self.context = context
        self.tokens = embedding(vocab, width, embedding_std)
        self.positions = embedding(context, width, embedding_std)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                attention=Attention(width, heads, dropout, init_scale, affine, qk_norm),
                feed_forward=FeedForward(width, init_scale),
                norms=(layer_norm(width, affine), layer_norm(width, affine)),
                scheme=norm,
                branch_scale=depth_multiplier**-0.5,
                dropout=dropout,
            )
            for _ in range(depth * depth_multiplier)
        )
        self.norm = layer_norm(width, affine)
        self.logits = linear(width, vocab)
        if tied:
            self.logits.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T), int64 -> logits (B, T, vocab)."""
        time = tokens.shape[1]
        if time > self.context:
            raise ValueError(f"the sequence has {time} tokens; the context holds {self.context}")
        positions = torch.arange(time, device=tokens.device)  # (T,)
        x = self.tokens(tokens) + self.positions(positions)  # (B, T, C)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)  # (B, T, C)
        return self.logits(self.norm(x))  # (B, T, V)


class Block(nn.Module):
    """Attention and a feed-forward network, each a residual branch with a norm."""

    def __init__(
        self,
        attention: nn.Module,
        feed_forward: nn.Module,
        norms: tuple[nn.Module, nn.Module],
        scheme: str,
        branch_scale: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.attention_norm, self.feed_forward_norm = norms
        self.scheme = scheme
        self.branch_scale = branch_scale
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream (B, T, C) -> (B, T, C)."""
        x = self.residual(x, self.attention, self.attention_norm)
        return self.residual(x, self.feed_forward, self.feed_forward_norm)

    def residual(self, x: Tensor, branch: nn.Module, norm: nn.Module) -> Tensor:
        """Add a branch to x (B, T, C), with its norm where the scheme has it."""
        if self.scheme == "pre":
            return x + self.branch_scale * self.dropout(branch(norm(x)))
        if self.scheme == "post":
            return norm(x + self.branch_scale * self.dropout(branch(x)))
        return x + self.branch_scale * self.dropout(norm(branch(x)))


class Attention(nn.Module):
    """Causal self-attention: each position reads itself and the positions before it."""

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        init_scale: float,
        affine: bool,
        qk_norm: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        qk_scale = init_scale if qk_norm else 1.0
        self.query = linear(width, width, qk_scale)
        # Keys have no bias: it would add the same to all scores of a query, and softmax takes that
        # out again.
        self.key = linear(width, width, qk_scale, bias=False)
        self.value = linear(width, width, init_scale)
        self.output = linear(width, width, init_scale)
        self.query_norm = layer_norm(width // heads, affine) if qk_norm else nn.Identity()
        self.key_norm = layer_norm(width // heads, affine, bias=False) if qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, T, C) -> (B, T, C)."""
        batch, time, width = x.shape
        split = (batch, time, self.heads, width // self.heads)
        q = self.query_norm(self.query(x).view(split)).transpose(1, 2)  # (B, H, T, C/H)
        k = self.key_norm(self.key(x).view(split)).transpose(1, 2)  # (B, H, T, C/H)
        v = self.value(x).view(split).transpose(1, 2)  # (B, H, T, C/H)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y = y.transpose(1, 2).reshape(batch, time, width)  # (B, T, C)
        return self.output(y)


class FeedForward(nn.Module):
    """A ReLU network with one hidden layer, four times as wide."""

    def __init__(self, width: int, init_scale: float) -> None:
        super().__init__()
        self.hidden = linear(width, 4 * width, init_scale)
        self.output = linear(4 * width, width, init_scale * math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, T, C) -> (B, T, C)."""
        h = F.relu(self.hidden(x))  # (B, T, 4C)
        return self.output(h)


def linear(fan_in: int, fan_out: int, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """A linear map whose weights start with standard deviation gain/sqrt(fan_in), biases with 0."""
    layer = nn.Linear(fan_in, fan_out, bias=bias)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def embedding(count: int, width: int, std: float) -> nn.Embedding:
    """A table of ``count`` vectors, normal with standard deviation ``std``."""
    table = nn.Embedding(count, width)
    nn.init.normal_(table.weight, std=std)
    return table


def layer_norm(width: int, affine: bool, bias: bool = True) -> nn.LayerNorm:
    """A layer norm, with a weight of 1 and a bias of 0 if ``affine``."""
    return nn.LayerNorm(width, elementwise_affine=affine, bias=bias)
