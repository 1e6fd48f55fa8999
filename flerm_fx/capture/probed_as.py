"""Operations that lack a derivative or a batching rule are replaced by ones that have them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from flerm_fx.boundary.compat import attention_and_weights
from flerm_fx.ops.table import facts


def size(tensor: Tensor, dimension: int) -> int:
    """Return ``tensor.size(dimension)``, since the ATen operation has no batching rule.

    >>> size(torch.zeros(2, 3), 1)
    3
    """
    return tensor.size(dimension)


def written_over(destination: Tensor, source: Tensor) -> Tensor:
    """Return what ``destination.copy_(source)`` leaves, since that operation has no derivative.

    >>> written_over(torch.zeros(2, 2), torch.tensor([1.0, 2.0]))
    tensor([[1., 2.],
            [1., 2.]])
    """
    return source.to(destination.dtype).expand_as(destination)


def dropout_mask(op: Callable[..., Tensor], x: Tensor, p: float) -> Tensor:
    """Return the factors of x that a dropout draws: 0, or 1 / (1 - p).

    Within a derivative, a dropout may lay out its draws otherwise than outside of one, and then is
    another function. Its mask drawn beforehand is the one that the model draws.

    >>> _ = torch.manual_seed(0)
    >>> dropout_mask(torch.ops.aten.dropout.default, torch.zeros(4), 0.5)
    tensor([0., 0., 2., 0.])
    """
    return op(torch.ones_like(x), p, True)


def attention_dropout_mask(query: Tensor, key: Tensor, p: float) -> Tensor:
    """Return the factors of the attention weights that a dropout of them draws: 0, or 1 / (1 - p).

    >>> attention_dropout_mask(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4), 0.1).shape
    torch.Size([2, 3, 5])
    """
    weights = query.new_ones((*query.shape[:-1], key.shape[-2]))
    return torch.ops.aten.dropout.default(weights, p, True)  # type: ignore[no-any-return]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
    dropout_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """Compute scaled dot-product attention, whose fused kernels have no forward-mode derivative."""
    if dropout_mask is None:
        op = torch.ops.aten.scaled_dot_product_attention.default
        with sdpa_kernel(SDPBackend.MATH):
            return op(query, key, value, bias, *rest, **kwargs)  # type: ignore[no-any-return]
    weights = attention_weights(query, key, value, bias, *rest[1:], **kwargs)
    if kwargs.get("enable_gqa", False):
        value = value.repeat_interleave(weights.shape[-3] // value.shape[-3], -3)
    return (weights * dropout_mask) @ value


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the softmax of scaled dot-product attention, for all pairs of query and key."""
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill(~bias, -math.inf)
    options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
    return attention_and_weights(query, key, value, bias, is_causal, **options)[1]


def alpha_dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """Apply ``alpha_dropout`` to contiguous memory, for which it draws in one order everywhere."""
    return torch.ops.aten.alpha_dropout.default(x.contiguous(), p, train)  # type: ignore[no-any-return]


def separate_draws(graph: fx.Graph) -> None:
    """Make what dropouts draw a node of its own (see :func:`dropout_mask`)."""
    for node in list(graph.nodes):
        if facts(node.target).kind == "dropout":
            x, p, training = node.args
            if not (training and p):
                continue
            with graph.inserting_before(node):
                mask = graph.call_function(dropout_mask, (node.target, x, p))
            node.target, node.args = torch.ops.aten.mul.Tensor, (x, mask)
        elif facts(node.target).kind == "attention" and len(node.args) > 4 and node.args[4]:
            query, key, value, bias, p, *rest = node.args
            with graph.inserting_before(node):
                mask = graph.call_function(attention_dropout_mask, (query, key, p))
            node.target, node.args = attention, (query, key, value, bias, 0.0, *rest)
            node.kwargs = {**node.kwargs, "dropout_mask": mask}


def slice_scatter(
    tensor: Tensor,
    source: Tensor,
    dimension: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Tensor:
    """Call ``torch.slice_scatter`` with its end inside the tensor, beyond which the derivative
    overflows.

    Of complex numbers it has no derivative at all, and that of their parts is taken.

    >>> slice_scatter(torch.zeros(3), torch.ones(2), 0, 1, 2**63 - 1)
    tensor([0., 1., 1.])
    """
    length = tensor.size(dimension)
    end = length if end is None else min(end, length)
    return _by_parts(torch.slice_scatter, tensor, source, dimension, start, end, step)


def select_scatter(tensor: Tensor, source: Tensor, dimension: int, index: int) -> Tensor:
    """Call ``torch.select_scatter`` in a way that has a derivative of complex numbers, too.

    >>> select_scatter(torch.zeros(3), torch.tensor(1.0), 0, 1)
    tensor([0., 1., 0.])
    """
    return _by_parts(torch.select_scatter, tensor, source, dimension, index)


def _by_parts(
    op: Callable[..., Tensor], tensor: Tensor, source: Tensor, dimension: int, *rest: Any
) -> Tensor:
    """Apply an operation that moves numbers along a dimension to the real and imaginary parts."""
    if not tensor.is_complex():
        return op(tensor, source, dimension, *rest)
    parts = (torch.view_as_real(each.resolve_conj()) for each in (tensor, source))
    return torch.view_as_complex(op(*parts, dimension % tensor.ndim, *rest))


PROBED_AS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.sym_size.int: size,
    torch.ops.aten.copy.default: written_over,
    torch.ops.aten.slice_scatter.default: slice_scatter,
    torch.ops.aten.select_scatter.default: select_scatter,
    torch.ops.aten.scaled_dot_product_attention.default: attention,
    torch.ops.aten.alpha_dropout.default: alpha_dropout,
}
"""What a probe graph calls in place of an ATen operation."""

AT_ANY_STRIDES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
}
"""What a graph calls so as not to depend on strides: another kernel may choose others than that of
the capture did."""

CONSTANT = (dropout_mask, attention_dropout_mask)
"""Operations whose result does not depend on the values that they are given."""
