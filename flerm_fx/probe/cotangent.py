r"""Cotangents are random and orthonormal; the variance of what they measure is known exactly.

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

BLOCK = 2**16
"""Random numbers from which on a block of examples has a generator of its own, which takes about as
long to be seeded as 2¹⁰ numbers to be drawn."""


@dataclass(frozen=True)
class Cotangents:
    """A ``Cotangents`` draws unit cotangents for each of N examples.

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

    def sets(
        self,
        generator: torch.Generator,
        examples: slice = slice(None),
        device: torch.device | None = None,
    ) -> Iterator[Tensor]:
        """Return rows of some examples, as many at a time as fit in memory, in float32.

        What is drawn for an example does not depend on which others are asked for: blocks of
        examples have generators of their own.

        Args:
            generator: seeds them.
            examples: for which to draw; all if not given.
            device: to draw on; that of ``generator`` if None.

        Returns:
            Tensors of shape (examples, rows, coordinates).

        >>> cotangents = Cotangents(examples=3, coordinates=5, draws=2)
        >>> (every,) = cotangents.sets(torch.Generator().manual_seed(0))
        >>> (last,) = cotangents.sets(torch.Generator().manual_seed(0), slice(2, 3))
        >>> torch.equal(last, every[2:])
        True
        """
        device = device or generator.device
        asked = range(self.examples)[examples]
        if self.every:
            yield torch.eye(self.coordinates, device=device).expand(len(asked), -1, -1)
        elif self.draws > 1 and self.orthonormal:
            gaussian = self._gaussian(generator, asked, self.coordinates, self.draws, device)
            # Uniform by Haar measure up to the rows' signs, which squares do not see.
            yield torch.linalg.qr(gaussian).Q.mT
        else:
            at_once = max(1, MEMORY // (4 * self.examples * self.coordinates))
            for start in range(0, self.draws, at_once):
                rows = min(at_once, self.draws - start)
                gaussian = self._gaussian(generator, asked, rows, self.coordinates, device)
                # In place: next to a large vocabulary's logits a copy would be seen.
                yield gaussian.div_(torch.linalg.vector_norm(gaussian, dim=-1, keepdim=True))

    def _gaussian(
        self,
        generator: torch.Generator,
        asked: range,
        rows: int,
        columns: int,
        device: torch.device,
    ) -> Tensor:
        """Normal numbers for some examples, of shape (examples, rows, columns)."""
        seed = int(torch.randint(2**32, (), generator=generator, device=generator.device))
        size = max(1, BLOCK // (rows * columns))
        numbers = torch.empty(len(asked), rows, columns, device=device)
        own = torch.Generator(device)
        for block in range(asked.start // size, -(-asked.stop // size) if asked else 0):
            own.manual_seed(seed + block)
            first, end = block * size, min((block + 1) * size, self.examples)
            begin, stop = max(first, asked.start), min(end, asked.stop)
            into = numbers[begin - asked.start : stop - asked.start]
            if len(into) == end - first:
                into.normal_(generator=own)
            else:
                drawn = torch.randn(end - first, rows, columns, generator=own, device=device)
                into.copy_(drawn[begin - first : stop - first])
        return numbers
