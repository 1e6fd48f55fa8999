"""Torn items: parameters of one item of a list that answer to different items of another."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import NamedTuple

from flerm_fx.align.mass import Shares, by_target

Words = tuple[str, ...]

TOLERANCE = 1e-6
"""Difference of the parts of two parameters' mass that is rounding."""


class Place(NamedTuple):
    """Where a parameter is in a list.

    Attributes:
        inner: how many lists there are within the item around it, which no wrapping changes.
        list: what the list is called.
        item: the number of the item.
        rest: what the parameter is called in the item.
    """

    inner: int
    list: Words
    item: int
    rest: Words


def torn(laid: Shares) -> frozenset[str]:
    """The target parameters whose base parameters are of other items than their siblings'.

    Siblings are the parameters of one item of a list, such as ``blocks.3``. Where all items of the
    list have them, on both sides, they answer to the same items, whatever their names are: a
    matching that has the attention of a block from one block and its feed-forward layer from the
    next one has counted blocks from somewhere within them. The siblings that most agree with are
    right.

    >>> straight = {f"b.{i}.{p}": {f"h.{i}.{p}": Fraction(1)} for i in (0, 1) for p in "xz"}
    >>> crossed = {f"b.{i}.y": {f"h.{1 - i}.y": Fraction(1)} for i in (0, 1)}
    >>> sorted(torn({**straight, **crossed}))
    ['h.0.y', 'h.1.y']
    """
    answers = by_target(laid)
    everywhere = _in_all_items(laid)
    apart: set[str] = set()
    for siblings in _siblings(answers):
        rows = {
            place.rest: _items(answers[name], place.inner, everywhere)
            for name, place in siblings.items()
        }
        kept = [row for row in rows.values() if row]
        if not kept:
            continue
        usual = max(kept, key=lambda row: sum(_same(row, other) for other in kept))
        apart |= {
            name
            for name, place in siblings.items()
            if rows[place.rest] and not _same(rows[place.rest], usual)
        }
    return frozenset(apart)


def _places(name: str) -> list[Place]:
    """A parameter's place in each list that it is in."""
    words = tuple(name.split("."))
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    return [
        Place(inner, words[:i], int(words[i]), words[i + 1 :])
        for inner, i in enumerate(reversed(numbers))
    ]


def _in_all_items(names: Iterable[str]) -> dict[Words, set[Words]]:
    """What every item of a list has, for each list."""
    rests: dict[Words, dict[int, set[Words]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        for place in _places(name):
            rests[place.list][place.item].add(place.rest)
    return {of: set.intersection(*items.values()) for of, items in rests.items()}


def _siblings(names: Iterable[str]) -> list[dict[str, Place]]:
    """The parameters of each item that all items of its list have."""
    everywhere = _in_all_items(names)
    by_item: dict[tuple[Words, int], dict[str, Place]] = defaultdict(dict)
    for name in names:
        for place in _places(name):
            if place.rest in everywhere[place.list]:
                by_item[place.list, place.item][name] = place
    return [siblings for siblings in by_item.values() if len(siblings) > 1]


def _items(
    answer: Mapping[str, Fraction], inner: int, everywhere: Mapping[Words, set[Words]]
) -> dict[tuple[Words, int], float]:
    """The part of a parameter's mass that comes from each item of lists as far out.

    Empty where some of it is from outside of them, or from what not all of their items have.
    """
    parts: dict[tuple[Words, int], float] = defaultdict(float)
    whole = sum(answer.values())
    for name, share in answer.items():
        places = _places(name)
        if inner >= len(places) or places[inner].rest not in everywhere[places[inner].list]:
            return {}
        parts[places[inner].list, places[inner].item] += float(share / whole)
    return parts


def _same(one: Mapping[tuple[Words, int], float], other: Mapping[tuple[Words, int], float]) -> bool:
    return one.keys() == other.keys() and all(
        math.isclose(part, other[item], abs_tol=TOLERANCE) for item, part in one.items()
    )
