"""A small convolutional network with BatchNorm and a residual block."""

import math

import torch.nn.functional as F
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Images to class logits: two convolutions, a residual block, the mean over places, logits.

    In training mode BatchNorm normalises by the statistics of the batch, so an example's logits
    depend on the other examples.

    Initialisation: weights are normal with standard deviation sqrt(2/fan_in) for the convolutions,
    which feed ReLUs, and 1/sqrt(fan_in) for the logits. BatchNorm weights are 1, biases are 0.

    Args:
        in_channels: channels of an image.
        classes: logits.
        width: channels after the first convolution of the base model; twice as many after the
            second.
        width_multiplier: times ``width``.

    >>> import torch
    >>> model = ConvNet(in_channels=1, width=4, width_multiplier=2)
    >>> model(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    >>> model.residual.second.weight.shape
    torch.Size([16, 16, 3, 3])
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 10,
        width: int = 8,
        *,
        width_multiplier: int = 1,
    ) -> None:
        super().__init__()
        width *= width_multiplier
        self.first = convolution(in_channels, width)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = convolution(width, 2 * width, stride=2)
        self.second_norm = nn.BatchNorm2d(2 * width)
        self.residual = Block(2 * width)
        self.logits = nn.Linear(2 * width, classes)
        nn.init.normal_(self.logits.weight, std=1 / math.sqrt(2 * width))
        nn.init.zeros_(self.logits.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, in_channels, Y, X) -> logits (N, classes)."""
        x = F.relu(self.first_norm(self.first(images)))  # (N, W, Y, X)
        x = F.relu(self.second_norm(self.second(x)))  # (N, 2W, Y/2, X/2)
        x = self.residual(x)  # (N, 2W, Y/2, X/2)
        x = x.mean(dim=(2, 3))  # (N, 2W)
        return self.logits(x)  # (N, K)


class Block(nn.Module):
    """A residual block: convolution, norm, ReLU, convolution, norm; ReLU after the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = convolution(width, width)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = convolution(width, width)
        self.second_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, Y, X) -> (N, C, Y, X)."""
        h = F.relu(self.first_norm(self.first(x)))  # (N, C, Y, X)
        h = self.second_norm(self.second(h))  # (N, C, Y, X)
        return F.relu(x + h)


def convolution(fan_in: int, fan_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3 × 3 convolution; no bias, since the BatchNorm after it would take it out again."""
    layer = nn.Conv2d(fan_in, fan_out, kernel_size=3, stride=stride, padding=1, bias=False)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (9 * fan_in)))
    return layer
