"""Tangents of single operations by rule: what most parameters enter by is linear in them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from flerm_fx.probe.frontier import Entering, jvp

aten = torch.ops.aten

Rule = Callable[..., Tensor]
"""From the update and the operation's arguments to its tangent."""


def tangent(
    op: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    updates: Mapping[int, Tensor],
) -> Any:
    r"""Tangent of one operation, of a shape that broadcasts to that of its output.

    As :func:`flerm_fx.probe.frontier.jvp`, to which it turns where it knows no rule. An operation
    that is linear in the one argument that varies is its own tangent, at the update and without
    what the argument does not meet: the product with a weight needs no bias, and a bias no product.

    >>> linear = torch.ops.aten.linear.default
    >>> x, w, b = torch.ones(5, 2), torch.zeros(3, 2), torch.zeros(3)
    >>> tangent(linear, (x, w, b), {}, {1: torch.ones(3, 2)})[0]
    tensor([2., 2., 2.])
    >>> tangent(linear, (x, w, b), {}, {2: torch.ones(3)})
    tensor([1., 1., 1.])
    """
    if len(updates) == 1:
        ((position, update),) = updates.items()
        index = argument_at(args, position)
        rule = RULES.get((op, index))
        if rule is not None:
            return rule(update.to(args[index].dtype), *args, **kwargs)
    return jvp(op, args, kwargs, updates)


@dataclass(frozen=True)
class Operation:
    """An operation on the parameter frontier, as it was called.

    Attributes:
        op: what was called.
        args: its positional arguments.
        kwargs: its keyword arguments.
        entering: by parameter, the update of each argument that it varies, by position among the
            flattened ones.
    """

    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    entering: Entering[Tensor]

    def tangents(self, name: str) -> list[Tensor]:
        """What a parameter's update makes of each output, in shapes that broadcast to theirs."""
        return pytree.tree_leaves(tangent(self.op, self.args, self.kwargs, self.entering[name]))


def argument_at(args: tuple[Any, ...], position: int) -> int:
    """Which argument is the leaf at a position of the flattened ones; -1 if it is inside of one.

    >>> argument_at((torch.zeros(1), [2, 3], torch.zeros(1)), 3)
    2
    """
    for index, argument in enumerate(args):
        leaves = len(pytree.tree_leaves(argument))
        if position < leaves:
            return index if isinstance(argument, Tensor) else -1
        position -= leaves
    return -1


def _at(op: Callable[..., Tensor], position: int, *dropped: int) -> Rule:
    """The operation itself with the update in place of an argument, and others left out."""

    def rule(update: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given = [None if i in dropped else a for i, a in enumerate(args)]
        given[position] = update
        return op(*given, **kwargs)

    return rule


def _itself(update: Tensor, *_: Any, **__: Any) -> Tensor:
    return update


def _times_alpha(update: Tensor, *_: Any, alpha: float = 1) -> Tensor:
    return update if alpha == 1 else update * alpha


def _minus_alpha(update: Tensor, *_: Any, alpha: float = 1) -> Tensor:
    return update * -alpha


def _times_beta(update: Tensor, *_: Any, beta: float = 1, alpha: float = 1) -> Tensor:
    return update if beta == 1 else update * beta


def _on_channels(update: Tensor, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """A number for each channel, in dimension 1 of a batch like x."""
    return update.reshape(-1, *[1] * (x.dim() - 2))


def _on_channels_of_convolution(update: Tensor, x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return update.reshape(-1, *[1] * (weight.dim() - 2))


def _quotient(update: Tensor, _: Tensor, other: Tensor | float) -> Tensor:
    return update / other


def _left(update: Tensor, bias: Tensor, left: Tensor, right: Tensor, **scales: float) -> Tensor:
    return (update @ right) * scales.get("alpha", 1)


def _right(update: Tensor, bias: Tensor, left: Tensor, right: Tensor, **scales: float) -> Tensor:
    return (left @ update) * scales.get("alpha", 1)


LINEAR = (
    aten._to_copy.default,
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.expand.default,
    aten.flatten.using_ints,
    aten.narrow.default,
    aten.neg.default,
    aten.permute.default,
    aten.reshape.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.t.default,
    aten.to.dtype,
    aten.transpose.int,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.view.default,
)
"""Operations that are linear in their first argument, which no other one meets."""

CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
    aten.convolution.default,
)

RULES: dict[tuple[Any, int], Rule] = {
    **{(op, 0): _at(op, 0) for op in LINEAR},
    (aten.linear.default, 1): _at(aten.linear.default, 1, 2),
    (aten.linear.default, 2): _itself,
    (aten.embedding.default, 0): _at(aten.embedding.default, 0),
    **{
        (op, position): _at(op, position)
        for op in (aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mul.Tensor)
        for position in (0, 1)
    },
    (aten.addmm.default, 0): _times_beta,
    (aten.addmm.default, 1): _left,
    (aten.addmm.default, 2): _right,
    **{(op, 1): _at(op, 1, 2) for op in CONVOLUTIONS},
    **{(op, 2): _on_channels_of_convolution for op in CONVOLUTIONS},
    (aten.add.Tensor, 0): _itself,
    (aten.add.Tensor, 1): _times_alpha,
    (aten.sub.Tensor, 0): _itself,
    (aten.sub.Tensor, 1): _minus_alpha,
    (aten.div.Tensor, 0): _quotient,
    (aten.layer_norm.default, 2): _at(aten.layer_norm.default, 2, 3),
    (aten.layer_norm.default, 3): _itself,
    (aten.rms_norm.default, 2): _at(aten.rms_norm.default, 2),
    (aten.group_norm.default, 2): _at(aten.group_norm.default, 2, 3),
    (aten.group_norm.default, 3): _on_channels,
    (aten.batch_norm.default, 1): _at(aten.batch_norm.default, 1, 2),
    (aten.batch_norm.default, 2): _on_channels,
}
"""By operation and position of the argument that varies. ``jvp`` is the reference for all."""
