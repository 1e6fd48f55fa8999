"""The overlay says which junctions of one folded parameter graph answer to which of another.

Chains are aligned as sequences, with what one side lacks left out, and so are the chains that hang
from their junctions.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, takewhile
from typing import TypeVar

from flerm_fx.align.items import Item
from flerm_fx.align.readouts import WeightPath
from flerm_fx.align.repeats import Folded
from flerm_fx.ops.table import COMMUTATIVE

_LIKENESS = 2.0**-20
"""What two junctions that are alike add to a score, which counts parameters."""

Depths = tuple[int, int]
"""How far into the addresses of base and target."""

_Pair = tuple[Item, Item]
_Loose = tuple[list[Item], int]  # items at an end of a chain that are not linked, and their depth
_Side = TypeVar("_Side")


@dataclass(frozen=True)
class Link:
    """A ``Link`` holds a kept junction of the base and one of the target that answer to one
    another.

    Attributes:
        base, target: the junctions.
        weights: how the parameters arrive that answer to one another.
        counted: None if the copies of both lie in runs that answer to one another; otherwise the
            depth of their addresses from which on copies are counted through, whatever their runs.
    """

    base: str
    target: str
    weights: tuple[WeightPath, ...]
    counted: Depths | None


def links(base: Folded, target: Folded) -> list[Link]:
    r"""Link the junctions of two folded graphs so that most parameters find a counterpart.

    Two chains are aligned as sequences, in the manner of Needleman and Wunsch, and two junctions by
    the chains that hang from them. Junctions can be linked if they are the same operation, their
    parameters if they arrive there in the same way and agree in rank (and kind, if the graphs were
    folded with kinds). What one side has in addition is left out. Blocks, which are junctions at
    which branches come together, are linked

    - one to one, each for all the copies in its run;
    - several in a row to one, where one side has, say, a single block in each stage, and the
      other has further ones without the first one's shortcut;
    - kind by kind, where both sides alternate between kinds in the same manner, but the pattern
      does not go into the number of blocks;
    - in parallel, where m branches that are alike come together in place of n.

    O(T²) time for two chains of T junctions, counted after repeats are folded.
    """
    return _Linking(base, target).links


class _Linking:
    def __init__(self, base: Folded, target: Folded) -> None:
        self.base = base
        self.target = target
        self.links: list[Link] = []
        self.scores: dict[tuple[str, int, int], float] = {}
        self.sizes: dict[int, int] = {}
        self.loose: tuple[list[_Loose], list[_Loose]] = [], []
        roots = _greedy((self._chains(a, b), a, b) for a in base.roots for b in target.roots)
        for _, a, b in roots:
            self._follow(base.items[a], target.items[b], None, (0, 0))
        for which, folded in enumerate((base, target)):
            linked = {pair[1 + which] for pair in roots}
            for head in folded.roots:
                if head not in linked:
                    self._join(which, folded.items[head])

    # Scores: how many parameters find a counterpart, and a little for likeness.

    def _chains(self, a: str, b: str) -> float:
        key = "chain", self.base.labels[a], self.target.labels[b]
        if key not in self.scores:
            self.scores[key], _ = self._aligned(self.base.items[a], self.target.items[b])
        return self.scores[key]

    def _items(self, a: Item, b: Item) -> float:
        """Score of two junctions; negative if they cannot be linked."""
        key = "item", a.label, b.label
        if key not in self.scores:
            self.scores[key] = -1.0
            if self.base.op(a.node) == self.target.op(b.node):
                weights = len(self._weights(a, b))
                alike = 1 + weights * (a.label == b.label)
                branches = sum(score for score, _, _ in self._branches(a, b))
                self.scores[key] = weights + alike * _LIKENESS + branches
        return self.scores[key]

    def _size(self, folded: Folded, item: Item) -> int:
        """Return the number of parameters of a junction and all that hangs from it."""
        if item.label not in self.sizes:
            hanging = (i for head in folded.branches[item.node] for i in folded.items[head])
            inside = sum(self._size(folded, other) for other in hanging)
            self.sizes[item.label] = len(folded.weights(item.node)) + inside
        return self.sizes[item.label]

    def _weights(self, a: Item, b: Item) -> list[WeightPath]:
        arrived = self.base.weights(a.node)
        return [
            path
            for path, name in self.target.weights(b.node).items()
            if path in arrived and self._alike(arrived[path], name)
        ]

    def _alike(self, a: str, b: str) -> bool:
        one, other = self.base.pg.nodes[a], self.target.pg.nodes[b]
        kinds = not self.base.kinds or one["kind"] == other["kind"]
        return bool(one["rank"] == other["rank"] and kinds)

    def _branches(self, a: Item, b: Item) -> list[tuple[float, tuple[str, ...], tuple[str, ...]]]:
        """Branches of two junctions that answer to one another, equal ones together."""
        anywhere = self.base.op(a.node) in COMMUTATIVE
        return _greedy(
            (min(len(one), len(other)) * score + _LIKENESS * (s == t), one, other)
            for s, one in self.base.equal_branches(a.node)
            for t, other in self.target.equal_branches(b.node)
            if (s == t or anywhere) and (score := self._chains(one[0], other[0])) > 0
        )

    # Sequences

    def _aligned(self, a: Sequence[Item], b: Sequence[Item]) -> tuple[float, list[_Pair]]:
        """Return the best alignment of two chains: its score, and the pairs in it.

        ``best[i][j]`` is the score of the first i and j items, ``ends[i][j]`` that of alignments
        that end in a pair of items i - 1 and j - 1. An item can be paired again with its
        neighbour's partner if both are blocks, and all its parameters then have a counterpart;
        these count half.
        """
        best = [[0.0] * (len(b) + 1) for _ in range(len(a) + 1)]
        ends = [[-1.0] * (len(b) + 1) for _ in range(len(a) + 1)]
        steps: dict[tuple[int, int], tuple[int, int]] = {}
        for i, x in enumerate(a, 1):
            for j, y in enumerate(b, 1):
                score = self._items(x, y)
                if score >= 0:
                    ways = [(best[i - 1][j - 1] + score, (1, 1))]
                    if x.forked and y.forked:
                        if ends[i][j - 1] >= 0 and score >= self._size(self.target, y):
                            ways.append((ends[i][j - 1] + score / 2, (0, 1)))
                        if ends[i - 1][j] >= 0 and score >= self._size(self.base, x):
                            ways.append((ends[i - 1][j] + score / 2, (1, 0)))
                    ends[i][j], steps[i, j] = max(ways, key=lambda way: way[0])
                best[i][j] = max(ends[i][j], best[i - 1][j], best[i][j - 1])
        pairs: list[_Pair] = []
        i, j = len(a), len(b)
        while i and j:
            if ends[i][j] < best[i][j]:
                i, j = (i - 1, j) if best[i - 1][j] == best[i][j] else (i, j - 1)
                continue
            step = (0, 0)
            while step != (1, 1):
                pairs.append((a[i - 1], b[j - 1]))
                step = steps[i, j]
                i, j = i - step[0], j - step[1]
        return best[-1][-1], pairs[::-1]

    # Links

    def _follow(
        self, a: Sequence[Item], b: Sequence[Item], counted: Depths | None, depths: Depths
    ) -> None:
        """Link what answers to one another in two chains at some depths of runs."""
        pairs = self._aligned(a, b)[1]
        linked = {id(item) for pair in pairs for item in pair}
        for which, chain in enumerate((a, b)):
            for ordered in (chain, chain[::-1]):
                end = list(takewhile(lambda x: id(x) not in linked, ordered))
                self.loose[which].append((end if ordered is chain else end[::-1], depths[which]))
        if any(x.forked and id(x) not in linked for x in (*a, *b)) and _alternate_alike(a, b):
            pairs = [(x, y) for x, y in pairs if not x.forked]
            for label in dict.fromkeys(x.label for x in a if x.forked):
                kind = [[x for x in chain if x.forked and x.label == label] for chain in (a, b)]
                for x, y in _connecting(*kind):
                    self._link(x, y, _shallower(counted, depths), depths)
        for row in _rows(_evened(pairs)):
            own = None
            if len(row) > 1:
                own = (
                    self.base.depth_in_common(x.node for x, _ in row),
                    self.target.depth_in_common(y.node for _, y in row),
                )
            for x, y in row:
                self._link(x, y, _shallower(counted, own), depths)

    def _join(self, which: int, stream: list[Item]) -> None:
        """Link a stream of its own to a loose end of the other side's chains.

        An encoder's output is a stream of its own to several decoder layers, and the beginning of
        a chain to a single one; a head is a stream of its own beside another, and alone the end.
        """
        best: tuple[float, _Loose, Depths] = (0.0, ([], 0), (0, 0))
        for end in self.loose[1 - which]:
            pair = (stream, end[0]) if which == 0 else (end[0], stream)
            score, _ = self._aligned(*pair)
            if score > best[0]:
                best = score, end, (0, end[1]) if which == 0 else (end[1], 0)
        score, end, depths = best
        if score > 0:
            self.loose[1 - which].remove(end)
            pair = (stream, end[0]) if which == 0 else (end[0], stream)
            self._follow(*pair, None, depths)

    def _link(self, a: Item, b: Item, counted: Depths | None, depths: Depths) -> None:
        """Link two junctions and what hangs from them."""
        self.links.append(Link(a.node, b.node, tuple(self._weights(a, b)), counted))
        inside = self.base.depth_in_common([a.node]), self.target.depth_in_common([b.node])
        for _, one, other in self._branches(a, b):
            parallel = _shallower(counted, inside if len(one) != len(other) else None)
            for x, y in _connecting(one, other):
                # The next level of a nest lies beside the run of this one, not within it.
                below = (
                    depths[0] if x == a.hole else inside[0],
                    depths[1] if y == b.hole else inside[1],
                )
                self._follow(self.base.items[x], self.target.items[y], parallel, below)


def _evened(pairs: Sequence[_Pair]) -> list[_Pair]:
    """Return the pairs of an alignment, with equal blocks in a row shared out among all of them."""

    def key(pair: _Pair) -> tuple[bool, int, int]:
        return pair[0].forked and pair[1].forked, pair[0].label, pair[1].label

    evened: list[_Pair] = []
    for (forked, one, other), stretch in groupby(pairs, key):
        row = list(stretch)
        if forked and one == other:
            ends = ({id(pair[side]): pair[side] for pair in row}.values() for side in (0, 1))
            row = list(_connecting(*map(list, ends)))
        evened += row
    return evened


def _rows(pairs: Sequence[_Pair]) -> list[list[_Pair]]:
    """Pairs that share items, together."""
    rows: list[list[_Pair]] = []
    held: set[int] = set()
    for pair in pairs:
        ends = {id(item) for item in pair}
        if not ends & held:
            rows.append([])
            held = set()
        rows[-1].append(pair)
        held |= ends
    return rows


def _greedy(scored: Iterable[tuple[float, _Side, _Side]]) -> list[tuple[float, _Side, _Side]]:
    """Pairs of positive score, the best first, nothing in two of them."""
    ranked = sorted(scored, key=lambda entry: -entry[0])
    taken: tuple[set[_Side], set[_Side]] = set(), set()
    chosen = []
    for score, a, b in ranked:
        if score > 0 and a not in taken[0] and b not in taken[1]:
            taken[0].add(a)
            taken[1].add(b)
            chosen.append((score, a, b))
    return chosen


def _connecting(a: Sequence[_Side], b: Sequence[_Side]) -> Iterator[tuple[_Side, _Side]]:
    """Pair one to one for equal numbers, or else so that pairs connect all on both sides."""
    if len(a) == len(b):
        yield from zip(a, b, strict=True)
    else:
        yield from ((a[0], y) for y in b)
        yield from ((x, b[0]) for x in a[1:])


def _shallower(one: Depths | None, other: Depths | None) -> Depths | None:
    if one is None or other is None:
        return one or other
    return min(one[0], other[0]), min(one[1], other[1])


def _alternate_alike(a: Sequence[Item], b: Sequence[Item]) -> bool:
    """Tell whether the blocks of two chains follow each other as in one pattern that goes round."""
    labels = [[x.label for x in _unfolded(items) if x.forked] for items in (a, b)]
    if not all(labels) or set(labels[0]) != set(labels[1]):
        return False
    steps = [set(pairwise(side)) for side in labels]
    round_again = [{*step, (side[-1], side[0])} for step, side in zip(steps, labels, strict=True)]
    return steps[0] <= round_again[1] and steps[1] <= round_again[0]


def _unfolded(items: Sequence[Item]) -> Iterator[Item]:
    """Return the items of a chain with all copies of each run."""
    position = 0
    while position < len(items):
        end = position + 1
        if not items[position].copies:
            yield items[position]
        else:
            while end < len(items) and items[end].run is items[position].run:
                end += 1
            for copy in zip(*(item.copies for item in items[position:end]), strict=True):
                yield from _unfolded(copy)
        position = end
