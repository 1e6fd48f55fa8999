"""A place is where a parameter is in the module tree: its name without the numbers of items."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import TYPE_CHECKING

from flerm_fx.align.nodes import parameters

if TYPE_CHECKING:
    import networkx as nx

ITEM = "#"
"""The part of a masked name that stands for the number of an item of a list."""

Words = tuple[str, ...]

Place = tuple[Words, Hashable]
"""A masked name, and the rank."""

_NUMBER = re.compile(r"\d+")


def masked(name: str) -> Words:
    """Return a name in parts, numbers of items as ``"#"``.

    >>> masked("h.3.fc1.weight")
    ('h', '#', 'fc1', 'weight')
    """
    return tuple(ITEM if part.isdigit() else part for part in name.split("."))


def places(pg: nx.DiGraph) -> dict[str, Place]:
    """Return the place of each used parameter in the module tree.

    What surrounds all names, as ``module.`` does, is left out.
    """
    names = [name for name in parameters(pg) if pg.nodes[name]["op"]]
    words = [masked(name) for name in names]
    while words and len({w[0] for w in words}) == 1 and all(len(w) > 1 for w in words):
        if words[0][0] == ITEM:
            break
        words = [w[1:] for w in words]
    return {name: (w, pg.nodes[name]["rank"]) for name, w in zip(names, words, strict=True)}


def in_lists(pg: nx.DiGraph) -> dict[str, Words]:
    """Return the masked names of the parameters that are in items of lists.

    Empty for a model of which all are in one and the same item, as in a wrapper: its list says
    nothing.

    >>> from flerm_fx.align.parameter_graph import chain
    >>> in_lists(chain([("0.p1.weight", "Linear", "weight", 2)]))
    {}
    """
    names = [name.split(".") for name in parameters(pg) if pg.nodes[name]["op"]]
    around = 0
    while len({tuple(parts[: around + 1]) for parts in names}) == 1 < len(names[0]) - around:
        around += 1
    found = {".".join(parts): masked(".".join(parts[around:])) for parts in names}
    return {name: words for name, words in found.items() if ITEM in words}


def stem(place: Place) -> Place:
    """Return a place without any numbers, those in words either."""
    words, rank = place
    return tuple(own for word in words if word != ITEM and (own := _NUMBER.sub("", word))), rank
