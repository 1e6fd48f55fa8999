"""Among several readings of two graphs, the evidence chooses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import product
from typing import TYPE_CHECKING

from flerm_fx.align.cuts import alike_joined, rounds_in_both, stages_opened
from flerm_fx.align.doubts import Doubt
from flerm_fx.align.ends import Ends
from flerm_fx.align.evidence import Evidence, matched
from flerm_fx.align.families import Families, in_items, shares_by_families
from flerm_fx.align.isomorphism import isomorphism
from flerm_fx.align.mass import Shares, mixed, shares, uses
from flerm_fx.align.overlay import Link, links
from flerm_fx.align.parameter_graph import parameters
from flerm_fx.align.reading import Reading, Way
from flerm_fx.align.readouts import WeightPath
from flerm_fx.align.repeats import Folded, fold_alike
from flerm_fx.align.unsure import unsure

if TYPE_CHECKING:
    import networkx as nx

AS_GOOD = 1e-3
"""Relative difference of scores within which the evidence does not decide."""

_WAYS: tuple[Way, ...] = ((False, True), (True, True), (False, False))
"""Whether runs may be without a fork, and whether runs are folded.

Without a fork late, since beside residual blocks two norms are no repeated block; without runs at
all where these are not exact, as with one block a stage in some stages.
"""


_Cut = Callable[[Families, Families], bool]

_CUTS: tuple[_Cut, ...] = (rounds_in_both, stages_opened, lambda base, target: True)
"""What is done to the lists of both sides, if anything is to be done there."""


def by_structure(b: nx.DiGraph, t: nx.DiGraph) -> tuple[Shares, dict[str, Doubt]]:
    """Shares by the reading of two graphs that has most evidence, and what is in doubt about it.

    Equal graphs are paired. Otherwise repeats in the data flow are taken if nothing speaks against
    what follows from them. If something does, and families of the module tree can be laid over
    each other as a whole, that reading of either sort is taken that matches most parameters and has
    the best score (:class:`flerm_fx.align.evidence.Evidence`). If they cannot, as where names have
    no tree, it is the reading by repeats that leaves fewest parameters over.
    """
    evidence = Evidence(b, t)
    # Kinds first: they tell an RMSNorm's weight from another factor, but classes get renamed.
    for kinds in (True, False):
        pairs = isomorphism(b, t, kinds)
        if pairs is not None:
            laid: Shares = {
                name: {other: Fraction(1)}
                for other, name in pairs.items()
                if not t.nodes[other].get("junction")
            }
            return laid, evidence.doubts(laid)
    first = _by_flow(b, t, True, _WAYS[0])
    if first.exact and not first.in_time and evidence.is_clean(first.shares):
        return first.shares, evidence.doubts(first.shares, mixed=first.mixed)
    # Without runs, O(T²): only for where these do not go round.
    ways = _WAYS[1:2] if first.exact and evidence.is_whole(first.shares) else _WAYS[1:]
    flow = [first, *(_by_flow(b, t, True, way) for way in ways)]
    tree: list[Reading] = []
    # A list of one item may have to stand for those at the ends as well, or for all like it.
    for told, cuts in ((evidence.ends, _CUTS), (None, _CUTS), (None, (alike_joined,))):
        if not tree:
            readings = _by_tree(b, t, evidence, told, cuts)
            tree = [reading for reading in readings if evidence.is_whole(reading.shares)]
    if not any(evidence.is_whole(reading.shares) for reading in (*flow, *tree)):
        flow += (_by_flow(b, t, False, way) for way in _WAYS)

    def score(reading: Reading) -> tuple[float, float]:
        return matched(reading.shares), evidence.score(reading.shares, reading.in_time)

    every = [*tree, *flow]
    scores = [score(reading) for reading in every]
    best = max(every, key=_fewest_over) if not tree else every[scores.index(max(scores))]
    number, value = scores[every.index(best)]
    others = [
        reading.shares
        for reading, (other, as_good) in zip(every, scores, strict=True)
        if other == number and as_good > value * (1 - AS_GOOD)
    ]
    if not tree:
        other = _by_flow(b, t, True, best.way, otherwise=True)
        others += [other.shares] * (_fewest_over(other) == _fewest_over(best))
    doubts = evidence.doubts(
        best.shares,
        others,
        mixed=best.mixed,
        by_tree=best.by_tree,
        unsure={} if tree else unsure(best, evidence),
    )
    return best.shares, doubts


def _fewest_over(reading: Reading) -> tuple[int, bool, bool]:
    """Return how good a reading by the data flow is where the module tree has no say."""
    return matched(reading.shares), reading.exact, not reading.exact and not reading.way[1]


def _by_flow(
    b: nx.DiGraph, t: nx.DiGraph, kinds: bool, way: Way, *, otherwise: bool = False
) -> Reading:
    bare, fold = way
    folded = fold_alike(b, t, kinds=kinds, bare=bare, fold=fold, otherwise=otherwise)
    linked = links(*folded)
    found = list(uses(*folded, linked))
    return Reading(
        shares(found),
        exact=all(link.counted is None for link in linked),
        way=way,
        in_time=_in_time(*folded, linked),
        mixed=mixed(found, (folded[0].in_lists, folded[1].in_lists)),
        unforked=(folded[0].unforked(), folded[1].unforked()),
        listed=bool(folded[0].in_lists or folded[1].in_lists),
    )


def _by_tree(
    b: nx.DiGraph,
    t: nx.DiGraph,
    evidence: Evidence,
    ends: tuple[Ends, Ends] | None,
    cuts: Sequence[_Cut],
) -> Iterator[Reading]:
    # What one side alone has around all of it is a wrapper; on both it may be a list of blocks.
    around = [in_items(name for name in parameters(pg) if pg.nodes[name]["op"]) for pg in (b, t)]
    wrapped = [own and not other for own, other in (around, reversed(around))]
    for numbered, cut in product((False, True), cuts):
        one, other = (
            Families(pg, numbered=numbered, ends=told, apart=way if told else None, wrapped=own)
            for pg, told, way, own in zip(
                (b, t), ends or (None, None), evidence.apart, wrapped, strict=True
            )
        )
        if numbered and (one.in_one_list or other.in_one_list):
            continue  # as with p1.weight, p2.weight, … for all layers of whatever kind
        if cut(one, other):
            yield Reading(shares_by_families(one, other, evidence.flow), by_tree=True)


def _in_time(base: Folded, target: Folded, linked: Sequence[Link]) -> frozenset[str]:
    """Return the base parameters of links where either side has several uses of one in the same
    way.
    """
    uses: Counter[tuple[int, str, WeightPath, str]] = Counter()
    sides = base, target
    kept = [dict.fromkeys(getattr(link, side) for link in linked) for side in ("base", "target")]
    for which, folded in enumerate(sides):
        for node in kept[which]:
            for place, _ in folded.places[node]:
                uses.update(
                    (which, folded.op(place), path, name)
                    for path, name in folded.weights(place).items()
                )
    again = {(which, name) for (which, _, _, name), number in uses.items() if number > 1}
    found: set[str] = set()
    for link in linked:
        for path in link.weights:
            names = [
                {folded.weights(node)[path] for node, _ in folded.places[own]}
                for folded, own in zip(sides, (link.base, link.target), strict=True)
            ]
            if any((which, name) in again for which in (0, 1) for name in names[which]):
                found |= names[0]
    return frozenset(found)
