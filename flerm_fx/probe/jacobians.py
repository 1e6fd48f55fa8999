r"""Operations that are linear in nothing have a Jacobian :math:`\dot x \mapsto \dot y` each.

What does not depend on the tangents (softmax, the statistics of a norm) is computed once, when the
map is made.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flerm_fx.boundary.compat import softmax_backward
from flerm_fx.capture.probed_as import attention_weights
from flerm_fx.probe.stacks import LinearMap, OneStack, Stacks, by_rows, dimension_of_stack, times

aten = torch.ops.aten


def _softmax(
    index: int, value: Tensor, x: Tensor, dim: int, dtype: torch.dtype | None = None
) -> OneStack | None:
    """The Jacobian is symmetric, so that the kernel of the backward pass is the tangent's too."""
    if dtype not in (None, x.dtype):
        return None
    return by_rows(lambda row: softmax_backward(row, value, dim), value)


def _log_softmax(
    index: int, value: Tensor, x: Tensor, dim: int, dtype: torch.dtype | None = None
) -> OneStack | None:
    if dtype not in (None, x.dtype):
        return None
    probabilities, along = value.exp(), dimension_of_stack(dim)
    return lambda stack: stack - (probabilities * stack).sum(along, keepdim=True)


def _layer_norm(
    index: int,
    value: Tensor,
    x: Tensor,
    shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *__: Any,
) -> OneStack | None:
    """The Jacobian of what is normalised is symmetric, as that of softmax."""
    if index:
        return None
    mean, deviation = aten.native_layer_norm(x, shape, None, None, eps)[1:]

    def normalised(row: Tensor) -> Tensor:
        moved: Tensor = aten.native_layer_norm_backward(
            row.contiguous(), x, shape, mean, deviation, None, None, [True, False, False]
        )[0]
        return moved if weight is None else moved.mul_(weight)

    return by_rows(normalised, x)


def _batch_norm(
    index: int,
    value: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *__: Any,
) -> OneStack | None:
    if index:
        return None
    channels = (-1, *[1] * (x.dim() - 2))
    scale = x.new_ones(x.shape[1]) if weight is None else weight
    if running_var is not None and not training:
        return times((scale * (running_var + eps).rsqrt()).reshape(channels), value)
    mean, deviation = aten.native_batch_norm(x, None, None, None, None, True, momentum, eps)[1:]

    def normalised(row: Tensor) -> Tensor:
        moved: Tensor = aten.native_batch_norm_backward(
            row.contiguous(), x, None, None, None, mean, deviation, True, eps, [True, False, False]
        )[0]
        return moved.mul_(scale.reshape(channels))

    return by_rows(normalised, x)


def attention_map(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    no_dropout: float = 0.0,
    is_causal: bool = False,
    *,
    dropout_mask: Tensor | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> LinearMap:
    r"""Return the map of attention, :math:`\dot y = \dot P v + P \dot v` with :math:`P =
    \mathrm{softmax}(S)`.
    """
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    weights = attention_weights(query, key, value, bias, is_causal, scale, enable_gqa)
    heads = query.shape[-3] // key.shape[-3] if enable_gqa else 1

    def repeated(tensor: Tensor) -> Tensor:
        return tensor if heads == 1 else tensor.repeat_interleave(heads, -3)

    keys, values = repeated(key), repeated(value)
    kept = weights if dropout_mask is None else weights * dropout_mask

    def one(row: Mapping[int, Tensor]) -> Tensor:
        tangent: Tensor | None = None
        scores: Tensor | None = None
        if 0 in row:
            scores = row[0] @ keys.mT
        if 1 in row:
            by_key = query @ repeated(row[1]).mT
            scores = by_key if scores is None else scores.add_(by_key)
        if scores is not None:
            scores = scores.mul_(factor)
        if 3 in row:
            scores = row[3] if scores is None else scores + row[3]
        if scores is not None:
            scores = scores.expand(weights.shape)
            moved = softmax_backward(scores, weights, -1)
            tangent = (moved if dropout_mask is None else moved * dropout_mask) @ values
        if 2 in row:
            by_value = kept @ repeated(row[2])
            tangent = by_value if tangent is None else tangent.add_(by_value)
        assert tangent is not None
        return tangent

    def moved(stacks: Stacks) -> list[Tensor | None]:
        one_by_one = by_rows(
            lambda *row: one(dict(zip(stacks, row, strict=True))), query, keys, values, weights
        )
        return [one_by_one(*stacks.values())]

    return moved


JACOBIANS: Mapping[str, Callable[..., OneStack | None]] = {
    "aten.softmax": _softmax,
    "aten.log_softmax": _log_softmax,
    "aten.layer_norm": _layer_norm,
    "aten.batch_norm": _batch_norm,
}
"""By operation: the map for the argument of an index, or None where the formula does not apply."""
