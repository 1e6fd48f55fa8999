"""How many elements a pass over a node's value touches."""

import math

import torch
from torch import Tensor, fx


def numel(node: fx.Node) -> float:
    """Elements of a node's value at the captured batch; infinite where that is not known.

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
    return math.prod((_hint(size) for size in value.shape), start=1.0)


def _hint(size: int | torch.SymInt) -> float:
    if isinstance(size, int):
        return float(size)
    hint = size.node.hint
    return math.inf if hint is None else float(hint)
