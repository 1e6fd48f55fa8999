r"""Tangents pass through an operation by its linear map :math:`\dot x \mapsto \dot y`.

What does not depend on the tangents, such as a derivative, is computed once, when the map is made.
"""

import contextlib
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flerm_fx.boundary.compat import pytree
from flerm_fx.capture.probed_as import attention
from flerm_fx.model.inputs import is_differentiable
from flerm_fx.model.randomness import RandomState, set_rng_state
from flerm_fx.ops.operation import argument_name, argument_of_call, is_opaque, operation_name
from flerm_fx.ops.table import facts
from flerm_fx.probe.by_element import is_pointwise, pointwise
from flerm_fx.probe.derivative import jvp
from flerm_fx.probe.jacobians import JACOBIANS, attention_map
from flerm_fx.probe.rules import argument_at, coefficient, in_place_of
from flerm_fx.probe.stacks import (
    LinearMap,
    OneStack,
    Stacks,
    by_rows,
    dimension_of_stack,
    lifted,
    shaped,
    times,
)


def linear_map(
    op: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    value: Any,
    varying: Sequence[int],
    state: RandomState | None = None,
) -> LinearMap:
    r"""Return the map from tangents of the data that an operation reads to those of its outputs.

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
    known = facts(op)
    if known.kind == "join":
        return _joined(op, *args, **kwargs)
    if op is attention and set(varying) <= {0, 1, 2, 3} and not any(args[4:5]):
        return attention_map(*args, **kwargs)
    if op is operator.getitem and isinstance(args[1], int):
        place = args[1]
        return lambda stacks: [stacks.get(place)]
    maps = {}
    for position in varying:
        one = _of_one(op, args, kwargs, value, position)
        if one is None:
            return _generic(op, args, kwargs, state)
        maps[position] = one
    return _summed(maps)


def _of_one(
    op: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    value: Any,
    position: int,
) -> OneStack | None:
    """Return the map for one argument; None where nothing better is known than the operation's
    jvp.
    """
    index, known = argument_at(args, position), facts(op)
    name = argument_name(op, index)
    jacobian = JACOBIANS.get(operation_name(op))
    if jacobian is not None:
        return jacobian(index, value, *args, **kwargs)
    if name in known.terms and not known.on_channels:
        return _term(coefficient(op, args, kwargs, name), value)
    if known.kind == "product" and name in known.linear:
        return _product(op, args, kwargs, position, name)
    if known.kind == "convolution":
        return _convolution(op, index, *args, **kwargs)
    if known.kind == "dropout":
        return None if argument_of_call(op, args, kwargs, "train") and args[1] else _itself
    if known.kind in ("view", "cast", "linear") and index == 0:
        return _itself if known.same else _by_itself(op, args, kwargs, position)
    if known.multiplies:
        return _times(args[1 - index], value)
    if is_pointwise(op) and index >= 0 and isinstance(args[index], Tensor):
        return pointwise(op, index, value, *args, **kwargs)
    return None


def _summed(maps: Mapping[int, OneStack]) -> LinearMap:
    """Add up tangents by different arguments."""

    def total(stacks: Stacks) -> Sequence[Tensor | None]:
        tangents = [maps[position](stack) for position, stack in stacks.items()]
        if isinstance(tangents[0], Tensor):
            return [sum(tangents[1:], tangents[0])]
        return list(tangents[0])  # several outputs: an operation with one argument

    return total


def _generic(
    op: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    state: RandomState | None,
) -> LinearMap:
    """Map through ``vmap`` of the operation's ``jvp``, or row by row where ``vmap`` refuses it.

    Each runs the operation again, draws from ``state`` what it drew, and leaves the same state.
    """

    def moved(stacks: Stacks) -> list[Tensor | None]:
        positions = tuple(stacks)

        def one(*tangents: Tensor) -> list[Tensor]:
            if state is not None:
                set_rng_state(state)
            tangent = jvp(op, args, kwargs, dict(zip(positions, tangents, strict=True)))
            return [leaf for leaf in pytree.tree_leaves(tangent) if isinstance(leaf, Tensor)]

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


def _itself(stack: Tensor) -> Tensor:
    return stack


def _by_itself(
    op: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int
) -> OneStack:
    """Return the operation itself, for each row."""
    return torch.func.vmap(lambda row: in_place_of(op, args, kwargs, position, row))


def _term(factor: float, value: Tensor) -> OneStack:
    """Return what an argument adds, along the last dimension or element by element."""
    dimensions = value.dim()

    def moved(stack: Tensor) -> Tensor:
        return shaped(lifted(stack if factor == 1 else stack * factor, dimensions), value)

    return moved


def _times(other: Tensor | float, value: Tensor) -> OneStack:
    if isinstance(other, Tensor):
        return times(other, value)
    return lambda stack: stack * other


def _product(
    op: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    position: int,
    name: str,
) -> OneStack | None:
    """Return a stack of one factor times the other: one product, where that is a matrix."""
    known = facts(op)
    if not known.layout:
        return _by_itself(op, args, kwargs, position)
    left, right = (argument_of_call(op, args, kwargs, factor) for factor in known.linear)
    is_left = name == known.linear[0]
    if known.layout == "out in":
        return (lambda stack: torch.nn.functional.linear(stack, right)) if is_left else None
    if min(left.dim(), right.dim()) < 2:
        return None
    alpha = argument_of_call(op, args, kwargs, "alpha") if known.bias else 1
    if not is_left:
        return by_rows(lambda row: left @ (row * alpha if alpha != 1 else row), left)
    scaled = right * alpha if alpha != 1 else right
    if right.dim() == 2:
        return lambda stack: stack @ scaled
    return by_rows(lambda row: row @ scaled, right)


def _convolution(
    op: Callable[..., Any],
    index: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
) -> OneStack | None:
    """Return the rows of a stack as more examples of one batch."""
    if index or x.dim() != weight.dim():
        return None
    return lambda stack: op(stack.flatten(0, 1), weight, None, *rest).unflatten(0, stack.shape[:2])


def _joined(op: Callable[..., Any], tensors: Sequence[Tensor], dim: int = 0) -> LinearMap:
    """Concatenation, along an old dimension or a new one; what has no tangent joins as zeros."""
    # Concatenation passes over an empty vector, whatever the others' shape.
    is_new = facts(op).joins_along == "new"
    shapes = {i: t.shape for i, t in enumerate(tensors) if is_new or t.shape != (0,)}

    def moved(stacks: Stacks) -> list[Tensor | None]:
        some = next(iter(stacks.values()))
        parts = [
            stacks[i] if i in stacks else some.new_zeros(()).expand(len(some), *shape)
            for i, shape in shapes.items()
        ]
        return [op(parts, dimension_of_stack(dim))]

    return moved
