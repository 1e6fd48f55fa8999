"""Rows: in execution order, nested by module, with repeats as runs."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from flerm_fx.align.parameter_graph import capture_graph, chain, parameters
from flerm_fx.capture.tracing import capture
from flerm_fx.dump.report.outline import Row, edges, outline
from tests.cases import make


def leaves(rows: Sequence[Row]) -> Iterator[Row]:
    for row in rows:
        yield from leaves(row.children) if row.children else [row]


def of(*names: str) -> tuple[Row, ...]:
    return outline(chain((f"{name}.weight", "Linear", "weight", 2) for name in names))


def shown(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(row.kind, row.name) for row in rows if row.kind != "meeting"]


@pytest.mark.parametrize("name", ["linear", "tied", "convnet", "oddity"])
def test_every_parameter_has_a_row_and_data_flows_down(name: str) -> None:
    model, inputs = make(name)
    graph = capture_graph(capture(model, inputs))
    rows = list(leaves(outline(graph)))
    assert {p for row in rows for p in row.parameters} == set(parameters(graph))
    place = {row.junction: at for at, row in enumerate(rows) if row.junction}
    flow = edges(graph)
    assert flow or name == "linear"
    assert all(place[tail] < place[head] for tail, head in flow)


def test_the_blocks_of_a_transformer_are_one_run_with_their_additions() -> None:
    model, inputs = make("pre-norm")
    rows = outline(capture_graph(capture(model, inputs)))
    assert [row.name for row in rows if row.kind == "run"] == ["blocks.0–1"]
    [run] = [row for row in rows if row.kind == "run"]
    for block in run.children:
        assert [row.op for row in block.children if row.kind == "meeting"] == ["add", "add"]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


def test_the_last_block_of_an_inner_list_has_its_addition_too() -> None:
    stages = nn.Sequential(*(nn.Sequential(*(Layer() for _ in range(3))) for _ in range(2)))
    rows = outline(capture_graph(capture(nn.Sequential(nn.Linear(4, 4), stages), torch.ones(2, 4))))
    assert shown(rows) == [("site", "0"), ("run", "1.0–1")]
    for stage in rows[1].children:
        assert (stage.kind, stage.name[1:]) == ("run", ".0–2")
        assert [row.children[-1].kind for row in stage.children] == ["meeting"] * 3


def test_lists_that_alternate_repeat_by_their_period() -> None:
    names = [f"layers.{i}.{n}" for i in range(6) for n in (("a", "b") if i % 2 else ("c", "d"))]
    rows = of(*names)
    assert shown(rows) == [("run", "layers.0–5")]
    assert [child.name for child in rows[0].children] == ["0–1", "2–3", "4–5"]


def test_blocks_that_differ_stand_apart() -> None:
    rows = of(*(f"b.{i}.{n}" for i in range(4) for n in ("x", "y")), "b.4.x", "b.4.z")
    [group] = [row for row in rows if row.kind == "group"]
    assert shown(group.children) == [("run", "0–3"), ("group", "4")]


def test_names_without_an_index_do_not_repeat() -> None:
    rows = of("first", "second", "third")
    assert shown(rows) == [("site", "first"), ("site", "second"), ("site", "third")]


def test_what_the_output_does_not_depend_on_comes_last() -> None:
    model, inputs = make("oddity")
    last = outline(capture_graph(capture(model, inputs)))[-1]
    assert last.name == "unused"
    assert [row.parameters for row in last.children] == [("unused",)]
