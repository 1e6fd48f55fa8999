r"""Random orthonormal cotangents, and the exact variance of what they measure.

For a vector a of K numbers and m rows q of a random orthogonal matrix (uniform by Haar measure),

.. math:: v = \tfrac{1}{m} \sum_{i=1}^{m} (q_i \cdot a)^2, \qquad E\,v = \lVert a \rVert^2 / K,

since each :math:`q_i` is uniform on the unit sphere. The projection on m random orthonormal rows
has :math:`\sum (q_i \cdot a)^2 / \lVert a \rVert^2 \sim \mathrm{Beta}(m/2, (K-m)/2)`, for any a,
so the relative variance of v is known:

.. math:: r(K, m) = \frac{2 (K - m)}{m (K + 2)},

which is 0 at m = K: K orthonormal cotangents see all of a.
"""

import torch
from torch import Tensor

from flerm_fx.errors import InputError


def orthonormal(examples: int, coordinates: int, draws: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal rows, independent between examples: shape (examples, draws, coordinates).

    The QR decomposition of a Gaussian matrix, uniform by Haar measure up to the rows' signs, which
    squares do not see. Drawn on the generator's device in float32.

    Raises:
        InputError: more draws than coordinates.

    >>> q = orthonormal(2, 5, 3, torch.Generator().manual_seed(0))
    >>> bool(torch.allclose(q @ q.mT, torch.eye(3).expand(2, 3, 3), atol=1e-6))
    True
    """
    if draws > coordinates:
        raise InputError(
            f"{draws} orthonormal cotangents do not fit in {coordinates} output coordinates"
        )
    gaussian = torch.randn(
        examples, coordinates, draws, generator=generator, device=generator.device
    )
    if draws == 1:
        rows: Tensor = gaussian / torch.linalg.vector_norm(gaussian, dim=1, keepdim=True)
    else:
        rows = torch.linalg.qr(gaussian).Q
    return rows.mT


def relative_variance(coordinates: int, draws: int) -> float:
    r"""Relative variance :math:`r(K, m) = 2 (K - m) / (m (K + 2))` of the mean of m squares.

    >>> relative_variance(10, 10)
    0.0
    """
    return 2.0 * (coordinates - draws) / (draws * (coordinates + 2.0))
