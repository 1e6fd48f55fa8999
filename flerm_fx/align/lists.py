"""Lists of a module tree: where parameters are in them is found here, and what their items hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from flerm_fx.align.places import Words, masked


class InList(NamedTuple):
    """An ``InList`` says where a parameter is in a list.

    Attributes:
        inner: how many lists there are within the item around it, which no wrapping changes.
        list: what the list is called.
        item: the number of the item.
        rest: what the parameter is called in the item.
        place: the same without the numbers of items within.
    """

    inner: int
    list: Words
    item: int
    rest: Words
    place: Words


@lru_cache(maxsize=2**16)
def in_each_list(name: str) -> tuple[InList, ...]:
    """Return a parameter's place in each list that it is in, the innermost first.

    >>> [(at.inner, at.list, at.item, at.rest) for at in in_each_list("h.3.fc.weight")]
    [(0, ('h',), 3, ('fc', 'weight'))]
    """
    words, place = tuple(name.split(".")), masked(name)
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    return tuple(
        InList(inner, words[:i], int(words[i]), words[i + 1 :], place[i + 1 :])
        for inner, i in enumerate(reversed(numbers))
    )


_Held = dict[Words, dict[int, set[Words]]]


def _held() -> _Held:
    return defaultdict(lambda: defaultdict(set))


class Lists:
    """``Lists`` holds the lists that some parameters are in.

    Attributes:
        everywhere: what every item of a list has, for each list.
        places: the same without the numbers of items within.
        rests: what each item of a list has.
        holding: the parameters that each item of a list holds.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.holding: dict[Words, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        rests = _held()
        self._places = places = _held()
        for name in names:
            for at in in_each_list(name):
                self.holding[at.list][at.item].append(name)
                rests[at.list][at.item].add(at.rest)
                places[at.list][at.item].add(at.place)
        self.everywhere = {of: set.intersection(*items.values()) for of, items in rests.items()}
        self.places = {of: set.intersection(*items.values()) for of, items in places.items()}
        self.rests = {
            of: {item: frozenset(held) for item, held in items.items()}
            for of, items in rests.items()
        }

    def held_in(self, items: Iterable[tuple[Words, int]]) -> set[Words]:
        """Return what each of some items has, without the numbers of items within."""
        return set.intersection(*(self._places[of][item] for of, item in items))
