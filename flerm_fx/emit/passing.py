"""This module tells which operations a scalar passes through: op(s x) = s op(x)."""

import operator

import torch
from torch import Tensor, fx

from flerm_fx.ops.aliasing import is_mutation, may_alias
from flerm_fx.ops.table import facts


def is_view(node: fx.Node) -> bool:
    """Tell whether a node only arranges the elements of its first argument, dtype and all.

    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> is_view(graph.call_function(torch.ops.aten.t.default, (x,)))
    True
    >>> is_view(graph.call_function(torch.ops.aten.relu.default, (x,)))
    False
    """
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.target is operator.getitem:
        return is_view(node.args[0])
    if facts(node.target).kind == "cast":
        return dtype_of(node) is not None and dtype_of(node) == dtype_of(node.args[0])
    return facts(node.target).kind == "view"


def passes(node: fx.Node) -> bool:
    """Tell whether a scalar passes through the node, from its first argument to its one result."""
    if node.target is operator.getitem:
        return False
    return is_view(node) or facts(node.target).kind == "dropout"


def dtype_of(node: fx.Node) -> torch.dtype | None:
    """Return the dtype of a node's value, as captured."""
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def mutated(graph: fx.Graph) -> set[fx.Node]:
    """Return nodes whose memory an operation of the graph may write to.

    Any operation that is not a product of new memory for sure is taken to share it with all its
    arguments, so the set is rather too large.

    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> y = graph.call_function(torch.ops.aten.t.default, (x,))
    >>> z = graph.call_function(torch.ops.aten.neg.default, (x,))
    >>> _ = graph.call_function(torch.ops.aten.relu_.default, (y,))
    >>> sorted(str(node) for node in mutated(graph))
    ['relu__default', 't_default', 'x']
    """
    writers = [node for node in graph.nodes if is_mutation(node)]
    pending = [node for writer in writers for node in (writer, *writer.all_input_nodes)]
    nodes: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node in nodes:
            continue
        nodes.add(node)
        if may_alias(node):
            pending += node.all_input_nodes
        pending += [user for user in node.users if may_alias(user)]
    return nodes
