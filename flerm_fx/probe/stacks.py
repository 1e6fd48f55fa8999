"""A stack holds the tangents of several parameters along a new first dimension."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SMALL = 2**14
"""Numbers in a kernel's argument below which repeating it is cheaper than more calls."""

Stacks = Mapping[int, Tensor]
"""Stacks of tangents by the position of their argument."""

LinearMap = Callable[[Stacks], Sequence[Tensor | None]]
"""From the stacks of an operation's arguments to those of its outputs; None is zero."""

OneStack = Callable[[Tensor], Any]
"""A linear map of one argument's stack to that of the output, or to those of several outputs."""


def by_rows(function: Callable[..., Tensor], *others: Tensor) -> Callable[..., Tensor]:
    """Map row by row, for kernels that would have to repeat their other arguments for each.

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


def lifted(stack: Tensor, dimensions: int) -> Tensor:
    """Return a stack of arguments that broadcast to so many dimensions, ready to be broadcast
    itself.
    """
    missing = dimensions + 1 - stack.dim()
    return stack.reshape(len(stack), *[1] * missing, *stack.shape[1:]) if missing else stack


def dimension_of_stack(dimension: int) -> int:
    """Return a dimension of an argument, as one of a stack of them."""
    return dimension if dimension < 0 else dimension + 1


def times(factor: Tensor, value: Tensor) -> OneStack:
    """Return the map that multiplies by a factor, to what broadcasts to a value."""
    return lambda stack: shaped(lifted(stack, value.dim()) * factor, value)


def shaped(stack: Tensor, value: Tensor) -> Tensor:
    """Return a stack that broadcasts to a value's shape, in that shape."""
    return stack.expand(-1, *value.shape)
