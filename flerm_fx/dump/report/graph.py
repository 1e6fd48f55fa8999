"""The report has for each model its parameters with their numbers, and its rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flerm_fx.align.aligning import Match
from flerm_fx.align.doubts import Doubt
from flerm_fx.assign.assignment import Assignment
from flerm_fx.dump.report.outline import Row, common_module, edges, module_path, outline
from flerm_fx.probe.estimate import Estimate
from flerm_fx.profile.profile import BaseProfile

if TYPE_CHECKING:
    import networkx as nx

Packed = dict[str, Any]


def base_side(profile: BaseProfile, assignments: Sequence[Assignment] = ()) -> Packed:
    """Return the base model; with assignments, whether a target's parameters answer to its own."""
    answered = {name for row in assignments for name, _ in row.base}

    def status(name: str) -> str:
        if not profile.graph.nodes[name].get("op"):
            return "unused"
        if not assignments:
            return "used"
        return "matched" if name in answered else "unmatched"

    numbers = [
        {
            "name": name,
            "op": _op(str(profile.graph.nodes[name].get("op", ""))),
            "shape": list(profile.shapes[name]),
            **_estimate(profile.start[name]),
            "late": finite(profile.late[name].value) if profile.late else None,
            "status": status(name),
        }
        for name in profile.parameters
    ]
    return _side("base", profile.graph, numbers)


def target_side(
    graph: nx.DiGraph, assignments: Sequence[Assignment], doubts: Iterable[Doubt] = ()
) -> Packed:
    """Return the target, with what was assigned to each of its parameters."""
    of = {doubt.target: doubt for doubt in doubts}
    numbers = [
        {
            "name": row.parameter,
            "op": _op(row.op),
            "shape": list(row.shape),
            "base": [[name, finite(share)] for name, share in row.base],
            "base_fslr": finite(row.base_fslr),
            **_estimate(row.target),
            "multiplier": finite(row.multiplier),
            **({"interval": [finite(end) for end in row.interval]} if row.interval else {}),
            "status": row.status,
            "after": row.after,
            **_doubt(of.get(row.parameter)),
        }
        for row in assignments
    ]
    return _side("target", graph, numbers)


def matched_sides(
    profile: BaseProfile,
    graph: nx.DiGraph,
    shapes: Mapping[str, Sequence[int]],
    matches: Mapping[str, Match],
) -> list[Packed]:
    """Base and target without numbers: what answers to what alone."""
    answered = {name for match in matches.values() for name, _ in match.base}

    def parameter(pg: nx.DiGraph, name: str, shape: Sequence[int], matched: bool) -> Packed:
        op = str(pg.nodes[name].get("op", ""))
        status = "matched" if matched else "unmatched" if op else "unused"
        return {"name": name, "op": _op(op), "shape": list(shape), "status": status}

    ours = [
        parameter(profile.graph, name, profile.shapes[name], name in answered)
        for name in profile.parameters
    ]
    theirs = [
        {
            **parameter(graph, name, shapes[name], bool(match.base)),
            "base": [[other, finite(share)] for other, share in match.base],
            **_doubt(match.doubt),
        }
        for name, match in matches.items()
    ]
    return [_side("base", profile.graph, ours), _side("target", graph, theirs)]


def _doubt(doubt: Doubt | None) -> Packed:
    if doubt is None:
        return {}
    return {"doubt": {"reason": doubt.reason, "alternatives": list(doubt.alternatives)}}


def finite(number: float) -> float | None:
    """Return the number to six digits, which a report shows at most; None for what JSON cannot
    hold.

    >>> finite(1 / 3), finite(float("nan"))
    (0.333333, None)
    """
    return float(f"{number:.6g}") if math.isfinite(number) else None


def _side(title: str, graph: nx.DiGraph, numbers: Sequence[Packed]) -> Packed:
    index = {row["name"]: position for position, row in enumerate(numbers)}
    stream: dict[str, int] = {}
    rows = [_row(row, index, stream) for row in outline(graph)]
    return {
        "title": title,
        "parameters": list(numbers),
        "rows": rows,
        "edges": [[stream[tail], stream[head]] for tail, head in edges(graph)],
    }


def _row(row: Row, index: Mapping[str, int], stream: dict[str, int]) -> Packed:
    """Return a row with positions in place of names; junctions are numbered as they come."""
    if row.junction:
        stream[row.junction] = len(stream)
    packed: Packed = {"kind": row.kind, "name": row.name}
    if row.children:
        packed["children"] = [_row(child, index, stream) for child in row.children]
        return packed
    known = [name for name in row.parameters if name in index]
    packed["op"] = row.op
    packed["junctions"] = [stream[row.junction]] if row.junction else []
    packed["chips"] = [
        {"label": label, "parameters": [index[name]]}
        for name, label in zip(known, _labels(known), strict=True)
    ]
    return packed


def _labels(names: Sequence[str]) -> list[str]:
    """Return names below the module that all share."""
    depth = len(common_module([module_path(name) for name in names]))
    return [".".join(name.split(".")[depth:]) for name in names]


def _estimate(estimate: Estimate) -> Packed:
    return {
        "fslr": finite(estimate.value),
        "stderr": finite(estimate.stderr),
        "method": estimate.method,
        "samples": estimate.samples,
        "note": estimate.note,
    }


def _op(op: str) -> str:
    return op.removeprefix("aten.")
