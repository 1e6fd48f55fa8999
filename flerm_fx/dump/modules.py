"""This module tells which module a node of the graph belongs to."""

import difflib

import torch
from torch.fx import Graph, Node

from flerm_fx.boundary.compat import OF_EXPORT
from flerm_fx.dump.parameter_nodes import parameter_of
from flerm_fx.errors import InputError


def module_of(node: Node) -> str:
    """Return the path of the innermost module that a node was traced in; of a weight, its holder's.

    >>> from torch.fx import Graph
    >>> weight = Graph().get_attr("up.weight")
    >>> weight.meta["parameter"] = "blocks.0.up.weight"
    >>> module_of(weight)
    'blocks.0.up'
    """
    parameter = parameter_of(node)
    if parameter is None and node.op == "get_attr":
        parameter = str(node.target)
    if parameter is not None:
        return parameter.rpartition(".")[0]
    return next(reversed(module_kinds(node)), "")


def module_kinds(node: Node) -> dict[str, str]:
    """Return the modules around a node, outermost first: class name by path."""
    stack = node.meta.get("nn_module_stack") or {}
    return {
        path: (kind if isinstance(kind, str) else kind.__qualname__).rpartition(".")[2]
        for path, kind in stack.values()
        if not path.startswith(OF_EXPORT)
    }


def is_size(node: Node) -> bool:
    """Tell whether a node's value is a whole number, such as a size of a tensor: no data flows in
    it.
    """
    return isinstance(node.meta.get("val"), int | torch.SymInt)


def focused(graph: Graph, focus: str | None) -> set[Node]:
    """Return the nodes of one module, with the weights that are read in it; all nodes for ``None``.

    Args:
        graph: a captured graph.
        focus: a module path or the name of a parameter.

    Raises:
        InputError: the graph has neither under that name.
    """
    if focus is None:
        return set(graph.nodes)
    inside: set[Node] = set()
    for node in reversed(graph.nodes):
        parameter = parameter_of(node)
        name = module_of(node) if parameter is None else parameter
        is_weight = parameter is not None or node.op == "get_attr"
        if _within(name, focus) or (is_weight and inside.intersection(node.users)):
            inside.add(node)
    if not inside:
        raise InputError(_unknown(graph, focus))
    return inside


def _within(name: str, focus: str) -> bool:
    return name == focus or name.startswith(f"{focus}.")


def _unknown(graph: Graph, focus: str) -> str:
    known = {path for node in graph.nodes for path in module_kinds(node)}
    known |= {parameter_of(node) or module_of(node) for node in graph.nodes}
    near = difflib.get_close_matches(focus, sorted(known - {""}), n=3, cutoff=0.0)
    return (
        f"dump: focus is {focus!r}, and the graph has no module or parameter of that name; "
        f"the nearest are {', '.join(map(repr, near))}"
    )
