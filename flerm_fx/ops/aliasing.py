"""This module tells which operations write to what they read, and which may return its memory."""

import torch
from torch import fx

from flerm_fx.boundary.compat import schema_of
from flerm_fx.ops.scale import is_scale
from flerm_fx.ops.table import facts


def is_mutation(node: fx.Node) -> bool:
    """Tell whether the operation writes to one of its arguments."""
    schema = schema_of(node.target)
    return bool(schema is not None and schema.is_mutable)


def may_alias(node: fx.Node) -> bool:
    """Tell whether the result may lie in the memory of an argument.

    An operation says so in its schema, or has a tag if it depends on the call, as a dropout's
    result does on the mode. Norms have that tag for their running statistics alone. What has no
    schema is taken to share all that it reads.

    >>> graph = fx.Graph()
    >>> x, aten = graph.placeholder("x"), torch.ops.aten
    >>> [may_alias(graph.call_function(op, (x,))) for op in (aten.t.default, aten.neg.default)]
    [True, False]
    """
    if node.op in ("placeholder", "get_attr", "output") or is_scale(node):
        return False
    schema = schema_of(node.target)
    if schema is None:
        return True
    if any(returned.alias_info is not None for returned in schema.returns):
        return True
    tags = getattr(node.target, "tags", ())
    return torch.Tag.maybe_aliasing_or_mutating in tags and facts(node.target).kind != "norm"


def is_functional(graph: fx.Graph) -> bool:
    """Tell whether no operation writes to an argument that a later one reads."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    return not any(is_mutation(node) and not is_last_word(node, order) for node in graph.nodes)


def is_last_word(node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Tell whether a node updates a buffer and nothing reads the result, as with BatchNorm's
    counter.
    """
    target = node.args[0] if node.args else None
    return (
        not node.users
        and isinstance(target, fx.Node)
        and target.op == "get_attr"
        and all(order[user] <= order[node] for user in target.users)
    )
