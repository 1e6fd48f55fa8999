"""Names are evidence for models whose data flow is not known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from flerm_fx.align.lists import Lists, in_each_list
from flerm_fx.align.mass import Level, Member, Shares, overlaps
from flerm_fx.align.parameter_graph import parameters
from flerm_fx.align.places import Words

if TYPE_CHECKING:
    import networkx as nx

Pattern = tuple[str | int, ...]
"""A name in parts, numbers as ``"#"``, with the parameter's rank at the end."""

Numbers = tuple[int, ...]


def shares_by_names(base: nx.DiGraph, target: nx.DiGraph) -> Shares:
    r"""Shares of the parameters whose names agree but for numbers.

    What a run of a model without a graph shows is the order of its modules, and under LayerDrop not
    even that. Parameters of one name and rank but for numbers are copies, at each number among
    those with the same numbers before it, and are laid over each other like other copies (see
    :func:`flerm_fx.align.mass.shares`). What surrounds all names, as ``module.`` does, is left out,
    up to the first number. A number that is a parameter's own module is no evidence if the two
    sides differ in it, in a ``Sequential`` it may be the place of an activation, unless on both
    sides a list of blocks has the same numbers, as a list of norms beside one of convolutions.

    >>> from flerm_fx.align.parameter_graph import chain
    >>> def stack(depth):
    ...     return chain((f"h.{i}.fc.weight", "Linear", "weight", 2) for i in range(depth))
    >>> {name: dict(row) for name, row in shares_by_names(stack(1), stack(2)).items()}
    {'h.0.fc.weight': {'h.0.fc.weight': Fraction(1, 2), 'h.1.fc.weight': Fraction(1, 2)}}
    """
    found: Shares = defaultdict(dict)
    givers, takers = _copies(base), _copies(target)
    kinds = _kinds(base), _kinds(target)
    blocks = _blocks(base), _blocks(target)
    for pattern in givers.keys() & takers.keys():
        ours, theirs = givers[pattern], takers[pattern]
        levels = sum(part == "#" for part in pattern)
        if pattern[-3:-2] == ("#",):
            own = frozenset(n[-1] for n in ours), frozenset(n[-1] for n in theirs)
            if own[0] != own[1] and not all(n in b for n, b in zip(own, blocks, strict=True)):
                continue
        for alike in _by_kind(ours, kinds[0], theirs, kinds[1]):
            one, another = (numbered(side, levels) for side in alike)
            for name, other, share in overlaps(one, another, range(levels)):
                found[name][other] = share
    return found


_Kind = tuple[frozenset[Words], ...]


def _kinds(pg: nx.DiGraph) -> dict[str, _Kind]:
    """Return for each parameter what the items of lists around it hold."""
    held: dict[tuple[Words, int], set[Words]] = defaultdict(set)
    for name in parameters(pg):
        for at in in_each_list(name):
            held[at.list, at.item].add(at.place)
    return {
        name: tuple(frozenset(held[at.list, at.item]) for at in in_each_list(name))
        for name in parameters(pg)
    }


def _blocks(pg: nx.DiGraph) -> set[frozenset[int]]:
    """Return the numbers of the items of each list of which all hold modules."""
    return {
        frozenset(items)
        for items in Lists(parameters(pg)).rests.values()
        if all(any(len(rest) > 1 for rest in held) for held in items.values())
    }


def _by_kind(
    ours: dict[Numbers, str],
    our_kinds: Mapping[str, _Kind],
    theirs: dict[Numbers, str],
    their_kinds: Mapping[str, _Kind],
) -> Iterator[tuple[dict[Numbers, str], dict[Numbers, str]]]:
    """Return copies in items that hold the same, where both sides have items of the same kinds.

    Attention and feed-forward layers may alternate in one list, each with a norm.
    """
    split: tuple[dict[_Kind, dict[Numbers, str]], ...] = defaultdict(dict), defaultdict(dict)
    for side, copies, kinds in zip(split, (ours, theirs), (our_kinds, their_kinds), strict=True):
        for numbers, name in copies.items():
            side[kinds[name]][numbers] = name
    if split[0].keys() == split[1].keys():
        yield from ((split[0][kind], split[1][kind]) for kind in split[0])
    else:
        yield ours, theirs


def _copies(pg: nx.DiGraph) -> dict[Pattern, dict[Numbers, str]]:
    """Return names of used parameters by pattern, then by the numbers in them."""
    names = [name for name in parameters(pg) if pg.nodes[name]["op"]]
    parts = {name: name.split(".") for name in names}
    around = 0
    while all(len(p) > around + 1 and not p[around].isdigit() for p in parts.values()) and (
        len({p[around] for p in parts.values()}) == 1
    ):
        around += 1
    found: dict[Pattern, dict[Numbers, str]] = defaultdict(dict)
    for name in names:
        own = parts[name][around:]
        words = ("#" if part.isdigit() else part for part in own)
        pattern: Pattern = (*words, int(pg.nodes[name]["rank"]))
        found[pattern][tuple(int(part) for part in own if part.isdigit())] = name
    return found


def numbered(copies: dict[Numbers, str], levels: int) -> list[Member]:
    """Return which copy each is of how many, at each level."""
    siblings: dict[Numbers, list[int]] = defaultdict(list)
    for numbers in sorted(copies):
        for level in range(levels):
            known = siblings[numbers[:level]]
            if numbers[level] not in known:
                known.append(numbers[level])
    members = []
    for numbers in sorted(copies):
        rows: Sequence[list[int]] = [siblings[numbers[:level]] for level in range(levels)]
        places: dict[Level, tuple[int, int]] = {
            level: (row.index(numbers[level]), len(row)) for level, row in enumerate(rows)
        }
        members.append(Member(copies[numbers], places))
    return members
