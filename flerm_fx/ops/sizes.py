"""This module counts what operations read and make, and the arithmetic in between."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from flerm_fx.boundary.compat import hint_of
from flerm_fx.ops.operation import argument
from flerm_fx.ops.table import facts


def shape_of(value: Any) -> tuple[int, ...]:
    """Return a node's shape at the batch size of the capture. Sizes that depend on the data count
    as 1.

    >>> import torch
    >>> shape_of(torch.zeros(2, 3)), shape_of(None)
    ((2, 3), ())
    """
    if not isinstance(value, Tensor):
        return ()
    sizes: list[Any] = list(value.shape)
    return tuple(int(hint_of(s) or 1) for s in sizes)


def flops(node: fx.Node) -> float:
    r"""Return how many products and sums an operation computes; anything but a product counts as 0.

    Each element of a product is a sum over what is contracted, so that a matrix product of
    (m, k) and (k, n) takes :math:`2 m n k`.

    >>> import torch
    >>> graph = fx.Graph()
    >>> x, w = graph.placeholder("x"), graph.placeholder("w")
    >>> y = graph.call_function(torch.ops.aten.mm.default, (x, w))
    >>> for node, shape in ((x, (2, 3)), (w, (3, 5)), (y, (2, 5))):
    ...     node.meta["val"] = torch.zeros(shape)
    >>> flops(y)
    60.0
    """
    made = math.prod(shape_of(node.meta.get("val")))
    known = facts(node.target)
    read = [shape_of(source.meta.get("val")) for source in node.all_input_nodes]
    if not made or not read:
        return 0.0
    if known.kind == "attention":
        return 4.0 * made * read[1][-2] if len(read) > 1 else 0.0
    if known.kind == "convolution":
        return 2.0 * made * math.prod(_shape_at(node, known.linear[1])[1:])
    if known.kind != "product":
        return 0.0
    if known.layout:
        return 2.0 * made * (_shape_at(node, known.linear[0]) or (0,))[-1]
    equation, operands = node.args[0], node.args[1]
    assert isinstance(equation, str) and isinstance(operands, Sequence)
    shapes = [shape_of(operand.meta.get("val")) for operand in operands]  # type: ignore[union-attr]
    return 2.0 * made * contracted(equation, shapes)


def contracted(equation: str, shapes: Sequence[tuple[int, ...]]) -> int:
    """Return how many terms each element of an einsum is a sum of.

    >>> contracted("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)])
    4
    >>> contracted("...j,kj", [(2, 3, 4), (5, 4)])
    4
    """
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, shape in zip(inputs.split(","), shapes, strict=True):
        front, _, back = term.partition("...")
        sizes.update(zip(front, shape, strict=False))
        sizes.update(zip(reversed(back), reversed(shape), strict=False))
    if not arrow:
        output = "".join(letter for letter in sizes if inputs.count(letter) == 1)
    return math.prod(size for letter, size in sizes.items() if letter not in output)


def _shape_at(node: fx.Node, name: str) -> tuple[int, ...]:
    source = argument(node, name)
    return shape_of(source.meta.get("val")) if isinstance(source, fx.Node) else ()
