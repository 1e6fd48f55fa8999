"""Repeated blocks are found in a parameter graph read as chains of junctions, with repeats folded.

A chain is, for one, the residual stream with what each addition adds; equal stretches in a row are
runs of one block, and so are the levels of a U-Net, each inside the one before. Where the sequence
can be cut into blocks in several ways, :func:`fold_alike` cuts two graphs in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from flerm_fx.align.isomorphism import Interner, node_label
from flerm_fx.align.items import Item, common, shared_path
from flerm_fx.align.levels import fold_levels
from flerm_fx.align.places import in_lists
from flerm_fx.align.readouts import Readouts
from flerm_fx.ops.table import SIDE_BY_SIDE

if TYPE_CHECKING:
    import networkx as nx

Address = tuple[tuple[object, int, int], ...]
"""Where a junction lies: (run, which copy from 0, of how many), the outermost run first."""


def fold_alike(
    base: nx.DiGraph,
    target: nx.DiGraph,
    *,
    kinds: bool,
    bare: bool,
    fold: bool = True,
    otherwise: bool = False,
) -> tuple[Folded, Folded]:
    """Fold both graphs, and cut what both repeat in the same way.

    Where one side has the better reason for where a block starts, the other follows it. Reasons
    are, in this order: it can start nowhere else; the stream forks there; one block is one module
    of the model; copies are at one place of the items of lists; the cut is in step with the
    beginning of the network.

    Args:
        base: a parameter graph.
        target: another one.
        kinds: whether the classes of modules tell parameters apart.
        bare: whether a run may consist of blocks without a fork where the chain it lies in has
            forks (in a chain without any, it may in any case).
        fold: whether to fold repeats at all.
        otherwise: whether a block starts at another of the places where it may, for which the
            module tree has as good a reason.

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
            Folded(graph, kinds, bare, fold, otherwise, intern, starts, settled)
            for graph in (base, target)
        )
    return first, second


# For each cycle of labels, as its least rotation: the best reasons found for where a block starts,
# and the rotation that starts there.
_Starts = dict[tuple[int, ...], tuple[tuple[float, ...], tuple[int, ...]]]


class Folded(Readouts):
    """A ``Folded`` holds chains of junctions, and the repeats in each, of one parameter graph.

    Attributes:
        items: the folded chain that ends in a junction, by that junction.
    """

    def __init__(
        self,
        graph: nx.DiGraph,
        kinds: bool,
        bare: bool,
        fold: bool,
        otherwise: bool,
        intern: Interner,
        starts: _Starts,
        settled: bool,
    ) -> None:
        super().__init__(graph)
        self.kinds = kinds
        self.bare = bare
        self.otherwise = otherwise
        self.in_lists = in_lists(graph)
        self.intern = intern
        self.starts = starts
        self.settled = settled
        self.described: dict[str, int] = {}
        self.labels: dict[str, int] = {}
        self.items: dict[str, list[Item]] = {}
        for head in reversed(self.chains):
            self.items[head] = self._items(self.chains[head])
            if fold:
                self._fold(self.items[head])
            self.labels[head] = intern["chain", tuple(item.label for item in self.items[head])]
            for v in self.chains[head]:
                self._sort_branches(v)
        for head in self.chains if fold else ():
            fold_levels(self, head)

    # Labels

    def _items(self, chain: list[str]) -> list[Item]:
        items = [self._item(v) for v in chain]
        for before, item in pairwise(items):
            if self.op(before.node) in SIDE_BY_SIDE and self.is_layer(item.node):
                # It reads more than the layers behind it do.
                item.label = self.intern["side by side", item.label]
        plain = not any(item.forked for item in items)
        for item in items:
            if item.node in self.readouts and (
                plain or self.is_layer(item.node) or self.is_of_layers(item.node)
            ):
                # Nothing else tells the readout from a hidden layer.
                item.label = self.intern["readout", item.label]
        return items

    def _item(self, v: str) -> Item:
        slot = self.slots(v)
        branches = self.branches[v]
        weights = sorted((slot[u], self.describe(u)) for u in slot if u not in self.data)
        hanging = sorted((slot.get(c, ""), self.labels[c]) for c in branches)
        inflow = sorted(slot[u] for u in slot if u in self.data and u not in branches)
        op = self.pg.nodes[v]["op"]
        plain = self.intern["item", op, tuple(weights), tuple(hanging)]
        read = [name for u in slot if u not in self.data for name in self._read(u)]
        inside = [item for c in branches for item in self.items[c]]
        paths = [tuple(self.pg.nodes[name]["path"].split(".")) for name in read]
        paths += [item.path for item in inside if item.path is not None]
        places = [self.in_lists[name] for name in read if name in self.in_lists]
        places += [place for item in inside for place in item.places]
        return Item(
            label=self.intern["item", plain, tuple(inflow)],
            plain=plain,
            node=v,
            forked=any(item.path is not None for item in inside),
            path=common(paths),
            places=tuple(sorted(places)),
        )

    def describe(self, node: str) -> int:
        """Return a label for a parameter, or a junction of parameters alone."""
        if node not in self.described:
            operands = sorted((s, self.describe(u)) for u, s in self.slots(node).items())
            label = node_label(self.pg, node, self.kinds)
            self.described[node] = self.intern["weight", label, tuple(operands)]
        return self.described[node]

    def _read(self, node: str) -> list[str]:
        """Return the parameters that a parameter, or a junction of parameters alone, depends on."""
        if self.pg.nodes[node].get("junction"):
            return [name for u in self.pg.pred[node] for name in self._read(u)]
        return [node]

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
                replace(each[0], path=shared_path(each), copies=tuple(each), run=run)
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
        """Return where the first copy starts, if a run leaves ``spare`` items over."""
        body = [item.label for item in items[start : start + period]]
        rotations = [tuple(body[k:] + body[:k]) for k in range(period)]
        origin = start
        while origin and items[origin - 1].plain == items[origin - 1 + period].plain:
            origin -= 1

        forced = float(spare == 0)

        def reasons(k: int) -> tuple[float, ...]:
            first = start + k
            modules = [
                shared_path(items[at : at + period])
                for at in range(first, first + copies * period, period)
            ]
            around = common([path for path in modules if path is not None]) or ()
            own = {path for path in modules if path is not None and len(path) > len(around)}
            in_place = sum(
                bool(items[at].places)
                and len({item.places for item in items[at : first + copies * period : period]}) == 1
                for at in range(first, first + period)
            )
            in_step = origin == 0 and first % period == 0
            fork = float(items[first].forked)
            return forced, fork, len(own) / copies, in_place / period, float(in_step)

        offered = range(spare + 1)
        best = max(offered, key=lambda k: (reasons(k), -k))
        if self.otherwise:
            told = reasons(best)[2:4]  # by the module tree
            best = max((k for k in offered if k != best and reasons(k)[2:4] >= told), default=best)
        cycle = min(rotations)
        if not self.settled:
            evidence = reasons(best)
            if cycle not in self.starts or evidence > self.starts[cycle][0]:
                self.starts[cycle] = evidence, rotations[best % period]
        elif cycle in self.starts:
            agreed = self.starts[cycle][1]
            best = next((k for k in offered if rotations[k % period] == agreed), best)
        return start + best

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
        """Return how many runs hold all of some kept junctions."""
        runs = (tuple(run for run, _, _ in self.places[node][0][1]) for node in kept)
        return len(common(runs) or ())

    def equal_branches(self, node: str) -> list[tuple[str, tuple[str, ...]]]:
        """Return a junction's branches, those of one label and argument together, with that
        argument.
        """
        slots = self.slots(node)

        def key(head: str) -> tuple[str, int]:
            # Which place of a list it has makes no difference to what a branch is.
            return slots.get(head, "").partition("[")[0], self.labels[head]

        ordered = sorted(self.branches[node], key=key)
        return [(slot, tuple(alike)) for (slot, _), alike in groupby(ordered, key)]

    def unforked(self) -> dict[str, int]:
        """Return the parameters in runs of single layers, none of which has a fork.

        Each comes with the number of copies in its run.
        """
        found: dict[str, int] = {}
        for items in self.items.values():
            for run, copies in groupby(items, key=lambda item: item.run):
                row = list(copies)
                if run is not None and not any(item.forked for item in row):
                    for item in row:
                        for copy in item.copies:
                            names = self.weights(copy.node).values()
                            found |= dict.fromkeys(names, len(item.copies))
        return found

    def _own(self, item: Item) -> list[str]:
        """Return the branches of an item but for the one that holds the next level."""
        return [head for head in self.branches[item.node] if head != item.hole]

    def _sort_branches(self, v: str) -> None:
        slots = self.slots(v)
        self.branches[v].sort(key=lambda head: (slots.get(head, ""), self.labels[head]))
