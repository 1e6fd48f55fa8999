"""The residual MLP of the paper (Milsom, Anson, Aitchison, ICML 2025, arXiv 2502.17405)."""

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class ResMLP(nn.Module):
    r"""A linear map in, residual blocks, a linear map out.

    With depth multiplier :math:`L` the variance that a block adds is divided by :math:`L`, so that
    at the start the blocks together multiply the variance by :math:`(1 + 1/L)^{DL}`, which stays
    below :math:`e^D` however deep the model (:math:`D` is the depth of the base model):

    .. math:: x \leftarrow x + L^{-1/2} \, W_S \phi(W_{S-1} \dots \phi(W_1 \phi(x))),
              \quad \phi = \mathrm{ReLU},

    for ``depth_scaling="forward"``. For ``depth_scaling="init"`` the factor is not in the forward
    pass; each of the block's :math:`S` matrices starts :math:`L^{1/(2S)}` times smaller instead.

    Initialisation: weights are normal with standard deviation 1/sqrt(fan_in), for the blocks
    ``init_scale`` · sqrt(2/fan_in), since half of what a ReLU lets through is zero. Biases are 0.

    Args:
        in_features: inputs; 3 · 32 · 32 for CIFAR-10.
        out_features: outputs, such as classes.
        width: hidden features of the base model.
        depth: residual blocks of the base model.
        block_size: hidden layers per residual block of the base model.
        width_multiplier: times ``width``.
        depth_multiplier: times ``depth``; the :math:`L` above.
        block_size_multiplier: times ``block_size``.
        depth_scaling: ``"init"`` or ``"forward"``, see above.
        init_scale: times the standard deviation of the blocks' weights.
        small_readout: start the output layer smaller by the root of ``width_multiplier``, as the
            package ``mup`` does: its outputs vanish as it grows.

    Raises:
        ValueError: for another ``depth_scaling``.

    >>> import torch
    >>> model = ResMLP(in_features=12, out_features=10, width=16, depth=3, width_multiplier=2)
    >>> model(torch.zeros(4, 12)).shape
    torch.Size([4, 10])
    >>> model.blocks[0].layers[0].weight.shape
    torch.Size([32, 32])
    """

    def __init__(
        self,
        in_features: int = 3072,
        out_features: int = 10,
        width: int = 128,
        depth: int = 4,
        block_size: int = 1,
        *,
        width_multiplier: int = 1,
        depth_multiplier: int = 1,
        block_size_multiplier: int = 1,
        depth_scaling: Literal["init", "forward"] = "init",
        init_scale: float = 1.0,
        small_readout: bool = False,
    ) -> None:
        super().__init__()
        width *= width_multiplier
        block_size *= block_size_multiplier
        if depth_scaling == "init":
            block_gain = math.sqrt(2) * depth_multiplier ** (-0.5 / block_size)
            branch_scale = 1.0
        elif depth_scaling == "forward":
            block_gain = math.sqrt(2)
            branch_scale = depth_multiplier**-0.5
        else:
            raise ValueError(f"depth_scaling is {depth_scaling!r}; it must be 'init' or 'forward'")
        self.input = linear(in_features, width)
        self.blocks = nn.ModuleList(
            Block(width, block_size, init_scale * block_gain, branch_scale)
            for _ in range(depth * depth_multiplier)
        )
        readout_gain = width_multiplier**-0.5 if small_readout else 1.0
        self.output = linear(width, out_features, readout_gain)

    def forward(self, x: Tensor) -> Tensor:
        """Examples (N, ...) with ``in_features`` numbers each -> outputs (N, out_features)."""
        x = self.input(x.flatten(1))  # (N, W)
        for block in self.blocks:
            x = block(x)  # (N, W)
        return self.output(x)  # (N, K)


class Block(nn.Module):
    """A residual block: ``size`` times a ReLU and a linear map."""

    def __init__(self, width: int, size: int, gain: float, branch_scale: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear(width, width, gain) for _ in range(size))
        self.branch_scale = branch_scale

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, W) -> (N, W)."""
        h = x
        for layer in self.layers:
            h = layer(F.relu(h))  # (N, W)
        return x + self.branch_scale * h


def linear(fan_in: int, fan_out: int, gain: float = 1.0) -> nn.Linear:
    """A linear map whose weights start with standard deviation gain/sqrt(fan_in), biases with 0."""
    layer = nn.Linear(fan_in, fan_out)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(fan_in))
    nn.init.zeros_(layer.bias)
    return layer
