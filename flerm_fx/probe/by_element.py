"""Operations that work element by element are factors of tangents."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from flerm_fx.boundary.compat import pytree
from flerm_fx.ops.operation import argument_name, is_random
from flerm_fx.ops.table import facts
from flerm_fx.probe.derivative import jvp
from flerm_fx.probe.rules import coefficient
from flerm_fx.probe.stacks import OneStack, Stacks, times

Factor = Tensor | float


def diagonal(
    op: Callable[..., Any], index: int, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Factor | None:
    r"""Return the factor d of an operation by element, :math:`\dot y = d \odot \dot x_i`.

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
    if x.dtype != value.dtype or not is_pointwise(op):
        return None
    known, name = facts(op), argument_name(op, index)
    if known.kind == "elementwise" and name in known.terms:
        return coefficient(op, args, kwargs, name)
    if known.multiplies:
        return args[1 - index]  # type: ignore[no-any-return]
    if x.is_complex():  # such as a conjugate, which no factor makes
        return None
    position = sum(len(pytree.tree_leaves(argument)) for argument in args[:index])
    return jvp(op, args, kwargs, {position: torch.ones_like(x)})  # type: ignore[no-any-return]


class Combination:
    r"""A combination adds several arguments element by element: :math:`\dot y = \sum_i d_i \odot
    \dot x_i`.

    Args:
        factors: :math:`d_i` by position.

    >>> half = Combination({0: 0.5, 1: torch.tensor([0.0, 2.0])})
    >>> half({0: torch.ones(1, 2), 1: torch.ones(1, 2)})
    [tensor([[0.5000, 2.5000]])]
    """

    def __init__(self, factors: Mapping[int, Factor]) -> None:
        self.factors = factors

    def __call__(self, stacks: Stacks, mine: Collection[int] = ()) -> list[Tensor | None]:
        """Return the sum; in the memory of a stack at one of the positions ``mine``, if there is
        one.
        """
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


def is_pointwise(op: Callable[..., Any]) -> bool:
    """Tell whether an operation works element by element, and is the same at each call."""
    return torch.Tag.pointwise in getattr(op, "tags", ()) and not is_random(op)


def pointwise(
    op: Callable[..., Any], index: int, value: Tensor, *args: Any, **kwargs: Any
) -> OneStack | None:
    r"""Return the map of an operation by element: :math:`\dot y = \partial_i \mathrm{op} \, \dot
    x_i`, for real x.
    """
    if args[index].is_complex():
        return None
    position = sum(len(pytree.tree_leaves(argument)) for argument in args[:index])
    ones = torch.ones_like(args[index])
    return times(jvp(op, args, kwargs, {position: ones}), value)
