"""Mass says how copies of base parameters share out theirs to copies in the target."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from flerm_fx.align.overlay import Link
from flerm_fx.align.readouts import WeightPath
from flerm_fx.align.repeats import Address, Folded

if TYPE_CHECKING:
    import networkx as nx

Shares = dict[str, dict[str, Fraction]]
"""Of each base parameter, by target parameter."""

Level = Hashable  # a run of copies, or two that answer to one another
_COUNTED = "counted"  # the level of copies that are counted through
Copies = dict[Level, tuple[int, int]]  # which copy of how many, at each level of runs


@dataclass(frozen=True)
class Member:
    """A ``Member`` is one copy of a parameter's use, and says which copy of how many it is at each
    level.
    """

    name: str
    copies: Copies


class Uses(NamedTuple):
    """``Uses`` holds uses of both sides that answer to one another, at one place of a block."""

    givers: list[Member]
    takers: list[Member]
    levels: list[Level]  # of runs that they lie in, the outermost first


def uses(base: Folded, target: Folded, links: Sequence[Link]) -> Iterator[Uses]:
    """Return what is linked, with its copies; runs that hold mostly the same links are one
    level.
    """
    levels, order = _levels(base, target, links)
    import networkx as nx

    ends: nx.Graph = nx.Graph()
    for link in links:
        ends.add_edge(("base", link.base), ("target", link.target), link=link)
    for nodes in nx.connected_components(ends):
        joined = [link for _, _, link in ends.subgraph(nodes).edges(data="link")]
        cuts = [link.counted for link in joined if link.counted is not None]
        for path in dict.fromkeys(path for link in joined for path in link.weights):
            using = [link for link in joined if path in link.weights]
            givers, takers = (
                _members(
                    folded,
                    path,
                    dict.fromkeys(getattr(link, side) for link in using),
                    levels[which],
                    min((cut[which] for cut in cuts), default=None),
                )
                for which, (side, folded) in enumerate((("base", base), ("target", target)))
            )
            runs = {level for member in givers + takers for level in member.copies}
            yield Uses(givers, takers, sorted(runs, key=lambda level: order.get(level, (1, 0))))


def shares(found: Iterable[Uses]) -> Shares:
    r"""Lay the copies of what is linked over each other, in order, and share out their mass.

    Copy i of n covers :math:`[i/n, (i+1)/n)`, copy j of m gets what falls in
    :math:`[j/m, (j+1)/m)`; with nested runs, shares multiply. A parameter with several uses gives
    an equal part at each.

    Returns:
        Shares of each base parameter that has a link; they sum to 1.
    """
    totals: Shares = defaultdict(lambda: defaultdict(Fraction))
    for givers, takers, levels in found:
        for giver, taker, share in overlaps(givers, takers, levels):
            totals[giver][taker] += share
    return {
        giver: {taker: share / sum(row.values()) for taker, share in row.items()}
        for giver, row in totals.items()
    }


def mixed(
    found: Iterable[Uses], places: tuple[Mapping[str, Hashable], Mapping[str, Hashable]]
) -> tuple[frozenset[str], frozenset[str]]:
    """Return parameters taken for copies of ones at other places, in runs of which the sides
    differ.

    Args:
        found: what is linked.
        places: of the base's parameters, and of the target's, where they are known.
    """
    crossed: tuple[set[str], set[str]] = set(), set()
    for givers, takers, levels in found:
        if all(
            len({p.get(m.name) for m in side}) < 2
            for side, p in zip((givers, takers), places, strict=True)
        ):
            continue
        for level in levels:
            if len({m.copies.get(level, (0, 1))[1] for m in (*givers, *takers)}) < 2:
                continue
            for which, side in enumerate((givers, takers)):
                beside: dict[Hashable, list[str]] = defaultdict(list)
                for member in side:
                    rest = frozenset((k, at) for k, at in member.copies.items() if k != level)
                    beside[rest].append(member.name)
                for names in beside.values():
                    if len({places[which].get(name) for name in names}) > 1:
                        crossed[which].update(names)
    return frozenset(crossed[0]), frozenset(crossed[1])


def _levels(
    base: Folded, target: Folded, links: Sequence[Link]
) -> tuple[tuple[dict[object, Level], dict[object, Level]], dict[Level, tuple[int, int]]]:
    """Return the level that each run stands for, on both sides, and the order of levels, outermost
    first.

    Runs that hold mostly the same links, by the ratio of those in both to those in either, are one
    level.
    """
    size: tuple[Counter[object], Counter[object]] = Counter(), Counter()
    depth: dict[object, int] = {}
    both: Counter[tuple[object, object]] = Counter()
    for link in links:
        found = []
        for which, (folded, node) in enumerate(((base, link.base), (target, link.target))):
            cut = link.counted[which] if link.counted is not None else None
            inside = {
                run: at
                for _, address in folded.places[node]
                for at, (run, _, _) in enumerate(address[:cut])
            }
            found.append(inside)
            size[which].update(inside.keys())
            depth.update(inside)
        both.update((r, s) for r in found[0] for s in found[1])
    closeness = {
        (r, s): (number / (size[0][r] + size[1][s] - number), -abs(depth[r] - depth[s]))
        for (r, s), number in both.items()
    }
    of: tuple[dict[object, Level], dict[object, Level]] = ({r: r for r in size[0]}, {})
    for r, s in sorted(closeness, key=closeness.__getitem__, reverse=True):
        if s not in of[1] and r not in of[1].values():
            of[1][s] = r
    for s in size[1]:
        of[1].setdefault(s, s)
    order: dict[Level, tuple[int, int]] = {}
    for which in (0, 1):
        for run, level in of[which].items():
            held = max(size[which][run], -order.get(level, (0, 0))[0])
            order[level] = (-held, depth[run])
    return of, order


def _members(
    folded: Folded,
    path: WeightPath,
    kept: Iterable[str],
    levels: dict[object, Level],
    cut: int | None,
) -> list[Member]:
    """Return all uses of a parameter, or of those linked together, with the copies that they lie
    in.
    """
    places = [place for node in kept for place in folded.places[node]]
    places.sort(key=lambda place: folded.order[place[0]])
    counted = Counter(address[:cut] for _, address in places)
    seen: Counter[Address] = Counter()
    members = []
    for junction, address in places:
        outer = address[:cut]
        copies: Copies = {levels[run]: (copy, number) for run, copy, number in outer}
        if cut is not None:
            copies[_COUNTED] = seen[outer], counted[outer]
            seen[outer] += 1
        members.append(Member(folded.weights(junction)[path], copies))
    return members


def overlaps(
    givers: Sequence[Member], takers: Sequence[Member], levels: Sequence[Level]
) -> Iterator[tuple[str, str, Fraction]]:
    """Shares of givers by takers: the product over nested levels, outermost first."""
    if not levels:
        for from_one in givers:
            for to_one in takers:
                yield from_one.name, to_one.name, Fraction(1, len(takers))
        return
    level, *inner = levels
    given: dict[tuple[int, int], list[Member]] = defaultdict(list)
    taken: dict[tuple[int, int], list[Member]] = defaultdict(list)
    for member in givers:
        given[member.copies.get(level, (0, 1))].append(member)
    for member in takers:
        taken[member.copies.get(level, (0, 1))].append(member)
    numbers = {m for _, m in taken}
    for (i, n), from_copy in given.items():
        parts = {
            (j, m): Fraction(min((i + 1) * m, (j + 1) * n) - max(i * m, j * n), n * m)
            for m in numbers
            for j in range(i * m // n, -(-(i + 1) * m // n))
            if (j, m) in taken
        }
        whole = sum(parts.values())
        for copy, part in parts.items():
            for giver, taker, share in overlaps(from_copy, taken[copy], inner):
                yield giver, taker, share * part / whole


def by_target(laid: Shares) -> Shares:
    """Return the same shares, of each target parameter by base parameter.

    >>> by_target({"b": {"t": Fraction(1, 2), "u": Fraction(1, 2)}})["u"]
    {'b': Fraction(1, 2)}
    """
    found: Shares = defaultdict(dict)
    for base, row in laid.items():
        for target, share in row.items():
            found[target][base] = share
    return found
