"""The graph's Python code, annotated."""

import re
from collections.abc import Sequence

from torch.fx import GraphModule, Node

from flerm_fx.assignment import Assignment
from flerm_fx.dump.parameter_nodes import parameter_of
from flerm_fx.dump.table import format_base, format_fslr, format_shape, format_status

# fx names every node once and writes one line for it: `name = ...` or `name: "f32[2]" = ...`.
_DEFINITION = re.compile(r"^\s+(\w+)\s*(?::[^=]*)?= ")


def to_code(assignments: Sequence[Assignment], graph_module: GraphModule) -> str:
    """The code of the graph's ``forward``, valid Python, with comments.

    A line that reads a parameter or scales it ends in the parameter's name, shape, FSLR ± standard
    error, multiplier and base; a line of its own says where the code of another module begins.
    """
    by_parameter = {assignment.parameter: assignment for assignment in assignments}
    by_name = {node.name: node for node in graph_module.graph.nodes}
    module = ""
    lines: list[str] = []
    for line in graph_module.graph.python_code("self").src.strip("\n").split("\n"):
        definition = _DEFINITION.match(line)
        node = by_name.get(definition[1]) if definition else None
        if definition is None or node is None:
            lines.append(line.rstrip())
            continue
        here = _module_comment(node)
        if here and here != module:
            module = here
            lines.append(f"{line[: definition.start(1)]}# {module}")
        assignment = by_parameter.get(parameter_of(node) or "")
        comment = f"  # {_parameter_comment(assignment)}" if assignment else ""
        lines.append(line.rstrip() + comment)
    return "\n".join(lines).rstrip()


def _parameter_comment(assignment: Assignment) -> str:
    parts = [
        f"{assignment.parameter} {format_shape(assignment.shape)}",
        f"FSLR {format_fslr(assignment)}",
        f"multiplier {assignment.multiplier:.4g}",
        f"base {format_base(assignment.base)}",
    ]
    status = format_status(assignment)
    if status != "matched":
        parts.append(status)
    return ", ".join(parts)


def _module_comment(node: Node) -> str:
    """``blocks.0.up: Linear``, the innermost module that the node was traced in."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, kind = list(stack.values())[-1]
    kind = kind if isinstance(kind, str) else kind.__qualname__
    return f"{path or '(the model)'}: {kind.rsplit('.', 1)[-1]}"
