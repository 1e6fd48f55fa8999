"""Torn items are parameters of one item of a list that answer to different items of another."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from fractions import Fraction

from flerm_fx.align.lists import InList, Lists, in_each_list
from flerm_fx.align.mass import Shares, by_target
from flerm_fx.align.places import ITEM, Words


def torn(laid: Shares) -> frozenset[str]:
    """Return the target parameters whose base parameters are of other items than their siblings'.

    Siblings are the parameters of one item of a list, such as ``blocks.3``. Where all items of the
    list have them, on both sides, they answer to the same items, whatever their names are: a
    matching that has the attention of a block from one block and its feed-forward layer from the
    next one has counted blocks from somewhere within them. The siblings that most agree with are
    right. Lists of as many items answer to one another item by item, such as the stages of two
    models.

    >>> straight = {f"b.{i}.{p}": {f"h.{i}.{p}": Fraction(1)} for i in (0, 1) for p in "xz"}
    >>> crossed = {f"b.{i}.y": {f"h.{1 - i}.y": Fraction(1)} for i in (0, 1)}
    >>> sorted(torn({**straight, **crossed}))
    ['h.0.y', 'h.1.y']
    """
    answers = by_target(laid)
    base, target = Lists(laid), Lists(answers)
    found: set[str] = set()
    for (of, item), siblings in _siblings(answers, target).items():
        rows = {
            name: row
            for name, at in siblings.items()
            if (row := _items(answers[name], at.inner, base.places))
        }
        if not rows:
            continue
        usual = Counter(rows.values()).most_common(1)
        there = base.held_in((of, item) for of, item, _ in usual[0][0])
        apart = {
            name
            for name, row in rows.items()
            if row != usual[0][0] and _likes(answers[name], siblings[name].inner) <= there
        }
        # Within an item of blocks, what most agree with may be what is counted wrongly.
        nested = any(ITEM in siblings[name].place for name in apart)
        found |= rows.keys() if nested else apart
        found |= {name for name, row in rows.items() if not _in_step(row, base, target, of, item)}
    return frozenset(found)


_Row = frozenset[tuple[Words, int, Fraction]]


def _siblings(names: Iterable[str], lists: Lists) -> dict[tuple[Words, int], dict[str, InList]]:
    """Return the parameters of each item that all items of its list have."""
    found: dict[tuple[Words, int], dict[str, InList]] = defaultdict(dict)
    for name in names:
        for at in in_each_list(name):
            if at.place in lists.places[at.list]:
                found[at.list, at.item][name] = at
    return {key: siblings for key, siblings in found.items() if len(siblings) > 1}


def _likes(answer: Iterable[str], inner: int) -> set[Words]:
    """Return the places, in the items of lists as far out, of what a parameter answers to."""
    return {in_each_list(name)[inner].place for name in answer}


def _in_step(row: _Row, base: Lists, target: Lists, of: Words, item: int) -> bool:
    """Tell whether what an item answers to is the item at its place, if that list has as many."""
    lists = {other for other, _, _ in row}
    (other, *more) = lists
    theirs, ours = sorted(base.holding[other]), sorted(target.holding[of])
    if more or len(theirs) != len(ours):
        return True
    return {number for _, number, _ in row} == {theirs[ours.index(item)]}


def _items(
    answer: Mapping[str, Fraction], inner: int, everywhere: Mapping[Words, set[Words]]
) -> _Row:
    """Return the part of a parameter's mass that comes from each item of lists as far out.

    Empty where some of it is from outside of them, or from what not all of their items have.
    """
    parts: dict[tuple[Words, int], Fraction] = defaultdict(Fraction)
    whole = sum(answer.values())
    for name, share in answer.items():
        places = in_each_list(name)
        if inner >= len(places) or places[inner].place not in everywhere[places[inner].list]:
            return frozenset()
        parts[places[inner].list, places[inner].item] += share / whole
    return frozenset((of, item, part) for (of, item), part in parts.items())
