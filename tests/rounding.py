"""How far two evaluations of one formula may lie apart by rounding alone.

Other kernels, batches and graphs sum the same terms in another order.
"""

import math

import torch
from torch import Tensor, nn


def rounding(terms: int, dtype: torch.dtype = torch.float32, size: float = 1.0) -> float:
    """The most by which two orders of a sum differ, whose partial sums are at most ``size``.

    An addition rounds evenly to within eps/2 of its result: a standard deviation of at most
    eps/√12 of ``size``, of √terms as much after that many, and of √2 as much between two orders.
    Five of those, √(25/6 · terms) eps size, are passed once in two million. (In the worst case
    errors grow with ``terms`` instead of its root; N. Higham and T. Mary, A new approach to
    probabilistic rounding error analysis, 2019.) Without a size this is relative to the sum.
    """
    eps = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    return math.sqrt(25 / 6 * terms) * eps * size


def terms(model: nn.Module) -> int:
    """About how many terms a model sums one after the other, from its inputs to its outputs.

    A matrix has those that go into one of its outputs, a bias one, and the gain of a norm all
    features. Each gradient, or tangent, sums about as many again.
    """
    count = 0
    for name, p in model.named_parameters():
        if p.ndim > 1:
            count += p[0].numel()
        else:
            count += 1 if name.endswith("bias") else p.numel()
    return count


def assert_close(
    found: Tensor,
    expected: Tensor,
    terms: int,
    size: float | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Two tensors are alike up to the rounding of sums of ``terms`` terms.

    What is summed is taken to be as large as the largest value, and of the tensors' own type, where
    nothing else is said.
    """
    size = float(expected.detach().abs().max()) if size is None else size
    atol = rounding(terms, dtype or expected.dtype, size)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
