"""Operations that a scalar passes through: op(s x) = s op(x)."""

import operator

import torch
from torch import Tensor, fx

from flerm_fx.capture.functionalize import is_mutation
from flerm_fx.ops.operation import operation

_VIEWS = frozenset(
    f"aten.{name}"
    for name in (
        "alias",
        "chunk",
        "clone",
        "contiguous",
        "expand",
        "flatten",
        "movedim",
        "narrow",
        "permute",
        "reshape",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "swapaxes",
        "t",
        "tensor_split",
        "transpose",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
    )
)

_CASTS = ("aten.to", "aten._to_copy")


def is_view(node: fx.Node) -> bool:
    """Whether a node only arranges the elements of its first argument, dtype and all.

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
    if operation(node) in _CASTS:
        return dtype_of(node) is not None and dtype_of(node) == dtype_of(node.args[0])
    return operation(node) in _VIEWS and not is_mutation(node)


def passes(node: fx.Node) -> bool:
    """Whether a scalar passes through the node, from its first argument to its one result."""
    if node.target is operator.getitem:
        return False
    return is_view(node) or node.target is torch.ops.aten.dropout.default


def dtype_of(node: fx.Node) -> torch.dtype | None:
    """The dtype of a node's value, as captured."""
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def mutated(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose memory an operation of the graph may write to.

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
    found: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node in found:
            continue
        found.add(node)
        if _may_share(node):
            pending += node.all_input_nodes
        pending += [user for user in node.users if _may_share(user)]
    return found


# They return their argument, or a view of it, where no copy is needed.
_SOMETIMES = ("aten.contiguous", "aten.dropout", "aten.flatten", "aten.reshape", "aten.to")


def _may_share(node: fx.Node) -> bool:
    """Whether a node's result may lie in the memory of its arguments."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.target is operator.getitem or node.op != "call_function"
    if operation(node) in _SOMETIMES:
        return True
    return any(returned.alias_info is not None for returned in schema.returns)
