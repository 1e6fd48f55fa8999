"""Operations that lack a derivative or a batching rule, as ones that have them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def size(tensor: Tensor, dimension: int) -> int:
    """``tensor.size(dimension)``; the ATen operation has no batching rule.

    >>> size(torch.zeros(2, 3), 1)
    3
    """
    return tensor.size(dimension)


def copied(destination: Tensor, source: Tensor) -> Tensor:
    """What ``destination.copy_(source)`` leaves there; the ATen operation has no derivative.

    >>> copied(torch.zeros(2, 2), torch.tensor([1.0, 2.0]))
    tensor([[1., 2.],
            [1., 2.]])
    """
    return source.to(destination.dtype).expand_as(destination)


def attention(*args: Any, **kwargs: Any) -> Tensor:
    """Scaled dot-product attention; the fused kernels have no forward-mode derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        return torch.ops.aten.scaled_dot_product_attention.default(*args, **kwargs)  # type: ignore[no-any-return]


def slice_scatter(
    tensor: Tensor,
    source: Tensor,
    dimension: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Tensor:
    """``torch.slice_scatter`` with its end inside the tensor; beyond it, the derivative overflows.

    >>> slice_scatter(torch.zeros(3), torch.ones(2), 0, 1, 2**63 - 1)
    tensor([0., 1., 1.])
    """
    length = tensor.size(dimension)
    end = length if end is None else min(end, length)
    return torch.slice_scatter(tensor, source, dimension, start, end, step)


PROBED_AS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.sym_size.int: size,
    torch.ops.aten.copy.default: copied,
    torch.ops.aten.slice_scatter.default: slice_scatter,
    torch.ops.aten.scaled_dot_product_attention.default: attention,
}
"""What a probe graph calls in place of an ATen operation."""
