"""A small model with invented assignments, and a reader of dot."""

import warnings
from typing import Any

import pydot
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from flerm_fx.assign.assignment import Assignment
from flerm_fx.probe.estimate import Estimate


class Mixer(nn.Module):
    """A residual block with an embedding, a norm, a tied output and a parameter that is unused."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.position = nn.Parameter(torch.randn(5, 4))
        self.norm = nn.LayerNorm(4)
        self.query = nn.Linear(4, 4)
        self.key = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight
        self.spare = nn.Parameter(torch.zeros(2))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position
        y = self.norm(x)
        scores = torch.matmul(self.query(y), self.key(y).transpose(1, 2))
        output: Tensor = self.head(x + torch.matmul(scores.tanh(), y))
        return output


def assignments_for(model: nn.Module, graph_module: GraphModule | None) -> list[Assignment]:
    """Invented, distinct numbers for every parameter, in the order of the graph."""
    nodes = {
        node.meta["parameter"]: node.name
        for node in (graph_module.graph.nodes if graph_module else ())
        if node.op == "get_attr" and "parameter" in node.meta
    }
    return [
        Assignment(
            parameter=name,
            node=nodes.get(name, ""),
            op="aten.linear",
            shape=tuple(parameter.shape),
            base=((name, 1.0),),
            base_fslr=2.0 + i,
            target=Estimate(1.0 + i, 0.01, "sampled", 4),
            multiplier=(2.0 + i) / (1.0 + i),
            status="unused" if name == "spare" else "matched",
        )
        for i, (name, parameter) in enumerate(model.named_parameters())
    ]


def one(**changes: Any) -> Assignment:
    values: dict[str, Any] = {
        "parameter": "up.weight",
        "node": "up_weight",
        "op": "aten.linear",
        "shape": (8, 4),
        "base": (("up.weight", 1.0),),
        "base_fslr": 3.0,
        "target": Estimate(1.5, 0.05, "sampled", 8),
        "multiplier": 2.0,
        "status": "matched",
        "error": 0.25,
    }
    return Assignment(**{**values, **changes})


def parse_dot(text: str) -> tuple[dict[str, dict[str, str]], set[tuple[str, str]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pydot's own, about pyparsing
        graphs = pydot.graph_from_dot_data(text)
    assert graphs is not None
    assert len(graphs) == 1
    nodes = {
        node.get_name().strip('"'): {k: str(v).strip('"') for k, v in node.get_attributes().items()}
        for node in graphs[0].get_nodes()
        if node.get_name() not in ("node", "edge", "graph")
    }
    edges = {
        (str(edge.get_source()).strip('"'), str(edge.get_destination()).strip('"'))
        for edge in graphs[0].get_edges()
        if edge.get_style() != "invis"
    }
    return nodes, edges
