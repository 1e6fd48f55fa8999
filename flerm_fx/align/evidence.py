"""Evidence says what speaks for a matching of two parameter graphs, as one score, and what
against.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from flerm_fx.align.apart import Apart, apart, knows_nonlinearities
from flerm_fx.align.doubts import Doubt
from flerm_fx.align.ends import Ends
from flerm_fx.align.isomorphism import neighbourhoods
from flerm_fx.align.lists import in_each_list
from flerm_fx.align.mass import Shares, by_target
from flerm_fx.align.parameter_graph import on_data, parameters, sites
from flerm_fx.align.places import Place, places, stem
from flerm_fx.align.rounds import out_of_round
from flerm_fx.align.torn import torn
from flerm_fx.align.uneven import uneven

if TYPE_CHECKING:
    import networkx as nx

RADIUS = 5
"""Edges to both sides that the surroundings of a parameter reach: a norm, what it feeds, a shortcut
and the neighbours of these."""


Around = list[set[int]]
"""Labels of surroundings, at each radius."""


class Flow:
    """A ``Flow`` says how alike the surroundings of parameters of two graphs are, whatever they are
    called.
    """

    def __init__(self, base: nx.DiGraph, target: nx.DiGraph) -> None:
        rounds = neighbourhoods((base, target), RADIUS)
        names = parameters(base), parameters(target)
        self.graphs = base, target
        self.base, self.target = (
            {name: tuple(labels[side][name] for labels in rounds) for name in names[side]}
            for side in (0, 1)
        )

    def of_parameters(self, base: str, target: str) -> float:
        """Return the share of radii up to which their surroundings are the same."""
        one, other = self.base[base], self.target[target]
        return sum(a == b for a, b in zip(one, other, strict=True)) / RADIUS

    def reads_alike(self, base: str, target: str) -> bool:
        """Tell whether what reads two parameters reads and is read by the same operations."""
        return _neighbours(self.graphs[0], base) == _neighbours(self.graphs[1], target)

    def around(self, side: int, names: Iterable[str]) -> Around:
        """Return the surroundings of a family of the base (0) or the target (1), at each radius."""
        labels = (self.base, self.target)[side]
        return [set(found) for found in zip(*(labels[name] for name in names), strict=True)]


def in_common(one: Around, other: Around) -> float:
    """Return how much the surroundings of two families have in common, as an average over radii."""
    return sum(len(a & b) / len(a | b) for a, b in zip(one, other, strict=True)) / RADIUS


class Evidence:
    r"""An ``Evidence`` says what speaks for and against ways to lay a base over a target.

    A pair of a base parameter b and a target parameter t agrees by

    .. math:: a_{bt} = \tfrac14 \bigl(1 + \mathrm{flow}_{bt} + \mathrm{kind}_{bt}
              + \mathrm{place}_{bt}\bigr)

    where flow is how far to both sides the graphs around the two are the same, kind is 1 if the
    classes of their modules are, and place is how purely places in the module tree answer to
    places: the share of the mass of b's masked name that goes to t's, times the share of what t's
    gets that comes from b's, and 0 where t is torn from its block
    (:func:`flerm_fx.align.torn.torn`) or equal blocks get unequal parts
    (:func:`flerm_fx.align.uneven.uneven`) or kinds of blocks that take turns are crossed
    (:func:`flerm_fx.align.rounds.out_of_round`) or a layer that stands apart from those of its list
    is taken for one of them (:func:`flerm_fx.align.apart.apart`). The words of names are not
    compared, so renaming changes none of the three. The score of a matching is

    .. math:: \sum_{b,t} \mathrm{share}_{bt} \Bigl(1 + \frac{1}{\sum_{b'}
              \mathrm{share}_{b't}}\Bigr) a_{bt}

    which is the number of parameters, of both sides, that are matched, each times its agreement. A
    parameter whose copies are in time, as in a recurrence that is unrolled, agrees by 1/4 alone:
    how often a sample makes it repeat says nothing of depth.
    """

    def __init__(self, base: nx.DiGraph, target: nx.DiGraph) -> None:
        self.base = base
        self.target = target
        self.number = len(parameters(base)) + len(parameters(target))
        self.places = places(base), places(target)
        self.kinds = tuple({pg.nodes[n]["kind"] for n in parameters(pg)} for pg in (base, target))

    @cached_property
    def flow(self) -> Flow:
        """How alike surroundings are."""
        return Flow(self.base, self.target)

    def score(self, laid: Shares, in_time: Collection[str] = ()) -> float:
        """Return the number of parameters that are matched, each times its agreement.

        Args:
            laid: the matching.
            in_time: base parameters of which it takes several uses for copies.
        """
        taken: dict[str, float] = defaultdict(float)
        for row in laid.values():
            for t, share in row.items():
                taken[t] += float(share)
        pure, places = self._purity(laid), self.places
        against = torn(laid) | self._uneven(laid) | out_of_round(laid) | self._out_of_row(laid)
        total = 0.0
        for b, row in laid.items():
            for t, share in row.items():
                agreement = 1.0
                if b not in in_time:
                    agreement += self.flow.of_parameters(b, t) + self._same_kind(b, t)
                    agreement += 0.0 if t in against else pure[places[0][b], places[1][t]]
                total += float(share) * (1 + 1 / taken[t]) * agreement / 4
        return total

    def is_whole(self, laid: Shares) -> bool:
        """Tell whether all parameters of both sides are matched."""
        return matched(laid) == self.number

    def is_clean(self, laid: Shares) -> bool:
        """Tell whether all are matched, and nothing speaks against any of the pairs."""
        if not self.is_whole(laid):
            return False
        if (
            any(p < 1 - 1e-9 for p in self._purity(laid).values())
            or torn(laid)
            or self._uneven(laid)
            or out_of_round(laid)
            or self._out_of_row(laid)
        ):
            return False
        return not any(self._against(b, t) for b, row in laid.items() for t in row)

    def doubts(
        self,
        laid: Shares,
        others: Sequence[Shares] = (),
        *,
        mixed: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset()),
        by_tree: bool = False,
        unsure: Mapping[str, str] | None = None,
    ) -> dict[str, Doubt]:
        """Return what speaks against a matching, by target parameter.

        Args:
            laid: the matching.
            others: others that the evidence speaks for as well.
            mixed: base and target parameters that it takes for copies of ones elsewhere in the
                module tree.
            by_tree: whether it follows from the module tree, so that the data flow may differ.
            unsure: what else speaks against target parameters.
        """
        answers = by_target(laid)
        alternatives = [by_target(other) for other in others]
        found: dict[str, Doubt] = {}
        counted: set[str] = set()
        torn_off, unequal, crossed = torn(laid), self._uneven(laid), out_of_round(laid)
        out_of_row = self._out_of_row(laid)
        beside = {t for row in laid.values() if not out_of_row.isdisjoint(row) for t in row}
        by_place: dict[Hashable, list[str]] = defaultdict(list)
        for name, place in self.places[0].items():
            by_place[place].append(name)
        for t, base in answers.items():
            names = tuple(base)
            reason = next((why for b in names if (why := self._against(b, t))), "")
            if not reason and t in beside:
                reason = "a layer that stands apart from the others of its list is taken for one"
            if not reason and t in torn_off:
                reason = "others of its block answer to other blocks"
            if not reason and t in unequal:
                reason = "blocks that hold the same get unequal shares"
            if not reason and t in crossed:
                reason = "blocks of its list are of several kinds in turn, and it crosses them"
            alone = len(names) == len(laid[names[0]]) == 1
            unknown = not alone and not any(any(self._crossing(b, t)) for b in names)
            if not reason and unknown and (t in mixed[1] or not mixed[0].isdisjoint(names)):
                reason = "it is taken for a copy of what is elsewhere in the module tree"
                counted.add(t)
            if not reason and unsure and t in unsure:
                reason = unsure[t]
                counted.add(t)
            if not reason and by_tree and alone and not self.flow.reads_alike(names[0], t):
                reason = "the data flow around the two differs"
            if reason:
                like = tuple(n for n in by_place[self.places[1][t]] if n not in names)
                found[t] = Doubt(t, names, reason, like)
                continue
            for other in alternatives:
                if other.get(t, base) != base:
                    instead = tuple(other[t])
                    reason = "structure allows several matchings"
                    found[t] = Doubt(t, names, reason, instead)
                    break
        for t in _together(counted, laid) - found.keys():
            reason = "of its list, or of what shares with it, some may be copies of others"
            found[t] = Doubt(t, tuple(answers[t]), reason)
        return found

    def _uneven(self, laid: Shares) -> frozenset[str]:
        return uneven(laid, lambda names: self.ends[1].which(names) != "inner", self._alike)

    def _alike(self, names: Collection[str]) -> bool:
        """Tell whether target parameters are of matrices or biases of one sort, and what they give
        meets other data in one way.

        What the next layer reads is told from what the head reads by nothing but its place, and
        lists of norms may hold one that is behind all blocks.
        """
        pg = self.target
        sorts: set[Hashable] = set()
        uses: list[set[Hashable]] = []
        for name in names:
            for site in sites(pg, name):
                read = [pg.nodes[u] for u in pg.pred[site] if not on_data(pg, u)]
                readers = {v: str(slot) for _, v, slot in pg.out_edges(site, data="slot")}
                layers = [v for v in readers if any(not on_data(pg, u) for u in pg.pred[v])]
                if layers or not any(a.get("rank", 0) > 1 for a in read):
                    return False
                uses.append({(pg.nodes[v]["op"], s.partition("[")[0]) for v, s in readers.items()})
                sorts.add(tuple(pg.nodes[name][key] for key in ("kind", "op", "slot", "rank")))
        return len(sorts) == 1 and set().union(*uses) in uses

    @cached_property
    def apart(self) -> tuple[Apart, Apart]:
        """How layers of lists stand apart from the others of their list, of base and target."""
        closing = knows_nonlinearities(self.base) and knows_nonlinearities(self.target)
        return apart(self.base, closing=closing), apart(self.target, closing=closing)

    def _out_of_row(self, laid: Shares) -> frozenset[str]:
        """Return the target parameters in lists of layers that answer to ones that stand apart
        otherwise, although both models have both.
        """
        base, target = self.apart
        ways = set(base.values()) & set(target.values())
        return frozenset(
            t
            for b, row in laid.items()
            for t in row
            if base.get(b, "") != target.get(t, "") and {base.get(b, ""), target.get(t, "")} <= ways
        )

    @cached_property
    def ends(self) -> tuple[Ends, Ends]:
        """The ends of the data flow, of base and target."""
        return Ends(self.base), Ends(self.target)

    def _against(self, b: str, t: str) -> str:
        """Return what speaks against a pair; empty if nothing does."""
        one, other = self.places[0][b], self.places[1][t]
        tied = self._is_tied(b, t)
        crossing = self._crossing(b, t)
        if one != other and (all(crossing) if tied else any(crossing)):
            stems = stem(one), stem(other)
            if stems[0] != stems[1] or self._numbers[0][stems[0]] == self._numbers[1][stems[0]]:
                return "their names differ in more than the places of blocks"
        kinds = self.base.nodes[b]["kind"], self.target.nodes[t]["kind"]
        if (
            not tied
            and kinds[0] != kinds[1]
            and kinds[0] in self.kinds[1]
            and kinds[1] in self.kinds[0]
        ):
            return f"their modules are a {kinds[0]} and a {kinds[1]}"
        return ""

    def _crossing(self, b: str, t: str) -> tuple[bool, bool]:
        """Tell whether either model has the place of the other's parameter."""
        return self.places[0][b] in self._known[1], self.places[1][t] in self._known[0]

    @cached_property
    def _known(self) -> tuple[set[Place], set[Place]]:
        return set(self.places[0].values()), set(self.places[1].values())

    @cached_property
    def _numbers(self) -> tuple[dict[Place, set[Place]], dict[Place, set[Place]]]:
        """Places of each side by what is left of them without any numbers."""
        found: tuple[dict[Place, set[Place]], ...] = defaultdict(set), defaultdict(set)
        for side, known in enumerate(self._known):
            for place in known:
                found[side][stem(place)].add(place)
        return found[0], found[1]

    def _is_tied(self, b: str, t: str) -> bool:
        """Tell whether one of two has several uses, of which the other may have one."""
        return bool(self.base.nodes[b]["uses"] > 1 or self.target.nodes[t]["uses"] > 1)

    def _same_kind(self, b: str, t: str) -> bool:
        return bool(self.base.nodes[b]["kind"] == self.target.nodes[t]["kind"])

    def _purity(self, laid: Shares) -> dict[tuple[Hashable, Hashable], float]:
        """Return how purely places answer to places, for each pair of them."""
        mass: dict[tuple[Hashable, Hashable], float] = defaultdict(float)
        for b, row in laid.items():
            for t, share in row.items():
                mass[self.places[0][b], self.places[1][t]] += float(share)
        given: dict[Hashable, float] = defaultdict(float)
        taken: dict[Hashable, float] = defaultdict(float)
        for (one, other), part in mass.items():
            given[one] += part
            taken[other] += part
        return {
            (one, other): part / given[one] * part / taken[other]
            for (one, other), part in mass.items()
        }


def _neighbours(pg: nx.DiGraph, name: str) -> set[Hashable]:
    """Return the operations before and behind those that read a parameter, however often."""
    found: set[Hashable] = set()
    for site in sites(pg, name):
        found |= {("reads", pg.nodes[u]["op"]) for u in pg.pred[site] if on_data(pg, u)}
        found |= {("is read by", pg.nodes[v]["op"]) for v in pg.adj[site]}
    return found


def _together(targets: Collection[str], laid: Shares) -> set[str]:
    """Return target parameters with all that share base parameters with them, and all of the lists
    that these or those are in, on either side.

    Where copies are counted wrongly, what is next to them gets too much or too little.

    >>> from fractions import Fraction
    >>> half = Fraction(1, 2)
    >>> laid = {"h.0": {"p0": half, "p1": half}, "h.1": {"p2": half}, "out": {"p3": half}}
    >>> sorted(_together({"p1"}, laid))
    ['p0', 'p1', 'p2']
    """
    answers = by_target(laid)
    groups: dict[Hashable, set[str]] = defaultdict(set)
    of: dict[str, set[Hashable]] = defaultdict(set)
    for t, row in answers.items():
        lists = [
            (side, at.list)
            for side, names in enumerate((row, [t]))
            for name in names
            for at in in_each_list(name)[:1]
        ]
        for key in (*row, *lists):
            groups[key].add(t)
            of[t].add(key)
    found, pending = set(targets), [*targets]
    while pending:
        fresh = {t for key in of[pending.pop()] for t in groups[key]} - found
        found |= fresh
        pending += fresh
    return found


def matched(laid: Shares) -> int:
    """Return the number of parameters, of both sides, that have a counterpart."""
    return len(laid) + len({t for row in laid.values() for t in row})
