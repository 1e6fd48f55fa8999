"""Some layers of a list stand apart from its others by what they read, or by what reads them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

from flerm_fx.align.lists import in_each_list
from flerm_fx.align.nodes import UNKNOWN, on_data, parameters
from flerm_fx.align.places import Words
from flerm_fx.ops.table import SIDE_BY_SIDE, SUMS

if TYPE_CHECKING:
    import networkx as nx

Apart = Mapping[str, str]
"""How each parameter of a single layer in a list stands apart; empty for those that do not."""


def apart(pg: nx.DiGraph, *, closing: bool = True) -> Apart:
    """Return how the layers of lists stand apart from the others of their list.

    A list of layers is one whose items hold one matrix at most. Of its layers

    - some *read more*: right behind a concatenation, where others behind the first one are not;
    - the first one *opens* the list if the list makes weights of parameters alone, and the others
      read what layers make;
    - the last one *closes* it if what it gives takes another nonlinearity, or none, than what all
      others give, as the last layer of a perceptron does within a network; but not that of a
      residual branch, what is added to a stream being of one sort whatever it is made of.

    Args:
        pg: a parameter graph.
        closing: whether to tell the last one, for which the graph has to know nonlinearities.

    >>> from torch import nn, zeros
    >>> from flerm_fx.align.parameter_graph import capture_graph
    >>> from flerm_fx.capture.tracing import capture
    >>> layers = [nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)]
    >>> model = nn.Sequential(nn.Sequential(*layers), nn.Linear(2, 1))
    >>> {n: how for n, how in apart(capture_graph(capture(model, zeros(3, 2)))).items() if how}
    {'0.4.weight': 'closes', '0.4.bias': 'closes'}
    """
    items: dict[Words, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in parameters(pg):
        if pg.nodes[name]["op"]:
            for at in in_each_list(name):
                items[at.list][at.item].append(name)
    found: dict[str, str] = {}
    for held in items.values():
        matrices = {k: [n for n in ns if pg.nodes[n]["rank"] > 1] for k, ns in held.items()}
        if any(len(row) > 1 for row in matrices.values()):
            continue
        rows = sorted(
            ((row[0], held[k]) for k, row in matrices.items() if row),
            key=lambda row: int(pg.nodes[row[0]]["order"]),
        )
        for (_, names), how in zip(rows, _ways(pg, [m for m, _ in rows], closing), strict=True):
            found |= dict.fromkeys(names, how)
    return found


def _ways(pg: nx.DiGraph, row: Sequence[str], closing: bool) -> list[str]:
    """Return how each of some matrices stands apart."""
    before = [{u for v in pg.adj[name] for u in pg.pred[v] if u != name} for name in row]
    beside = [any(pg.nodes[u].get("op") in SIDE_BY_SIDE for u in us) for us in before]
    made = [not any(on_data(pg, v) for v in pg.adj[name]) for name in row]
    bare = [not any(pg.nodes[u].get("junction") for u in us) for us in before]
    ways = ["reads more" if more and not all(beside[1:]) else "" for more in beside]
    if all(made) and bare[:1] == [True] and not any(bare[1:]):
        ways[0] = "opens"
    if closing and len(row) > 1:
        *others, (last, readers) = (_taken_by(pg, name) for name in row)
        if len({taken for taken, _ in others}) == 1 and last != others[0][0] and not readers & SUMS:
            ways[-1] = "closes"
    return ways


def _taken_by(pg: nx.DiGraph, name: str) -> tuple[Hashable, set[str]]:
    """Return the nonlinearities that take what a matrix gives, behind a norm if there is one, and
    the operations that read it there.
    """
    nodes = list(pg.adj[name])
    seen = set(nodes)
    while len(nodes) == 1 and not pg.nodes[nodes[0]].get("through"):
        behind = list(pg.adj[nodes[0]])
        if len(behind) != 1 or behind[0] in seen or not _is_norm(pg, behind[0]):
            break
        nodes = behind
        seen.update(behind)
    taken = frozenset(pg.nodes[v].get("through", UNKNOWN) for v in nodes)
    return taken, {pg.nodes[w]["op"] for v in nodes for w in pg.adj[v]}


def _is_norm(pg: nx.DiGraph, node: str) -> bool:
    """Tell whether a junction reads vectors alone beside one value."""
    read = [u for u in pg.pred[node] if not pg.nodes[u].get("junction")]
    return (
        len(pg.pred[node]) - len(read) == 1
        and bool(read)
        and all(pg.nodes[u]["rank"] < 2 for u in read)
    )


def knows_nonlinearities(pg: nx.DiGraph) -> bool:
    """Tell whether a graph says through what the values of its junctions are read."""
    return all(
        a.get("through", UNKNOWN) != UNKNOWN for _, a in pg.nodes(data=True) if a.get("junction")
    )
