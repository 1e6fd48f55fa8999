import json
from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, fx, nn

from flerm_fx.align.nodes import UNKNOWN
from flerm_fx.align.parameter_graph import (
    capture_graph,
    chain,
    from_json,
    parameter_graph,
    parameters,
    sites,
    to_json,
)
from flerm_fx.capture.tracing import capture
from flerm_fx.errors import CaptureWarning, ProfileError
from flerm_fx.ops.scale import ScaleNodes
from tests.cases import DataDependent, Oddity, features, tokens


def export(model: nn.Module, *args: Tensor) -> fx.Graph:
    """An exported graph with its parameters annotated, tied ones under their first name."""
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in args)
    program = torch.export.export(model, args, strict=False, dynamic_shapes=shapes)
    module = program.module(check_guards=False)
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        names.setdefault(id(parameter), name)
    for node in module.graph.find_nodes(op="get_attr"):
        value: Any = module
        for attribute in node.target.split("."):
            value = getattr(value, attribute)
        if isinstance(value, nn.Parameter) and value.requires_grad:
            node.meta["parameter"] = names[id(value)]
    return module.graph


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(self.norm(x)).relu()


def test_attributes() -> None:
    pg = parameter_graph(export(nn.Sequential(Residual(), nn.Linear(4, 2)), features(3, 4)))
    assert pg.graph == {"complete": True}
    assert parameters(pg) == [
        "0.norm.weight",
        "0.norm.bias",
        "0.fc.weight",
        "0.fc.bias",
        "1.weight",
        "1.bias",
    ]
    assert pg.nodes["0.fc.weight"] == {
        "op": "aten.linear",
        "slot": "weight",
        "rank": 2,
        "kind": "Linear",
        "order": 2,
        "uses": 1,
        "path": "0.fc",
    }
    assert pg.nodes["%linear"] == {
        "junction": True,
        "op": "aten.linear",
        "data": True,
        "through": "aten.relu",
    }
    assert pg.nodes["%linear_1"]["through"] == ""
    # The first norm reads no parameter's value; the input meets what is made of it in the sum.
    assert [(u, v) for u, v in pg.edges if u.startswith("%")] == [
        ("%layer_norm", "%linear"),
        ("%linear", "%add"),
        ("%add", "%linear_1"),
    ]


def test_residual_stream_is_linear_in_depth() -> None:
    edges = []
    for depth in (4, 8, 16):
        model = nn.Sequential(nn.Linear(4, 4), *(Residual() for _ in range(depth)))
        edges.append(parameter_graph(export(model, features(3, 4))).number_of_edges())
    assert edges[2] - edges[1] == 2 * (edges[1] - edges[0])


def test_every_edge_leads_forward() -> None:
    pg = capture_graph(capture(Oddity(), tokens(6, 5, 11)))
    order = {node: index for index, node in enumerate(pg)}
    assert all(order[u] < order[v] for u, v in pg.edges)
    assert [pg.nodes[name]["order"] for name in parameters(pg)] == list(range(8))


def test_tied_unused_frozen_expanded_and_transformed_parameters() -> None:
    pg = capture_graph(capture(Oddity(), tokens(6, 5, 11)))
    attributes = dict(pg.nodes(data=True))
    assert "frozen" not in pg
    assert attributes["unused"]["op"] == "" and attributes["unused"]["uses"] == 0
    assert parameters(pg)[-1] == "unused"
    assert attributes["embedding.weight"]["uses"] == 2
    assert attributes["embedding.weight"]["op"] == "aten.embedding"
    assert sites(pg, "embedding.weight").keys() == {"%embedding", "%linear_1"}
    assert (attributes["log_scale"]["op"], attributes["log_scale"]["slot"]) == ("aten.mul", "other")
    # What expands it reads the batch's size alone.
    assert attributes["cls"]["op"] == "aten.add"


def test_tied_names_of_an_exported_graph_are_one_node() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x))

    pg = parameter_graph(export(Tied(), tokens(3, 4, 5)))
    assert parameters(pg) == ["embedding.weight"]
    assert pg.nodes["embedding.weight"]["uses"] == 2


def test_scale_nodes_are_transparent() -> None:
    graph_module = capture(Residual(), features(3, 4)).graph_module
    assert graph_module is not None
    before = parameter_graph(graph_module.graph)
    scaled = ScaleNodes({"fc.weight": 2.0})(graph_module)
    assert scaled is not None
    assert nx.utils.graphs_equal(before, parameter_graph(scaled.graph_module.graph))


def test_factors_of_a_weight_norm_meet_before_the_data() -> None:
    pg = parameter_graph(
        export(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), features(2, 4))
    )
    (junction,) = (v for v in pg if v.startswith("%_weight_norm"))
    assert not pg.nodes[junction]["data"]
    assert {slot for *_, slot in pg.in_edges(junction, data="slot")} == {"v", "g"}
    for name in ("parametrizations.weight.original0", "parametrizations.weight.original1"):
        assert pg.nodes[name]["op"] == "aten.linear"
        assert pg.nodes[name]["slot"] == "weight"


def test_parameter_that_is_the_output() -> None:
    class Temperature(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, self.log.exp()

    pg = parameter_graph(export(Temperature(), features(2, 4)))
    assert pg.nodes["log"]["op"] == "output" and pg.nodes["log"]["uses"] == 1


def test_chain_nests_blocks_but_not_lists() -> None:
    names = ["embed", "h.0.norm", "h.0.fc", "h.1.norm", "h.1.fc", "head"]
    kinds = ["Embedding", "LayerNorm", "Linear", "LayerNorm", "Linear", "Linear"]
    pg = chain((f"{n}.weight", k, "weight", 1) for n, k in zip(names, kinds, strict=True))
    assert pg.graph == {"complete": False}
    assert parameters(pg) == [f"{name}.weight" for name in names]
    assert [pg.nodes[f"{name}.weight"]["order"] for name in names] == list(range(6))
    blocks = [v for v in pg if pg.nodes[v]["op"] == "block"]
    assert [sorted(pg.predecessors(v)) for v in blocks] == [["%0", "%2"], ["%2.0", "%4"]]


@pytest.mark.parametrize("names", [["a"], ["a.b.c"], [""]])
def test_chain_of_one(names: list[str]) -> None:
    pg = chain((f"{name}.weight".lstrip("."), "Linear", "weight", 2) for name in names)
    assert len(pg) == 2


def test_without_a_graph_there_is_a_chain() -> None:
    with pytest.warns(CaptureWarning):
        captured = capture(DataDependent(), features(5, 4))
    pg = capture_graph(captured)
    assert pg.graph == {"complete": False}
    assert parameters(pg) == ["first.weight", "first.bias", "second.weight", "second.bias"]
    assert pg.nodes["second.bias"]["rank"] == 1


def test_json_round_trip() -> None:
    pg = capture_graph(capture(Oddity(), tokens(6, 5, 11)))
    read = from_json(json.loads(json.dumps(to_json(pg))))
    assert nx.utils.graphs_equal(read, pg)
    assert list(read) == list(pg)
    assert nx.utils.graphs_equal(
        from_json(to_json(nx.DiGraph(complete=True))), nx.DiGraph(complete=True)
    )


def test_a_file_of_before_does_not_say_through_what_values_are_read() -> None:
    packed = to_json(capture_graph(capture(nn.Sequential(nn.Linear(4, 2)), features(3, 4))))
    del packed["nodes"][-1]["through"]
    assert from_json(packed).nodes["%linear"]["through"] == UNKNOWN


def test_a_bare_node_is_an_unused_parameter() -> None:
    pg: nx.DiGraph = nx.DiGraph()
    pg.add_node("weight")
    assert from_json(to_json(pg)).nodes["weight"]["uses"] == 0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda packed: packed.pop("nodes"), r"the graph has \['complete', 'edges'\]"),
        (lambda packed: packed.update(complete=1), "complete 1, expected bool"),
        (lambda packed: packed["nodes"].insert(0, 3), "node 0 has int"),
        (lambda packed: packed["nodes"][0].pop("op"), r"node 0 has \['kind', 'name'"),
        (lambda packed: packed["nodes"][0].update(rank="2"), "node 0 has rank '2', expected int"),
        (lambda packed: packed["nodes"][0].update(rank=-1), "'weight' has rank -1"),
        (lambda packed: packed["nodes"][1].update(name="weight"), "node 'weight' twice"),
        (lambda packed: packed["nodes"][-1].update(junction=0), "expected a dict with"),
        (lambda packed: packed["edges"].append([0, 9, ""]), r"edge 2 is \[0, 9, ''\]"),
        (lambda packed: packed["edges"].append([2, 0, ""]), r"edge 2 is \[2, 0, ''\]"),
        (lambda packed: packed["edges"].append([0.0, 2, ""]), "positions of 3 nodes"),
    ],
)
def test_malformed(edit: Callable[[Any], object], message: str) -> None:
    packed = to_json(chain([("weight", "Linear", "weight", 2), ("bias", "Linear", "bias", 1)]))
    edit(packed)
    with pytest.raises(ProfileError, match=message) as error:
        from_json(packed)
    assert "record the base model again" in str(error.value)


@pytest.mark.parametrize("packed", [None, [], "graph", {}])
def test_no_graph_at_all(packed: Any) -> None:
    with pytest.raises(ProfileError, match="expected a dict with"):
        from_json(packed)


class ShapedLike(nn.Module):
    """A mask that has a stream's shape and type, and nothing of its values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x)
        mask = torch.zeros_like(hidden) + torch.arange(4).type_as(hidden).expand_as(hidden)
        return self.head(hidden.tanh() + mask)  # type: ignore[no-any-return]


def test_what_is_only_shaped_like_a_stream_is_no_flow() -> None:
    pg = parameter_graph(export(ShapedLike(), features(5, 4)))
    assert list(pg.predecessors("%linear_1")) == ["%linear", "head.weight", "head.bias"]
