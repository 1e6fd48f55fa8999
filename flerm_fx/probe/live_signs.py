r"""Signs are the cotangents of a live model: they have one length, however many ranks share them.

For a vector a of K numbers and independent random signs v,

.. math:: E (v \cdot a)^2 = \lVert a \rVert^2, \qquad
          \mathrm{Var} (v \cdot a)^2 = 2 \Big(\lVert a \rVert^4 - \sum_k a_k^4\Big)
          \le 2 \Big(1 - \frac1K\Big) \lVert a \rVert^4 .
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Signs:
    """A ``Signs`` says how many cotangents of random signs are drawn, and how far they tell.

    Attributes:
        coordinates: K, the numbers of a part of the output that has a sample of its own.
        draws: signs of each of them, m.
        every: each coordinate by itself, in place of random signs of all.

    >>> Signs(coordinates=4, draws=3).relative_variance
    0.5
    """

    coordinates: int
    draws: int
    every: bool = False

    @property
    def relative_variance(self) -> float:
        """The relative variance of the mean of m squares, 2 (1 - 1/K) / m, at most."""
        return 0.0 if self.every else 2.0 * (1.0 - 1.0 / self.coordinates) / self.draws


def signs(like: Tensor, seed: int) -> Tensor:
    """Return random signs of a tensor's shape and type, drawn where it is.

    >>> drawn = signs(torch.zeros(2, 3), seed=0)
    >>> drawn.shape, bool((drawn.abs() == 1).all())
    (torch.Size([2, 3]), True)
    """
    generator = torch.Generator(like.device).manual_seed(seed % 2**63)
    drawn = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    return drawn.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def unit(like: Tensor, coordinate: int) -> Tensor:
    """Return the unit vector of a coordinate, in a tensor's shape and type; 0 beyond the last.

    >>> unit(torch.zeros(1, 3), 1)
    tensor([[0., 1., 0.]])
    """
    vector = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
    vector.view(-1)[coordinate : coordinate + 1] = 1.0
    return vector
