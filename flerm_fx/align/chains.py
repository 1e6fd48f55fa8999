"""Chains are the ways that data take through a parameter graph, from one meeting point to the
next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from flerm_fx.align.nodes import on_data

if TYPE_CHECKING:
    import networkx as nx


class Chains:
    """A ``Chains`` holds the chains of junctions of one parameter graph.

    The *next meeting point* of a junction is the first one that everything computed from it passes
    through (its immediate post-dominator). Following next meeting points from a value to the
    output gives its chain: the residual stream from the embedding to the head, for one. What else
    comes together at a junction of the chain (the branch that a residual addition adds) hangs from
    it as a chain of its own. This needs no execution order, nests as deep as the model does, and
    makes "repeated" a matter of equal labels in a row.

    Attributes:
        pg: the parameter graph.
        order: position of each of its nodes.
        chains: the junctions of each chain in the direction of the data, by the last of them.
        branches: last junctions of the chains that hang from a junction, in the order of arguments.
        roots: last junctions of the chains that hang from nothing.
    """

    def __init__(self, graph: nx.DiGraph) -> None:
        self.pg = graph
        self.order = {v: index for index, v in enumerate(graph)}
        self.stream = [v for v in graph if on_data(graph, v)]
        self.data = set(self.stream)
        self.readers = {v: [w for w in graph.adj[v] if w in self.data] for v in self.stream}
        self.writers = {v: [u for u in graph.pred[v] if u in self.data] for v in self.stream}
        self.origin = dominators(self.stream, self.writers)
        self.branches: dict[str, list[str]] = {}
        self.roots: list[str] = []
        self.chains = self._chains()

    def slots(self, node: str) -> dict[str, str]:
        """Return the argument at which each operand of a junction arrives."""
        return {u: str(e.get("slot", "")) for u, e in self.pg.pred[node].items()}

    def _hanging(self) -> dict[str, list[str]]:
        """Return for each junction, and for "" as the end of all, those that meet there next."""
        meeting = dominators(reversed(self.stream), self.readers)
        hanging: dict[str, list[str]] = {v: [] for v in ["", *self.stream]}
        for v in self.stream:
            hanging[meeting[v]].append(v)
        for u in self.stream:
            for v in self.readers[u]:
                others = hanging[v]
                if (
                    v != meeting[u]
                    and others
                    and all(self._comes_from(u, w) for w in others)
                    and self._closed(u, v, meeting)
                ):
                    # A branch of u comes back to it, however far u goes on beside the stream.
                    hanging[meeting[u]].remove(u)
                    hanging[v] = sorted([u, *others], key=self.order.__getitem__)
                    break
        return hanging

    def _closed(self, u: str, v: str, meeting: Mapping[str, str]) -> bool:
        """Tell whether all between a value and a reader of it ends there.

        What goes on past v from between the two, as an MLP beside the attention, is a branch of u
        that comes back to it later.
        """
        between, seen = deque(self.writers[v]), {u}
        while between:
            w = between.popleft()
            if w in seen:
                continue
            if not meeting[w] or self.order[meeting[w]] > self.order[v]:
                return False
            seen.add(w)
            between += self.writers[w]
        return True

    def _chains(self) -> dict[str, list[str]]:
        """Return the junctions of each chain in the direction of the data, by the last of them."""
        hanging = self._hanging()
        chains: dict[str, list[str]] = {}
        stream, branches, apart = self._split("", hanging[""], "")
        self.roots += [*([stream] if stream else []), *branches, *apart]
        heads = deque((head, "") for head in self.roots)
        while heads:
            head, block = heads.popleft()
            chains[head] = []
            v: str | None = head
            while v is not None:
                chains[head].append(v)
                stream, self.branches[v], apart = self._split(v, hanging[v], block)
                heads += [(branch, stream or block) for branch in self.branches[v]]
                heads += [(other, "") for other in apart]
                self.roots += apart
                v = stream
            chains[head].reverse()
        return chains

    def _split(
        self, v: str, hanging: list[str], block: str
    ) -> tuple[str | None, list[str], list[str]]:
        """Return what meets at v: the stream that goes on, branches of it, and streams from
        elsewhere.

        The stream is what forks into the others: what v reads itself; in a branch, the first fork
        on the way there. A fork that is older than the stream comes from elsewhere and only ends
        here, like an encoder's output at the last decoder layer; unless it comes from ``block``,
        the value that the branch with v in it forks from.
        """
        if len(hanging) < 2:
            return (hanging[0] if hanging else None), [], []
        forks = [c for c in hanging if len(self.readers[c]) > 1]
        direct = [c for c in forks if v and self.pg.has_edge(c, v)]
        if not forks:
            return None, hanging, []
        stream = min(direct or forks, key=self.order.__getitem__)
        inside = {c for c in forks if self._comes_from(block, c)}
        on_the_way = [c for c in inside if self._comes_from(c, stream)]
        stream = min([stream, *on_the_way], key=self.order.__getitem__)
        apart = [c for c in forks if self.order[c] < self.order[stream] and c not in inside]
        return stream, [c for c in hanging if c != stream and c not in apart], apart

    def _comes_from(self, source: str, v: str) -> bool:
        """Tell whether all that leads to v passes through a junction."""
        while v and source and self.order[v] > self.order[source]:
            v = self.origin[v]
        return bool(source) and v == source


def dominators(order: Iterable[str], before: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return for each node the last one that all ways to it pass through, or "" if there is none.

    Args:
        order: nodes, each behind those before it.
        before: the nodes right before each.
    """
    above: dict[str, str] = {}
    depth = {"": 0}
    for v in order:
        through = before[v][0] if before[v] else ""
        for other in before[v][1:]:
            while through != other:
                if depth[through] >= depth[other]:
                    through = above[through]
                else:
                    other = above[other]
        above[v] = through
        depth[v] = depth[through] + 1
    return above
