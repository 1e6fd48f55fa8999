"""A chain of junctions consists of items, single ones or copies that were folded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeVar

_Part = TypeVar("_Part")


@dataclass(eq=False)
class Item:
    """An ``Item`` is a junction of a chain with all that hangs from it, or the folded copies of
    one.
    """

    label: int
    plain: int  # the label without what tells the first and the last of the network from others
    node: str
    forked: bool  # whether branches with parameters come together here
    path: tuple[str, ...] | None  # common module path of its parameters
    places: tuple[tuple[str, ...], ...] = ()  # of its parameters in the items of lists
    copies: tuple[Item, ...] = ()
    run: object = None
    hole: str = ""  # last junction of the branch that holds the next level of a nest


def common(sequences: Iterable[tuple[_Part, ...]]) -> tuple[_Part, ...] | None:
    """Return the longest common beginning; None of none."""
    found = list(sequences)
    alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*found, strict=False))
    return tuple(parts[0] for parts in alike) if found else None


def shared_path(items: Iterable[Item]) -> tuple[str, ...] | None:
    """Return the module path that all items with parameters have in common; None of none."""
    return common(item.path for item in items if item.path is not None)
