"""Equal parameter graphs are found by Weisfeiler-Lehman colours, and nodes paired as these allow.

Graphs are as :mod:`flerm_fx.parameter_graph` makes them: nodes in topological order, an edge's
``slot`` says how the node behind it reads the one before. Names play no part.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import networkx as nx


_Edges = Mapping[str, Mapping[str, Any]]  # the edges at a node, by the neighbour


class Interner(dict[Hashable, int]):
    """An ``Interner`` gives structured labels small integers, and equal ones equal integers.

    >>> intern = Interner()
    >>> intern["norm", 1], intern["linear", 2], intern["norm", 1]
    (0, 1, 0)
    """

    def __missing__(self, key: Hashable) -> int:
        self[key] = len(self)
        return self[key]


def node_label(graph: nx.DiGraph, node: str, kinds: bool) -> Hashable:
    """Return what a node is by itself: a junction's operation, a parameter's rank and, if asked,
    kind.
    """
    attributes = graph.nodes[node]
    if attributes.get("junction"):
        return ("junction", attributes["op"])
    return ("parameter", attributes["rank"], attributes["kind"] if kinds else "")


def isomorphism(base: nx.DiGraph, target: nx.DiGraph, kinds: bool) -> dict[str, str] | None:
    """Return the base node for each target node, if the graphs are equal; else None.

    Equal up to names: operations, slots and ranks agree, and with ``kinds`` the classes of the
    modules. Where colours leave a choice, the neighbours of a pair are paired with one another,
    and execution order decides what is then still symmetric. O((V + E) log V) time, times a few
    rounds of refinement.

    >>> import networkx as nx
    >>> one, other = nx.DiGraph(), nx.DiGraph()
    >>> for graph, name in ((one, "fc.weight"), (other, "renamed")):
    ...     graph.add_node(name, rank=2, kind="Linear")
    ...     graph.add_node("%linear", junction=True, op="aten.linear")
    ...     graph.add_edge(name, "%linear", slot="weight")
    >>> isomorphism(one, other, kinds=True)
    {'renamed': 'fc.weight', '%linear': '%linear'}
    """
    if len(base) != len(target) or base.number_of_edges() != target.number_of_edges():
        return None
    base_colour, target_colour = _colours((base, target), kinds)
    if Counter(base_colour.values()) != Counter(target_colour.values()):
        return None
    pairs = _paired(base, target, base_colour, target_colour)
    faithful = all(
        base.has_edge(pairs[u], pairs[v]) and _slot(base.edges[pairs[u], pairs[v]]) == _slot(edge)
        for u, v, edge in target.edges(data=True)
    )
    return pairs if faithful else None


def neighbourhoods(graphs: Sequence[nx.DiGraph], radius: int) -> list[list[dict[str, int]]]:
    """Labels for the surroundings of each node, comparable between the graphs.

    Entry r - 1, of ``radius``, has a dict for each graph. Two nodes with one label there have like
    surroundings up to r edges away, in both directions.
    """
    intern = Interner()
    labels = [{v: intern[node_label(g, v, True)] for v in g} for g in graphs]
    rounds = []
    for _ in range(radius):
        labels = [
            {v: intern[label[v], _gather(g.pred[v], label), _gather(g.adj[v], label)] for v in g}
            for g, label in zip(graphs, labels, strict=True)
        ]
        rounds.append(labels)
    return rounds


def _colours(graphs: Sequence[nx.DiGraph], kinds: bool) -> list[dict[str, int]]:
    """Return Weisfeiler-Lehman colours, comparable between the graphs.

    A graph here has its nodes in topological order, so that one sweep forward and one backward
    carry colours along paths of any length, and a few rounds reach the fixed point where plain
    refinement takes as many rounds as the network is deep.
    """
    intern = Interner()
    colours = [{v: intern[node_label(g, v, kinds)] for v in g} for g in graphs]
    known = 0
    while (count := len({c for colour in colours for c in colour.values()})) > known:
        known = count
        for index, graph in enumerate(graphs):
            colour = colours[index]
            forward: dict[str, int] = {}
            for v in graph:
                forward[v] = intern[colour[v], _gather(graph.pred[v], forward)]
            backward: dict[str, int] = {}
            for v in reversed(list(graph)):
                backward[v] = intern[colour[v], _gather(graph.adj[v], backward)]
            colours[index] = {v: intern[forward[v], backward[v]] for v in graph}
    return colours


def _gather(edges: _Edges, label: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Return the slots and labels of a node's neighbours, whatever their order."""
    return tuple(sorted((_slot(edge), label[v]) for v, edge in edges.items()))


def _slot(edge: Mapping[str, Any]) -> str:
    return str(edge.get("slot", ""))


def _paired(
    base: nx.DiGraph,
    target: nx.DiGraph,
    base_colour: Mapping[str, int],
    target_colour: Mapping[str, int],
) -> dict[str, str]:
    """Return a base node of equal colour for each target node; each colour is as frequent in
    both.
    """
    waiting: dict[int, deque[str]] = defaultdict(deque)
    for v in base:
        waiting[base_colour[v]].append(v)
    alone = {colour for colour, queue in waiting.items() if len(queue) == 1}
    pairs: dict[str, str] = {}
    taken: set[str] = set()
    pending: deque[str] = deque()

    def pair(t: str, b: str) -> None:
        pairs[t] = b
        taken.add(b)
        pending.append(t)

    def spread() -> None:
        """Pair the neighbours of what is paired, in the same slots, until nothing is left to do."""
        while pending:
            t = pending.popleft()
            b = pairs[t]
            for around_t, around_b in (
                (target.pred[t], base.pred[b]),
                (target.adj[t], base.adj[b]),
            ):
                choices = _groups(around_b, base_colour)
                for key, group in _groups(around_t, target_colour).items():
                    unpaired = [v for v in group if v not in pairs]
                    free = [v for v in choices[key] if v not in taken]
                    for t_next, b_next in zip(unpaired, free, strict=False):
                        pair(t_next, b_next)

    for t in target:
        if target_colour[t] in alone:
            pair(t, waiting[target_colour[t]][0])
    spread()
    for t in target:
        if t not in pairs:
            queue = waiting[target_colour[t]]
            while queue[0] in taken:
                queue.popleft()
            pair(t, queue[0])
            spread()
    return pairs


def _groups(edges: _Edges, colour: Mapping[str, int]) -> dict[tuple[str, int], list[str]]:
    """Return a node's neighbours by slot and colour."""
    groups: dict[tuple[str, int], list[str]] = defaultdict(list)
    for neighbour, edge in edges.items():
        groups[_slot(edge), colour[neighbour]].append(neighbour)
    return groups
