"""A list is uneven if its blocks get unequal parts of what another list gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping
from fractions import Fraction
from itertools import pairwise

from flerm_fx.align.lists import InList, Lists, in_each_list
from flerm_fx.align.mass import Shares, by_target
from flerm_fx.align.places import Words

_Siblings = list[tuple[InList, str]]  # parameters at one place of the items of a list


def uneven(
    laid: Shares,
    is_end: Callable[[Collection[str]], bool],
    alike: Callable[[Collection[str]], bool],
) -> frozenset[str]:
    """Return the target parameters in lists of blocks of which some get more than others.

    Where items of a list hold the same, and so do those of the list that they answer to, no block
    is special by itself. Nor is a first one that lacks some of what all others hold, such as a
    norm, in two lists that are not of as many items. A matching in which the first answers alone,
    and those behind it share the rest, takes an end of the stack for a kind of block. Where they do
    not hold the same, unequal shares are odd if they are out of order as well. Of lists of single
    layers only those count whose layers are alike, since others may hold layers of any sort.

    Args:
        laid: the matching.
        is_end: whether target parameters stand at an end of the data flow.
        alike: whether target parameters in single layers are of one sort, and what these give
            meets other data in one way.

    >>> half = Fraction(1, 2)
    >>> even = {"b.0.fc.w": {"h.0.fc.w": Fraction(1)}, "b.1.fc.w": {"h.1.fc.w": Fraction(1)}}
    >>> odd = {**even, "b.1.fc.w": {"h.1.fc.w": half, "h.2.fc.w": half}}
    >>> never, always = (lambda names: False), (lambda names: True)
    >>> [sorted(uneven(laid, is_end=never, alike=always)) for laid in (even, odd)]
    [[], ['h.0.fc.w', 'h.1.fc.w', 'h.2.fc.w']]
    """
    answers = by_target(laid)
    base, target = Lists(laid), Lists(answers)
    lacking = _lacking(base), _lacking(target)
    groups: dict[tuple[int, Words, Words], _Siblings] = defaultdict(list)
    for name in answers:
        for at in in_each_list(name):
            groups[at.inner, at.list, at.rest].append((at, name))
    found: set[str] = set()
    ends: dict[tuple[Words, int], bool] = {}
    for (inner, of, rest), siblings in groups.items():
        if _even(siblings, answers):
            continue
        if len(rest) < 2 and not alike([name for _, name in siblings]):
            continue
        theirs = {at.list for _, name in siblings for at in _answering(answers[name], inner)}
        lacks = of in lacking[1] and all(
            other in lacking[0] and len(base.rests[other]) != len(target.rests[of])
            for other in theirs
        )
        kinds: dict[frozenset[Words], _Siblings] = defaultdict(list)
        for at, name in siblings:
            kinds[_kind(target, of, at.item, lacks)].append((at, name))
        rows = [
            row
            for row in kinds.values()
            if len({k for _, name in row for k in _kinds(answers[name], inner, base, lacks)}) == 1
        ]
        if rest in target.everywhere[of] and not _in_order(siblings, answers, inner, base):
            rows = [siblings]
        for row in rows:
            if _even(row, answers):
                continue
            for at, _ in row:
                if (of, at.item) not in ends:
                    ends[of, at.item] = is_end(target.holding[of][at.item])
            inside = [(at, name) for at, name in row if not ends[of, at.item]]
            if not _even(inside, answers):
                found.update(name for _, name in inside)
    return frozenset(found)


def _even(siblings: _Siblings, answers: Mapping[str, Mapping[str, Fraction]]) -> bool:
    return len({sum(answers[name].values()) for _, name in siblings}) < 2


def _in_order(
    siblings: _Siblings, answers: Mapping[str, Mapping[str, Fraction]], inner: int, base: Lists
) -> bool:
    """Tell whether later items answer to no earlier ones than those before them do.

    True as well where they answer to several lists, or to what not all items there have.
    """
    rows: list[list[int]] = []
    lists: set[Words] = set()
    for _, name in sorted(siblings, key=lambda sibling: sibling[0].item):
        places = [in_each_list(b)[inner:][:1] for b in answers[name]]
        if not all(at and at[0].rest in base.everywhere[at[0].list] for at in places):
            return True
        lists |= {at[0].list for at in places}
        rows.append(sorted(at[0].item for at in places))
    return len(lists) > 1 or all(one[-1] <= other[0] for one, other in pairwise(rows))


def _answering(answer: Mapping[str, Fraction], inner: int) -> list[InList]:
    """Return the places, in lists as far out, of what a parameter answers to."""
    return [at for name in answer for at in in_each_list(name)[inner:][:1]]


def _kinds(answer: Mapping[str, Fraction], inner: int, base: Lists, lacks: bool) -> set[Hashable]:
    """Return the lists as far out that a parameter's mass comes from, with what the items there
    hold.
    """
    found: set[Hashable] = set()
    for name in answer:
        at = in_each_list(name)[inner:][:1]
        found.add((at[0].list, _kind(base, at[0].list, at[0].item, lacks)) if at else name)
    return found


def _lacking(lists: Lists) -> set[Words]:
    """Return the lists whose first item lacks some of what all others hold, and is like none."""
    found: set[Words] = set()
    for of, items in lists.rests.items():
        first, *others = (items[item] for item in sorted(items))
        if others and all(first < other for other in others):
            found.add(of)
    return found


def _kind(lists: Lists, of: Words, item: int, lacking: bool) -> frozenset[Words]:
    """Return what an item holds; of a first one that lacks a part, what the next one holds."""
    first, *others = sorted(lists.rests[of])
    return lists.rests[of][others[0] if lacking and item == first else item]
