"""The graph's Python code is annotated line by line."""

import re
from collections.abc import Mapping, Sequence

from torch.fx import GraphModule, Node

from flerm_fx.assign.assignment import Assignment
from flerm_fx.dump.columns import columns
from flerm_fx.dump.modules import focused, module_kinds, module_of
from flerm_fx.dump.parameter_nodes import parameter_of
from flerm_fx.dump.table import format_base, format_fslr, format_shape, format_status
from flerm_fx.errors import shown

# fx names every node once and writes one line for it: `name = ...` or `name: "f32[2]" = ...`.
_DEFINITION = re.compile(r"^\s+(\w+)\s*(?::[^=]*)?= ")
# What fx adds to a line to free values that are not needed any more.
_FREES = re.compile(r";(\s+\w+ =)+ None\s*$")
_HEADER = ("module", "parameter", "FSLR", "multiplier", "base", "status")
# Longer lines of code push their own comment aside, not that of all others.
_WIDEST = 100


def to_code(
    assignments: Sequence[Assignment], graph_module: GraphModule, focus: str | None = None
) -> str:
    """Return the code of the graph's ``forward``, valid Python, with comments in aligned columns.

    Every line names the module that it was traced in. A line that reads or scales a parameter has
    its shape, FSLR ± standard error, multiplier, base and status; an operation has the FSLRs and
    multipliers of the parameters that it reads. Statements that only free memory are left out.

    Args:
        assignments: one per parameter.
        graph_module: the captured graph.
        focus: a module path or parameter; the lines of others are counted in its place.
    """
    rows = {assignment.parameter: assignment for assignment in assignments}
    inside = {node.name: node for node in focused(graph_module.graph, focus)}
    names = {node.name for node in graph_module.graph.nodes}
    code: list[str] = []
    comments: list[tuple[str, ...]] = []
    hidden = 0
    for line in graph_module.graph.python_code("self").src.strip("\n").split("\n"):
        definition = _DEFINITION.match(line)
        name = definition[1] if definition else ""
        if name in names and name not in inside:
            hidden += 1
            continue
        code += _hidden(hidden)
        comments += [()] * (len(code) - len(comments))
        hidden = 0
        # Names are in string literals here, where an escape stands for what it escapes.
        code.append(shown(_FREES.sub("", line).rstrip()))
        comments.append(_comment(inside[name], rows) if name in inside else ())
    return "\n".join(_beside(code, comments))


def _hidden(count: int) -> list[str]:
    return [f"    # … {count} line{'' if count == 1 else 's'}"] if count else []


def _beside(code: Sequence[str], comments: Sequence[tuple[str, ...]]) -> list[str]:
    """Put code on the left, and the columns of comments on the right."""
    header, rule, *texts = columns(
        _HEADER, [row for row in comments if row], right={"FSLR", "multiplier"}
    )
    commented = [line for line, row in zip(code, comments, strict=True) if row]
    width = min(max(map(len, commented), default=0), _WIDEST)
    lines = [f"{'':{width}}  # {text}" for text in (header, rule)]
    left = iter(texts)
    for line, row in zip(code, comments, strict=True):
        lines.append(f"{line:{width}}  # {next(left)}".rstrip(" #") if row else line)
    return lines


def _comment(node: Node, rows: Mapping[str, Assignment]) -> tuple[str, ...]:
    assignment = rows.get(parameter_of(node) or "")
    path = module_of(node)
    if assignment is not None:
        return (
            path,
            f"{assignment.parameter.rpartition('.')[2]} {format_shape(assignment.shape)}",
            format_fslr(assignment),
            f"{assignment.multiplier:.4g}",
            format_base(assignment.base),
            format_status(assignment),
        )
    kind = module_kinds(node).get(path)
    read = [rows[name] for arg in node.all_input_nodes if (name := parameter_of(arg) or "") in rows]
    return (
        f"{path}: {kind}" if kind and path else kind or path,
        ", ".join(row.parameter.rpartition(".")[2] for row in read),
        ", ".join(f"{row.target.value:.4g}" for row in read),
        ", ".join(f"{row.multiplier:.4g}" for row in read),
        "",
        "",
    )
