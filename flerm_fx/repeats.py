"""Repeated blocks: a parameter graph folded to one copy of each.

The graph is read as chains of junctions, such as the residual stream with what each addition adds,
and equal stretches in a row are runs of one block. Where the sequence can be cut into blocks in
several ways, :func:`fold_alike` cuts two graphs in the same way.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import takewhile

import networkx as nx

from flerm_fx.isomorphism import Interner, node_label
from flerm_fx.parameter_graph import parameters, sites

Run = tuple[str, str]  # a run of copies: first and last junction of the one copy that is kept
Address = tuple[tuple[Run, int, int], ...]  # (run, which copy from 0, of how many), outermost first


@dataclass(frozen=True)
class Quotient:
    """A parameter graph with one copy of each repeated block.

    Attributes:
        graph: the nodes of the copies that were kept.
        image: the kept node that each node of the original stands with.
        addresses: for each junction on data and each parameter, the copies it lies in.
        size: number of junctions in one copy of each run.
    """

    graph: nx.DiGraph
    image: dict[str, str]
    addresses: dict[str, list[Address]]
    size: dict[Run, int]


def fold_alike(
    base: nx.DiGraph, target: nx.DiGraph, *, kinds: bool, bare: bool
) -> tuple[Quotient, Quotient]:
    """Fold both graphs, and cut what both repeat in the same way.

    Where one side has the better reason for where a block starts, the other follows it. Reasons
    are, in this order: the stream forks there; one block is one module of the model; the cut is in
    step with the beginning of the network.

    Args:
        base: a parameter graph.
        target: another one.
        kinds: whether the classes of modules tell parameters apart.
        bare: whether a run may consist of blocks without a fork where the chain it lies in has
            forks (in a chain without any, it may in any case).

    Returns:
        The quotients of the two graphs. O(V + E + T p) time for T junctions in sequence and p up
        to T / 2 periods tried.

    Example::

        >>> from flerm_fx.parameter_graph import chain
        >>> def mlp(depth):
        ...     names = ["embed", *(f"layers.{i}" for i in range(depth)), "head"]
        ...     kinds = ["Embedding", *["Linear"] * depth, "Head"]
        ...     return chain((f"{n}.weight", k, "weight", 2) for n, k in zip(names, kinds))
        >>> folded, _ = fold_alike(mlp(3), mlp(2), kinds=True, bare=False)
        >>> parameters(folded.graph)
        ['embed.weight', 'layers.0.weight', 'head.weight']
        >>> folded.image["layers.2.weight"]
        'layers.0.weight'
        >>> folded.addresses["layers.2.weight"]  # the last of 3 copies of junction %1
        [((('%1', '%1'), 2, 3),)]
    """
    intern = Interner()
    starts: _Starts = {}
    for settled in (False, True):
        first, second = (
            _Folding(graph, kinds, bare, intern, starts, settled) for graph in (base, target)
        )
    return first.quotient(), second.quotient()


def on_data(pg: nx.DiGraph, node: str) -> bool:
    """Whether a node is a junction that depends on data: no parameter, no product of them alone."""
    attributes = pg.nodes[node]
    return bool(attributes.get("junction") and attributes.get("data", True))


# For each cycle of labels, as its least rotation: the best reasons found for where a block starts,
# and the rotation that starts there.
_Starts = dict[tuple[int, ...], tuple[tuple[float, ...], tuple[int, ...]]]


@dataclass(eq=False)
class _Item:
    """A junction of a chain with all that hangs from it; or the copies of one, folded."""

    label: int
    plain: int  # the label without what tells the first and the last of the network from others
    node: str
    forked: bool  # whether branches of the data flow come together here
    path: tuple[str, ...] | None  # common module path of its parameters
    copies: tuple["_Item", ...] = ()
    run: object = None


class _Folding:
    """Chains of junctions, and the repeats in each, of one parameter graph.

    The *next meeting point* of a junction is the first one that everything computed from it passes
    through (its immediate post-dominator). Following next meeting points from a value to the
    output gives its chain: the residual stream from the embedding to the head, for one. What else
    comes together at a junction of the chain (the branch that a residual addition adds) hangs from
    it as a chain of its own. This needs no execution order, nests as deep as the model does, and
    makes "repeated" a matter of equal labels in a row.
    """

    def __init__(
        self,
        graph: nx.DiGraph,
        kinds: bool,
        bare: bool,
        intern: Interner,
        starts: _Starts,
        settled: bool,
    ) -> None:
        self.pg = graph
        self.kinds = kinds
        self.bare = bare
        self.intern = intern
        self.starts = starts
        self.settled = settled
        self.order = {v: index for index, v in enumerate(graph)}
        self.stream = [v for v in graph if on_data(graph, v)]
        self.data = set(self.stream)
        self.readers = {v: [w for w in graph.adj[v] if w in self.data] for v in self.stream}
        self.branches: dict[str, list[str]] = {}
        self.described: dict[str, int] = {}
        self.items: dict[str, list[_Item]] = {}  # of each chain, by its last junction
        self.roots: list[str] = []
        chains = self._chains()
        for head in reversed(chains):
            self.items[head] = self._fold(chains[head])

    # Chains

    def _hanging(self) -> dict[str, list[str]]:
        """For each junction, and "" for the end of all, those that meet there next."""
        above: dict[str, str] = {}
        depth = {"": 0}
        for v in reversed(self.stream):
            meeting = self.readers[v][0] if self.readers[v] else ""
            for other in self.readers[v][1:]:
                while meeting != other:
                    if depth[meeting] >= depth[other]:
                        meeting = above[meeting]
                    else:
                        other = above[other]
            above[v] = meeting
            depth[v] = depth[meeting] + 1
        hanging: dict[str, list[str]] = {v: [] for v in ["", *self.stream]}
        for v in self.stream:
            hanging[above[v]].append(v)
        return hanging

    def _chains(self) -> dict[str, list[str]]:
        """The junctions of each chain in the direction of the data, by the last of them."""
        hanging = self._hanging()
        chains: dict[str, list[str]] = {}
        stream, branches, apart = self._split("", hanging[""])
        heads = deque([*([stream] if stream else []), *branches, *apart])
        self.roots += heads
        while heads:
            head = heads.popleft()
            chains[head] = []
            v: str | None = head
            while v is not None:
                chains[head].append(v)
                stream, self.branches[v], apart = self._split(v, hanging[v])
                heads += [*self.branches[v], *apart]
                self.roots += apart
                v = stream
            chains[head].reverse()
        return chains

    def _split(self, v: str, hanging: list[str]) -> tuple[str | None, list[str], list[str]]:
        """What meets at v: the stream that goes on, branches of it, and streams from elsewhere.

        The stream is what forks into the others. A fork that is older than it comes from elsewhere
        and only ends here, like an encoder's output at the last decoder layer.
        """
        if len(hanging) < 2:
            return (hanging[0] if hanging else None), [], []
        forks = [c for c in hanging if len(self.readers[c]) > 1]
        direct = [c for c in forks if v and self.pg.has_edge(c, v)]
        if not forks:
            return None, hanging, []
        stream = min(direct or forks, key=self.order.__getitem__)
        apart = [c for c in forks if self.order[c] < self.order[stream]]
        return stream, [c for c in hanging if c != stream and c not in apart], apart

    # Labels

    def _items(self, chain: list[str]) -> list[_Item]:
        items = [self._item(v) for v in chain]
        last = items[-1]
        if not self.readers[last.node] and not any(item.forked for item in items):
            # In a plain chain nothing else tells the readout from a hidden layer.
            last.label = self.intern["readout", last.label]
        return items

    def _item(self, v: str) -> _Item:
        slot = {u: e.get("slot", "") for u, e in self.pg.pred[v].items()}
        branches = self.branches[v]
        weights = sorted((slot[u], self._describe(u)) for u in slot if u not in self.data)
        hanging = sorted((slot.get(c, ""), self._chain_label(c)) for c in branches)
        inflow = sorted(slot[u] for u in slot if u in self.data and u not in branches)
        op = self.pg.nodes[v]["op"]
        plain = self.intern["item", op, tuple(weights), tuple(hanging)]
        paths = [p for u in slot if u not in self.data for p in self._paths(u)]
        paths += [item.path for c in branches for item in self.items[c] if item.path is not None]
        return _Item(
            label=self.intern["item", plain, tuple(inflow)],
            plain=plain,
            node=v,
            forked=bool(branches),
            path=_common(paths),
        )

    def _chain_label(self, head: str) -> int:
        return self.intern["chain", tuple(item.label for item in self.items[head])]

    def _describe(self, node: str) -> int:
        """A label for a parameter, or a junction of parameters alone."""
        if node not in self.described:
            operands = sorted(
                (e.get("slot", ""), self._describe(u)) for u, e in self.pg.pred[node].items()
            )
            label = node_label(self.pg, node, self.kinds)
            self.described[node] = self.intern["weight", label, tuple(operands)]
        return self.described[node]

    def _paths(self, node: str) -> list[tuple[str, ...]]:
        if self.pg.nodes[node].get("junction"):
            return [path for u in self.pg.pred[node] for path in self._paths(u)]
        return [tuple(self.pg.nodes[node]["path"].split("."))]

    # Repeats

    def _fold(self, chain: list[str]) -> list[_Item]:
        """Fold every repeat in a chain, the shortest first, so that longer ones may hold them."""
        items = self._items(chain)
        bare = self.bare or not any(item.forked for item in items)
        period = 1
        while 2 * period <= len(items):
            found = self._find(items, period, bare)
            if found is None:
                period += 1
                continue
            start, copies = found
            end = start + copies * period
            run = object()
            twins = [items[position:end:period] for position in range(start, start + period)]
            items[start:end] = [
                replace(each[0], path=_shared_path(each), copies=tuple(each), run=run)
                for each in twins
            ]
        return items

    def _find(self, items: list[_Item], period: int, bare: bool) -> tuple[int, int] | None:
        """Start and number of copies of the first run of a period."""
        labels = [item.label for item in items]
        start = 0
        while start + period < len(items):
            end = start
            while end + period < len(items) and labels[end] == labels[end + period]:
                end += 1
            copies = (end - start) // period + 1
            body = items[start : start + period]
            if copies > 1 and (bare or any(item.forked for item in body)):
                spare = (end - start) % period
                return self._start(items, start, period, copies, spare), copies
            start = end + 1
        return None

    def _start(self, items: list[_Item], start: int, period: int, copies: int, spare: int) -> int:
        """Where the first copy starts, if a run leaves ``spare`` items over."""
        body = [item.label for item in items[start : start + period]]
        rotations = [tuple(body[k:] + body[:k]) for k in range(period)]
        origin = start
        while origin and items[origin - 1].plain == items[origin - 1 + period].plain:
            origin -= 1

        def reasons(k: int) -> tuple[float, ...]:
            first = start + k
            modules = [
                _shared_path(items[at : at + period])
                for at in range(first, first + copies * period, period)
            ]
            around = _common([path for path in modules if path is not None]) or ()
            own = {path for path in modules if path is not None and len(path) > len(around)}
            in_step = origin == 0 and first % period == 0
            return (float(items[first].forked), len(own) / copies, float(in_step))

        offered = range(spare + 1)
        best = max(offered, key=lambda k: (reasons(k), -k))
        cycle = min(rotations)
        if not self.settled:
            evidence = reasons(best)
            if cycle not in self.starts or evidence > self.starts[cycle][0]:
                self.starts[cycle] = evidence, rotations[best % period]
        elif cycle in self.starts:
            agreed = self.starts[cycle][1]
            best = next((k for k in offered if rotations[k % period] == agreed), best)
        return start + best

    # The quotient

    def quotient(self) -> Quotient:
        """Fold the graph to one copy of each run."""
        image: dict[str, str] = {}
        address: dict[str, Address] = {}
        pending: list[tuple[list[_Item], list[str], Address]] = [
            (self.items[head], _kept(self.items[head]), ()) for head in self.roots
        ]
        while pending:
            items, kept, where = pending.pop()
            position = 0
            while position < len(items):
                item = items[position]
                if not item.copies:
                    image[item.node], address[item.node] = kept[position], where
                    for mine, theirs in zip(
                        self._in_order(item.node), self._in_order(kept[position]), strict=True
                    ):
                        pending.append((self.items[mine], _kept(self.items[theirs]), where))
                    position += 1
                    continue
                end = position
                while end < len(items) and items[end].run is item.run:
                    end += 1
                key = kept[position], kept[end - 1]
                number = len(item.copies)
                for index in range(number):
                    copy = [folded.copies[index] for folded in items[position:end]]
                    pending.append((copy, kept[position:end], (*where, (key, index, number))))
                position = end
        return self._quotient(image, address)

    def _in_order(self, v: str) -> list[str]:
        def key(head: str) -> tuple[str, int]:
            slot = self.pg.edges[head, v].get("slot", "") if self.pg.has_edge(head, v) else ""
            return slot, self._chain_label(head)

        return sorted(self.branches[v], key=key)

    def _quotient(self, image: dict[str, str], address: dict[str, Address]) -> Quotient:
        addresses = {v: [where] for v, where in address.items()}
        self._fold_weights(image)
        for name in parameters(self.pg):
            within = dict.fromkeys(address[site] for site in sites(self.pg, name))
            addresses[name] = list(within) if image[name] != name or within else [()]
        folded: nx.DiGraph = nx.DiGraph()
        folded.add_nodes_from((v, self.pg.nodes[v]) for v in self.pg if image[v] == v)
        slots: dict[tuple[str, str], set[str]] = defaultdict(set)
        for u, v, attributes in self.pg.edges(data=True):
            ahead = self.order[image[u]] < self.order[image[v]]
            if ahead and not _between_copies(address.get(u, ()), address.get(v, ())):
                slots[image[u], image[v]].add(attributes.get("slot", ""))
        for (u, v), found in slots.items():
            folded.add_edge(u, v, slot="|".join(sorted(found)))
        members: dict[Run, set[str]] = defaultdict(set)
        for v, where in address.items():
            for key, _, _ in where:
                members[key].add(image[v])
        size = {key: len(kept) for key, kept in members.items()}
        return Quotient(folded, image, addresses, size)

    def _fold_weights(self, image: dict[str, str]) -> None:
        """Extend the image to parameters: those in the same slots of a copy stand together.

        One that several copies use, in unlike places, stands for itself.
        """
        proposed: dict[str, set[str]] = defaultdict(set)
        pending = [(v, image[v]) for v in self.stream]
        while pending:
            v, kept = pending.pop()
            by_slot = {
                e.get("slot", ""): u for u, e in self.pg.pred[kept].items() if u not in self.data
            }
            for u, attributes in self.pg.pred[v].items():
                if u not in self.data:
                    twin = by_slot.get(attributes.get("slot", ""), u)
                    if twin not in proposed[u]:
                        proposed[u].add(twin)
                        pending.append((u, twin))
        for v in self.pg:
            if v not in image:
                image[v] = next(iter(proposed[v])) if len(proposed[v]) == 1 else v
        for v in self.pg:
            if image[image[v]] != image[v]:
                image[v] = v


def _kept(items: Iterable[_Item]) -> list[str]:
    """The junction of the first copy at each position of a folded chain."""
    return [item.node for item in items]


def _between_copies(u: Address, v: Address) -> bool:
    """Whether an edge leads from one copy of a block to another."""
    for (run, copy, _), (other, twin, _) in zip(u, v, strict=False):
        if run != other:
            return False
        if copy != twin:
            return True
    return False


def _common(paths: Iterable[tuple[str, ...]]) -> tuple[str, ...] | None:
    """The longest common beginning; None of none."""
    found = list(paths)
    alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*found, strict=False))
    return tuple(parts[0] for parts in alike) if found else None


def _shared_path(items: Iterable[_Item]) -> tuple[str, ...] | None:
    return _common(item.path for item in items if item.path is not None)
