"""A product is linear in each of its factors, with at most a bias beside it."""

from dataclasses import dataclass

from torch import fx

from flerm_fx.ops.operation import argument
from flerm_fx.ops.table import facts


@dataclass(frozen=True)
class Product:
    r"""A ``Product`` is a node :math:`y = \mathrm{op}(a, b) + c`, linear in the factors a and b.

    Attributes:
        node: the node.
        factors: its factors that are nodes, all different; one where the other holds indices.
        bias: the node of c, if any.
    """

    node: fx.Node
    factors: tuple[fx.Node, ...]
    bias: fx.Node | None


def as_product(node: fx.Node) -> Product | None:
    """Return the node as a product, or None for other operations, in-place ones, and squares.

    >>> import torch
    >>> graph = fx.Graph()
    >>> x, w = graph.placeholder("x"), graph.placeholder("w")
    >>> y = graph.call_function(torch.ops.aten.linear.default, (x, w))
    >>> as_product(y)
    Product(node=linear_default, factors=(x, w), bias=None)
    >>> as_product(graph.call_function(torch.ops.aten.mm.default, (w, w))) is None
    True
    """
    known = facts(node.target)
    if not known.is_product:
        return None
    given = [argument(node, name) for name in known.linear]
    factors = tuple(given[0] if isinstance(given[0], list | tuple) else given)
    bias = argument(node, known.bias) if known.bias else None
    operands = [*factors, bias] if bias is not None else [*factors]
    if len(set(operands)) < len(operands):
        return None
    if not all(isinstance(operand, fx.Node) for operand in operands):
        return None
    return Product(node, factors, bias)
