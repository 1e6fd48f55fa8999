"""A parameter graph has two kinds of nodes: parameters, and junctions where they and values
meet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import networkx as nx

TURNED = "^T"
"""What the slot of an edge ends in if axes are exchanged on the way."""

UNUSED = {"op": "", "slot": "", "rank": 0, "kind": "", "order": 0, "uses": 0, "path": ""}
"""Attributes of a parameter that the output does not depend on."""

UNKNOWN = "?"
"""What a junction's ``through`` is where nonlinearities are not known."""

JUNCTION = {"op": "", "data": True, "through": UNKNOWN}
"""Attributes of a junction, beside ``junction=True``."""


def parameters(pg: nx.DiGraph) -> list[str]:
    """Return the parameters of a parameter graph, in execution order."""
    return [node for node, junction in pg.nodes(data="junction") if not junction]


def on_data(pg: nx.DiGraph, node: str) -> bool:
    """Tell whether a node is a junction that depends on data: no parameter, no product of them
    alone.
    """
    attributes = pg.nodes[node]
    return bool(attributes.get("junction") and attributes.get("data", True))


def sites(pg: nx.DiGraph, name: str) -> dict[str, str]:
    """Return the junctions on data that read a parameter, each with the slot at which it
    arrives.
    """
    reached: dict[str, str] = {}
    pending = [name]
    seen = {name}
    while pending:
        node = pending.pop()
        for junction, attributes in pg.adj[node].items():
            if pg.nodes[junction].get("data", True):
                reached.setdefault(junction, attributes.get("slot", ""))
            elif junction not in seen:
                seen.add(junction)
                pending.append(junction)
    if len(reached) < 2:
        return reached
    return {node: reached[node] for node in pg if node in reached}
