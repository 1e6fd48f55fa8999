"""What the data flow alone cannot tell is unsure where the names of one side are in no lists."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from flerm_fx.align.doubts import Doubt
from flerm_fx.align.evidence import Evidence
from flerm_fx.align.lists import Lists, in_each_list
from flerm_fx.align.mass import Shares, by_target
from flerm_fx.align.nodes import parameters
from flerm_fx.align.reading import Reading

if TYPE_CHECKING:
    import networkx as nx


def unsure(reading: Reading, evidence: Evidence) -> dict[str, str]:
    """Return what is unsure about target parameters in a reading by the data flow, with the reason.

    A person without names would ask

    - all over, where copies had to be counted through, whatever their runs, since these do not
      answer to one another;
    - all over, where several uses of one parameter pass for copies of it and of others, as steps of
      time do;
    - where neither side's names have lists, and single layers in a row pass for copies, of which
      one may be another layer;
    - and there where what reads the input, or nothing stands behind, passes for a copy of what is
      within.

    Where one copy is unsure so, all are: with no lists, nothing tells which repeat together.
    """
    answers = by_target(reading.shares)
    if not reading.exact:
        return dict.fromkeys(answers, "blocks answer to blocks by their number alone")
    copies = {
        t: base
        for t, base in answers.items()
        if len(base) > 1 or any(len(reading.shares[b]) > 1 for b in base)
    }
    if any(not reading.in_time.isdisjoint(base) for base in copies.values()):
        return dict.fromkeys(
            answers, "several uses of one parameter, as in steps of time, are taken for copies"
        )
    if reading.listed:
        return {}
    ours, theirs = reading.unforked
    found: dict[str, str] = {}
    for t, base in copies.items():
        if {ours.get(b, 1) for b in base} != {theirs.get(t, 1)}:
            found[t] = "single layers in a row are taken for copies, and one may be another layer"
        elif _at_end(evidence, base, t):
            found[t] = "an end of the network is taken for a copy of what is within"
    if found:  # what repeats with a layer, as the norm beside it does, is counted with it
        return {t: found.get(t, "others are counted as copies that may be none") for t in copies}
    return found


def by_order(laid: Shares) -> dict[str, Doubt]:
    """Return doubts about what is taken for copies of others by the order of modules alone, where
    the data flow is not known.
    """
    return {
        t: Doubt(t, tuple(base), "the order of modules alone tells which copies answer to it")
        for t, base in by_target(laid).items()
        if len(base) > 1 or any(len(laid[b]) > 1 for b in base)
    }


def ends_in_lists(laid: Shares, base: nx.DiGraph, target: nx.DiGraph) -> dict[str, Doubt]:
    """Return doubts about copies in lists of layers that begin or end the network, where the data
    flow is not known.

    What is first and last there reads the input and gives the output, and names do not say so.
    """
    at_ends = _lists_at_ends(base), _lists_at_ends(target)
    return {
        t: Doubt(t, tuple(row), "its list begins or ends the network, and no graph tells its ends")
        for t, row in by_target(laid).items()
        if any(len(laid[b]) > 1 for b in row) or len(row) > 1
        if t in at_ends[1] or any(b in at_ends[0] for b in row)
    }


def _lists_at_ends(pg: nx.DiGraph) -> set[str]:
    """Return the parameters in lists of layers in which the first or the last matrix is."""
    names = [name for name in parameters(pg) if pg.nodes[name]["op"]]
    matrices = [name for name in names if pg.nodes[name]["rank"] > 1]
    lists = Lists(names).holding
    found: set[str] = set()
    for name in {*matrices[:1], *matrices[-1:]}:
        for at in in_each_list(name):
            items = lists[at.list].values()
            if len(items) > 1 and not any(_is_block(pg, held) for held in items):
                found.update(name for held in items for name in held)
    return found


def _is_block(pg: nx.DiGraph, names: Collection[str]) -> bool:
    """Tell whether some parameters are of several layers: a norm is among their modules."""
    ranks = {pg.nodes[name]["rank"] for name in names if name.rpartition(".")[2] == "weight"}
    return bool(ranks) and min(ranks) < 2 <= max(pg.nodes[name]["rank"] for name in names)


def _at_end(evidence: Evidence, base: Collection[str], target: str) -> bool:
    """Tell whether one of some parameters reads the input, or has nothing behind it."""
    return any(
        ends.is_last(name) or ends.which([name]) == "entrance"
        for ends, names in zip(evidence.ends, (base, [target]), strict=True)
        for name in names
    )
