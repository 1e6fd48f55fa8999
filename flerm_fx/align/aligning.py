"""Alignment finds from structure which base parameters each target parameter answers to."""

from __future__ import annotations

import bisect
import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, get_args

from flerm_fx.align.doubts import Doubt
from flerm_fx.align.mass import Shares, by_target
from flerm_fx.align.names import shares_by_names
from flerm_fx.align.parameter_graph import as_chain, parameters
from flerm_fx.align.patterns import Mapped, mapped_shares
from flerm_fx.align.readings import by_structure
from flerm_fx.align.unsure import by_order, ends_in_lists
from flerm_fx.boundary.options import choice
from flerm_fx.errors import MatchError, shown

if TYPE_CHECKING:
    import networkx as nx

OnUnmatched = Literal["error", "unit"]


@dataclass(frozen=True)
class Match:
    r"""A ``Match`` holds the base parameters that one target parameter answers to.

    Attributes:
        target: the target parameter.
        base: base parameters in their execution order, each with the share of its FSLR, its
            function-space mass, that goes to this target parameter. Over all targets, the shares
            of one base parameter sum to 1. Empty for a parameter that the target does not use, or
            that has no counterpart.
        doubt: what speaks against it; None if nothing does.
    """

    target: str
    base: tuple[tuple[str, float], ...]
    doubt: Doubt | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        parts = [f"{name!r}" + f" ×{share:.3g}" * (share != 1) for name, share in self.base]
        doubt = ", in doubt" if self.doubt else ""
        return f"Match({self.target!r} answers to {', '.join(parts) or 'nothing'}{doubt})"


def align(
    base: nx.DiGraph,
    target: nx.DiGraph,
    mapping: Mapped | None = None,
    on_unmatched: OnUnmatched = "error",
) -> dict[str, Match]:
    r"""Match the parameters of two parameter graphs by structure.

    Equal graphs (whatever the widths, initialisation, names, wrapping or order of registration)
    are matched one to one: Weisfeiler-Lehman colours of operations, slots, ranks and kinds pair
    the nodes, execution order settles what is symmetric. Otherwise the repeated blocks of both
    graphs are found, and n base blocks are laid over m target blocks in order. Base block i covers
    :math:`[i/n, (i+1)/n)`, target block j gets what falls in :math:`[j/m, (j+1)/m)`:

    .. math:: \mathrm{share}_{ij} = n \,\bigl|[\tfrac{i}{n}, \tfrac{i+1}{n})
              \cap [\tfrac{j}{m}, \tfrac{j+1}{m})\bigr|, \qquad \sum_j \mathrm{share}_{ij} = 1.

    For m = k n that is the equal split by k (Milsom et al. 2025, section 4). Repeats may nest
    (stages of blocks, layers of one kind in a longer pattern); their shares multiply. The levels of
    a U-Net, each inside the one before, are repeats as well.

    A block is bounded by the data flow: it lies between two values that everything passes through,
    such as the residual stream after an addition. Where the sequence of blocks can be cut in
    several ways (``embed norm [attn norm mlp norm]*`` or ``embed [norm attn norm mlp]* norm``), a
    block starts where the stream forks; after that, one block is one module of the model; after
    that, the cut in step with the beginning is taken. What is then left different is aligned as
    sequences (see :func:`flerm_fx.align.overlay.links`), so that a bias or a layer that only one
    side has leaves all others with their counterparts.

    Where something speaks against that, as against halves of a block that pass for copies, it is
    weighed against what the module tree says, by the score of
    :class:`flerm_fx.align.evidence.Evidence`; and what is still in doubt says so (``Match.doubt``).

    Args:
        base: parameter graph of the base model.
        target: parameter graph of the target.
        mapping: base names for target names, of parameters or modules, with patterns for indices
            (see :func:`flerm_fx.align.patterns.mapped_shares`); as a dict or a function that may
            return None. What it names is taken as given, a base parameter mapped to k targets gives
            each 1/k, and the rest is aligned by structure without these parameters.
        on_unmatched: what becomes of parameters that have no counterpart: an ``"error"``, or, for
            ``"unit"``, empty matches.

    Returns:
        A :class:`Match` for each target parameter, in the target's execution order. Time and
        memory are O((V + E) log V) for equal graphs, times a few rounds of refinement; repeats add
        O(T p) for T blocks in sequence and p up to T / 2 periods tried, unequal graphs O(T²) for
        what is left when repeats are folded.

    Raises:
        MatchError: parameters of either side have no counterpart and ``on_unmatched`` is
            ``"error"``, or ``mapping`` names unknown ones. The message lists each, with its nearest
            candidates.
        InputError: another ``on_unmatched``.

    Example::

        >>> from flerm_fx.align.parameter_graph import chain
        >>> def mlp(depth):
        ...     names = ["embed", *(f"layers.{i}.fc" for i in range(depth)), "head"]
        ...     kinds = ["Embedding", *["Linear"] * depth, "Head"]
        ...     return chain((f"{n}.weight", k, "weight", 2) for n, k in zip(names, kinds))
        >>> for match in align(mlp(2), mlp(3)).values():
        ...     print(match.target, [(name, round(share, 3)) for name, share in match.base])
        embed.weight [('embed.weight', 1.0)]
        layers.0.fc.weight [('layers.0.fc.weight', 0.667)]
        layers.1.fc.weight [('layers.0.fc.weight', 0.333), ('layers.1.fc.weight', 0.333)]
        layers.2.fc.weight [('layers.1.fc.weight', 0.667)]
        head.weight [('head.weight', 1.0)]
    """
    choice("on_unmatched", on_unmatched, get_args(OnUnmatched))
    used = _used(target)
    given = _given(base, target, mapping)
    shares: dict[str, dict[str, Fraction]] = defaultdict(dict, given)
    by_hand = given.keys() >= used
    doubts: Mapping[str, Doubt] = {}
    if not by_hand:
        readings, doubts = _by_names_and_structure(base, target, given)
        for laid in readings:
            for name, targets in laid.items():
                for other, share in targets.items():
                    shares[other][name] = share
    place = {name: index for index, name in enumerate(parameters(base))}
    matches = {
        name: Match(
            name,
            tuple((b, float(shares[name][b])) for b in sorted(shares[name], key=place.__getitem__)),
            doubts.get(name),
        )
        for name in parameters(target)
    }
    if on_unmatched == "error" and not by_hand:
        odd_base = unanswered(base, matches.values())
        odd_target = [name for name, match in matches.items() if name in used and not match.base]
        if odd_base or odd_target:
            raise _unmatched(base, target, given, odd_base, odd_target)
    return matches


def unanswered(base: nx.DiGraph, matches: Iterable[Match]) -> list[str]:
    """Return the used base parameters that no target parameter answers to, in execution order."""
    left = _used(base) - {name for match in matches for name, _ in match.base}
    return [name for name in parameters(base) if name in left]


def _used(pg: nx.DiGraph) -> set[str]:
    return {name for name in parameters(pg) if pg.nodes[name]["op"]}


def _given(
    base: nx.DiGraph, target: nx.DiGraph, mapping: Mapped | None
) -> dict[str, dict[str, Fraction]]:
    """Return what the caller decided: shares of base parameters, by target name."""
    if mapping is None:
        return {}
    names = parameters(target)
    laid = mapped_shares(parameters(base), names, mapping, unused=set(names) - _used(target))
    return dict(by_target(laid))


def _by_names_and_structure(
    base: nx.DiGraph, target: nx.DiGraph, given: Mapping[str, Mapping[str, Fraction]]
) -> tuple[list[Shares], dict[str, Doubt]]:
    """Shares of the parameters that ``given`` leaves, and what is in doubt about them.

    By structure; where the data flow of either side is not known, by names first.
    """
    named = {name for row in given.values() for name in row}
    if base.graph.get("complete", True) and target.graph.get("complete", True):
        laid, doubts = by_structure(_without(base, named), _without(target, set(given)))
        return [laid], doubts
    b = _without(as_chain(base), named)
    t = _without(as_chain(target), set(given))
    by_name = shares_by_names(b, t)
    answered = {other for row in by_name.values() for other in row}
    rest = as_chain(_without(b, set(by_name))), as_chain(_without(t, answered))
    laid, doubts = by_structure(*rest)
    return [by_name, laid], {**ends_in_lists(by_name, b, t), **by_order(laid), **doubts}


def _without(pg: nx.DiGraph, names: set[str]) -> nx.DiGraph:
    """Return the graph without some parameters, the unused ones, and junctions of these alone."""
    rest = pg.copy()
    for node in list(pg):
        attributes = pg.nodes[node]
        if not attributes.get("junction"):
            if node in names or not attributes["op"]:
                rest.remove_node(node)
        elif not attributes.get("data", True) and not rest.pred[node]:
            rest.remove_node(node)
    return rest


# What does not match

LISTED = 5
"""Parameters of either side that an error describes."""


def _unmatched(
    base: nx.DiGraph,
    target: nx.DiGraph,
    given: Mapping[str, Mapping[str, Fraction]],
    odd_base: list[str],
    odd_target: list[str],
) -> MatchError:
    """Return the error that says what to do, and names parameters with their nearest candidates."""
    example = odd_target[0] if odd_target else "target name"
    lines = [
        f"pass mapping={{{example!r}: 'base name', ...}} (--mapping), from target to base names of "
        'parameters or modules, or on_unmatched="unit" (--on-unmatched unit) for a multiplier of 1',
        f"structure leaves {_count(len(odd_target), 'target parameter')} and "
        f"{_count(len(odd_base), 'base parameter')} without a counterpart:",
    ]
    if given:
        lines[1] = f"with {_count(len(given), 'parameter')} mapped, {lines[1]}"
    for side, other, pg, names, near in (
        ("target", "base", target, odd_target, _Nearest(base)),
        ("base", "target", base, odd_base, _Nearest(target)),
    ):
        number = len(parameters(pg))
        for name in names[:LISTED]:
            position = (pg.nodes[name]["order"] + 0.5) / number
            lines.append(
                f"  {side} {_described(pg, name)}; nearest in the {other}: "
                f"{near(pg, name, position)}"
            )
        if len(names) > LISTED:
            lines.append(f"  and {len(names) - LISTED} more of the {side}")
    lines.append(
        "A mapping may have patterns, such as 'blocks.*.attn': 'layers.*.attention'. What it names "
        "more than once is split equally, and what it leaves out is aligned by structure without "
        "the parameters that it names; one of every target parameter needs no structure at all. "
        "flerm-fx match --on-unmatched unit shows the whole matching"
    )
    return MatchError("\n".join(lines))


_SIGNATURE = ("op", "slot", "rank", "kind")


class _Nearest:
    """A ``_Nearest`` names the parameters of a graph that are most like a given one, in attributes
    and position.
    """

    def __init__(self, pg: nx.DiGraph) -> None:
        names = parameters(pg)
        self.groups: dict[tuple[object, ...], list[tuple[float, str]]] = defaultdict(list)
        for index, name in enumerate(names):
            signature = tuple(pg.nodes[name][key] for key in _SIGNATURE)
            self.groups[signature].append(((index + 0.5) / len(names), name))

    def __call__(self, pg: nx.DiGraph, name: str, position: float, number: int = 3) -> str:
        signature = tuple(pg.nodes[name][key] for key in _SIGNATURE)

        def nearby(group: list[tuple[float, str]]) -> list[tuple[float, str]]:
            index = bisect.bisect(group, (position, ""))
            return group[max(index - number, 0) : index + number]

        nearest = heapq.nsmallest(
            number,
            (
                (_differences(signature, other), abs(place - position), place, other_name)
                for other, group in self.groups.items()
                for place, other_name in nearby(group)
            ),
        )
        return ", ".join(repr(other) for *_, other in nearest) or "none"


def _differences(one: tuple[object, ...], other: tuple[object, ...]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def _described(pg: nx.DiGraph, name: str) -> str:
    a = pg.nodes[name]
    kind = f" in {a['kind']}" if a["kind"] else ""
    return f"{name!r} ({shown(a['op'])} {shown(a['slot'])}, rank {a['rank']}{shown(kind)})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
