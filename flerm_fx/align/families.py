"""Families: the parameters that hold one place in modules that repeat, from the tree of modules.

What a module tree says is its shape: which modules are items of one list, and what each holds. The
words in it tell places of one model apart; between two models, families answer to each other by
the data flow around them first, and by words only where that leaves a choice.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from flerm_fx.align.mass import Level, Member, Shares, overlaps
from flerm_fx.align.parameter_graph import on_data, parameters, sites

if TYPE_CHECKING:
    import networkx as nx

    from flerm_fx.align.evidence import Flow

Path = tuple[str, ...]
"""A name in parts."""

Own = tuple[Hashable, ...]
"""What a parameter is by itself: its rank, the operation that reads it, the class around."""

ITEM = "#"
"""The part of a masked name that stood for the place of an item in a list."""

_NUMBERED = re.compile(r"(.*?)(\d+)")


def masked(name: str) -> Path:
    """A name in parts, places in lists as ``"#"``.

    >>> masked("h.3.fc1.weight")
    ('h', '#', 'fc1', 'weight')
    """
    return tuple(ITEM if part.isdigit() else part for part in name.split("."))


@dataclass(frozen=True)
class Family:
    """Parameters at one place of the items of one list, or of nested lists.

    Attributes:
        words: their masked name.
        members: each with which item it is in of how many, at each level of lists.
    """

    words: Path
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Kind:
    """What an item of a list is.

    Attributes:
        holds: its parameters by their places in it, each with what it is by itself.
        end: of the data flow, at which the item is, or ``"inner"``.
    """

    holds: frozenset[tuple[Path, Own]]
    end: str

    @cached_property
    def bare(self) -> Hashable:
        """The kind without words."""
        return self.end, frozenset(Counter((len(rest), own) for rest, own in self.holds).items())

    def like(self, other: Kind) -> bool:
        """Whether two hold mostly the same, at the same end."""
        alike = 2 * len(self.holds & other.holds) >= len(self.holds | other.holds)
        return self.end == other.end and alike

    def rank(self, common: set[Hashable]) -> tuple[bool, int]:
        """Items join one of a common kind, or a fuller one."""
        return self.bare in common, len(self.holds)


class Families:
    """The families of one parameter graph.

    Args:
        graph: a parameter graph.
        numbered: whether ``stage1`` and ``stage2`` are items of a list, as ``stage.1`` is.
        ends: whether items at an end of the data flow are told from others.
        wrapped: whether an item that all names are in is a wrapper, and no item of a list.
    """

    def __init__(
        self, graph: nx.DiGraph, *, numbered: bool, ends: bool = True, wrapped: bool = False
    ) -> None:
        self.graph = graph
        self.names = [name for name in parameters(graph) if graph.nodes[name]["op"]]
        self.parts = {name: _parts(name, numbered) for name in self.names}
        while wrapped and _share_an_item(self.parts.values()):
            self.parts = {name: parts[1:] for name, parts in self.parts.items()}
        self.lists: dict[Path, dict[Path, None]] = defaultdict(dict)
        self.kinds = self._kinds(ends)

    @cached_property
    def all(self) -> list[Family]:
        """All families, in the order of their first parameters' execution."""
        grouped: dict[Hashable, list[str]] = defaultdict(list)
        for name in self.names:
            parts = self.parts[name]
            kinds = tuple(self.kinds.get(parts[: at + 1]) for at in range(len(parts)))
            key = self._words(parts), kinds, self.graph.nodes[name]["rank"]
            grouped[key].append(name)
        return [Family(self._words(self.parts[m[0]]), self._members(m)) for m in grouped.values()]

    @staticmethod
    def _words(parts: Path) -> Path:
        return tuple(_mask(part) for part in parts)

    def _members(self, names: list[str]) -> tuple[Member, ...]:
        """Which item each is in, at each level; items are in the order of their execution."""
        items: dict[Path, dict[Path, int]] = defaultdict(dict)
        for name in names:
            for around, item in self._items(name):
                items[around].setdefault(item, len(items[around]))
        return tuple(
            Member(
                name,
                {
                    level: (items[around][item], len(items[around]))
                    for level, (around, item) in enumerate(self._items(name))
                },
            )
            for name in names
        )

    def _items(self, name: str) -> Iterable[tuple[Path, Path]]:
        """The lists around a parameter, the outermost first, each with the item that it is in."""
        parts = self.parts[name]
        for at, part in enumerate(parts):
            if _mask(part) != part:
                yield (*parts[:at], _mask(part)), parts[: at + 1]

    def _kinds(self, told: bool) -> dict[Path, Kind]:
        """What each item of a list holds, and whether it is at an end of the data flow."""
        holds: dict[Path, set[tuple[Path, Own]]] = defaultdict(set)
        inside: dict[Path, list[str]] = defaultdict(list)
        for name in self.names:
            a = self.graph.nodes[name]
            for around, item in self._items(name):
                rest = self._words(self.parts[name][len(item) :])
                holds[item].add((rest, (a["rank"], a["op"], a["kind"])))
                inside[item].append(name)
                self.lists[around].setdefault(item)
        ends = Ends(self.graph)
        return {
            item: Kind(frozenset(held), ends.which(inside[item]) if told else "")
            for item, held in holds.items()
        }

    def common(self) -> set[Hashable]:
        """Kinds, whatever their words, of which a list has several or one that is at no end."""
        kinds: set[Hashable] = set()
        for items in self.lists.values():
            row = [self.kinds[item].bare for item in items]
            kinds |= {kind for at, kind in enumerate(row) if kind in row[:at]}
            kinds |= set(row[1:-1])
        return kinds

    def join_ends(self, common: set[Hashable]) -> None:
        """Give items at the ends of lists the kind of those that hold mostly the same.

        A last block may lack what nobody reads behind it, a first one may have a shortcut.
        """
        rows: dict[Path, list[Path]] = defaultdict(list)
        for around, items in self.lists.items():
            rows[self._words(around)] += items
        for row in rows.values():
            kinds = list(dict.fromkeys(self.kinds[item] for item in row))
            joined = {}
            for kind in kinds:
                if kind.bare not in common:
                    fuller = [
                        k for k in kinds if k.like(kind) and k.rank(common) > kind.rank(common)
                    ]
                    if fuller:
                        joined[kind] = max(fuller, key=lambda k: k.rank(common))
            for item in row:
                while self.kinds[item] in joined:
                    self.kinds[item] = joined[self.kinds[item]]


class Ends:
    """Which parameters stand at an end of the data flow."""

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

    def which(self, names: list[str]) -> str:
        """``"entrance"`` if nothing precedes them, ``"readout"`` if all ends there, ``"inner"``."""
        read = {site for name in names for site in sites(self.graph, name)}
        if not any(u in self.behind for v in read for u in self.graph.pred[v]):
            return "entrance"
        if not read & self.before and self._closes(read, set(names)):
            return "readout"
        return "inner"

    def _closes(self, read: set[str], names: set[str]) -> bool:
        """Whether all parameters before some junctions reach the output through these alone."""
        pending = [v for v in self.graph if on_data(self.graph, v) and not self.graph.adj[v]]
        seen = set(pending)
        while pending:
            v = pending.pop()
            if v in read:
                continue
            for u in self.graph.pred[v]:
                if not on_data(self.graph, u) and u not in names:
                    return False
                if u not in seen:
                    seen.add(u)
                    pending.append(u)
        return True


def shares_by_families(base: Families, target: Families, flow: Flow) -> Shares:
    """Shares of the families that answer to one another, and of their members in order."""
    common = base.common() | target.common()
    for families in (base, target):
        families.join_ends(common)
    shares: Shares = defaultdict(dict)
    for one, other in _pairs(base, target, flow):
        levels: set[Level] = {k for m in (*one.members, *other.members) for k in m.copies}
        for name, answer, share in overlaps(one.members, other.members, sorted(levels, key=str)):
            shares[name][answer] = share
    return shares


def _pairs(base: Families, target: Families, flow: Flow) -> list[tuple[Family, Family]]:
    """Families that answer to one another, those with most in common first."""
    scored = []
    base_words, target_words = [_unwrapped(f.all) for f in (base, target)]
    own = _by_own(base), _by_own(target)
    for signature in own[0].keys() & own[1].keys():
        for i in own[0][signature]:
            for j in own[1][signature]:
                one, other = base.all[i], target.all[j]
                around = flow.of_families(
                    [m.name for m in one.members], [m.name for m in other.members]
                )
                named = base_words[i] == target_words[j]
                near = 1 - abs(i / len(base.all) - j / len(target.all))
                scored.append((around + named / 2 + near / 16, i, j))
    taken: tuple[set[int], set[int]] = set(), set()
    pairs = []
    for _, i, j in sorted(scored, reverse=True):
        if i not in taken[0] and j not in taken[1]:
            taken[0].add(i)
            taken[1].add(j)
            pairs.append((base.all[i], target.all[j]))
    return pairs


def _by_own(families: Families) -> Mapping[Hashable, list[int]]:
    """Families by what their first parameter is by itself."""
    by_own: dict[Hashable, list[int]] = defaultdict(list)
    for index, family in enumerate(families.all):
        a = families.graph.nodes[family.members[0].name]
        by_own[a["rank"], a["op"], a["slot"].partition("[")[0]].append(index)
    return by_own


def _unwrapped(families: list[Family]) -> list[Path]:
    """The words of families without what surrounds all, as ``module.`` does."""
    words = [family.words for family in families]
    while (
        len({w[0] for w in words}) == 1 and all(len(w) > 1 for w in words) and words[0][0] != ITEM
    ):
        words = [w[1:] for w in words]
    return words


def in_items(names: Iterable[str]) -> bool:
    """Whether all names are in items of one list, which may be a wrapper of the whole model.

    >>> in_items(["0.embed.weight", "0.head.weight"]), in_items(["embed.weight"])
    (True, False)
    """
    return all(name.partition(".")[0].isdigit() for name in names)


def _share_an_item(names: Collection[Path]) -> bool:
    """Whether all names, in parts, go on within one and the same item."""
    first = {parts[0] for parts in names if len(parts) > 1 and parts[0].startswith(ITEM)}
    return len(first) == 1 and all(len(parts) > 1 and parts[0] in first for parts in names)


def _parts(name: str, numbered: bool) -> Path:
    """A name in parts; places in lists begin with ``"#"``, so that they are told from words."""
    parts: list[str] = []
    for part in name.split("."):
        split = _NUMBERED.fullmatch(part)
        if part.isdigit():
            parts.append(ITEM + part)
        elif numbered and split:
            parts += [split[1], ITEM + split[2]]
        else:
            parts.append(part)
    return tuple(parts)


def _mask(part: str) -> str:
    return ITEM if part.startswith(ITEM) else part
