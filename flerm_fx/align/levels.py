"""A nest, such as a U-Net, holds its own pattern inside; its levels are folded as copies of one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from flerm_fx.align.items import Item, common, shared_path

if TYPE_CHECKING:
    import networkx as nx

Labels = list[tuple[str, int]]  # by argument
Level = tuple[list[Item], int, str]  # a level of a nest: its chain, which item, which branch


class Labelled(Protocol):
    """A ``Labelled`` has chains whose every item has its label, as
    :class:`flerm_fx.align.repeats.Folded` has.
    """

    pg: nx.DiGraph
    data: set[str]
    items: dict[str, list[Item]]
    branches: dict[str, list[str]]
    labels: dict[str, int]
    roots: list[str]

    def slots(self, node: str) -> dict[str, str]:
        """Return the argument at which each operand of a junction arrives."""

    def describe(self, node: str) -> int:
        """Return a label for a parameter, or a junction of parameters alone."""


def fold_levels(chains: Labelled, head: str) -> None:
    """Fold the levels of a nest that begins in a chain; see :meth:`Levels.fold`."""
    Levels(chains).fold(head)


class Levels:
    """A ``Levels`` finds the levels of nests in some chains."""

    def __init__(self, of: Labelled) -> None:
        self.of = of

    def fold(self, head: str) -> None:
        r"""Fold a chain with a branch that has the chain's own pattern inside, and so on inward.

        Level k of a U-Net is down, across and up around level k + 1:
        :math:`X_1(P\, X_2(P \cdots X_n(P\, M\, S) \cdots S)\, S)`. The copies of X are
        folded into the outermost chain, those of P and S into the chain of the branch in its hole.
        """
        items = self.of.items[head]
        for position, item in enumerate(items):
            if item.copies:
                continue
            for branch in self.of.branches[item.node]:
                levels, extent = self._levels(head, position, branch)
                if len(levels) > 1:
                    self._fold_nest(levels, *extent)
                    return

    def _levels(self, head: str, position: int, branch: str) -> tuple[list[Level], tuple[int, int]]:
        """Return the levels that repeat the first one, with it, and how far X reaches to both
        sides.
        """
        levels: list[Level] = [(self.of.items[head], position, branch)]
        left, right = position, len(self.of.items[head]) - position
        if head in self.of.roots:  # what reads the input and what gives the output is of no level
            left, right = max(left - 1, 0), max(right - 1, 1)
        while True:
            outer, at, branch = levels[-1]
            context = self._around(outer[at], branch)
            inner = self.of.items[branch]
            around = next(
                (
                    (inner, k, hole)
                    for k, item in enumerate(inner)
                    if not item.copies
                    for hole in self.of.branches[item.node]
                    if self._around(item, hole) == context
                ),
                None,
            )
            if around is None:
                break
            left, right = map(min, (left, right), extent(levels[-1], around))
            levels.append(around)
        while len(levels) > 1 and not (self._bears(levels[1]) and self._fits(levels, left, right)):
            levels.pop()
        return levels, (left, right)

    def _bears(self, level: Level) -> bool:
        """Tell whether a level has parameters of its own, beside those of the levels inside it."""
        items, at, hole = level
        _, weights, others, _ = self._around(items[at], hole)
        beside = items[:at] + items[at + 1 :]
        return bool(weights or others) or any(item.path is not None for item in beside)

    def _around(self, item: Item, hole: str) -> tuple[str, Labels, Labels, str]:
        """Return what tells an item by itself, but for one of its branches."""
        slot = self.of.slots(item.node)
        weights = sorted((slot[u], self.of.describe(u)) for u in slot if u not in self.of.data)
        others = [
            (slot.get(c, ""), self.of.labels[c]) for c in self.of.branches[item.node] if c != hole
        ]
        return str(self.of.pg.nodes[item.node]["op"]), weights, others, slot.get(hole, "")

    def _fits(self, levels: list[Level], left: int, right: int) -> bool:
        """Tell whether the same lies between all levels, the innermost and what is in its hole
        too.
        """
        last = [item.label for item in self.of.items[levels[-1][2]]]
        heads, tails = [], []
        for items, at, _ in levels[1:]:
            labels = [item.label for item in items]
            heads.append(labels[: at - left])
            tails.append(labels[at + right :])
        heads.append(last[: len(heads[0])])
        tails.append(last[len(last) - len(tails[0]) :])
        same = all(h == heads[0] for h in heads) and all(t == tails[0] for t in tails)
        return same and len(last) >= len(heads[0]) + len(tails[0])

    def _fold_nest(self, levels: list[Level], left: int, right: int) -> None:
        run = object()
        chain, position, branch = levels[0]
        inside = [self.of.items[hole] for _, _, hole in levels]
        before = levels[1][1] - left
        behind = len(levels[1][0]) - levels[1][1] - right

        def fold(copies: Iterable[Item]) -> Item:
            copies = tuple(copies)
            return replace(copies[0], path=shared_path(copies), copies=copies, run=run)

        for offset in range(-left, right):
            copies = [items[at + offset] for items, at, _ in levels]
            if offset == 0:
                copies = [
                    replace(item, hole=hole)
                    for item, (_, _, hole) in zip(copies, levels, strict=True)
                ]
            chain[position + offset] = fold(copies)
        middle = inside[-1][before : len(inside[-1]) - behind]
        self.of.items[branch] = [
            *(fold(items[k] for items in inside) for k in range(before)),
            *middle,
            *(fold(items[len(items) - behind + k] for items in inside) for k in range(behind)),
        ]


def extent(one: Level, other: Level) -> tuple[int, int]:
    """Return how many items before the hole are alike, and how many from its own item on."""
    labels = [[item.label for item in items] for items, _, _ in (one, other)]
    holes = one[1], other[1]
    before = [tuple(side[:at][::-1]) for side, at in zip(labels, holes, strict=True)]
    behind = [tuple(side[at + 1 :]) for side, at in zip(labels, holes, strict=True)]
    return len(common(before) or ()), 1 + len(common(behind) or ())
