"""A small selective state space model, Mamba (Gu and Dao 2023, arXiv 2312.00752)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPAND = 2
"""Channels of a block over the width of the stream."""

KERNEL = 4
"""Tokens that the convolution of a block reads."""


class Mamba(nn.Module):
    """Bytes to logits of the next byte: embedding, blocks on a residual stream, norm, logits.

    Initialisation is the paper's in the blocks: A is -1, …, -N in each channel, D is 1, and steps
    are between 1/1000 and 1/10. The embedding is normal with standard deviation 0.02, the logits
    with 1/sqrt(width).

    Args:
        width: of the stream, in the base model.
        depth: blocks.
        states: N of each channel.
        vocabulary: tokens that there are.
        width_multiplier: times ``width``.

    >>> model = Mamba(width=8, depth=1, width_multiplier=2)
    >>> model(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 256])
    """

    def __init__(
        self,
        width: int = 16,
        depth: int = 2,
        *,
        states: int = 4,
        vocabulary: int = 256,
        width_multiplier: int = 1,
    ) -> None:
        super().__init__()
        width *= width_multiplier
        self.tokens = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, states) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.logits = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.logits.weight, std=1 / math.sqrt(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, T) -> logits (N, T, vocabulary)."""
        x = self.tokens(tokens)  # (N, T, W)
        for block in self.blocks:
            x = block(x)
        return self.logits(self.norm(x))


class Block(nn.Module):
    """Norm, gate and channels, a causal convolution, the state space, and back to the stream."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        channels, rank = EXPAND * width, max(1, width // 16)
        self.states, self.rank = states, rank
        self.norm = nn.RMSNorm(width)
        self.inner = nn.Linear(width, 2 * channels, bias=False)
        self.convolution = nn.Conv1d(
            channels, channels, KERNEL, groups=channels, padding=KERNEL - 1
        )
        self.selection = nn.Linear(channels, rank + 2 * states, bias=False)
        self.step = nn.Linear(rank, channels)
        self.log_decay = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(channels, 1))
        self.skip = nn.Parameter(torch.ones(channels))
        self.outer = nn.Linear(channels, width, bias=False)
        nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
        steps = torch.exp(torch.rand(channels) * math.log(100) + math.log(1e-3))
        with torch.no_grad():
            self.step.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # softplus undoes it

    def forward(self, x: Tensor) -> Tensor:
        """Stream (N, T, W) -> (N, T, W)."""
        length = x.shape[1]
        u, gate = self.inner(self.norm(x)).chunk(2, dim=-1)  # (N, T, C) each
        u = F.silu(self.convolution(u.transpose(1, 2))[..., :length].transpose(1, 2))
        low, read, write = self.selection(u).split([self.rank, self.states, self.states], dim=-1)
        y = scan(u, F.softplus(self.step(low)), -self.log_decay.exp(), read, write)
        return x + self.outer((y + self.skip * u) * F.silu(gate))


def scan(u: Tensor, steps: Tensor, decay: Tensor, read: Tensor, write: Tensor) -> Tensor:
    r"""Return what a selective state space makes of its inputs, all times at once.

    .. math:: y_t = \sum_{s \le t} \sum_n C_{t,n}
              \exp\Big(A_n \sum_{r=s+1}^{t} \Delta_r\Big) \Delta_s B_{s,n} u_s

    which is :math:`h_t = \exp(\Delta_t A) h_{t-1} + \Delta_t B_t u_t`, :math:`y_t = C_t h_t`
    without a loop over times. It takes memory of N T² C states.

    Args:
        u: inputs, (N, T, C).
        steps: Δ, (N, T, C), above 0.
        decay: A, (C, states), below 0.
        read: C, (N, T, states).
        write: B, (N, T, states).
    """
    length = u.shape[1]
    time = steps.cumsum(dim=1)
    elapsed = time[:, :, None] - time[:, None]  # (N, T, T, C), from s to t
    past = torch.ones(length, length, dtype=torch.bool, device=u.device).tril()[..., None]
    elapsed = torch.where(past, elapsed, torch.zeros_like(elapsed))
    kept = torch.exp(elapsed[..., None] * decay) * past[..., None]  # (N, T, T, C, states)
    entered = (steps * u)[..., None] * write[:, :, None]  # (N, T, C, states)
    return torch.einsum("ntscm,nscm,ntm->ntc", kept, entered, read)
