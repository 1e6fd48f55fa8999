r"""How tangents pass through an operation: its linear map :math:`\dot x \mapsto \dot y`.

A *stack* holds the tangents of several parameters along a new first dimension. What does not depend
on the tangents (a derivative, attention weights, the statistics of a norm) is computed once, when
the map is made.
"""

import contextlib
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from flerm_fx.capture.probed_as import attention, attention_weights
from flerm_fx.model.inputs import is_differentiable
from flerm_fx.model.randomness import RandomState, set_rng_state
from flerm_fx.ops.operation import is_opaque, is_random
from flerm_fx.probe.frontier import jvp
from flerm_fx.probe.rules import CONVOLUTIONS, LINEAR, argument_at

aten = torch.ops.aten
CAT = aten.cat.default

SMALL = 2**14
"""Numbers in a kernel's argument below which repeating it is cheaper than more calls."""

Stacks = Mapping[int, Tensor]
"""Stacks of tangents by the position of their argument."""

LinearMap = Callable[[Stacks], Sequence[Tensor | None]]
"""From the stacks of an operation's arguments to those of its outputs; None is zero."""

OneStack = Callable[[Tensor], Any]
"""A linear map of one argument's stack to that of the output, or to those of several outputs."""


def linear_map(
    op: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    value: Any,
    varying: Sequence[int],
    state: RandomState | None = None,
) -> LinearMap:
    r"""The map from tangents of the data that an operation reads to those of its outputs.

    Args:
        op: the operation.
        args: its positional arguments.
        kwargs: its keyword arguments.
        value: what it returned.
        varying: positions, among the flattened arguments, of those that may have tangents.
        state: random state before it ran, if it draws.

    Returns:
        A function of stacks, each of shape (rows, \*argument.shape), to a stack of shape (rows,
        \*output.shape) for each output; these may share the memory of what it was given.

    >>> x = torch.tensor([1.0, 2.0])
    >>> square = linear_map(torch.ops.aten.mul.Tensor, (x, x), {}, x * x, (0, 1))
    >>> square({0: torch.eye(2), 1: torch.eye(2)})
    [tensor([[2., 0.],
            [0., 4.]])]
    """
    if op in (CAT, aten.stack.default):
        return _joined(op, *args, **kwargs)
    if op is attention and set(varying) <= {0, 1, 2, 3} and not any(args[4:5]):
        return _attention(*args, **kwargs)
    if op is operator.getitem and isinstance(args[1], int):
        place = args[1]
        return lambda stacks: [stacks.get(place)]
    maps = {}
    for position in varying:
        index = argument_at(args, position)
        rule = RULES.get(op, _pointwise if _is_pointwise(op) else None)
        found = None if rule is None or index < 0 else rule(op, index, value, *args, **kwargs)
        if found is None:
            return _generic(op, args, kwargs, state)
        maps[position] = found
    return _summed(maps)


Factor = Tensor | float


def diagonal(
    op: Callable[..., Any], index: int, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Factor | None:
    r"""The factor d of an operation by element, :math:`\dot y = d \odot \dot x_i`.

    Args:
        op: the operation.
        index: which argument varies.
        value: what it returned.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Returns:
        A number, or a tensor that broadcasts to the output; None where the operation does not work
        element by element, or the argument is of another shape than the output.

    >>> x = torch.tensor([0.5, -1.0])
    >>> diagonal(torch.ops.aten.relu.default, 0, x.relu(), (x,), {})
    tensor([1., 0.])
    """
    x = args[index] if 0 <= index < len(args) else None
    if not isinstance(value, Tensor) or not isinstance(x, Tensor) or x.shape != value.shape:
        return None
    if x.dtype != value.dtype or not _is_pointwise(op):
        return None
    if op is aten.add.Tensor:
        return kwargs.get("alpha", 1.0) if index else 1.0
    if op is aten.sub.Tensor:
        return -kwargs.get("alpha", 1.0) if index else 1.0
    if op is aten.mul.Tensor:
        return args[1 - index]  # type: ignore[no-any-return]
    if x.is_complex():  # such as a conjugate, which no factor makes
        return None
    position = sum(len(pytree.tree_leaves(argument)) for argument in args[:index])
    return jvp(op, args, kwargs, {position: torch.ones_like(x)})  # type: ignore[no-any-return]


class Combination:
    r"""Element by element, of several: :math:`\dot y = \sum_i d_i \odot \dot x_i`.

    Args:
        factors: :math:`d_i` by position.

    >>> half = Combination({0: 0.5, 1: torch.tensor([0.0, 2.0])})
    >>> half({0: torch.ones(1, 2), 1: torch.ones(1, 2)})
    [tensor([[0.5000, 2.5000]])]
    """

    def __init__(self, factors: Mapping[int, Factor]) -> None:
        self.factors = factors

    def __call__(self, stacks: Stacks, mine: Collection[int] = ()) -> list[Tensor | None]:
        """The sum; in the memory of a stack at one of the positions ``mine``, if there is one."""
        first = next((p for p in stacks if p in mine), next(iter(stacks)))
        total = _scaled(stacks[first], self.factors[first], first in mine)
        fresh = total is not stacks[first] or first in mine
        for position, stack in stacks.items():
            if position == first:
                continue
            factor = self.factors[position]
            if isinstance(factor, Tensor):
                total = total.addcmul_(stack, factor) if fresh else total.addcmul(stack, factor)
            else:
                total = (total.add_ if fresh else total.add)(stack, alpha=factor)
            fresh = True
        return [total]


def _scaled(stack: Tensor, factor: Factor, in_place: bool) -> Tensor:
    if not isinstance(factor, Tensor) and factor == 1.0:
        return stack
    return stack.mul_(factor) if in_place else stack * factor


def _summed(maps: Mapping[int, OneStack]) -> LinearMap:
    """Tangents by different arguments add up."""

    def total(stacks: Stacks) -> Sequence[Tensor | None]:
        found = [maps[position](stack) for position, stack in stacks.items()]
        if isinstance(found[0], Tensor):
            return [sum(found[1:], found[0])]
        return list(found[0])  # several outputs: an operation with one argument

    return total


def _generic(
    op: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    state: RandomState | None,
) -> LinearMap:
    """Through ``vmap`` of the operation's ``jvp``, or row by row where ``vmap`` refuses it.

    Each runs the operation again, draws from ``state`` what it drew, and leaves the same state.
    """

    def moved(stacks: Stacks) -> list[Tensor | None]:
        positions = tuple(stacks)

        def one(*tangents: Tensor) -> list[Tensor]:
            if state is not None:
                set_rng_state(state)
            found = jvp(op, args, kwargs, dict(zip(positions, tangents, strict=True)))
            return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]

        given = tuple(stacks.values())
        results = None
        if given[0].shape[0] > 1 and not is_opaque(op):
            with contextlib.suppress(RuntimeError):  # an operation that vmap refuses
                results = torch.func.vmap(one, randomness="same")(*given)
        if results is None:
            rows = [one(*row) for row in zip(*given, strict=True)]
            results = [torch.stack(leaf) for leaf in zip(*rows, strict=True)]
        return [leaf if is_differentiable(leaf) else None for leaf in results]

    return moved


def _by_rows(function: Callable[..., Tensor], *others: Tensor) -> Callable[..., Tensor]:
    """Row by row, for kernels that would have to repeat their other arguments for each.

    Where calls cost more than that, since none of the others is large, through ``vmap``, which
    repeats them.
    """
    small = max(other.numel() for other in others) < SMALL

    def moved(*stacks: Tensor) -> Tensor:
        if len(stacks[0]) == 1:
            return function(*[stack[0] for stack in stacks]).unsqueeze(0)
        if small:
            return torch.func.vmap(function)(*stacks)
        return torch.stack([function(*row) for row in zip(*stacks, strict=True)])

    return moved


def _lifted(stack: Tensor, dimensions: int) -> Tensor:
    """A stack of arguments that broadcast to so many dimensions, ready to be broadcast itself."""
    missing = dimensions + 1 - stack.dim()
    return stack.reshape(len(stack), *[1] * missing, *stack.shape[1:]) if missing else stack


def _dimension(dimension: int) -> int:
    """A dimension of an argument, as one of a stack of them."""
    return dimension if dimension < 0 else dimension + 1


def _times(factor: Tensor, value: Tensor) -> OneStack:
    return lambda stack: _shaped(_lifted(stack, value.dim()) * factor, value)


def _shaped(stack: Tensor, value: Tensor) -> Tensor:
    return stack.expand(-1, *value.shape)


def _is_pointwise(op: Callable[..., Any]) -> bool:
    return torch.Tag.pointwise in getattr(op, "tags", ()) and not is_random(op)


def _pointwise(
    op: Callable[..., Any], index: int, value: Tensor, *args: Any, **kwargs: Any
) -> OneStack | None:
    r"""Element by element: :math:`\dot y = \partial_i \mathrm{op} \, \dot x_i`, for real x."""
    if args[index].is_complex():
        return None
    position = sum(len(pytree.tree_leaves(argument)) for argument in args[:index])
    ones = torch.ones_like(args[index])
    return _times(jvp(op, args, kwargs, {position: ones}), value)


def _product(_: Any, index: int, value: Tensor, *args: Any) -> OneStack:
    other = args[1 - index]
    if isinstance(other, Tensor):
        return _times(other, value)
    return lambda stack: stack * other


def _sum(_: Any, index: int, value: Tensor, *args: Any, alpha: float = 1) -> OneStack:
    factor = alpha if index else 1
    dimensions = value.dim()

    def moved(stack: Tensor) -> Tensor:
        return _shaped(_lifted(stack if factor == 1 else stack * factor, dimensions), value)

    return moved


def _difference(op: Any, index: int, value: Tensor, *args: Any, alpha: float = 1) -> OneStack:
    return _sum(op, index, value, *args, alpha=-alpha)


def _itself(_: Any, index: int, *args: Any, **kwargs: Any) -> OneStack:
    return lambda stack: stack


def _dropout(
    _: Any, index: int, value: Tensor, x: Tensor, p: float, train: bool
) -> OneStack | None:
    return None if train and p else lambda stack: stack


def _linear_in_first(
    op: Callable[..., Any], index: int, value: Any, *args: Any, **kwargs: Any
) -> OneStack | None:
    if index:
        return None
    rest = args[1:]
    return torch.func.vmap(lambda x: op(x, *rest, **kwargs))


def _linear(
    _: Any, index: int, value: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> OneStack | None:
    return None if index else lambda stack: torch.nn.functional.linear(stack, weight)


def _convolution(
    op: Callable[..., Any],
    index: int,
    value: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
) -> OneStack | None:
    """The rows of a stack as more examples of one batch."""
    if index or x.dim() != weight.dim():
        return None
    return lambda stack: op(stack.flatten(0, 1), weight, None, *rest).unflatten(0, stack.shape[:2])


def _matmul(_: Any, index: int, value: Tensor, left: Tensor, right: Tensor) -> OneStack | None:
    if min(left.dim(), right.dim()) < 2:
        return None
    if index:
        return _by_rows(lambda row: left @ row, left)
    if right.dim() == 2:
        return lambda stack: stack @ right
    return _by_rows(lambda row: row @ right, right)


def _addmm(
    _: Any,
    index: int,
    value: Tensor,
    bias: Tensor,
    left: Tensor,
    right: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> OneStack:
    if index == 0:
        return _sum(None, 1, value, alpha=beta)
    if index == 1:
        return lambda stack: stack @ (right * alpha if alpha != 1 else right)
    return _by_rows(lambda row: left @ (row * alpha if alpha != 1 else row), left)


def _softmax(
    _: Any, index: int, value: Tensor, x: Tensor, dim: int, dtype: torch.dtype | None = None
) -> OneStack | None:
    """The Jacobian is symmetric, so that the kernel of the backward pass is the tangent's too."""
    if dtype not in (None, x.dtype):
        return None
    return _by_rows(lambda row: aten._softmax_backward_data(row, value, dim, value.dtype), value)


def _log_softmax(
    _: Any, index: int, value: Tensor, x: Tensor, dim: int, dtype: torch.dtype | None = None
) -> OneStack | None:
    if dtype not in (None, x.dtype):
        return None
    probabilities, along = value.exp(), _dimension(dim)
    return lambda stack: stack - (probabilities * stack).sum(along, keepdim=True)


def _layer_norm(
    _: Any,
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

    return _by_rows(normalised, x)


def _batch_norm(
    _: Any,
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
        return _times((scale * (running_var + eps).rsqrt()).reshape(channels), value)
    mean, deviation = aten.native_batch_norm(x, None, None, None, None, True, momentum, eps)[1:]

    def normalised(row: Tensor) -> Tensor:
        moved: Tensor = aten.native_batch_norm_backward(
            row.contiguous(), x, None, None, None, mean, deviation, True, eps, [True, False, False]
        )[0]
        return moved.mul_(scale.reshape(channels))

    return _by_rows(normalised, x)


def _joined(op: Callable[..., Any], tensors: Sequence[Tensor], dim: int = 0) -> LinearMap:
    """Concatenation, along an old dimension or a new one; what has no tangent joins as zeros."""
    # Concatenation passes over an empty vector, whatever the others' shape.
    shapes = {i: t.shape for i, t in enumerate(tensors) if op is not CAT or t.shape != (0,)}

    def moved(stacks: Stacks) -> list[Tensor | None]:
        some = next(iter(stacks.values()))
        parts = [
            stacks[i] if i in stacks else some.new_zeros(()).expand(len(some), *shape)
            for i, shape in shapes.items()
        ]
        return [op(parts, _dimension(dim))]

    return moved


def _attention(
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
    r"""With :math:`P = \mathrm{softmax}(S)`: :math:`\dot y = \dot P v + P \dot v`."""
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    weights = attention_weights(query, key, value, bias, is_causal, scale, enable_gqa)
    heads = query.shape[-3] // key.shape[-3] if enable_gqa else 1

    def repeated(tensor: Tensor) -> Tensor:
        return tensor if heads == 1 else tensor.repeat_interleave(heads, -3)

    keys, values = repeated(key), repeated(value)
    kept = weights if dropout_mask is None else weights * dropout_mask

    def one(row: Mapping[int, Tensor]) -> Tensor:
        found: Tensor | None = None
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
            moved = aten._softmax_backward_data(scores, weights, -1, weights.dtype)
            found = (moved if dropout_mask is None else moved * dropout_mask) @ values
        if 2 in row:
            by_value = kept @ repeated(row[2])
            found = by_value if found is None else found.add_(by_value)
        assert found is not None
        return found

    def moved(stacks: Stacks) -> list[Tensor | None]:
        by_rows = _by_rows(
            lambda *row: one(dict(zip(stacks, row, strict=True))), query, keys, values, weights
        )
        return [by_rows(*stacks.values())]

    return moved


ALSO_LINEAR = (
    aten.adaptive_avg_pool2d.default,
    aten.avg_pool2d.default,
    aten.chunk.default,
    aten.cumsum.default,
    aten.flip.default,
    aten.gather.default,
    aten.index_select.default,
    aten.mean.default,
    aten.mean.dim,
    aten.movedim.int,
    aten.roll.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.unbind.int,
    aten.unfold.default,
)
"""Operations that are linear in their first argument, of data rather than of weights."""

RULES: dict[Any, Callable[..., OneStack | None]] = {
    **dict.fromkeys((*LINEAR, *ALSO_LINEAR), _linear_in_first),
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    aten.add.Tensor: _sum,
    aten.sub.Tensor: _difference,
    aten.mul.Tensor: _product,
    aten.dropout.default: _dropout,
    aten.clone.default: _itself,
    aten.contiguous.default: _itself,
    aten.alias.default: _itself,
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.bmm.default: _matmul,
    aten.mm.default: _matmul,
    aten.addmm.default: _addmm,
    aten.softmax.int: _softmax,
    aten.log_softmax.int: _log_softmax,
    aten.layer_norm.default: _layer_norm,
    aten.batch_norm.default: _batch_norm,
}
"""By operation: the map for the argument of an index, or None where the rule does not apply."""
