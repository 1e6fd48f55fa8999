"""This module asks torch itself about the operation that a node of a captured graph is."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from flerm_fx.boundary.compat import HigherOrderOperator, OpOverload, schema_of


def is_opaque(target: Any) -> bool:
    """Tell whether an operation is one registered from outside of torch, or one on functions.

    Such a one may have a derivative for ``backward()``. That for ``torch.func`` is not to be had:
    without gradient mode it is zero, and there is no error (torch 2.13); ``torch.cond`` has none.

    >>> is_opaque(torch.ops.aten.add.Tensor), is_opaque(torch.ops.higher_order.cond)
    (False, True)
    """
    if isinstance(target, HigherOrderOperator):
        return True
    return isinstance(target, OpOverload) and target.namespace not in ("aten", "prims")


def is_random(target: Any) -> bool:
    """Tell whether an operation may draw random numbers. One that does not say so may.

    >>> is_random(torch.ops.aten.dropout.default), is_random(torch.ops.aten.add.Tensor)
    (True, False)
    """
    drawing = torch.Tag.nondeterministic_seeded
    return drawing in getattr(target, "tags", [drawing])


def operation_name(target: Any) -> str:
    """Return the name of what a node calls, the same for every overload, in place or not.

    >>> operation_name(torch.ops.aten.add_.Tensor), operation_name(len)
    ('aten.add', 'len')
    """
    schema = schema_of(target)
    if schema is not None:
        return str(schema.name.replace("::", ".")).rstrip("_")
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def operation(node: fx.Node) -> str:
    """Return the name that all overloads of an operation share: ``aten.add``, in place or not."""
    return operation_name(node.target)


def argument_name(op: Any, index: int) -> str:
    """Return the name of a positional argument in the operation's schema, or "" if it has none
    there.

    >>> argument_name(torch.ops.aten.linear.default, 1), argument_name(len, 0)
    ('weight', '')
    """
    schema = schema_of(op)
    known = [] if schema is None else schema.arguments
    return str(known[index].name) if 0 <= index < len(known) else ""


def position_of(op: Any, name: str) -> int:
    """Return the place of an argument in the operation's schema.

    >>> position_of(torch.ops.aten.linear.default, "bias")
    2
    """
    schema = schema_of(op)
    assert schema is not None
    return next(index for index, known in enumerate(schema.arguments) if known.name == name)


def argument_of_call(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> Any:
    """Return an argument of a call of an ATen operation, by its name in the schema.

    >>> argument_of_call(torch.ops.aten.add.Tensor, (1, 2), {}, "alpha")
    1
    """
    schema = schema_of(op)
    assert schema is not None
    position = position_of(op, name)
    default = schema.arguments[position].default_value
    return kwargs.get(name, args[position] if position < len(args) else default)


def argument(node: fx.Node, name: str) -> Any:
    """Return an argument of an ATen operation, by its name in the schema."""
    return argument_of_call(node.target, node.args, node.kwargs, name)
