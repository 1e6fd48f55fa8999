"""The exponents that muP has, for the roles that it knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flerm_fx.ops.table import facts

if TYPE_CHECKING:
    import networkx as nx

    from flerm_fx.recipe.update_rule import UpdateRule

_EXPONENTS = {
    # Of (input, hidden, output) matrices and vectors, in the width: Yang et al. 2022, table 3, for
    # their initial weights.
    "Adam": {"input": 0.0, "hidden": -1.0, "output": -1.0, "vector": 0.0},
    "SGD": {"input": 1.0, "hidden": 0.0, "output": -1.0, "vector": 1.0},
}
_FAMILIES = {"Adam": "Adam", "AdamW": "Adam", "Adamax": "Adam", "NAdam": "Adam", "SGD": "SGD"}


def mup_exponent(
    graph: nx.DiGraph, name: str, moved: tuple[int, ...], rule: UpdateRule
) -> float | None:
    """What muP has for the exponent of a parameter's learning rate in the width, if anything.

    An *input* matrix has an output dimension that grows alone, an *output* matrix an input
    dimension, a hidden one both.

    Args:
        graph: the base's parameter graph.
        name: of the parameter.
        moved: its dimensions that grow with the width.
        rule: of its optimizer.
    """
    node = graph.nodes[name]
    family = _FAMILIES.get((rule.source or "").rpartition(".")[2])
    if family is None or not moved or node["uses"] != 1:
        return None
    exponents = _EXPONENTS[family]
    if node["rank"] == 1:
        return exponents["vector"]
    known = facts(node["op"])
    if node["rank"] != 2 or not known.layout or known.linear[-1:] != (node["slot"],):
        return None
    if moved == (0, 1):
        return exponents["hidden"]
    grows_out = moved == ((1,) if known.layout == "in out" else (0,))
    return exponents["input" if grows_out else "output"]
