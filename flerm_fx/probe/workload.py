"""The workload says how much work the parts of a graph are, and so how far each tangent has to
go.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, fx

from flerm_fx.boundary.compat import pytree
from flerm_fx.ops.operation import argument
from flerm_fx.ops.sizes import flops, shape_of
from flerm_fx.ops.table import NOTHING, facts
from flerm_fx.probe.frontier import data_nodes

FLOPS_PER_BYTE = 10.0
"""Products and sums in the time that a byte takes to be read or written: about 100 GFLOP/s beside
10 GB/s on a processor core, 50 TFLOP/s beside 3 TB/s on an accelerator."""

RANDOM_NUMBER = 50.0
"""Bytes read or written in the time that one number of a cotangent takes to be drawn."""


@dataclass(frozen=True)
class Workload:
    r"""A ``Workload`` says what measuring takes, in forward passes.

    Attributes:
        parameters: L.
        passes: :math:`\sum_l` of the share of a forward pass that is downstream of parameter l:
            L / 2 in a chain of equal layers.
        per_random_number: what it takes to draw one coordinate of a cotangent.
        ungraphed: there is no graph.
    """

    parameters: int
    passes: float
    per_random_number: float
    ungraphed: bool


def workload(graph: fx.Graph | None, names: Collection[str]) -> Workload:
    """Return what measuring some parameters takes, from the shapes in a probe graph.

    Args:
        graph: the probe graph; None without a graph.
        names: the parameters.

    >>> import torch
    >>> from flerm_fx.capture.tracing import capture
    >>> layers = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(4)))
    >>> graph = capture(layers, torch.zeros(2, 8)).probe_module.graph
    >>> workload(graph, ["0.weight", "1.weight", "2.weight", "3.weight"]).passes
    2.5
    """
    if graph is None:
        return Workload(len(names), float(len(names)), 0.0, ungraphed=True)
    data = data_nodes(graph)
    downstream, ahead = {}, 0.0
    head = _head(graph)
    for node in reversed(graph.nodes):
        # Tangents that only pass the last product take a much smaller one in its place.
        if node in data and node is not head:
            ahead += _cost(node)
        downstream[node] = ahead
    total = ahead + (_cost(head) if head is not None else 0.0)
    if not total:
        return Workload(len(names), float(len(names)), 0.0, ungraphed=False)
    reached: dict[str, float] = {}
    for node in graph.find_nodes(op="get_attr"):
        name = node.meta.get("parameter")
        if name in names:
            at = max((_entry(user, data, downstream) for user in node.users), default=0.0)
            at += _cost(head) if head is not None and head in node.users else 0.0
            reached[name] = max(reached.get(name, 0.0), at)
    return Workload(
        len(names), sum(reached.values()) / total, RANDOM_NUMBER / total, ungraphed=False
    )


def _entry(node: fx.Node, data: Collection[fx.Node], downstream: dict[fx.Node, float]) -> float:
    """Return the work from where a value of parameters alone enters the flow of data."""
    if node in data:
        return downstream[node]
    return max((_entry(user, data, downstream) for user in node.users), default=0.0)


def _head(graph: fx.Graph) -> fx.Node | None:
    """Return the product with more outputs than inputs that a graph may end in."""
    (output,) = graph.find_nodes(op="output")
    (last,) = output.args
    known = facts(last.target) if isinstance(last, fx.Node) else NOTHING
    if known.kind != "product" or not known.layout:
        return None
    assert isinstance(last, fx.Node)
    x, matrix = (argument(last, name) for name in known.linear)
    if len(shape_of(matrix.meta.get("val"))) != 2:
        return None
    outputs, inputs = shape_of(last.meta.get("val")), shape_of(x.meta.get("val"))
    return last if outputs and inputs and outputs[-1] > 2 * inputs[-1] else None


def _cost(node: fx.Node) -> float:
    """Work of an operation, in bytes."""
    if node.op == "placeholder":
        return 0.0
    moved = sum(
        math.prod(shape_of(value)) * value.element_size()
        for value in pytree.tree_leaves(node.meta.get("val"))
        if isinstance(value, Tensor)
    )
    return moved + flops(node) / FLOPS_PER_BYTE
