"""This module knows the exponents that muP has, for the roles that it knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flerm_fx.ops.table import facts

if TYPE_CHECKING:
    import networkx as nx

    from flerm_fx.recipe.update_rule import UpdateRule

Kind = Literal["input", "hidden", "output", "vector"]
"""What grows with the width: of an input matrix the outputs, of an output matrix the inputs, of a
hidden one both; a vector is a norm or a bias."""

_EXPONENTS: dict[str, dict[Kind, float]] = {
    # In the width: Yang et al. 2022, table 3, for their initial weights.
    "Adam": {"input": 0.0, "hidden": -1.0, "output": -1.0, "vector": 0.0},
    "SGD": {"input": 1.0, "hidden": 0.0, "output": -1.0, "vector": 1.0},
    # Yang, Simon, Bernstein 2023: a step's spectral norm is to be as sqrt(outputs / inputs). Torch
    # makes it sqrt(max(1, rows / columns)), which is that of matrices whose sides grow alike; of
    # others it depends on which side is longer.
    "Muon": {"hidden": 0.0},
}
_FAMILIES = {
    **dict.fromkeys(("Adam", "AdamW", "Adamax", "NAdam"), "Adam"),
    "SGD": "SGD",
    "Muon": "Muon",
}


def mup_exponent(
    graph: nx.DiGraph, name: str, moved: tuple[int, ...], rule: UpdateRule
) -> float | None:
    """Return what theory has for the exponent of a parameter's learning rate in the width, if
    anything.

    Args:
        graph: the base's parameter graph.
        name: of the parameter.
        moved: its dimensions that grow with the width.
        rule: of its optimizer.
    """
    family, kind = (
        _FAMILIES.get((rule.source or "").rpartition(".")[2]),
        kind_of(graph, name, moved),
    )
    if family is None or kind is None:
        return None
    if family == "Muon" and rule.settings.get("adjust_lr_fn") not in (None, "original"):
        return None
    return _EXPONENTS[family].get(kind)


def kind_of(graph: nx.DiGraph, name: str, moved: tuple[int, ...]) -> Kind | None:
    """Return what muP calls a parameter; None for what it has no name for, and what is used
    twice.
    """
    node = graph.nodes[name]
    if not moved or max(moved) >= node["rank"] or node["uses"] != 1:  # behind them is the depth
        return None
    if node["rank"] == 1:
        return "vector"
    known = facts(node["op"])
    if known.kind == "convolution":
        layout = "in out" if "transpose" in node["op"] else "out in"
    else:
        layout = known.layout if node["rank"] == 2 else ""
    if not layout or known.linear[-1:] != (node["slot"],):
        return None
    if moved == (0, 1):
        return "hidden"
    return "input" if moved == ((1,) if layout == "in out" else (0,)) else "output"
