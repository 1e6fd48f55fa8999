"""A list goes round if its items are of several kinds in turn."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from flerm_fx.align.lists import Lists, in_each_list
from flerm_fx.align.mass import Shares, by_target
from flerm_fx.align.places import Words


def out_of_round(laid: Shares) -> frozenset[str]:
    """Return the target parameters that answer to another place of a round of kinds than theirs.

    Where the items of two lists are of as many kinds in turn, such as layers with and without
    cross-attention, those of one kind answer to one another, also in what all items have.

    >>> from fractions import Fraction
    >>> own = {f"b.{i}.x.own": {f"h.{i % 2}.x.own": Fraction(1)} for i in (1, 3)}
    >>> fc = {f"b.{i}.fc.w": {f"h.{i % 2}.fc.w": Fraction(1)} for i in range(4)}
    >>> crossed = {**fc, "b.2.fc.w": {"h.1.fc.w": Fraction(1)}}
    >>> [sorted(out_of_round({**own, **common})) for common in (fc, crossed)]
    [[], ['h.1.fc.w']]
    """
    answers = by_target(laid)
    base, target = Lists(laid), Lists(answers)
    turns = dict(_turns(base)), dict(_turns(target))
    found = set()
    for t, row in answers.items():
        for at in in_each_list(t):
            if at.list not in turns[1] or at.rest not in target.everywhere[at.list]:
                continue
            around = turns[1][at.list]
            for b in row:
                other = in_each_list(b)[at.inner : at.inner + 1]
                if (
                    other
                    and other[0].rest in base.everywhere[other[0].list]
                    and len(turns[0].get(other[0].list, ())) == len(around)
                    and turns[0][other[0].list].index(base.rests[other[0].list][other[0].item])
                    != around.index(target.rests[at.list][at.item])
                ):
                    found.add(t)
    return frozenset(found)


def _turns(lists: Lists) -> Iterator[tuple[Words, Sequence[Hashable]]]:
    """Return a round of kinds for each list whose items go round in several, each once."""
    for of, items in lists.rests.items():
        row = [items[item] for item in sorted(items)]
        around = list(dict.fromkeys(row))
        if len(around) > 1 and row == around * (len(row) // len(around)):
            yield of, around
