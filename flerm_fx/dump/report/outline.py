"""The outline has a parameter graph as rows in execution order, nested by module, with repeats as
runs.

A row is a junction on data: a *site* reads parameters, a *meeting* joins values alone, such as the
addition of a residual stream. Rows stay in execution order, so that data flows one way; a module
that runs in two separate stretches has two groups.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from flerm_fx.align.items import common
from flerm_fx.align.parameter_graph import parameters, sites

if TYPE_CHECKING:
    import networkx as nx

Kind = Literal["site", "meeting", "group", "run"]

LONGEST_PERIOD = 8
"""Members of a list of modules that a repeated pattern may span; alternations found in the field
(local and global attention, dense and sparse layers) have two to eight."""


@dataclass(frozen=True)
class Row:
    """A ``Row`` is a row, or what holds rows.

    Attributes:
        kind: ``"site"``, ``"meeting"``, ``"group"`` (a module) or ``"run"`` (equal groups).
        name: module path below the enclosing group; of a run, with the first and last index.
        op: the operation of a site or meeting.
        junction: its node in the parameter graph.
        parameters: those that a site reads.
        children: what a group or run holds; children of a run are alike, name by name.
    """

    kind: Kind
    name: str
    op: str = ""
    junction: str = ""
    parameters: tuple[str, ...] = ()
    children: tuple[Row, ...] = ()


_Path = tuple[str, ...]
_Placed = tuple[_Path, Row]


def outline(pg: nx.DiGraph) -> tuple[Row, ...]:
    """Return the rows of a parameter graph, nested; parameters that are not used come last.

    Example::

        >>> from flerm_fx.align.parameter_graph import chain
        >>> names = ["embed.weight", *(f"blocks.{i}.{n}.weight" for i in range(3) for n in "ab")]
        >>> for row in outline(chain((name, "Linear", "weight", 2) for name in names)):
        ...     print(row.kind, row.name, len(row.children))
        site embed 0
        run blocks.0–2 3
    """
    placed = _placed(pg)
    unused = [name for name in parameters(pg) if not sites(pg, name)]
    rows = _nested(placed, 0)
    if unused:
        members = tuple(
            Row("site", ".".join(module_path(name)), "unused", parameters=(name,))
            for name in unused
        )
        rows = (*rows, Row("group", "unused", children=members))
    return rows


def edges(pg: nx.DiGraph) -> list[tuple[str, str]]:
    """Return the flow of data between rows, by junction."""
    data = set(_stream(pg))
    return [(tail, head) for tail, head in pg.edges if tail in data and head in data]


def _stream(pg: nx.DiGraph) -> list[str]:
    """Return the junctions on data, in execution order."""
    return [
        node
        for node, attributes in pg.nodes(data=True)
        if attributes.get("junction") and attributes.get("data", True)
    ]


def _placed(pg: nx.DiGraph) -> list[_Placed]:
    """Return every row with its module path."""
    read: dict[str, list[str]] = {}
    for name in parameters(pg):
        for site in sites(pg, name):
            read.setdefault(site, []).append(name)
    stream = _stream(pg)
    paths = {
        node: common_module([module_path(name) for name in names]) for node, names in read.items()
    }
    following: dict[str, _Path] = {}
    upcoming: _Path = ()
    for node in reversed(stream):
        following[node] = upcoming
        upcoming = paths.get(node, upcoming)
    placed: list[_Placed] = []
    previous: _Path = ()
    place: dict[str, _Path] = {}
    for node in stream:
        op = str(pg.nodes[node].get("op", "")).removeprefix("aten.")
        if node in read:
            previous = paths[node]
            placed.append((previous, Row("site", "", op, node, tuple(read[node]))))
        else:
            sources = [place[source] for source in pg.predecessors(node) if source in place]
            path = _around(previous, following[node], sources)
            placed.append((path, Row("meeting", "", op, node)))
        place[node] = placed[-1][0]
    return placed


def module_path(name: str) -> _Path:
    """Return the module that holds a parameter: its name but for the last part."""
    return tuple(name.split(".")[:-1])


def common_module(paths: Sequence[_Path]) -> _Path:
    """Return the innermost module that holds all of some."""
    return common(paths) or ()


def _around(before: _Path, after: _Path, sources: Sequence[_Path]) -> _Path:
    """Return the module of a meeting, which has no name: the one that the sites around it share.

    At the end of a block that is the block, though the next site lies outside: so the path goes on
    along the site before up to its next index. At the end of the last block of a list the next site
    is further away, and what meets there tells more: the block and the one before it.
    """
    candidates = [_up_to_index(before, len(common_module([before, after])))]
    meeting = common_module([before, *sources])
    if meeting != before:
        candidates.append(_up_to_index(before, len(meeting)))
    return max(candidates, key=len)


def _up_to_index(path: _Path, length: int) -> _Path:
    """Return a path cut where a block of a list begins: at a length, or behind the next index in
    it.

    >>> _up_to_index(("stages", "0", "layers", "2", "norm"), 3)
    ('stages', '0', 'layers', '2')
    >>> _up_to_index(("blocks", "0", "attn", "out", "1"), 2)
    ('blocks', '0')
    """
    within, below = path[:length], path[length:]
    if within and within[-1].isdigit() and below and not below[0].isdigit():
        return within
    index = next((i for i, part in enumerate(below) if part.isdigit()), -1)
    return path[: length + index + 1]


def _nested(placed: Sequence[_Placed], depth: int) -> tuple[Row, ...]:
    """Return the rows, those of one module in a group of their own."""
    rows: list[Row] = []
    for key, members in groupby(enumerate(placed), lambda one: _key(one[0], one[1], depth)):
        within = [one for _, one in members]
        if len(within) == 1:
            [(path, row)] = within
            rows.append(_named(row, ".".join(path[depth:])))
            continue
        children = _nested(within, depth + 1)
        if len(children) == 1:  # a module that holds but one thing is no level of its own
            rows.append(_named(children[0], f"{key}.{children[0].name}"))
        else:
            rows.append(Row("group", str(key), children=children))
    return _with_runs(rows)


def _key(position: int, placed: _Placed, depth: int) -> str | int:
    """Return the part of the module path at a depth; what has none is alone."""
    path, _ = placed
    return path[depth] if len(path) > depth else position


def _named(row: Row, name: str) -> Row:
    return replace(row, name=name)


def _with_runs(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows, with members of a list of modules that repeat as runs."""
    signatures = [_signature(row) if row.name.split(".")[0].isdigit() else None for row in rows]
    joined: list[Row] = []
    start = 0
    while start < len(rows):
        period, copies = _longest(signatures, start)
        if copies < 2:
            joined.append(rows[start])
            start += 1
            continue
        end = start + period * copies
        blocks = [tuple(rows[at : at + period]) for at in range(start, end, period)]
        children = [b[0] if period == 1 else Row("group", _span(b), children=b) for b in blocks]
        joined.append(Row("run", _span(rows[start:end]), children=tuple(children)))
        start = end
    return tuple(joined)


def _longest(signatures: Sequence[Hashable], start: int) -> tuple[int, int]:
    """Period and number of copies of the repeat that covers most from a position on."""
    best = (1, 1)
    for period in range(1, LONGEST_PERIOD + 1):
        body = signatures[start : start + period]
        if len(body) < period or None in body:
            break
        copies = 1
        while signatures[start + copies * period : start + (copies + 1) * period] == body:
            copies += 1
        if copies > 1 and period * copies > best[0] * best[1]:
            best = (period, copies)
    return best


def _span(rows: Sequence[Row]) -> str:
    first, last = (row.name.split(".")[0] for row in (rows[0], rows[-1]))
    return f"{first}–{last}"


def _signature(row: Row) -> Hashable:
    """Return what two copies of a block have in common; their own index is left out."""
    names = tuple(name.rpartition(".")[2] for name in row.parameters)
    children = tuple((_without_index(c.name), _signature(c)) for c in row.children)
    return row.kind, row.op, names, _without_index(row.name), children


def _without_index(name: str) -> str:
    first, dot, rest = name.partition(".")
    return dot + rest if first.isdigit() else name
