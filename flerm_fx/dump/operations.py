"""The operations of the graph with its scale nodes become a picture."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from flerm_fx.assign.assignment import Assignment
from flerm_fx.dump.dot import BORDER, LEGEND, multiplier_colour
from flerm_fx.dump.modules import focused, is_size, module_kinds, module_of
from flerm_fx.dump.parameter_nodes import parameter_of
from flerm_fx.dump.picture import Box, Picture, lines
from flerm_fx.dump.table import format_fslr, format_shape, format_status
from flerm_fx.ops.scale import is_scale

_PLAIN = "#f4f4f4"


def operations_to_dot(
    assignments: Sequence[Assignment], graph_module: GraphModule, focus: str | None = None
) -> str:
    """Return a ``digraph`` of every node of the graph, in frames that are the model's modules.

    A parameter and its scale node have the colour of its multiplier; operations are plain and say
    the shape of what they return, N for the size of the batch. Nodes that compute sizes are left
    out. In an SVG, hovering shows a node as torch.fx prints it.

    Args:
        assignments: one per parameter.
        graph_module: the captured graph.
        focus: a module path or parameter; it and its direct neighbours are drawn.
    """
    rows = {assignment.parameter: assignment for assignment in assignments}
    nodes = [node for node in graph_module.graph.nodes if not is_size(node)]
    picture = Picture(
        {node.name: _box(node, rows.get(parameter_of(node) or "")) for node in nodes},
        [
            (tail.name, node.name)
            for node in nodes
            for tail in node.all_input_nodes
            if not is_size(tail)
        ],
        LEGEND,
        _frames(nodes),
        list(_below_data(nodes)),
    )
    if focus is not None:
        inside = focused(graph_module.graph, focus).intersection(nodes)
        picture = picture.around({node.name for node in inside})
    return picture.to_dot()


def _below_data(nodes: Sequence[Node]) -> Iterator[tuple[str, str]]:
    """The weights that an operation is the first to read belong below the data that it reads.

    Left to itself Graphviz draws them beside it, and a chain of modules as a wide staircase.
    """
    data: set[Node] = set()
    seen: set[Node] = set()
    for node in nodes:
        read = [tail for tail in node.all_input_nodes if tail in data]
        if read or node.op == "placeholder":
            data.add(node)
            seen.add(node)
        for weight in _weights(node, seen) if read else ():
            yield max(read).name, weight.name


def _weights(node: Node, seen: set[Node]) -> Iterator[Node]:
    """Return what a node reads of the model, as it is or computed from that alone, unless seen
    before.
    """
    for tail in node.all_input_nodes:
        if tail in seen:
            continue
        seen.add(tail)
        if tail.op == "get_attr":
            yield tail
        else:
            yield from _weights(tail, seen)


def _frames(nodes: Sequence[Node]) -> dict[str, str]:
    """Return the modules that hold parameters, or hold such modules; their classes where known."""
    kinds = {path: kind for node in nodes for path, kind in module_kinds(node).items()}
    holders = {module_of(node) for node in nodes if parameter_of(node)}
    paths = [
        path
        for path in kinds
        if path and any(f"{holder}.".startswith(f"{path}.") for holder in holders)
    ]
    return {path: lines(f"{_below(path, paths)}: {kinds[path]}") for path in paths}


def _below(path: str, paths: Sequence[str]) -> str:
    """Return what a path adds to the nearest of others that it begins with."""
    outer = max((other for other in paths if path.startswith(f"{other}.")), key=len, default="")
    return path.removeprefix(f"{outer}.")


def _box(node: Node, assignment: Assignment | None) -> Box:
    tooltip = lines(node.format_node() or node.name)
    if node.op in ("placeholder", "output"):
        return Box(lines(node.name, _shape(node)), "#d0d0d0", "ellipse", tooltip=tooltip)
    if node.op == "get_attr" and assignment is None:
        name = str(node.target).rpartition(".")[2]
        return Box(lines(name, _shape(node)), _PLAIN, tooltip=tooltip, module=module_of(node))
    if assignment is None:
        label = lines(_operation(node), _shape(node))
        return Box(label, _PLAIN, tooltip=tooltip, module=module_of(node))
    if is_scale(node):
        label = lines(
            f"scale × {node.args[1]:.4g}",
            f"multiplier {assignment.multiplier:.4g}",
            f"FSLR {format_fslr(assignment)}",
            "" if assignment.status == "matched" else format_status(assignment),
        )
    else:
        name = assignment.parameter.rpartition(".")[2]
        label = lines(name, format_shape(assignment.shape))
    return Box(
        label,
        multiplier_colour(assignment.multiplier),
        border=BORDER[assignment.status],
        tooltip=tooltip,
        module=module_of(node),
    )


def _operation(node: Node) -> str:
    """Return the operation's name, such as ``linear``; of what is not a call, the node's target."""
    target: Any = node.target
    packet = getattr(target, "overloadpacket", None)
    return str(getattr(packet or target, "__name__", target))


def _shape(node: Node) -> str:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return ""
    sizes = [re.sub(r"\bs\d+\b", "N", str(size)) for size in value.shape]
    return "×".join(sizes).replace("*", "") or "()"
