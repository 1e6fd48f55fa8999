"""How much work the parts of a graph are, and so how far each tangent has to go."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from flerm_fx.ops.operation import operation
from flerm_fx.probe.frontier import data_nodes

FLOPS_PER_BYTE = 10.0
"""Products and sums in the time that a byte takes to be read or written: about 100 GFLOP/s beside
10 GB/s on a processor core, 50 TFLOP/s beside 3 TB/s on an accelerator."""

RANDOM_NUMBER = 50.0
"""Bytes read or written in the time that one number of a cotangent takes to be drawn."""


@dataclass(frozen=True)
class Workload:
    r"""What measuring takes, in forward passes.

    Attributes:
        parameters: L.
        passes: :math:`\sum_l` of the share of a forward pass that is downstream of parameter l:
            L / 2 in a chain of equal layers.
        per_random_number: what it takes to draw one coordinate of a cotangent.
        eager: there is no graph.
    """

    parameters: int
    passes: float
    per_random_number: float
    eager: bool


def workload(graph: fx.Graph | None, names: Collection[str]) -> Workload:
    """What measuring some parameters takes, from the shapes in a probe graph.

    Args:
        graph: the probe graph; None on the eager path.
        names: the parameters.

    >>> from flerm_fx.capture.tracing import capture
    >>> layers = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(4)))
    >>> graph = capture(layers, torch.zeros(2, 8)).probe_module.graph
    >>> workload(graph, ["0.weight", "1.weight", "2.weight", "3.weight"]).passes
    2.5
    """
    if graph is None:
        return Workload(len(names), float(len(names)), 0.0, eager=True)
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
        return Workload(len(names), float(len(names)), 0.0, eager=False)
    reached: dict[str, float] = {}
    for node in graph.find_nodes(op="get_attr"):
        name = node.meta.get("parameter")
        if name in names:
            at = max((_entry(user, data, downstream) for user in node.users), default=0.0)
            at += _cost(head) if head is not None and head in node.users else 0.0
            reached[name] = max(reached.get(name, 0.0), at)
    return Workload(len(names), sum(reached.values()) / total, RANDOM_NUMBER / total, eager=False)


def _entry(node: fx.Node, data: Collection[fx.Node], downstream: dict[fx.Node, float]) -> float:
    """The work from where a value of parameters alone enters the flow of data."""
    if node in data:
        return downstream[node]
    return max((_entry(user, data, downstream) for user in node.users), default=0.0)


def _head(graph: fx.Graph) -> fx.Node | None:
    """The product with more outputs than inputs that a graph may end in."""
    (output,) = graph.find_nodes(op="output")
    (last,) = output.args
    if not isinstance(last, fx.Node) or operation(last) not in ("aten.linear", "aten.addmm"):
        return None
    x = last.args[1 if operation(last) == "aten.addmm" else 0]
    assert isinstance(x, fx.Node)
    outputs, inputs = _shape(last.meta.get("val")), _shape(x.meta.get("val"))
    return last if outputs and inputs and outputs[-1] > 2 * inputs[-1] else None


def _cost(node: fx.Node) -> float:
    """Work of an operation, in bytes."""
    if node.op == "placeholder":
        return 0.0
    moved = sum(
        math.prod(_shape(value)) * value.element_size()
        for value in pytree.tree_leaves(node.meta.get("val"))
        if isinstance(value, Tensor)
    )
    return moved + _flops(node) / FLOPS_PER_BYTE


def _flops(node: fx.Node) -> float:
    made = math.prod(_shape(node.meta.get("val")))
    read = [_shape(source.meta.get("val")) for source in node.all_input_nodes]
    name = operation(node)
    if not made or not read:
        return 0.0
    if name in ("aten.linear", "aten.matmul", "aten.mm", "aten.bmm"):
        return 2.0 * made * read[0][-1]
    if name == "aten.addmm":
        return 2.0 * made * read[-1][0]
    if "conv" in name and len(read) > 1:
        return 2.0 * made * math.prod(read[1][1:])
    if name in ("attention", "aten.scaled_dot_product_attention") and len(read) > 1:
        return 4.0 * made * read[1][-2]
    return 0.0


def _shape(value: Any) -> tuple[int, ...]:
    """The shape, at the batch size of the capture; sizes that depend on the data count as 1."""
    if not isinstance(value, Tensor):
        return ()
    sizes: list[Any] = list(value.shape)
    return tuple(int(s.node.hint or 1) if isinstance(s, torch.SymInt) else int(s) for s in sizes)
