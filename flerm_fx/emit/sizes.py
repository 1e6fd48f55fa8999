"""This module counts how many elements a pass over a node's value touches."""

import math

from torch import Tensor, fx

from flerm_fx.boundary.compat import hint_of


def numel(node: fx.Node) -> float:
    """Return the number of elements of a node's value at the captured batch; unknown ones are
    infinite.

    >>> import torch
    >>> graph = fx.Graph()
    >>> node = graph.placeholder("x")
    >>> numel(node)
    inf
    >>> node.meta["val"] = torch.zeros(2, 3)
    >>> numel(node)
    6.0
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return math.inf
    hints = [hint_of(size) for size in value.shape]
    return math.prod((math.inf if hint is None else float(hint) for hint in hints), start=1.0)
