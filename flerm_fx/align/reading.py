"""A reading is one way to lay a base over a target."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flerm_fx.align.mass import Shares

Way = tuple[bool, bool]

Mixed = tuple[frozenset[str], frozenset[str]]


@dataclass(frozen=True)
class Reading:
    """A ``Reading`` is one way to lay a base over a target.

    Attributes:
        shares: the shares that follow from it.
        exact: whether copies answer to copies of one run each, and none had to be counted through.
        way: whether runs may be without a fork, and whether runs are folded.
        in_time: base parameters of which it takes several uses for copies.
        mixed: base and target parameters that it takes for copies of ones at other places of the
            module tree, of which the other side has more or fewer.
        by_tree: whether it follows from the module tree alone.
        unforked: base and target parameters in runs of single layers, with the numbers of copies.
        listed: whether the names of either side have lists.
    """

    shares: Shares
    exact: bool = True
    way: Way = True, True
    in_time: frozenset[str] = frozenset()
    mixed: Mixed = frozenset(), frozenset()
    by_tree: bool = False
    unforked: tuple[Mapping[str, int], Mapping[str, int]] = field(default=({}, {}))
    listed: bool = True
