"""A family holds the parameters at one place in modules that repeat, from the tree of modules.

What a module tree says is its shape: which modules are items of one list, and what each holds. The
words in it tell places of one model apart; between two models, families answer to each other by
the data flow around them first, and by words only where that leaves a choice.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations
from typing import TYPE_CHECKING

from flerm_fx.align.apart import Apart
from flerm_fx.align.ends import Ends
from flerm_fx.align.evidence import Flow, in_common
from flerm_fx.align.mass import Level, Member, Shares, overlaps
from flerm_fx.align.nodes import parameters, sites
from flerm_fx.align.places import ITEM

if TYPE_CHECKING:
    import networkx as nx


Path = tuple[str, ...]
"""A name in parts."""

Own = tuple[Hashable, ...]
"""What a parameter is by itself: its rank, the operation that reads it, the class around."""

_NUMBERED = re.compile(r"(.*?)(\d+)")


@dataclass(frozen=True)
class Family:
    """A ``Family`` holds parameters at one place of the items of one list, or of nested lists.

    Attributes:
        words: their masked name.
        members: each with which item it is in of how many, at each level of lists.
    """

    words: Path
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Kind:
    """A ``Kind`` says what an item of a list is.

    Attributes:
        holds: its parameters by their places in it, each with what it is by itself.
        end: of the data flow, at which the item is, or ``"inner"``; and how it stands apart.
    """

    holds: frozenset[tuple[Path, Own]]
    end: str

    @cached_property
    def bare(self) -> Hashable:
        """The kind without words."""
        return self.end, frozenset(Counter((len(rest), own) for rest, own in self.holds).items())

    def within(self, other: Kind) -> bool:
        """Tell whether another has the same at the same end, and more."""
        return self.end == other.end and self.holds < other.holds

    def like(self, other: Kind) -> bool:
        """Tell whether two hold mostly the same, at the same end."""
        alike = 2 * len(self.holds & other.holds) >= len(self.holds | other.holds)
        return self.end == other.end and alike

    def rank(self, common: set[Hashable]) -> tuple[bool, int]:
        """Items join one of a common kind, or a fuller one."""
        return self.bare in common, len(self.holds)


class Families:
    """A ``Families`` finds the families of one parameter graph.

    Args:
        graph: a parameter graph.
        numbered: whether ``stage1`` and ``stage2`` are items of a list, as ``stage.1`` is.
        ends: the ends of its data flow, if items there are told from others.
        apart: how layers stand apart from the others of their list, if they are told from these.
        wrapped: whether an item that all names are in is a wrapper, and no item of a list.
    """

    def __init__(
        self,
        graph: nx.DiGraph,
        *,
        numbered: bool,
        ends: Ends | None = None,
        apart: Apart | None = None,
        wrapped: bool = False,
    ) -> None:
        self.graph = graph
        self.apart = apart or {}
        self.names = [name for name in parameters(graph) if graph.nodes[name]["op"]]
        self.parts = {name: _parts(name, numbered) for name in self.names}
        while wrapped and _share_an_item(self.parts.values()):
            self.parts = {name: parts[1:] for name, parts in self.parts.items()}
        self.lists: dict[Path, dict[Path, None]] = defaultdict(dict)
        self.stages: dict[Path, Path] = {}
        self.kinds = self._kinds(ends)

    @cached_property
    def in_one_list(self) -> bool:
        """Whether all parameters are in items of one list, which then tells nothing apart."""
        around = {next((around for around, _ in self._items(name)), ()) for name in self.names}
        return len(around) == 1 and () not in around

    @cached_property
    def found(self) -> list[Family]:
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
        """Return which item each is in, at each level; items are in the order of their
        execution.
        """
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
        """Return the lists around a parameter, outermost first, each with the item it is in."""
        parts = self.parts[name]
        for at, part in enumerate(parts):
            if _mask(part) != part:
                around, item = (*parts[:at], _mask(part)), parts[: at + 1]
                if item in self.stages:
                    yield around, self.stages[item]
                    around = self.stages[item]
                yield around, item

    def _kinds(self, ends: Ends | None) -> dict[Path, Kind]:
        """Return what each item of a list holds, and whether it is at an end of the data flow."""
        holds: dict[Path, set[tuple[Path, Own]]] = defaultdict(set)
        inside: dict[Path, list[str]] = defaultdict(list)
        for name in self.names:
            a = self.graph.nodes[name]
            for around, item in self._items(name):
                rest = self._words(self.parts[name][len(item) :])
                holds[item].add((rest, (a["rank"], a["op"], a["kind"])))
                inside[item].append(name)
                self.lists[around].setdefault(item)
        return {
            item: Kind(
                frozenset(held),
                (ends.which(inside[item]) if ends else "") + self._way(inside[item]),
            )
            for item, held in holds.items()
        }

    def _way(self, names: Collection[str]) -> str:
        """Return how an item stands apart that is a single layer."""
        one = sum(self.graph.nodes[name]["rank"] > 1 for name in names) < 2
        ways = {self.apart.get(name, "") for name in names} - {""}
        return f", {min(ways)}" if one and ways else ""

    def common(self) -> set[Hashable]:
        """Kinds, whatever their words, of which a list has several or one that is at no end."""
        found: set[Hashable] = set()
        for items in self.lists.values():
            row = [self.kinds[item].bare for item in items]
            found |= {kind for at, kind in enumerate(row) if kind in row[:at]}
            found |= set(row[1:-1])
        return found

    def fuller(self) -> dict[tuple[Hashable, Hashable], tuple[int, int]]:
        """Return how often kinds are in one list that hold what another has and more, and that
        other.
        """
        found: Counter[tuple[Hashable, Hashable, int]] = Counter()
        for items in self.lists.values():
            row = Counter(self.kinds[item] for item in items)
            for full, lacking in permutations(row, 2):
                if lacking.within(full):
                    for which, kind in enumerate((full, lacking)):
                        found[full.bare, lacking.bare, which] += row[kind]
        return {(b, a): (found[b, a, 0], found[b, a, 1]) for b, a, _ in found}

    def open_stages(self, opening: set[Hashable]) -> None:
        """Cut lists into stages at each item of some kinds, and make one kind of their items.

        In a list that goes on through stages, the first block of a stage has a shortcut, or the
        last one a layer behind all that the others have, which leads to the next stage.
        """
        for around, items in self.lists.items():
            row = [self.kinds[item] for item in items]
            full = [kind for kind in row if kind.bare in opening]
            stage = 0
            for at, (item, kind) in enumerate(zip(items, row, strict=True)):
                special = kind.bare in opening
                closes = special and self._ends_in_more(item, row)
                stage += at > 0 and special and not closes
                if full:
                    self.stages[item] = (*around, f"stage {stage}")
                    self.kinds[item] = full[0]
                stage += closes

    def _ends_in_more(self, item: Path, row: Sequence[Kind]) -> bool:
        """Tell whether what an item holds beyond others of its list is behind all they hold."""
        import networkx as nx

        lacking = [kind for kind in row if kind.within(self.kinds[item])]
        shared = set().union(*({place for place, _ in kind.holds} for kind in lacking))
        held = [name for name in self.names if self.parts[name][: len(item)] == item]
        more = {n for n in held if self._words(self.parts[n][len(item) :]) not in shared}
        others = set(held) - more
        return bool(more) and all(
            others <= nx.ancestors(self.graph, site)
            for name in more
            for site in sites(self.graph, name)
        )

    def join_alike(self) -> None:
        """Give blocks of a list the kind of the fullest there that holds mostly the same."""
        for items in self.lists.values():
            kinds = [self.kinds[item] for item in items]
            if any(len(rest) < 2 for kind in kinds for rest, _ in kind.holds):
                continue  # single layers, of which one may have a bias
            for item in items:
                like = [kind for kind in kinds if kind.like(self.kinds[item])]
                self.kinds[item] = max(like, key=lambda kind: len(kind.holds))

    def rows(self) -> Iterator[tuple[list[Path], list[Hashable]]]:
        """Return the items of each list, and their kinds whatever their words."""
        for items in self.lists.values():
            yield list(items), [self.kinds[item].bare for item in items]

    def go_round(self, rounds: Collection[tuple[Hashable, ...]]) -> None:
        """Tell items apart that are of one kind and at different places of a round of kinds."""
        for items, row in self.rows():
            for around in rounds:
                if is_round(row, around):
                    for at, item in enumerate(items):
                        kind, k = self.kinds[item], at % len(around)
                        self.kinds[item] = replace(kind, end=f"{kind.end}, {k} of {len(around)}")
                    break

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


def is_round(row: Sequence[Hashable], around: tuple[Hashable, ...]) -> bool:
    """Tell whether a row of kinds is a number of rounds."""
    times, over = divmod(len(row), len(around))
    return times > 0 and not over and tuple(row) == around * times


def shares_by_families(base: Families, target: Families, flow: Flow) -> Shares:
    """Shares of the families that answer to one another, and of their members in order."""
    common = base.common() | target.common()
    for families in (base, target):
        families.join_ends(common)
    found: Shares = defaultdict(dict)
    for one, other in _pairs(base, target, flow):
        levels: set[Level] = {k for m in (*one.members, *other.members) for k in m.copies}
        for name, answer, share in overlaps(one.members, other.members, sorted(levels, key=str)):
            found[name][answer] = share
    return found


def _pairs(base: Families, target: Families, flow: Flow) -> list[tuple[Family, Family]]:
    """Families that answer to one another, those with most in common first."""
    scored = []
    base_words, target_words = [_unwrapped(f.found) for f in (base, target)]
    own = _by_own(base), _by_own(target)
    surroundings = [
        [flow.around(side, (m.name for m in family.members)) for family in families.found]
        for side, families in enumerate((base, target))
    ]
    for signature in own[0].keys() & own[1].keys():
        for i in own[0][signature]:
            for j in own[1][signature]:
                around = in_common(surroundings[0][i], surroundings[1][j])
                named = base_words[i] == target_words[j]
                near = 1 - abs(i / len(base.found) - j / len(target.found))
                scored.append((around + named / 2 + near / 16, i, j))
    taken: tuple[set[int], set[int]] = set(), set()
    pairs = []
    for _, i, j in sorted(scored, reverse=True):
        if i not in taken[0] and j not in taken[1]:
            taken[0].add(i)
            taken[1].add(j)
            pairs.append((base.found[i], target.found[j]))
    return pairs


def _by_own(families: Families) -> Mapping[Hashable, list[int]]:
    """Families by what their first parameter is by itself."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for index, family in enumerate(families.found):
        a = families.graph.nodes[family.members[0].name]
        found[a["rank"], a["op"], a["slot"].partition("[")[0]].append(index)
    return found


def _unwrapped(families: list[Family]) -> list[Path]:
    """Return the words of families without what surrounds all, as ``module.`` does."""
    words = [family.words for family in families]
    while (
        len({w[0] for w in words}) == 1 and all(len(w) > 1 for w in words) and words[0][0] != ITEM
    ):
        words = [w[1:] for w in words]
    return words


def in_items(names: Iterable[str]) -> bool:
    """Tell whether all names are in items of one list, which may be a wrapper of the whole model.

    >>> in_items(["0.embed.weight", "0.head.weight"]), in_items(["embed.weight"])
    (True, False)
    """
    return all(name.partition(".")[0].isdigit() for name in names)


def _share_an_item(names: Collection[Path]) -> bool:
    """Tell whether all names, in parts, go on within one and the same item."""
    first = {parts[0] for parts in names if len(parts) > 1 and parts[0].startswith(ITEM)}
    return len(first) == 1 and all(len(parts) > 1 and parts[0] in first for parts in names)


def _parts(name: str, numbered: bool) -> Path:
    """Return a name in parts; places in lists begin with ``"#"``, which tells them from words."""
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
