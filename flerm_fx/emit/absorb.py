"""This module finds places that take up a scalar: norms behind it, numbers, sums and scores ahead
of it.

A node of such a place has exactly one reader on the way to or from the scalar, so that nothing else
sees a value change.
"""

from collections.abc import Set

import torch
from torch import fx

from flerm_fx.emit.passing import dtype_of, passes
from flerm_fx.emit.products import as_product
from flerm_fx.emit.sizes import numel
from flerm_fx.ops.operation import argument
from flerm_fx.ops.scale import is_scale, scale
from flerm_fx.ops.table import facts

SMALL = 16
"""How many times larger a product is than a factor that is scaled in its place."""


def scaled(value: fx.Node, factor: float) -> fx.Node:
    """Return the node of ``factor`` times a value. Two scalars in a row become one, and 1 becomes
    none.

    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> scaled(scaled(x, 2.0), 0.25).args
    (x, 0.5)
    >>> scaled(scaled(x, 2.0), 0.5)
    x
    """
    if is_scale(value):
        assert isinstance(value.args[0], fx.Node)
        return scaled(value.args[0], multiplier(value) * factor)
    if factor == 1.0:
        return value
    for user in value.users:
        if is_scale(user) and multiplier(user) == factor:
            return user
    with value.graph.inserting_after(value):
        node = value.graph.call_function(scale, (value, factor))
    node.meta = {key: value.meta[key] for key in ("val", "parameter") if key in value.meta}
    return node


def multiplier(node: fx.Node) -> float:
    """Return the factor of a scale node."""
    factor = node.args[1]
    assert isinstance(factor, float)
    return factor


def behind(value: fx.Node, mutated: Set[fx.Node]) -> fx.Node | None:
    """Return the operation that could compute ``factor * value`` as easily as ``value``, if any.

    It is a norm with a weight, a product with a small factor, or one with a number.
    """
    node = value
    while node not in mutated:
        operands = _operands(node)
        if operands or _is_number(node):
            return None if mutated & set(operands) else node
        if not passes(node):
            return None
        (node, *_) = node.all_input_nodes
        if len(node.users) != 1:
            return None
    return None


def take_behind(node: fx.Node, factor: float) -> None:
    """Multiply what an operation computes; :func:`behind` finds it."""
    if _is_number(node):
        _take_number(node, factor)
    for operand in _operands(node):
        node.replace_input_with(operand, scaled(operand, factor))


def ahead(value: fx.Node, mutated: Set[fx.Node]) -> fx.Node | None:
    """Return the operation that could read ``factor * value`` as easily as ``value``, if any.

    It is a product with a number, another scalar, the scores of an attention (``scale``), or a sum,
    whose ``alpha`` is free forward and costs a pass over the sum's gradient. A positive factor goes
    through products on its way there, and through ReLU.
    """
    node = value
    while node not in mutated and len(node.users) == 1:
        (reader,) = node.users
        if reader in mutated:
            return None
        if _takes(reader, node):
            return reader
        if not _carries(reader, node, mutated):
            return None
        node = reader
    return None


def take_ahead(reader: fx.Node, value: fx.Node, factor: float) -> None:
    """Multiply what an operation reads of ``value`` by a positive number; :func:`ahead` finds it.

    A bias that is added on the way is divided by it.
    """
    node = value
    while reader not in node.users:
        (node,) = node.users
        product = as_product(node)
        if product is not None and product.bias is not None:
            node.replace_input_with(product.bias, scaled(product.bias, 1 / factor))
    if is_scale(reader):
        reader.args = (reader.args[0], multiplier(reader) * factor)
    elif _is_number(reader):
        _take_number(reader, factor)
    elif _is_attention(reader):
        reader.kwargs = {**reader.kwargs, "scale": _score_scale(reader) * factor}
    else:
        first, second = reader.args
        if first is node:
            first, second = second, first
        reader.args = (first, second)
        reader.kwargs = {"alpha": argument(reader, "alpha") * factor}


def _takes(reader: fx.Node, node: fx.Node) -> bool:
    if _is_attention(reader):
        known = argument(reader, "scale") is not None or type(_width(reader)) is int
        return known and node in reader.args[:2] and len(set(reader.args[:3])) == 3
    if is_scale(reader) or _is_number(reader):
        return reader.args[0] is node
    return _is_sum(reader, node)


def _carries(reader: fx.Node, node: fx.Node, mutated: Set[fx.Node]) -> bool:
    """Tell whether a positive factor of the node becomes one of its reader."""
    if _is_attention(reader):
        return node is reader.args[2]
    if facts(reader.target).multiplies:
        return len(reader.all_input_nodes) == 2 and dtype_of(reader) == dtype_of(node)
    product = as_product(reader)
    if product is not None and node in product.factors and dtype_of(reader) == dtype_of(node):
        return product.bias not in mutated
    return (passes(reader) or facts(reader.target).homogeneous) and reader.args[0] is node


def _is_attention(node: fx.Node) -> bool:
    return facts(node.target).kind == "attention"


def _score_scale(attention: fx.Node) -> float:
    given = argument(attention, "scale")
    return float(_width(attention) ** -0.5 if given is None else given)


def _width(attention: fx.Node) -> int | torch.SymInt:
    """Return features of a head."""
    query = attention.args[0]
    assert isinstance(query, fx.Node)
    width: int | torch.SymInt = query.meta["val"].shape[-1]
    return width


def is_sum(node: fx.Node) -> bool:
    """Tell whether a node is a sum of two tensors."""
    return facts(node.target).is_sum


def _is_sum(node: fx.Node, term: fx.Node) -> bool:
    """Tell whether a node is the sum of the term and of another tensor, and can weigh the term."""
    if not is_sum(node) or len(node.all_input_nodes) != 2 or dtype_of(term) is None:
        return False
    weighs = node.args[1] is term or argument(node, "alpha") == 1
    return weighs and dtype_of(node) == dtype_of(term)


def _operands(node: fx.Node) -> list[fx.Node]:
    """Return what to multiply so that a norm with a weight, or a product with a small factor,
    grows.
    """
    known = facts(node.target)
    if known.kind == "norm":
        weight = argument(node, "weight")
        bias = argument(node, known.bias) if known.bias else None
        return [] if weight is None else [weight] if bias is None else [weight, bias]
    if known.multiplies and len(node.all_input_nodes) == 2:
        small = min(node.all_input_nodes, key=numel)
        if SMALL * numel(small) <= numel(node) and dtype_of(small) == dtype_of(node):
            return [small]
    return []


def _is_number(node: fx.Node) -> bool:
    """Tell whether a node is a tensor times a number, or divided by one."""
    known = facts(node.target)
    if not (known.multiplies or known.divides) or not isinstance(node.args[0], fx.Node):
        return False
    return isinstance(node.args[1], int | float) and dtype_of(node) == dtype_of(node.args[0])


def _take_number(node: fx.Node, factor: float) -> None:
    value, number = node.args
    assert isinstance(number, int | float)
    divides = facts(node.target).divides
    node.args = (value, number / factor if divides else number * factor)
