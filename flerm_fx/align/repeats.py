"""Repeated blocks: a parameter graph read as chains of junctions, with repeats folded.

A chain is, for one, the residual stream with what each addition adds; equal stretches in a row are
runs of one block, and so are the levels of a U-Net, each inside the one before. Where the sequence
can be cut into blocks in several ways, :func:`fold_alike` cuts two graphs in the same way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, TypeVar

from flerm_fx.align.isomorphism import Interner, node_label
from flerm_fx.align.parameter_graph import on_data

if TYPE_CHECKING:
    import networkx as nx

Address = tuple[tuple[object, int, int], ...]
"""Where a junction lies: (run, which copy from 0, of how many), the outermost run first."""

WeightPath = tuple[str, ...]
"""How a parameter arrives at a junction: the argument there, then operation and argument of each
junction of parameters alone on the way back to it."""


_Part = TypeVar("_Part")


def fold_alike(
    base: nx.DiGraph, target: nx.DiGraph, *, kinds: bool, bare: bool, fold: bool = True
) -> tuple[Folded, Folded]:
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
        fold: whether to fold repeats at all.

    Returns:
        Both graphs, folded. O(V + E + T p) time for T junctions in sequence and p up to T / 2
        periods tried.

    Example::

        >>> from flerm_fx.align.parameter_graph import chain
        >>> def mlp(depth):
        ...     names = ["embed", *(f"layers.{i}" for i in range(depth)), "head"]
        ...     kinds = ["Embedding", *["Linear"] * depth, "Head"]
        ...     return chain((f"{n}.weight", k, "weight", 2) for n, k in zip(names, kinds))
        >>> folded, _ = fold_alike(mlp(3), mlp(2), kinds=True, bare=False)
        >>> [item.node for item in folded.items[folded.roots[0]]]
        ['%0', '%1', '%4']
        >>> for junction, address in folded.places["%1"]:  # its copies in the run
        ...     print(junction, [(copy, number) for _, copy, number in address])
        %1 [(0, 3)]
        %2 [(1, 3)]
        %3 [(2, 3)]
    """
    intern = Interner()
    starts: _Starts = {}
    for settled in (False, True):
        first, second = (
            Folded(graph, kinds, bare, fold, intern, starts, settled) for graph in (base, target)
        )
    return first, second


# For each cycle of labels, as its least rotation: the best reasons found for where a block starts,
# and the rotation that starts there.
_Starts = dict[tuple[int, ...], tuple[tuple[float, ...], tuple[int, ...]]]


@dataclass(eq=False)
class Item:
    """A junction of a chain with all that hangs from it; or the copies of one, folded."""

    label: int
    plain: int  # the label without what tells the first and the last of the network from others
    node: str
    forked: bool  # whether branches with parameters come together here
    path: tuple[str, ...] | None  # common module path of its parameters
    copies: tuple[Item, ...] = ()
    run: object = None
    hole: str = ""  # last junction of the branch that holds the next level of a nest


_Labels = list[tuple[str, int]]  # by argument
_Level = tuple[list[Item], int, str]  # a level of a nest: its chain, which item, which branch


class Folded:
    """Chains of junctions, and the repeats in each, of one parameter graph.

    The *next meeting point* of a junction is the first one that everything computed from it passes
    through (its immediate post-dominator). Following next meeting points from a value to the
    output gives its chain: the residual stream from the embedding to the head, for one. What else
    comes together at a junction of the chain (the branch that a residual addition adds) hangs from
    it as a chain of its own. This needs no execution order, nests as deep as the model does, and
    makes "repeated" a matter of equal labels in a row.

    Attributes:
        pg: the parameter graph.
        order: position of each of its nodes.
        items: the folded chain that ends in a junction, by that junction.
        branches: last junctions of the chains that hang from a junction, in the order of arguments.
        roots: last junctions of the chains that hang from nothing.
    """

    def __init__(
        self,
        graph: nx.DiGraph,
        kinds: bool,
        bare: bool,
        fold: bool,
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
        self.writers = {v: [u for u in graph.pred[v] if u in self.data] for v in self.stream}
        self.origin = _dominators(self.stream, self.writers)
        self.branches: dict[str, list[str]] = {}
        self.described: dict[str, int] = {}
        self.labels: dict[str, int] = {}
        self.items: dict[str, list[Item]] = {}
        self.roots: list[str] = []
        chains = self._chains()
        for head in reversed(chains):
            self.items[head] = self._items(chains[head])
            if fold:
                self._fold(self.items[head])
            self.labels[head] = intern["chain", tuple(item.label for item in self.items[head])]
            for v in chains[head]:
                self._sort_branches(v)
        for head in chains if fold else ():
            self._fold_levels(head)

    # Chains

    def _hanging(self) -> dict[str, list[str]]:
        """For each junction, and "" for the end of all, those that meet there next."""
        meeting = _dominators(reversed(self.stream), self.readers)
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
        """Whether all between a value and a reader of it ends there.

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
        """The junctions of each chain in the direction of the data, by the last of them."""
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
        """What meets at v: the stream that goes on, branches of it, and streams from elsewhere.

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
        """Whether all that leads to v passes through a junction."""
        while v and source and self.order[v] > self.order[source]:
            v = self.origin[v]
        return bool(source) and v == source

    # Labels

    def _items(self, chain: list[str]) -> list[Item]:
        items = [self._item(v) for v in chain]
        last = items[-1]
        if not self.readers[last.node] and not any(item.forked for item in items):
            # In a plain chain nothing else tells the readout from a hidden layer.
            last.label = self.intern["readout", last.label]
        return items

    def _item(self, v: str) -> Item:
        slot = self._slots(v)
        branches = self.branches[v]
        weights = sorted((slot[u], self._describe(u)) for u in slot if u not in self.data)
        hanging = sorted((slot.get(c, ""), self.labels[c]) for c in branches)
        inflow = sorted(slot[u] for u in slot if u in self.data and u not in branches)
        op = self.pg.nodes[v]["op"]
        plain = self.intern["item", op, tuple(weights), tuple(hanging)]
        paths = [p for u in slot if u not in self.data for p in self._paths(u)]
        paths += [item.path for c in branches for item in self.items[c] if item.path is not None]
        return Item(
            label=self.intern["item", plain, tuple(inflow)],
            plain=plain,
            node=v,
            forked=any(item.path is not None for c in branches for item in self.items[c]),
            path=_common(paths),
        )

    def _describe(self, node: str) -> int:
        """A label for a parameter, or a junction of parameters alone."""
        if node not in self.described:
            operands = sorted((s, self._describe(u)) for u, s in self._slots(node).items())
            label = node_label(self.pg, node, self.kinds)
            self.described[node] = self.intern["weight", label, tuple(operands)]
        return self.described[node]

    def _paths(self, node: str) -> list[tuple[str, ...]]:
        if self.pg.nodes[node].get("junction"):
            return [path for u in self.pg.pred[node] for path in self._paths(u)]
        return [tuple(self.pg.nodes[node]["path"].split("."))]

    # Repeats

    def _fold(self, items: list[Item]) -> None:
        """Fold every repeat in a chain, the shortest first, so that longer ones may hold them."""
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

    def _find(self, items: list[Item], period: int, bare: bool) -> tuple[int, int] | None:
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

    def _start(self, items: list[Item], start: int, period: int, copies: int, spare: int) -> int:
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

    # Levels of a nest

    def _fold_levels(self, head: str) -> None:
        r"""Fold a chain with a branch that has the chain's own pattern inside, and so on inward.

        Level k of a U-Net is down, across and up around level k + 1:
        :math:`X_1(P\, X_2(P \cdots X_n(P\, M\, S) \cdots S)\, S)`. The copies of X are
        folded into the outermost chain, those of P and S into the chain of the branch in its hole.
        """
        items = self.items[head]
        for position, item in enumerate(items):
            if item.copies:
                continue
            for branch in self.branches[item.node]:
                levels, extent = self._levels(head, position, branch)
                if len(levels) > 1:
                    self._fold_nest(levels, *extent)
                    return

    def _levels(
        self, head: str, position: int, branch: str
    ) -> tuple[list[_Level], tuple[int, int]]:
        """The levels that repeat the first one, with it, and how far X reaches to both sides."""
        levels: list[_Level] = [(self.items[head], position, branch)]
        left, right = position, len(self.items[head]) - position
        if head in self.roots:  # what reads the input and what gives the output is of no level
            left, right = max(left - 1, 0), max(right - 1, 1)
        while True:
            outer, at, branch = levels[-1]
            context = self._around(outer[at], branch)
            inner = self.items[branch]
            found = next(
                (
                    (inner, k, hole)
                    for k, item in enumerate(inner)
                    if not item.copies
                    for hole in self.branches[item.node]
                    if self._around(item, hole) == context
                ),
                None,
            )
            if found is None:
                break
            left, right = map(min, (left, right), _extent(levels[-1], found))
            levels.append(found)
        while len(levels) > 1 and not (self._bears(levels[1]) and self._fits(levels, left, right)):
            levels.pop()
        return levels, (left, right)

    def _bears(self, level: _Level) -> bool:
        """Whether a level has parameters of its own, beside those of the levels inside it."""
        items, at, hole = level
        _, weights, others, _ = self._around(items[at], hole)
        beside = items[:at] + items[at + 1 :]
        return bool(weights or others) or any(item.path is not None for item in beside)

    def _around(self, item: Item, hole: str) -> tuple[str, _Labels, _Labels, str]:
        """What tells an item by itself, but for one of its branches."""
        slot = self._slots(item.node)
        weights = sorted((slot[u], self._describe(u)) for u in slot if u not in self.data)
        others = [(slot.get(c, ""), self.labels[c]) for c in self.branches[item.node] if c != hole]
        return str(self.pg.nodes[item.node]["op"]), weights, others, slot.get(hole, "")

    def _fits(self, levels: list[_Level], left: int, right: int) -> bool:
        """Whether the same lies between all levels, the innermost and what is in its hole too."""
        last = [item.label for item in self.items[levels[-1][2]]]
        heads, tails = [], []
        for items, at, _ in levels[1:]:
            labels = [item.label for item in items]
            heads.append(labels[: at - left])
            tails.append(labels[at + right :])
        heads.append(last[: len(heads[0])])
        tails.append(last[len(last) - len(tails[0]) :])
        same = all(h == heads[0] for h in heads) and all(t == tails[0] for t in tails)
        return same and len(last) >= len(heads[0]) + len(tails[0])

    def _fold_nest(self, levels: list[_Level], left: int, right: int) -> None:
        run = object()
        chain, position, branch = levels[0]
        inside = [self.items[hole] for _, _, hole in levels]
        before = levels[1][1] - left
        behind = len(levels[1][0]) - levels[1][1] - right

        def fold(copies: Iterable[Item]) -> Item:
            copies = tuple(copies)
            return replace(copies[0], path=_shared_path(copies), copies=copies, run=run)

        for offset in range(-left, right):
            copies = [items[at + offset] for items, at, _ in levels]
            if offset == 0:
                copies = [
                    replace(item, hole=hole)
                    for item, (_, _, hole) in zip(copies, levels, strict=True)
                ]
            chain[position + offset] = fold(copies)
        middle = inside[-1][before : len(inside[-1]) - behind]
        self.items[branch] = [
            *(fold(items[k] for items in inside) for k in range(before)),
            *middle,
            *(fold(items[len(items) - behind + k] for items in inside) for k in range(behind)),
        ]

    # What the folded chains stand for

    @cached_property
    def places(self) -> dict[str, list[tuple[str, Address]]]:
        """For each junction that was kept, the junctions that it stands for, with their places."""
        found: dict[str, list[tuple[str, Address]]] = {}
        pending: list[tuple[Sequence[Item], Sequence[Item], Address]] = [
            (self.items[head], self.items[head], ()) for head in self.roots
        ]
        while pending:
            items, kept, where = pending.pop()
            position = 0
            while position < len(items):
                item, twin = items[position], kept[position]
                if not item.copies:
                    found.setdefault(twin.node, []).append((item.node, where))
                    for mine, theirs in zip(self._own(item), self._own(twin), strict=True):
                        pending.append((self.items[mine], self.items[theirs], where))
                    position += 1
                    continue
                end = position
                while end < len(items) and items[end].run is item.run:
                    if items[end].hole:
                        inner, its_twin = self.items[items[end].hole], self.items[kept[end].hole]
                        pending.append((inner, its_twin, where))
                    end += 1
                # A copy may repeat within itself what the copy that is kept has once.
                run = twin.run if twin.copies else (twin.node, kept[end - 1].node)
                first = [each.copies[0] if each.copies else each for each in kept[position:end]]
                number = len(item.copies)
                for index in range(number):
                    copy = [each.copies[index] for each in items[position:end]]
                    pending.append((copy, first, (*where, (run, index, number))))
                position = end
        for places in found.values():
            places.sort(key=lambda place: self.order[place[0]])
        return found

    def depth_in_common(self, kept: Iterable[str]) -> int:
        """How many runs hold all of some kept junctions."""
        runs = (tuple(run for run, _, _ in self.places[node][0][1]) for node in kept)
        return len(_common(runs) or ())

    def op(self, node: str) -> str:
        """A junction's operation."""
        return str(self.pg.nodes[node]["op"])

    def weights(self, node: str) -> dict[WeightPath, str]:
        """The parameters that a junction on data reads, by how they arrive."""
        found: dict[WeightPath, str] = {}
        pending: list[tuple[WeightPath, str]] = [
            ((slot,), u) for u, slot in self._slots(node).items() if u not in self.data
        ]
        while pending:
            path, u = pending.pop()
            if self.pg.nodes[u].get("junction"):
                pending += [((*path, self.op(u), s), w) for w, s in self._slots(u).items()]
            else:
                found[path] = u
        return found

    def equal_branches(self, node: str) -> list[tuple[str, tuple[str, ...]]]:
        """A junction's branches, those of one label and argument together, with that argument."""
        slots = self._slots(node)

        def key(head: str) -> tuple[str, int]:
            # Which place of a list it has makes no difference to what a branch is.
            return slots.get(head, "").partition("[")[0], self.labels[head]

        ordered = sorted(self.branches[node], key=key)
        return [(slot, tuple(alike)) for (slot, _), alike in groupby(ordered, key)]

    def _slots(self, node: str) -> dict[str, str]:
        """The argument at which each operand of a junction arrives."""
        return {u: str(e.get("slot", "")) for u, e in self.pg.pred[node].items()}

    def _own(self, item: Item) -> list[str]:
        """The branches of an item but for the one that holds the next level."""
        return [head for head in self.branches[item.node] if head != item.hole]

    def _sort_branches(self, v: str) -> None:
        slots = self._slots(v)
        self.branches[v].sort(key=lambda head: (slots.get(head, ""), self.labels[head]))


def _dominators(order: Iterable[str], before: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """For each node the last one that all ways to it pass through; "" if there is none.

    Args:
        order: nodes, each behind those before it.
        before: the nodes right before each.
    """
    found: dict[str, str] = {}
    depth = {"": 0}
    for v in order:
        through = before[v][0] if before[v] else ""
        for other in before[v][1:]:
            while through != other:
                if depth[through] >= depth[other]:
                    through = found[through]
                else:
                    other = found[other]
        found[v] = through
        depth[v] = depth[through] + 1
    return found


def _extent(one: _Level, other: _Level) -> tuple[int, int]:
    """How many items before the hole are alike, and how many from its own item on."""
    labels = [[item.label for item in items] for items, _, _ in (one, other)]
    holes = one[1], other[1]
    before = [tuple(side[:at][::-1]) for side, at in zip(labels, holes, strict=True)]
    behind = [tuple(side[at + 1 :]) for side, at in zip(labels, holes, strict=True)]
    return len(_common(before) or ()), 1 + len(_common(behind) or ())


def _common(sequences: Iterable[tuple[_Part, ...]]) -> tuple[_Part, ...] | None:
    """The longest common beginning; None of none."""
    found = list(sequences)
    alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*found, strict=False))
    return tuple(parts[0] for parts in alike) if found else None


def _shared_path(items: Iterable[Item]) -> tuple[str, ...] | None:
    return _common(item.path for item in items if item.path is not None)
