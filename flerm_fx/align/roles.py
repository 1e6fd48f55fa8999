"""Parameters that do the same in repeated blocks have one role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flerm_fx.align.parameter_graph import as_chain, parameters
from flerm_fx.align.repeats import fold_alike

if TYPE_CHECKING:
    import networkx as nx


def roles(graph: nx.DiGraph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return for each parameter the first one that has its role.

    Repeated blocks are found in the graph as :func:`flerm_fx.align.align` finds them. Parameters
    at one place of such blocks have one role if their shapes are equal, so that stages of several
    widths are kept apart.

    Args:
        graph: a parameter graph.
        shapes: of its parameters.

    Example::

        >>> from flerm_fx.align.parameter_graph import chain
        >>> kinds = {"norm": ("Norm", 1), "fc": ("Linear", 2)}
        >>> names = {f"{i}.{name}.weight": kinds[name] for i in range(3) for name in kinds}
        >>> graph = chain((name, kind, "weight", rank) for name, (kind, rank) in names.items())
        >>> roles(graph, {name: (4,) * rank for name, (_, rank) in names.items()})["2.fc.weight"]
        '0.fc.weight'
    """
    flow = graph if graph.graph.get("complete", True) else as_chain(graph)
    folded, _ = fold_alike(flow, flow, kinds=True, bare=False)
    first: dict[tuple[object, ...], str] = {}
    role_of: dict[str, str] = {}
    for kept, places in folded.places.items():
        for node, _ in places:
            for path, name in folded.weights(node).items():
                role = first.setdefault((kept, path, shapes[name]), name)
                role_of.setdefault(name, role)
    return {name: role_of.get(name, name) for name in parameters(graph)}
