r"""Random orthonormal cotangents, and the exact variance of what they measure.

For a vector a of K numbers and m rows q of a random orthogonal matrix (uniform by Haar measure),

.. math:: v = \tfrac{1}{m} \sum_{i=1}^{m} (q_i \cdot a)^2, \qquad E\,v = \lVert a \rVert^2 / K,

since each :math:`q_i` is uniform on the unit sphere. The projection on m random orthonormal rows
has :math:`\sum (q_i \cdot a)^2 / \lVert a \rVert^2 \sim \mathrm{Beta}(m/2, (K-m)/2)`, for any a,
so the relative variance of v is known:

.. math:: r(K, m) = \frac{2 (K - m)}{m (K + 2)},

which is 0 at m = K: K orthonormal cotangents see all of a.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flerm_fx.errors import InputError

MEMORY = 2**28
"""Bytes of cotangents to hold at once, so that they can be made orthonormal."""


@dataclass(frozen=True)
class Cotangents:
    """Unit cotangents for each of N examples.

    Rows are orthonormal within an example where all of them fit in :data:`MEMORY`, and independent
    otherwise, when only some are held at a time; with as many coordinates as that takes,
    independent rows are all but orthogonal anyway.

    Attributes:
        examples: N.
        coordinates: output coordinates of an example, K.
        draws: cotangents of an example, m.
        every: the K unit vectors of the coordinates in place of random ones; m is K.

    Raises:
        InputError: more draws than coordinates.

    >>> cotangents = Cotangents(examples=2, coordinates=5, draws=3)
    >>> (q,) = cotangents.sets(torch.Generator().manual_seed(0))
    >>> bool(torch.allclose(q @ q.mT, torch.eye(3).expand(2, 3, 3), atol=1e-6))
    True
    >>> Cotangents(examples=2, coordinates=5, draws=5).relative_variance
    0.0
    """

    examples: int
    coordinates: int
    draws: int
    every: bool = False

    def __post_init__(self) -> None:
        if self.draws > self.coordinates:
            raise InputError(
                f"{self.draws} orthonormal cotangents do not fit in {self.coordinates} output "
                "coordinates"
            )

    @property
    def orthonormal(self) -> bool:
        """Whether the rows of an example are orthogonal to one another."""
        return 4 * self.examples * self.coordinates * self.draws <= MEMORY

    @property
    def relative_variance(self) -> float:
        r"""Relative variance r of the mean of an example's m squares.

        :math:`2 (K - m) / (m (K + 2))` for orthonormal rows, :math:`2 (K - 1) / (m (K + 2))` for
        independent ones, 0 for every coordinate.
        """
        if self.every:
            return 0.0
        missing = self.coordinates - (self.draws if self.orthonormal else 1)
        return 2.0 * missing / (self.draws * (self.coordinates + 2.0))

    def sets(self, generator: torch.Generator) -> Iterator[Tensor]:
        """All rows, as many at a time as fit in memory: (examples, rows, coordinates), float32."""
        if self.every:
            yield torch.eye(self.coordinates, device=generator.device).expand(self.examples, -1, -1)
        elif self.draws > 1 and self.orthonormal:
            gaussian = _gaussian(generator, self.examples, self.coordinates, self.draws)
            # Uniform by Haar measure up to the rows' signs, which squares do not see.
            yield torch.linalg.qr(gaussian).Q.mT
        else:
            at_once = max(1, MEMORY // (4 * self.examples * self.coordinates))
            for start in range(0, self.draws, at_once):
                rows = min(at_once, self.draws - start)
                gaussian = _gaussian(generator, self.examples, rows, self.coordinates)
                # In place: next to a large vocabulary's logits a copy would be seen.
                yield gaussian.div_(torch.linalg.vector_norm(gaussian, dim=-1, keepdim=True))


def _gaussian(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)
