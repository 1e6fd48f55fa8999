"""Alignment: which base parameters each target parameter answers to, found from structure."""

import bisect
import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import networkx as nx

from flerm_fx.errors import MatchError
from flerm_fx.parameter_graph import chain, parameters, sites

Mapped = Mapping[str, str] | Callable[[str], str | None]
Shares = dict[str, dict[str, Fraction]]  # of each base parameter, by target parameter


@dataclass(frozen=True)
class Match:
    r"""The base parameters that one target parameter answers to.

    Attributes:
        target: the target parameter.
        base: base parameters in their execution order, each with the share of its FSLR, its
            function-space mass, that goes to this target parameter. Over all targets, the shares
            of one base parameter sum to 1. Empty for a parameter that the target does not use.
    """

    target: str
    base: tuple[tuple[str, float], ...]


def align(base: nx.DiGraph, target: nx.DiGraph, mapping: Mapped | None = None) -> dict[str, Match]:
    r"""Match the parameters of two parameter graphs by structure.

    Equal graphs (whatever the widths, initialisation, names, wrapping or order of registration)
    are matched one to one: Weisfeiler-Lehman colours of operations, slots, ranks and kinds pair
    the nodes, execution order settles what is symmetric. Otherwise the repeated blocks of both
    graphs are found, and n base blocks are laid over m target blocks in order. Base block i covers
    :math:`[i/n, (i+1)/n)`, target block j gets what falls in :math:`[j/m, (j+1)/m)`:

    .. math:: \mathrm{share}_{ij} = n \,\bigl|[\tfrac{i}{n}, \tfrac{i+1}{n})
              \cap [\tfrac{j}{m}, \tfrac{j+1}{m})\bigr|, \qquad \sum_j \mathrm{share}_{ij} = 1.

    For m = k n that is the equal split by k (Milsom et al. 2025, section 4). Repeats may nest
    (stages of blocks, layers of one kind in a longer pattern); their shares multiply.

    A block is bounded by the data flow: it lies between two values that everything passes through,
    such as the residual stream after an addition. Where the sequence of blocks can be cut in
    several ways (``embed norm [attn norm mlp norm]*`` or ``embed [norm attn norm mlp]* norm``), a
    block starts where the stream forks; after that, one block is one module of the model; after
    that, the cut in step with the beginning is taken.

    Args:
        base: parameter graph of the base model.
        target: parameter graph of the target.
        mapping: base name for a target name, as a dict or a function that may return None. What it
            names is taken as given, a base parameter mapped to k targets gives each 1/k, and the
            rest is aligned by structure without these parameters.

    Returns:
        A :class:`Match` for each target parameter, in the target's execution order. Time and
        memory are O((V + E) log V) for equal graphs, times a few rounds of refinement; repeats add
        O(T p) for T blocks in sequence and p up to T / 2 periods tried.

    Raises:
        MatchError: parameters of either side have no counterpart, or ``mapping`` names unknown
            ones. The message lists each, with its nearest candidates.

    Example::

        >>> def mlp(depth):
        ...     names = ["embed", *(f"layers.{i}.fc" for i in range(depth)), "head"]
        ...     kinds = ["Embedding", *["Linear"] * depth, "Head"]
        ...     return chain((f"{n}.weight", k, "weight", 2) for n, k in zip(names, kinds))
        >>> for match in align(mlp(2), mlp(3)).values():
        ...     print(match.target, [(name, round(share, 3)) for name, share in match.base])
        embed.weight [('embed.weight', 1.0)]
        layers.0.fc.weight [('layers.0.fc.weight', 0.667)]
        layers.1.fc.weight [('layers.0.fc.weight', 0.333), ('layers.1.fc.weight', 0.333)]
        layers.2.fc.weight [('layers.1.fc.weight', 0.667)]
        head.weight [('head.weight', 1.0)]
    """
    given = _given(base, target, mapping)
    unused = {name for name in parameters(target) if not target.nodes[name]["op"]}
    found: dict[str, dict[str, Fraction]] = defaultdict(dict)
    copies = Counter(given.values())
    for name, answer in given.items():
        found[name][answer] = Fraction(1, copies[answer])
    if len(given.keys() | unused) < len(parameters(target)):
        for name, targets in _by_structure(base, target, given).items():
            for other, share in targets.items():
                found[other][name] = share
    place = {name: index for index, name in enumerate(parameters(base))}
    return {
        name: Match(
            name,
            tuple((b, float(found[name][b])) for b in sorted(found[name], key=place.__getitem__)),
        )
        for name in parameters(target)
    }


def _given(base: nx.DiGraph, target: nx.DiGraph, mapping: Mapped | None) -> dict[str, str]:
    """What the caller decided, by target name, with the names checked."""
    known = dict.fromkeys(parameters(target))
    if mapping is None:
        return {}
    answers = {name: mapping(name) for name in known} if callable(mapping) else dict(mapping)
    given = {name: answer for name, answer in answers.items() if answer is not None}
    choices = dict.fromkeys(parameters(base))
    wrong = [f"target parameter {name!r}" for name in given if name not in known]
    wrong += [
        f"base parameter {answer!r} (for {name!r})"
        for name, answer in given.items()
        if not isinstance(answer, str) or answer not in choices
    ]
    if wrong:
        raise MatchError(
            f"mapping names {', '.join(wrong)}, which the parameter graph does not have; expected "
            "{target name: base name}, with names as in model.named_parameters()"
        )
    return given


def _by_structure(base: nx.DiGraph, target: nx.DiGraph, given: Mapping[str, str]) -> Shares:
    """Shares of all parameters that ``given`` leaves, by the strictest reading that succeeds."""
    graphs = base, target
    if not (base.graph.get("complete", True) and target.graph.get("complete", True)):
        graphs = _as_chain(base), _as_chain(target)
    first: tuple[_Quotient, _Quotient] | None = None
    # What the mapping takes away leaves its operation behind if both sides have it, and a gap to
    # close if only one has.
    for close in ("nothing", "stream", "sources") if given else ("nothing",):
        b = _without(graphs[0], set(given.values()), close)
        t = _without(graphs[1], set(given), close)
        # Kinds first: they tell an RMSNorm's weight from another factor, but classes get renamed.
        for kinds in (True, False):
            pairs = _isomorphism(b, t, kinds)
            if pairs is not None:
                return {
                    name: {other: Fraction(1)}
                    for other, name in pairs.items()
                    if not t.nodes[other].get("junction")
                }
            # Runs without a fork last: beside residual blocks, two norms are no repeated block.
            for bare in (False, True):
                quotients = _quotients(b, t, kinds, bare)
                first = first or quotients
                pairs = _isomorphism(quotients[0].graph, quotients[1].graph, kinds)
                if pairs is not None:
                    return _shared(*quotients, pairs)
    assert first is not None
    raise _unmatched(base, target, given, *first)


def _as_chain(pg: nx.DiGraph) -> nx.DiGraph:
    """What is left of a graph when its data flow is not to be used."""
    if not pg.graph.get("complete", True):
        return pg
    used = [(name, pg.nodes[name]) for name in parameters(pg) if pg.nodes[name]["op"]]
    return chain((name, a["kind"], a["slot"], a["rank"]) for name, a in used)


def _without(pg: nx.DiGraph, names: set[str], close: str) -> nx.DiGraph:
    """The graph without some parameters and the unused ones.

    ``close="stream"`` also takes out the junctions that they leave with a single operand on data,
    ``"sources"`` those that they leave without operands as well.
    """
    rest = pg.copy()
    for node in list(pg):
        attributes = pg.nodes[node]
        if not attributes.get("junction"):
            if node in names or not attributes["op"]:
                rest.remove_node(node)
            continue
        operands = list(rest.pred[node])
        if len(operands) == pg.in_degree(node):
            continue
        if not operands:
            if close == "sources" or not attributes.get("data", True):
                rest.remove_node(node)
        elif len(operands) == 1 and close != "nothing" and _on_data(rest, operands[0]):
            for reader, edge in rest.adj[node].items():
                if not rest.has_edge(operands[0], reader):
                    rest.add_edge(operands[0], reader, **edge)
            rest.remove_node(node)
    return rest


def _on_data(pg: nx.DiGraph, node: str) -> bool:
    attributes = pg.nodes[node]
    return bool(attributes.get("junction") and attributes.get("data", True))


# Equal graphs: colours and an isomorphism.


class _Interner(dict[Hashable, int]):
    """Small integers for structured labels; equal labels get equal integers."""

    def __missing__(self, key: Hashable) -> int:
        self[key] = len(self)
        return self[key]


def _colours(graphs: Sequence[nx.DiGraph], kinds: bool) -> list[dict[str, int]]:
    """Weisfeiler-Lehman colours, comparable between the graphs.

    A graph here has its nodes in topological order, so that one sweep forward and one backward
    carry colours along paths of any length, and a few rounds reach the fixed point where plain
    refinement takes as many rounds as the network is deep.
    """
    intern = _Interner()
    colours = [{v: intern[_label(g, v, kinds)] for v in g} for g in graphs]
    known = 0
    while (count := len({c for colour in colours for c in colour.values()})) > known:
        known = count
        for index, graph in enumerate(graphs):
            colour = colours[index]
            forward: dict[str, int] = {}
            for v in graph:
                operands = sorted((e.get("slot", ""), forward[u]) for u, e in graph.pred[v].items())
                forward[v] = intern[colour[v], tuple(operands)]
            backward: dict[str, int] = {}
            for v in reversed(list(graph)):
                readers = sorted((e.get("slot", ""), backward[w]) for w, e in graph.adj[v].items())
                backward[v] = intern[colour[v], tuple(readers)]
            colours[index] = {v: intern[forward[v], backward[v]] for v in graph}
    return colours


def _label(graph: nx.DiGraph, node: str, kinds: bool) -> Hashable:
    attributes = graph.nodes[node]
    if attributes.get("junction"):
        return ("junction", attributes["op"])
    return ("parameter", attributes["rank"], attributes["kind"] if kinds else "")


def _isomorphism(base: nx.DiGraph, target: nx.DiGraph, kinds: bool) -> dict[str, str] | None:
    """The base node for each target node, if the graphs are equal; else None.

    Where colours leave a choice, the neighbours of a pair are paired with one another, and
    execution order decides what is then still symmetric.
    """
    if len(base) != len(target) or base.number_of_edges() != target.number_of_edges():
        return None
    base_colour, target_colour = _colours((base, target), kinds)
    if Counter(base_colour.values()) != Counter(target_colour.values()):
        return None
    waiting: dict[int, deque[str]] = defaultdict(deque)
    for v in base:
        waiting[base_colour[v]].append(v)
    pairs: dict[str, str] = {}
    taken: set[str] = set()
    pending: deque[str] = deque()

    def pair(t: str, b: str) -> None:
        pairs[t] = b
        taken.add(b)
        pending.append(t)

    def groups(edges: Mapping[str, Mapping[str, str]], colour: Mapping[str, int]) -> _Groups:
        by: _Groups = defaultdict(list)
        for neighbour, attributes in edges.items():
            by[attributes.get("slot", ""), colour[neighbour]].append(neighbour)
        return by

    def spread() -> None:
        while pending:
            t = pending.popleft()
            b = pairs[t]
            for around_t, around_b in (
                (target.pred[t], base.pred[b]),
                (target.adj[t], base.adj[b]),
            ):
                choices = groups(around_b, base_colour)
                for key, found in groups(around_t, target_colour).items():
                    free = [v for v in choices[key] if v not in taken]
                    for t_next, b_next in zip(
                        (v for v in found if v not in pairs), free, strict=False
                    ):
                        pair(t_next, b_next)

    ambiguous = {c for c, queue in waiting.items() if len(queue) > 1}
    for certain in (True, False):
        for t in target:
            if t not in pairs and (target_colour[t] not in ambiguous) >= certain:
                queue = waiting[target_colour[t]]
                while queue[0] in taken:
                    queue.popleft()
                pair(t, queue[0])
                if not certain:
                    spread()
        spread()
    faithful = all(
        base.has_edge(pairs[u], pairs[v])
        and base.edges[pairs[u], pairs[v]].get("slot", "") == attributes.get("slot", "")
        for u, v, attributes in target.edges(data=True)
    )
    return pairs if faithful else None


_Groups = dict[tuple[str, int], list[str]]


# Repeated blocks: a graph folded to one copy of each.

_Key = tuple[str, str]  # first and last junction of the one copy that is kept
_Address = tuple[tuple[_Key, int, int], ...]  # (run, which copy, of how many), outermost first


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


@dataclass
class _Quotient:
    """A parameter graph with one copy of each repeated block.

    Attributes:
        graph: the nodes of the copies that were kept.
        image: the kept node that each node of the original stands with.
        addresses: for each junction on data and each parameter, the copies it lies in.
        size: number of junctions in one copy of each run.
    """

    graph: nx.DiGraph
    image: dict[str, str]
    addresses: dict[str, list[_Address]]
    size: dict[_Key, int] = field(default_factory=dict)


_Phases = dict[tuple[int, ...], tuple[tuple[float, ...], tuple[int, ...]]]


def _quotients(
    base: nx.DiGraph, target: nx.DiGraph, kinds: bool, bare: bool
) -> tuple[_Quotient, _Quotient]:
    """Fold both graphs, and cut what both repeat in the same way.

    Where one side has the better reason for where a block starts, the other follows it.
    """
    intern = _Interner()
    phases: _Phases = {}
    for graph in (base, target):
        _Folding(graph, kinds, bare, intern, phases, settled=False)
    return (
        _Folding(base, kinds, bare, intern, phases, settled=True).quotient(),
        _Folding(target, kinds, bare, intern, phases, settled=True).quotient(),
    )


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
        intern: _Interner,
        phases: _Phases,
        settled: bool,
    ) -> None:
        self.pg = graph
        self.kinds = kinds
        self.bare = bare
        self.intern = intern
        self.phases = phases
        self.settled = settled
        self.order = {v: index for index, v in enumerate(graph)}
        self.stream = [v for v in graph if self._on_data(v)]
        self.readers = {v: [w for w in graph.adj[v] if self._on_data(w)] for v in self.stream}
        self.branches: dict[str, list[str]] = {}
        self.described: dict[str, int] = {}
        self.items: dict[str, list[_Item]] = {}  # of each chain, by its last junction
        self.roots: list[str] = []
        chains = self._chains()
        for head in reversed(chains):
            self.items[head] = self._fold(head, chains[head])

    def _on_data(self, node: str) -> bool:
        return _on_data(self.pg, node)

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

    def _items(self, chain_: list[str]) -> list[_Item]:
        items = [self._item(v) for v in chain_]
        last = items[-1]
        if not self.readers[last.node] and not any(item.forked for item in items):
            # In a plain chain nothing else tells the readout from a hidden layer.
            last.label = self.intern["readout", last.label]
        return items

    def _item(self, v: str) -> _Item:
        slot = {u: e.get("slot", "") for u, e in self.pg.pred[v].items()}
        branches = self.branches[v]
        weights = sorted((slot[u], self._describe(u)) for u in slot if not self._on_data(u))
        hanging = sorted((slot.get(c, ""), self._chain_label(c)) for c in branches)
        inflow = sorted(slot[u] for u in slot if self._on_data(u) and u not in branches)
        op = self.pg.nodes[v]["op"]
        plain = self.intern["item", op, tuple(weights), tuple(hanging)]
        paths = [p for u in slot if not self._on_data(u) for p in self._paths(u)]
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
            label = _label(self.pg, node, self.kinds)
            self.described[node] = self.intern["weight", label, tuple(operands)]
        return self.described[node]

    def _paths(self, node: str) -> list[tuple[str, ...]]:
        if self.pg.nodes[node].get("junction"):
            return [path for u in self.pg.pred[node] for path in self._paths(u)]
        return [tuple(self.pg.nodes[node]["path"].split("."))]

    # Repeats

    def _fold(self, head: str, chain_: list[str]) -> list[_Item]:
        """Fold every repeat in a chain, the shortest first, so that longer ones may hold them."""
        items = self._items(chain_)
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
            items[start:end] = [
                _Item(
                    label=items[position].label,
                    plain=items[position].plain,
                    node=items[position].node,
                    forked=items[position].forked,
                    path=_shared_path(items[position:end:period]),
                    copies=tuple(items[position:end:period]),
                    run=run,
                )
                for position in range(start, start + period)
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
                return self._phase(items, start, period, copies, spare), copies
            start = end + 1
        return None

    def _phase(self, items: list[_Item], start: int, period: int, copies: int, spare: int) -> int:
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
            if cycle not in self.phases or evidence > self.phases[cycle][0]:
                self.phases[cycle] = evidence, rotations[best % period]
        elif cycle in self.phases:
            agreed = self.phases[cycle][1]
            best = next((k for k in offered if rotations[k % period] == agreed), best)
        return start + best

    # The quotient

    def quotient(self) -> _Quotient:
        """Fold the graph to one copy of each run."""
        image: dict[str, str] = {}
        address: dict[str, _Address] = {}
        pending: list[tuple[list[_Item], list[str], _Address]] = [
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

    def _quotient(self, image: dict[str, str], address: dict[str, _Address]) -> _Quotient:
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
        members: dict[_Key, set[str]] = defaultdict(set)
        for v, where in address.items():
            for key, _, _ in where:
                members[key].add(image[v])
        size = {key: len(kept) for key, kept in members.items()}
        return _Quotient(folded, image, addresses, size)

    def _fold_weights(self, image: dict[str, str]) -> None:
        """Extend the image to parameters: those in the same slots of a copy stand together.

        One that several copies use, in unlike places, stands for itself.
        """
        proposed: dict[str, set[str]] = defaultdict(set)
        pending = [(v, image[v]) for v in self.stream]
        while pending:
            v, kept = pending.pop()
            by_slot = {
                e.get("slot", ""): u for u, e in self.pg.pred[kept].items() if not self._on_data(u)
            }
            for u, attributes in self.pg.pred[v].items():
                if not self._on_data(u):
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


def _between_copies(u: _Address, v: _Address) -> bool:
    """Whether an edge leads from one copy of a block to another."""
    for (run, copy, _), (other, twin, _) in zip(u, v, strict=False):
        if run != other:
            return False
        if copy != twin:
            return True
    return False


def _common(paths: Iterable[tuple[str, ...]]) -> tuple[str, ...] | None:
    """The longest common beginning; None of none."""
    common: tuple[str, ...] | None = None
    for path in paths:
        if common is None:
            common = path
            continue
        length = 0
        for mine, theirs in zip(common, path, strict=False):
            if mine != theirs:
                break
            length += 1
        common = common[:length]
    return common


def _shared_path(items: Iterable[_Item]) -> tuple[str, ...] | None:
    return _common(item.path for item in items if item.path is not None)


# Shares


def _shared(base: _Quotient, target: _Quotient, pairs: Mapping[str, str]) -> Shares:
    """Lay the copies of each base parameter over those of its counterpart in the target."""
    size = dict(target.size)
    translated: dict[_Key, _Key] = {}
    back = {b: t for t, b in pairs.items()}
    for first, last in base.size:
        key = back[first], back[last]
        translated[first, last] = key
        size[key] = max(size.get(key, 0), base.size[first, last])
    members: tuple[dict[str, list[str]], ...] = (defaultdict(list), defaultdict(list))
    for side, quotient in zip(members, (base, target), strict=True):
        for name in quotient.addresses:
            side[quotient.image[name]].append(name)
    shares: Shares = {}
    for kept_target, kept_base in pairs.items():
        if target.graph.nodes[kept_target].get("junction"):
            continue
        givers = [
            (name, len(base.addresses[name]), {translated[k]: (i, n) for k, i, n in where})
            for name in members[0][kept_base]
            for where in base.addresses[name]
        ]
        takers = [
            (name, 1, {k: (i, n) for k, i, n in where})
            for name in members[1][kept_target]
            for where in target.addresses[name]
        ]
        levels = sorted({k for *_, a in givers + takers for k in a}, key=lambda k: -size[k])
        for giver, taker, share in _overlaps(givers, takers, levels):
            row = shares.setdefault(giver, {})
            row[taker] = row.get(taker, Fraction(0)) + share
    return shares


_Member = tuple[str, int, dict[_Key, tuple[int, int]]]


def _overlaps(
    givers: list[_Member], takers: list[_Member], levels: list[_Key]
) -> Iterable[tuple[str, str, Fraction]]:
    """Shares of givers by takers: the product over nested runs, outermost first."""
    if not levels:
        for giver, uses, _ in givers:
            for taker, _, _ in takers:
                yield giver, taker, Fraction(1, uses * len(takers))
        return
    level, *inner = levels
    given: dict[tuple[int, int], list[_Member]] = defaultdict(list)
    taken: dict[tuple[int, int], list[_Member]] = defaultdict(list)
    for member in givers:
        given[member[2].get(level, (0, 1))].append(member)
    for member in takers:
        taken[member[2].get(level, (0, 1))].append(member)
    counts = {m for _, m in taken}
    for (i, n), from_copy in given.items():
        parts = {
            (j, m): Fraction(min((i + 1) * m, (j + 1) * n) - max(i * m, j * n), n * m)
            for m in counts
            for j in range(i * m // n, -(-(i + 1) * m // n))
            if (j, m) in taken
        }
        whole = sum(parts.values())
        for copy, part in parts.items():
            for giver, taker, share in _overlaps(from_copy, taken[copy], inner):
                yield giver, taker, share * part / whole


# What does not match


def _unmatched(
    base: nx.DiGraph,
    target: nx.DiGraph,
    given: Mapping[str, str],
    base_quotient: _Quotient,
    target_quotient: _Quotient,
) -> MatchError:
    """The error that names every parameter without a counterpart, and its nearest candidates."""
    left = _left_over(base_quotient.graph, target_quotient.graph)
    quotients = (base_quotient, target_quotient)
    odd = [
        [
            name
            for name in q.addresses
            if not q.graph.nodes[q.image[name]].get("junction") and q.image[name] in kept
        ]
        for q, kept in zip(quotients, left, strict=True)
    ]
    odd_base = [name for name in parameters(base) if name in set(odd[0])]
    odd_target = [name for name in parameters(target) if name in set(odd[1])]
    lines = [
        f"structure leaves {_count(len(odd_target), 'target parameter')} and "
        f"{_count(len(odd_base), 'base parameter')} without a counterpart:"
    ]
    for side, other, pg, names, near in (
        ("target", "base", target, odd_target, _Nearest(base)),
        ("base", "target", base, odd_base, _Nearest(target)),
    ):
        number = len(parameters(pg))
        for name in names:
            position = (pg.nodes[name]["order"] + 0.5) / number
            lines.append(
                f"  {side} {_described(pg, name)}; nearest in the {other}: "
                f"{near(pg, name, position)}"
            )
    example = odd_target[0] if odd_target else "target name"
    lines.append(
        f"Settle it with mapping={{{example!r}: 'base name', ...}}, from target names to base "
        "names, as a dict or a function; a base parameter named several times is split equally, "
        "what the mapping leaves out is aligned by structure without the parameters that it names, "
        "and a mapping of every target parameter needs no structure at all"
    )
    if given:
        lines[0] = f"with {_count(len(given), 'parameter')} mapped, {lines[0]}"
    return MatchError("\n".join(lines))


def _left_over(base: nx.DiGraph, target: nx.DiGraph) -> tuple[set[str], set[str]]:
    """Parameters of each graph that have none like them in the other.

    Those with like surroundings are paired first, then those with like near surroundings, down to
    the parameters alone. If that pairs all, what differs is how they are connected: then it is the
    parameters whose surroundings differ soonest.
    """
    intern = _Interner()
    graphs = base, target
    labels = [{v: intern[_label(g, v, True)] for v in g} for g in graphs]
    rounds = [labels]
    for _ in range(6):
        labels = [
            {
                v: intern[
                    label[v],
                    tuple(sorted((e.get("slot", ""), label[u]) for u, e in g.pred[v].items())),
                    tuple(sorted((e.get("slot", ""), label[w]) for w, e in g.adj[v].items())),
                ]
                for v in g
            }
            for g, label in zip(graphs, labels, strict=True)
        ]
        rounds.append(labels)
    rest = [list(parameters(g)) for g in graphs]
    for labels in reversed(rounds[1:]):
        rest = _unpaired(rest, labels)
    if not any(rest):
        for labels in rounds[1:]:
            rest = _unpaired([parameters(g) for g in graphs], labels)
            if any(rest):
                break
        else:
            rest = [parameters(g) for g in graphs]
    return set(rest[0]), set(rest[1])


def _unpaired(names: list[list[str]], labels: list[dict[str, int]]) -> list[list[str]]:
    """What remains when those of equal label are paired off, from both ends: blocks are inside."""
    alike: list[dict[int, list[str]]] = []
    for side, label in zip(names, labels, strict=True):
        alike.append(defaultdict(list))
        for v in side:
            alike[-1][label[v]].append(v)
    rest: list[set[str]] = []
    for mine, theirs in (alike, reversed(alike)):
        rest.append(set())
        for key, found in mine.items():
            common = min(len(found), len(theirs.get(key, ())))
            rest[-1].update(found[(common + 1) // 2 : len(found) - common // 2])
    return [[v for v in side if v in left] for side, left in zip(names, rest, strict=True)]


_SIGNATURE = ("op", "slot", "rank", "kind")


class _Nearest:
    """The parameters of a graph that are most like a given one, in attributes and position."""

    def __init__(self, pg: nx.DiGraph) -> None:
        names = parameters(pg)
        self.groups: dict[tuple[object, ...], list[tuple[float, str]]] = defaultdict(list)
        for index, name in enumerate(names):
            signature = tuple(pg.nodes[name][key] for key in _SIGNATURE)
            self.groups[signature].append(((index + 0.5) / len(names), name))

    def __call__(self, pg: nx.DiGraph, name: str, position: float, number: int = 3) -> str:
        signature = tuple(pg.nodes[name][key] for key in _SIGNATURE)

        def nearby(group: list[tuple[float, str]]) -> list[tuple[float, str]]:
            index = bisect.bisect(group, (position, ""))
            return group[max(index - number, 0) : index + number]

        nearest = heapq.nsmallest(
            number,
            (
                (_differences(signature, other), abs(place - position), place, found)
                for other, group in self.groups.items()
                for place, found in nearby(group)
            ),
        )
        return ", ".join(repr(other) for *_, other in nearest) or "none"


def _differences(one: tuple[object, ...], other: tuple[object, ...]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def _described(pg: nx.DiGraph, name: str) -> str:
    a = pg.nodes[name]
    kind = f" in {a['kind']}" if a["kind"] else ""
    return f"{name!r} ({a['op']} {a['slot']}, rank {a['rank']}{kind})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
