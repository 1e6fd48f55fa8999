"""Operations that are linear in each of their factors, with at most a bias beside the product."""

from dataclasses import dataclass

import torch
from torch import fx

from flerm_fx.ops.operation import argument, operation

_ROLES = {
    "aten.embedding": (("weight",), None),
    "aten.linear": (("input", "weight"), "bias"),
    "aten.mm": (("self", "mat2"), None),
    "aten.bmm": (("self", "mat2"), None),
    "aten.matmul": (("self", "other"), None),
    "aten.addmm": (("mat1", "mat2"), "self"),
    "aten.baddbmm": (("batch1", "batch2"), "self"),
    **{
        f"aten.{name}": (("input", "weight"), "bias")
        for name in (
            "convolution",
            "conv1d",
            "conv2d",
            "conv3d",
            "conv_transpose1d",
            "conv_transpose2d",
            "conv_transpose3d",
        )
    },
}
"""Names of the factors of each operation, and of its bias."""


@dataclass(frozen=True)
class Product:
    r"""A node :math:`y = \mathrm{op}(a, b) + c`, linear in the factors a and b.

    Attributes:
        node: the node.
        factors: its factors that are nodes, all different; one where the other holds indices.
        bias: the node of c, if any.
    """

    node: fx.Node
    factors: tuple[fx.Node, ...]
    bias: fx.Node | None


def as_product(node: fx.Node) -> Product | None:
    """The node as a product; None for other operations, in-place ones, and squares.

    >>> graph = fx.Graph()
    >>> x, w = graph.placeholder("x"), graph.placeholder("w")
    >>> y = graph.call_function(torch.ops.aten.linear.default, (x, w))
    >>> as_product(y)
    Product(node=linear_default, factors=(x, w), bias=None)
    >>> as_product(graph.call_function(torch.ops.aten.mm.default, (w, w))) is None
    True
    """
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable:
        return None
    if node.target is torch.ops.aten.einsum.default:
        factors, bias = tuple(node.args[1]), None  # type: ignore[arg-type]
    elif (roles := _ROLES.get(operation(node))) is not None:
        factors = tuple(argument(node, name) for name in roles[0])
        bias = argument(node, roles[1]) if roles[1] else None
    else:
        return None
    operands = [*factors, bias] if bias is not None else [*factors]
    if len(set(operands)) < len(operands):
        return None
    if not all(isinstance(operand, fx.Node) for operand in operands):
        return None
    return Product(node, factors, bias)
