"""The parameters and the data flow between them become a Graphviz picture."""

import math
from collections.abc import Iterable, Sequence

from torch.fx import GraphModule, Node

from flerm_fx.assign.assignment import Assignment
from flerm_fx.dump.modules import focused, is_size
from flerm_fx.dump.parameter_nodes import parameter_of
from flerm_fx.dump.picture import Box, Picture, lines
from flerm_fx.dump.table import format_base, format_fslr, format_shape, format_status

# The multiplier, either way, at which the colour is full.
_FULL_COLOUR = 16.0
_BELOW_ONE, _ONE, _ABOVE_ONE = (0x5B, 0x8F, 0xD9), (0xFF, 0xFF, 0xFF), (0xF2, 0x8E, 0x3C)
BORDER = {
    "matched": "solid",
    "predicted": "solid",
    "unresolved": "dashed",
    "unmatched": "dashed",
    "unused": "dotted",
}
LEGEND = (
    f"multiplier: blue below 1, orange above, full colour at {_FULL_COLOUR:.0f}×\n"
    "dashed: unresolved or unmatched; dotted: unused"
)


def to_dot(
    assignments: Sequence[Assignment], graph_module: GraphModule, focus: str | None = None
) -> str:
    """Return a ``digraph`` in the DOT language; ``dot -Tsvg`` draws it.

    A box is a parameter, blue for a multiplier below 1, white at 1, orange above. An edge says that
    data flows from one parameter's operation to the next one's. Parameters of one operation follow
    each other in the order of its arguments (input → weight → bias). A dot is a junction, where an
    operation joins values from several places.

    Args:
        assignments: one per parameter.
        graph_module: the captured graph.
        focus: a module path or parameter; it and its direct neighbours are drawn.
    """
    flow = _DataFlow({assignment.parameter for assignment in assignments})
    for node in graph_module.graph.nodes:
        flow.visit(node)
    used = {end for edge in flow.edges for end in edge}
    boxes = {assignment.parameter: _box(assignment) for assignment in assignments}
    boxes |= {key: box for key, box in flow.others.items() if key in used}
    picture = Picture(boxes, list(flow.edges), LEGEND, below=list(flow.below))
    if focus is not None:
        inside = {_key(node) for node in focused(graph_module.graph, focus)}
        picture = picture.around(inside.intersection(boxes))
    return picture.to_dot()


class _DataFlow:
    """A ``_DataFlow`` walks the graph in execution order and collects the edges between parameters.

    ``sources`` holds where a node's data comes from: names of parameters, junctions or inputs.
    ``parameters`` holds what a node that has not met data yet is made of. ``again`` holds what a
    tied parameter is read after for the second time: what follows then belongs ``below`` that.
    """

    def __init__(self, known: set[str]) -> None:
        self.known = known
        self.sources: dict[Node, tuple[str, ...]] = {}
        self.parameters: dict[Node, tuple[str, ...]] = {}
        self.edges: dict[tuple[str, str], None] = {}
        self.heads: set[str] = set()
        self.again: dict[str, str] = {}
        self.below: dict[tuple[str, str], None] = {}
        self.others: dict[str, Box] = {}

    def visit(self, node: Node) -> None:
        name = parameter_of(node)
        sources = _unique(s for arg in node.all_input_nodes for s in self.sources.get(arg, ()))
        parameters = _unique(
            p for arg in node.all_input_nodes for p in self.parameters.get(arg, ())
        )
        if name in self.known and name is not None:
            self.parameters[node] = (name,)
        elif node.op == "placeholder":
            self.sources[node] = (self._other(node, str(node.target), "ellipse"),)
        elif node.op == "output":
            self._connect((*sources, *parameters), self._other(node, "output", "ellipse"))
        elif is_size(node):
            return
        elif sources:
            if len(sources) > 1:
                op = getattr(node.target, "__name__", str(node.target))
                sources = (self._connect(sources, self._other(node, op, "point")),)
            for parameter in parameters:
                sources = (self._connect(sources, parameter),)
            self.sources[node] = sources
        else:
            self.parameters[node] = parameters

    def _connect(self, sources: tuple[str, ...], head: str) -> str:
        for source in sources:
            self.edges[source, head] = None
            if source in self.again and head not in self.heads:
                self.below[self.again[source], head] = None
        if head in self.heads:
            self.again[head] = sources[-1]
        self.heads.add(head)
        return head

    def _other(self, node: Node, label: str, shape: str) -> str:
        key = _key(node)
        self.others[key] = Box(lines(label), "#d0d0d0", shape)
        return key


def _key(node: Node) -> str:
    """Return what a node's box is called: its parameter, or its place in the data flow."""
    if node.op == "placeholder":
        return f"input:{node.target}"
    if node.op == "output":
        return "output:"
    return parameter_of(node) or f"at:{node.name}"


def multiplier_colour(multiplier: float) -> str:
    """Return ``#rrggbb`` on a scale of octaves, from blue through white at 1 to orange.

    >>> multiplier_colour(1.0), multiplier_colour(16.0), multiplier_colour(1 / 64)
    ('#ffffff', '#f28e3c', '#5b8fd9')
    """
    if not multiplier > 0 or math.isinf(multiplier):
        return "#d0d0d0"
    octaves = math.log2(multiplier) / math.log2(_FULL_COLOUR)
    end = _ABOVE_ONE if octaves > 0 else _BELOW_ONE
    weight = min(abs(octaves), 1.0)
    return "#" + "".join(
        f"{round(one + weight * (full - one)):02x}" for one, full in zip(_ONE, end, strict=True)
    )


def _box(assignment: Assignment) -> Box:
    op = assignment.op.removeprefix("aten.")
    status = format_status(assignment)
    label = lines(
        assignment.parameter,
        f"{op} {format_shape(assignment.shape)}",
        f"FSLR {format_fslr(assignment)}",
        f"multiplier {assignment.multiplier:.4g}",
        f"base {format_base(assignment.base)}",
        status if status != "matched" else "",
    )
    fill = multiplier_colour(assignment.multiplier)
    return Box(label, fill, border=BORDER[assignment.status])


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
