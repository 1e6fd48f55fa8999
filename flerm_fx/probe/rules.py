"""Rules give the tangents of operations that are linear in a parameter, as most are."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flerm_fx.boundary.compat import pytree
from flerm_fx.ops.operation import argument_name, argument_of_call, position_of
from flerm_fx.ops.table import facts
from flerm_fx.probe.derivative import jvp
from flerm_fx.probe.frontier import Entering
from flerm_fx.probe.later import now


def tangent(
    op: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    updates: Mapping[int, Tensor],
) -> Any:
    r"""Tangent of one operation, of a shape that broadcasts to that of its output.

    As :func:`flerm_fx.probe.derivative.jvp`, to which it turns where the table of operations
    (:mod:`flerm_fx.ops.table`) tells nothing. An operation that is linear in the one argument that
    varies is its own tangent, at the update and without what the argument does not meet: the
    product with a weight needs no bias, and a bias no product.

    >>> import torch
    >>> linear = torch.ops.aten.linear.default
    >>> x, w, b = torch.ones(5, 2), torch.zeros(3, 2), torch.zeros(3)
    >>> tangent(linear, (x, w, b), {}, {1: torch.ones(3, 2)})[0]
    tensor([2., 2., 2.])
    >>> tangent(linear, (x, w, b), {}, {2: torch.ones(3)})
    tensor([1., 1., 1.])
    """
    if len(updates) == 1:
        ((position, update),) = updates.items()
        name = argument_name(op, argument_at(args, position))
        known = facts(op)
        if name in known.linear:
            return in_place_of(op, args, kwargs, position, update)
        if name in known.terms:
            value = pytree.tree_leaves(args)[position]
            return _added(op, args, kwargs, name, update.to(value.dtype))
    return jvp(op, args, kwargs, updates)


@dataclass(frozen=True)
class Operation:
    """An ``Operation`` is one on the parameter frontier, as it was called.

    Attributes:
        op: what was called.
        args: its positional arguments; parameters among them may be a
            :class:`~flerm_fx.probe.later.Later`, as may updates.
        kwargs: its keyword arguments.
        entering: by parameter, the update of each argument that it varies, by position among the
            flattened ones.
    """

    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    entering: Entering[Any]

    def tangents(self, name: str) -> list[Tensor]:
        """Return what a parameter's update makes of each output, in shapes that broadcast to
        theirs.
        """
        updates = now(dict(self.entering[name]))
        args, kwargs = now(
            (self.args, dict(self.kwargs)), unread(self.op, self.args, tuple(updates))
        )
        return pytree.tree_leaves(tangent(self.op, args, kwargs, updates))


def unread(
    op: Callable[..., Any], args: tuple[Any, ...], varying: Collection[int]
) -> frozenset[int]:
    """Return where :func:`tangent` reads no values, among the flattened arguments.

    >>> import torch
    >>> x, w, b = torch.ones(5, 2), torch.zeros(3, 2), torch.zeros(3)
    >>> sorted(unread(torch.ops.aten.linear.default, (x, w, b), [1]))
    [1, 2]
    """
    if len(varying) != 1:
        return frozenset()
    (position,) = varying
    known, name = facts(op), argument_name(op, argument_at(args, position))
    if name in known.linear:
        added = {position_of(op, term) for term in known.terms}
    elif name in known.terms:
        return frozenset(range(len(pytree.tree_leaves(args))))
    else:
        return frozenset()
    places = (at for at in range(len(pytree.tree_leaves(args))) if argument_at(args, at) in added)
    return frozenset({position, *places})


def argument_at(args: tuple[Any, ...], position: int) -> int:
    """Return which argument the leaf at a position of the flattened ones is, or is in; -1 if none.

    >>> import torch
    >>> argument_at((torch.zeros(1), [2, 3], torch.zeros(1)), 3)
    2
    """
    for index, argument in enumerate(args):
        leaves = len(pytree.tree_leaves(argument))
        if position < leaves:
            return index
        position -= leaves
    return -1


def in_place_of(
    op: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    position: int,
    update: Tensor,
) -> Any:
    """Return an operation that is linear in an argument, with another there, and nothing added.

    >>> import torch
    >>> b, x, w = torch.ones(3), torch.ones(2, 2), torch.ones(2, 3)
    >>> in_place_of(torch.ops.aten.addmm.default, (b, x, w), {}, 2, 4 * w)[0]
    tensor([8., 8., 8.])
    """
    leaves, spec = pytree.tree_flatten(args)
    leaves[position] = update.to(leaves[position].dtype)
    changed, options = list(pytree.tree_unflatten(leaves, spec)), dict(kwargs)
    for name, factor in facts(op).terms.items():
        index = position_of(op, name)
        if factor:  # no operation with a factor of its bias does without one, but it may be 0
            changed[index], options[factor] = update.new_zeros((), dtype=leaves[position].dtype), 0
        elif index < len(changed):
            changed[index] = None
        else:
            options.pop(name, None)
    return op(*changed, **options)


def coefficient(
    op: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str
) -> float:
    """Return the number by which an operation multiplies an argument that it adds.

    >>> import torch
    >>> coefficient(torch.ops.aten.sub.Tensor, (), {"alpha": 3}, "other")
    -3
    """
    written = facts(op).terms[name]
    factor = written.lstrip("-")
    number: float = argument_of_call(op, args, kwargs, factor) if factor else 1
    return -number if written.startswith("-") else number


def _added(
    op: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    name: str,
    update: Tensor,
) -> Tensor:
    """Return what an argument adds, along the channels or the last dimension."""
    number = coefficient(op, args, kwargs, name)
    moved = update if number == 1 else update * number
    return on_channels(moved, op, args) if facts(op).on_channels else moved


def on_channels(update: Tensor, op: Callable[..., Any], args: tuple[Any, ...]) -> Tensor:
    """Return a number for each channel, in dimension 1 of a batch; the first that is not of a
    batch.
    """
    like: Tensor = args[1] if facts(op).kind == "convolution" else args[0]
    return update.reshape(-1, *[1] * (like.dim() - 2))
