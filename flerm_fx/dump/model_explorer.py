"""Google's Model Explorer reads these files: the graph, and data on its nodes.

A folder with the graph as ``torch.export`` saves it, and a file of node data for each of FSLR,
multiplier and status. Each parameter and its scale node, which is a multiplication there, has a
value. Model Explorer's own package is not needed to write them.
"""

import contextlib
import errno
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from flerm_fx.assign.assignment import Assignment
from flerm_fx.boundary.compat import input_spec, tree_flatten_spec
from flerm_fx.boundary.files import check, write_all
from flerm_fx.boundary.text import json_text
from flerm_fx.capture.exporting import exporting
from flerm_fx.dump.dot import multiplier_colour
from flerm_fx.errors import FlermError
from flerm_fx.model.inputs import Inputs, call_arguments
from flerm_fx.ops.table import facts

MODEL = "model.pt2"
NODE_DATA = ("status.json", "fslr.json", "multiplier.json")
"""In the order in which they are opened: Model Explorer colours nodes by the last of them."""

GRAPH_ID = "graph"
"""What Model Explorer's adapter calls the graph of any exported program."""

_TEXT = "#000000"
_BY_STATUS = {
    "matched": "#ffffff",
    "predicted": "#cfe2ff",
    "unresolved": "#ffe08a",
    "unmatched": "#f2b8b5",
    "unused": "#d0d0d0",
}


def write_model_explorer(
    assignments: Sequence[Assignment], graph_module: GraphModule, inputs: Inputs, folder: Path
) -> None:
    """Write the graph and its node data into a folder, which is made if it is not there.

    Args:
        assignments: one per parameter.
        graph_module: the captured graph with its scale nodes.
        inputs: what it is called with; the shapes in the saved graph are theirs.
        folder: files of the same names in it are replaced.

    Raises:
        FlermError: ``torch.export`` cannot save the graph.
        OSError: the folder cannot be written.
    """
    check_folder(folder)
    model = io.BytesIO()
    flat = _flat(graph_module, inputs)
    with _saving():
        program = torch.export.export(*flat, strict=False)
    nodes = _nodes(program)
    with _saving():
        torch.export.save(program, model)
    contents = {folder / MODEL: model.getvalue()}
    for name, data in zip(NODE_DATA, _node_data(assignments, nodes), strict=True):
        contents[folder / name] = f"{json_text({GRAPH_ID: data})}\n".encode()
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        write_all(contents)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def check_folder(folder: Path) -> None:
    """Find out before long work whether the files can be written; what is there stays as it is.

    Raises:
        OSError: they cannot.
    """
    if not os.path.lexists(folder):
        check(folder)
        return
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    for name in (MODEL, *NODE_DATA):
        check(folder / name)


@contextlib.contextmanager
def _saving() -> Iterator[None]:
    """Refuse a graph that torch cannot save; nothing but torch may run in this block."""
    try:
        with exporting():
            yield
    except Exception as error:  # whatever export makes of an operation that it cannot save
        raise FlermError(
            f"dump: torch.export cannot save the graph for 'model-explorer' "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}); use 'svg' or 'json'"
        ) from error


def _flat(graph_module: GraphModule, inputs: Inputs) -> tuple[GraphModule, tuple[Any, ...]]:
    """Return the graph with flat inputs and outputs: who reads the file may not know a model's own
    types.

    It shares the parameters.
    """
    flat_inputs = tree_flatten_spec(call_arguments(inputs), input_spec(graph_module.graph))
    graph = Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    return GraphModule(graph_module, graph), tuple(flat_inputs)


def _nodes(program: ExportedProgram) -> dict[str, list[str]]:
    """Return each parameter's nodes, it and its scale, which is put into the module that reads
    it.
    """
    parameters = program.graph_signature.inputs_to_parameters
    nodes: dict[str, list[str]] = {}
    for node in program.graph.nodes:
        if node.name in parameters:
            scales = [user for user in node.users if facts(user.target).multiplies]
            for scaled in scales:
                _move(scaled)
            nodes[parameters[node.name]] = [node.name, *(scaled.name for scaled in scales)]
    return nodes


def _move(scaled: Node) -> None:
    for reader in list(scaled.users)[:1]:
        if "nn_module_stack" in reader.meta:
            scaled.meta["nn_module_stack"] = reader.meta["nn_module_stack"]


def _node_data(
    assignments: Sequence[Assignment], nodes: dict[str, list[str]]
) -> Iterator[dict[str, Any]]:
    """Return the data of each file in turn."""
    rows = [(name, row) for row in assignments for name in nodes.get(row.parameter, ())]
    yield {"results": {name: _coloured(r.status, _BY_STATUS[r.status]) for name, r in rows}}
    yield {
        "results": {
            name: {"value": _short(row.target.value)}
            for name, row in rows
            if math.isfinite(row.target.value)
        },
        "gradient": [
            {"stop": 0, "bgColor": multiplier_colour(1.0), "textColor": _TEXT},
            {"stop": 1, "bgColor": multiplier_colour(1e9), "textColor": _TEXT},
        ],
    }
    yield {
        "results": {
            name: _coloured(_short(row.multiplier), multiplier_colour(row.multiplier))
            for name, row in rows
            if math.isfinite(row.multiplier)
        }
    }


def _coloured(value: float | str, colour: str) -> dict[str, float | str]:
    return {"value": value, "bgColor": colour, "textColor": _TEXT}


def _short(number: float) -> float:
    """Return the number to four digits: Model Explorer shows as many as there are, and cuts the
    rest off.

    >>> _short(0.17304807)
    0.173
    """
    return float(f"{number:.4g}")
