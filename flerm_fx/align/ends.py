"""Ends of the data flow are what reads the input, and what gives the output."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from flerm_fx.align.nodes import on_data, sites
from flerm_fx.ops.table import ONE_BY_ONE

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
        """Return ``"entrance"`` if nothing precedes them, ``"readout"`` if they give the output.

        It is ``"inner"`` elsewhere, and where the input itself meets what they give one by one:
        they take it for what the blocks behind them take from those before.
        """
        read = {site for name in names for site in sites(self.graph, name)}
        first = not any(u in self.behind for v in read for u in self.graph.pred[v])
        if first or self._is_first_row(names, read):
            return "inner" if self._meets_input(read) else "entrance"
        if not read & self.before and self._closes(read):
            return "readout"
        return "inner"

    def is_last(self, name: str) -> bool:
        """Tell whether nothing with parameters stands behind what reads a parameter."""
        return self.before.isdisjoint(sites(self.graph, name))

    def _is_first_row(self, names: Collection[str], read: set[str]) -> bool:
        """Tell whether nothing precedes some junctions but one another, and they are a row of
        layers, which give one value and do not come again, as those of a recurrence do.

        Where branches part or meet is a block, of which the first is one too.
        """
        if any(len(sites(self.graph, name)) > 1 for name in names):
            return False
        inside = [v for v in read if not read.isdisjoint(self.graph.adj[v])]
        if len(inside) != len(read) - 1 or any(len(self.graph.adj[v]) > 1 for v in inside):
            return False
        pending = list(read)
        seen = set(read)
        while pending:
            for u in self.graph.pred[pending.pop()]:
                if not on_data(self.graph, u):
                    if not self._reads(u).issubset(names):
                        return False
                elif u not in seen:
                    seen.add(u)
                    pending.append(u)
        return True

    def _reads(self, node: str) -> set[str]:
        """Return the parameters that a parameter, or a junction of parameters alone, depends on."""
        if self.graph.nodes[node].get("junction"):
            return set().union(*map(self._reads, self.graph.pred[node]))
        return {node}

    def _meets_input(self, read: set[str]) -> bool:
        """Tell whether all that some junctions lead to is met by the input, one by one.

        So it is in a residual addition or a product of a block right on the input.
        """
        within = set(read)
        for v in self.graph:
            before = self.graph.pred[v]
            if v in within or within.isdisjoint(before):
                continue
            twice = any("," in a.get("slot", "") for a in before.values())  # a value meets itself
            if len(before) == 1 and not twice and self.graph.nodes[v]["op"] in ONE_BY_ONE:
                return all(within.union([v]).issuperset(self.graph.adj[w]) for w in within)
            within.add(v)
        return False

    def _closes(self, read: set[str]) -> bool:
        """Tell whether the output is made of what some junctions give, alone or with other last
        layers, and nothing goes past these.
        """
        pending = [v for v in self.graph if on_data(self.graph, v) and not self.graph.adj[v]]
        seen = set(pending)
        while pending:
            v = pending.pop()
            if v in self.before:
                return False
            before = [u for u in self.graph.pred[v] if on_data(self.graph, u)]
            if v not in read and not self._is_layer(v):
                pending += [u for u in before if u not in seen]
                seen.update(before)
        return read <= seen

    def _is_layer(self, v: str) -> bool:
        """Tell whether a junction reads a matrix."""
        return any(
            self.graph.nodes[name]["rank"] > 1
            for u in self.graph.pred[v]
            if not on_data(self.graph, u)
            for name in self._reads(u)
        )
