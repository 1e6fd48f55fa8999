"""Readouts are the layers that the output is made of, which nothing else tells from hidden ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flerm_fx.align.chains import Chains
from flerm_fx.ops.table import SUMS

if TYPE_CHECKING:
    import networkx as nx

WeightPath = tuple[str, ...]
"""How a parameter arrives at a junction: the argument there, then operation and argument of each
junction of parameters alone on the way back to it."""


class Readouts(Chains):
    """A ``Readouts`` holds the chains of a parameter graph, and which junctions give its output.

    Attributes:
        readouts: the junctions that the output is made of: the last ones, what they add a bias to,
            and, where these are of layers, the last of each branch.
    """

    def __init__(self, graph: nx.DiGraph) -> None:
        super().__init__(graph)
        self.readouts: set[str] = set()
        pending = [head for head in self.roots if not self.readers[head]]
        while pending:
            v = pending.pop()
            self.readouts.add(v)
            if self.is_of_layers(v):
                pending += self.branches[v]
            elif self.op(v) in SUMS and len(self.writers[v]) == 1:
                pending += self.writers[v]

    def op(self, node: str) -> str:
        """Return a junction's operation."""
        return str(self.pg.nodes[node]["op"])

    def weights(self, node: str) -> dict[WeightPath, str]:
        """Return the parameters that a junction on data reads, by how they arrive."""
        found: dict[WeightPath, str] = {}
        pending: list[tuple[WeightPath, str]] = [
            ((slot,), u) for u, slot in self.slots(node).items() if u not in self.data
        ]
        while pending:
            path, u = pending.pop()
            if self.pg.nodes[u].get("junction"):
                pending += [((*path, self.op(u), s), w) for w, s in self.slots(u).items()]
            else:
                found[path] = u
        return found

    def is_layer(self, v: str) -> bool:
        """Tell whether a junction is one layer with a matrix, and no block or norm."""
        matrix = any(self.pg.nodes[name]["rank"] > 1 for name in self.weights(v).values())
        return matrix and not any(map(self._holds, self.branches[v]))

    def _holds(self, head: str) -> bool:
        """Tell whether a chain has parameters."""
        return any(
            self.weights(v) or any(map(self._holds, self.branches[v])) for v in self.chains[head]
        )

    def is_of_layers(self, v: str) -> bool:
        """Tell whether branches with a matrix each meet, and nothing goes past them."""
        branches = self.branches[v]
        beside = {u for u in self.writers[v] if u not in branches}
        return (
            len(branches) > 1
            and not beside
            and all(
                any(self.is_layer(u) or self.is_of_layers(u) for u in self.chains[head])
                for head in branches
            )
        )
