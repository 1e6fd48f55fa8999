"""Ends of the data flow are what reads the input, and what gives the output."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from flerm_fx.align.nodes import on_data, sites
from flerm_fx.ops.table import SIDE_BY_SIDE

if TYPE_CHECKING:
    import networkx as nx


class Ends:
    """``Ends`` says which parameters stand at an end of the data flow."""

    def __init__(self, graph: nx.DiGraph) -> None:
        self.graph = graph
        behind: set[str] = set()  # junctions that something with parameters leads to
        for v in graph:
            if on_data(graph, v) and any(
                u in behind or not on_data(graph, u) for u in graph.pred[v]
            ):
                behind.add(v)
        before: set[str] = set()  # junctions that lead to something with parameters
        for v in reversed(list(graph)):
            if any(
                w in before or any(not on_data(graph, u) for u in graph.pred[w])
                for w in graph.adj[v]
                if on_data(graph, v)
            ):
                before.add(v)
        self.before = before
        self.behind = behind

    def which(self, names: Collection[str]) -> str:
        """Return ``"entrance"`` if nothing precedes them, ``"readout"`` if all ends there.

        It is ``"inner"`` elsewhere.
        """
        read = {site for name in names for site in sites(self.graph, name)}
        if not any(u in self.behind for v in read for u in self.graph.pred[v]):
            return "entrance"
        if not read & self.before and self._closes(read, set(names)):
            return "readout"
        return "inner"

    def is_last(self, name: str) -> bool:
        """Tell whether nothing with parameters stands behind what reads a parameter."""
        return self.before.isdisjoint(sites(self.graph, name))

    def bypasses(self, names: Collection[str]) -> bool:
        """Tell whether what some parameters give goes past the layers that read it, and meets what
        these give one by one, as in a residual addition.
        """
        within = {site for name in names for site in sites(self.graph, name)}
        given = set(within)
        for v in self.graph:
            before = [u for u in self.graph.pred[v] if on_data(self.graph, u)]
            if before and len(before) == len(self.graph.pred[v]) and given.issuperset(before):
                given.add(v)
        for v in given:
            out = [w for w in self.graph.adj[v] if w not in given]
            layers = {w for w in out if any(not on_data(self.graph, u) for u in self.graph.pred[w])}
            if layers and any(
                w not in layers and self.graph.nodes[w]["op"] not in SIDE_BY_SIDE for w in out
            ):
                return True
        return False

    def _closes(self, read: set[str], names: set[str]) -> bool:
        """Tell whether all parameters before some junctions reach the output through these
        alone.
        """
        pending = [v for v in self.graph if on_data(self.graph, v) and not self.graph.adj[v]]
        seen = set(pending)
        while pending:
            v = pending.pop()
            if v in read:
                continue
            for u in self.graph.pred[v]:
                if not on_data(self.graph, u) and u not in names:
                    return False
                if u not in seen:
                    seen.add(u)
                    pending.append(u)
        return True
