"""What a node of a captured graph computes."""

from typing import Any

import torch
from torch import fx

RECURRENT = ("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
"""Operations that are a whole recurrent network, of any number of layers."""


TURNING = ("aten.transpose", "aten.permute", "aten.t", "aten.movedim", "aten.swapaxes")
"""Operations that exchange axes."""

SHAPED_LIKE = (
    "aten.empty_like",
    "aten.full_like",
    "aten.new_empty",
    "aten.new_full",
    "aten.new_ones",
    "aten.new_zeros",
    "aten.ones_like",
    "aten.rand_like",
    "aten.randn_like",
    "aten.zeros_like",
)
"""Operations that take no more than shape and type from the tensor that they read."""

SHAPED_AS = ("aten.expand_as", "aten.reshape_as", "aten.to", "aten.type_as", "aten.view_as")
"""Operations that take no more than shape or type from the ``other`` of the tensors they read."""


def is_opaque(target: Any) -> bool:
    """Whether an operation is one registered from outside of torch, or one on functions.

    Such a one may have a derivative for ``backward()``. That for ``torch.func`` is not to be had:
    without gradient mode it is zero, and there is no error (torch 2.13); ``torch.cond`` has none.

    >>> is_opaque(torch.ops.aten.add.Tensor), is_opaque(torch.ops.higher_order.cond)
    (False, True)
    """
    if isinstance(target, torch._ops.HigherOrderOperator):
        return True
    return isinstance(target, torch._ops.OpOverload) and target.namespace not in ("aten", "prims")


def is_random(target: Any) -> bool:
    """Whether an operation may draw random numbers, as all may that do not say.

    >>> is_random(torch.ops.aten.dropout.default), is_random(torch.ops.aten.add.Tensor)
    (True, False)
    """
    drawing = torch.Tag.nondeterministic_seeded
    return drawing in getattr(target, "tags", [drawing])


def operation(node: fx.Node) -> str:
    """``aten.add`` for every overload of it, in place or not."""
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return str(schema.name.replace("::", ".")).rstrip("_")
    if isinstance(node.target, str):
        return node.target
    return str(getattr(node.target, "__name__", node.target))


def argument(node: fx.Node, name: str) -> Any:
    """An argument of an ATen operation, by its name in the schema."""
    assert isinstance(node.target, torch._ops.OpOverload)
    parameters = node.target._schema.arguments
    (position,) = (index for index, known in enumerate(parameters) if known.name == name)
    given = node.args[position] if position < len(node.args) else parameters[position].default_value
    return node.kwargs.get(name, given)
