"""Time of matching against the number of parameters: equal graphs, and twice the depth.

The graphs are those of transformers with separate projections and biases, 16 parameters a block.
With names that have no tree (``p1.weight``, ``p2.weight``, …) in the deeper one, evidence is
weighed. Seconds are of processor time, on one thread.

python -m benchmarks.matching prints the table alone.
"""

import time

import networkx as nx
import torch
from torch import fx

from benchmarks.results import MatchingResult
from benchmarks.settings import Progress, Settings
from flerm_fx.align.aligning import align
from flerm_fx.align.parameter_graph import parameter_graph, parameters

ATEN = torch.ops.aten
BLOCKS = (20, 40, 80, 160, 320)


class _Writer:
    """Writes the captured graph of a transformer."""

    def __init__(self) -> None:
        self.graph = fx.Graph()

    def weight(self, name: str, rank: int) -> fx.Node:
        node = self.graph.create_node("get_attr", name)
        node.meta = {"parameter": name, "val": torch.empty((1,) * rank)}
        return node

    def layer(self, x: fx.Node, name: str, *, norm: bool = False) -> fx.Node:
        weight, bias = (
            self.weight(f"{name}.weight", 1 if norm else 2),
            self.weight(f"{name}.bias", 1),
        )
        if norm:
            node = self.graph.call_function(ATEN.layer_norm.default, (x, [4], weight, bias))
        else:
            node = self.graph.call_function(ATEN.linear.default, (x, weight, bias))
        kind = "LayerNorm" if norm else "Linear"
        node.meta["nn_module_stack"] = {"m": (name, f"torch.nn.{kind}")}
        return node

    def transformer(self, blocks: int) -> nx.DiGraph:
        """Its parameter graph."""
        call = self.graph.call_function
        x = self.layer(self.graph.placeholder("x"), "embed")
        for index in range(blocks):
            name = f"blocks.{index}"
            h = self.layer(x, f"{name}.norm1", norm=True)
            qkv = (self.layer(h, f"{name}.{role}") for role in "qkv")
            h = call(ATEN.scaled_dot_product_attention.default, tuple(qkv))
            x = call(ATEN.add.Tensor, (x, self.layer(h, f"{name}.out")))
            h = self.layer(self.layer(x, f"{name}.norm2", norm=True), f"{name}.up")
            x = call(ATEN.add.Tensor, (x, self.layer(h, f"{name}.down")))
        self.graph.output((self.layer(self.layer(x, "norm", norm=True), "head"),))
        return parameter_graph(self.graph)


def run(settings: Settings, progress: Progress) -> list[MatchingResult]:
    """Every size, the smallest first."""
    found = []
    for blocks in BLOCKS[:1] if settings.quick else BLOCKS:
        progress(f"matching: {blocks} blocks")
        half, whole = _Writer().transformer(blocks // 2), _Writer().transformer(blocks)
        equal, deeper, flat = (
            _seconds(base, target)
            for base, target in ((whole, whole), (half, whole), (half, _flat(whole)))
        )
        found.append(MatchingResult(len(parameters(whole)), equal, deeper, flat))
    return found


def _flat(graph: nx.DiGraph) -> nx.DiGraph:
    """The same graph, with a number for each module in place of its path."""
    modules: dict[str, str] = {}
    names = {}
    for name in parameters(graph):
        module, _, last = name.rpartition(".")
        names[name] = f"{modules.setdefault(module, f'p{len(modules)}')}.{last}"
    flat: nx.DiGraph = nx.relabel_nodes(graph, names)
    for name in names.values():
        flat.nodes[name]["path"] = name.rpartition(".")[0]
    return flat


def _seconds(base: nx.DiGraph, target: nx.DiGraph) -> float:
    began = time.process_time()
    align(base, target)
    return time.process_time() - began


if __name__ == "__main__":
    for result in run(Settings(torch.device("cpu")), print):
        print(result)
