"""This module tells which parameter a node of the graph reads or scales."""

from torch.fx import Node

from flerm_fx.ops.scale import is_scale


def parameter_of(node: Node) -> str | None:
    """Return the trainable parameter that a ``get_attr`` or a scale node stands for, else ``None``.

    >>> from torch.fx import Graph
    >>> weight = Graph().get_attr("weight")
    >>> parameter_of(weight)
    >>> weight.meta["parameter"] = "weight"
    >>> parameter_of(weight)
    'weight'
    """
    if is_scale(node):
        (source, *_) = node.args
        return parameter_of(source) if isinstance(source, Node) else None
    name = node.meta.get("parameter") if node.op == "get_attr" else None
    return name if isinstance(name, str) else None
