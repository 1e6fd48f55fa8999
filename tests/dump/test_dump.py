"""The dump: every format says what the assignments say, and can be read by its own readers."""

import ast
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from flerm_fx.assign.assignment import Assignment
from flerm_fx.capture.tracing import capture
from flerm_fx.dump import dump
from flerm_fx.dump.dot import multiplier_colour
from flerm_fx.dump.table import format_base
from flerm_fx.errors import InputError
from flerm_fx.ops.scale import ScaleNodes
from flerm_fx.probe.estimate import Estimate
from tests.dump.examples import Mixer, assignments_for, one, parse_dot


@pytest.fixture(scope="module")
def mixer() -> tuple[list[Assignment], GraphModule]:
    model = Mixer()
    plain = capture(model, torch.zeros(3, 5, dtype=torch.long)).graph_module
    assert plain is not None
    result = ScaleNodes({"query.weight": 2.0})(plain)
    assert result is not None
    scaled = result.graph_module
    return assignments_for(model, scaled), scaled


# --- table


def test_table_lists_parameters_in_order_with_every_number() -> None:
    bias = one(parameter="up.bias", node="up_bias", shape=(8,), base=(("down.bias", 0.5),))
    lines = dump([one(), bias], None).split("\n")
    assert lines[0].split()[:5] == ["parameter", "node", "op", "shape", "base"]
    assert lines[2].split() == [
        "up.weight",
        "=",
        "linear",
        "8×4",
        "=",
        "3",
        "1.5",
        "±",
        "0.05",
        "2",
        "25%",
        "matched",
    ]
    assert lines[3].split() == [
        "up.bias",
        "=",
        "linear",
        "8",
        "down.…",
        "×0.5",
        "3",
        "1.5",
        "±",
        "0.05",
        "2",
        "25%",
        "matched",
    ]
    assert lines[4] == "2 parameters: 2 matched; multipliers 2 to 2."
    assert lines[5] == "'=' is the parameter's own name, '…' the ending of it."


def test_table_columns_line_up() -> None:
    rows = [
        one(),
        one(parameter="a", node="p_a", base=(("b", 0.25), ("c", 1.0)), multiplier=0.01234567),
    ]
    lines = dump(rows, None).split("\n")
    for title in ("node", "op", "shape", "base", "status"):
        start = lines[0].index(title)
        assert all(line[start - 2 : start] == "  " and line[start] != " " for line in lines[:4])


def test_table_shortens_long_base_lists_with_a_count() -> None:
    base = tuple((f"blocks.{i}.up.weight", 0.25) for i in range(12))
    row = dump([one(base=base)], None).split("\n")[2]
    assert "  blocks.0.… ×0.25 +11 more  " in row


def test_table_prints_names_that_have_nothing_in_common_whole() -> None:
    row = dump([one(base=(("mlp.kernel", 1.0),), node="p_up")], None).split("\n")[2]
    assert "  p_up  " in row
    assert "  mlp.kernel  " in row


def test_the_table_without_a_graph_has_no_nodes() -> None:
    assert dump([one(node="")], None).split("\n")[2].split()[:3] == ["up.weight", "-", "linear"]


def test_table_of_a_nested_transformer_fits_140_columns() -> None:
    name = "model.blocks.11.attention.projection.weight"
    row = one(parameter=name, node=name.replace(".", "_"), base=((name.replace("11", "3"), 0.5),))
    lines = dump([row], None).split("\n")
    assert max(map(len, lines)) <= 140
    assert name in lines[2]


def test_table_says_what_is_unresolved_and_unused() -> None:
    rows = [
        one(status="unresolved", multiplier=1.0),
        one(status="unused", base=(), multiplier=1.0, op="", target=Estimate(0, 0, "exact", 0)),
    ]
    text = dump(rows, None)
    *_, counts, _, unresolved, unused = text.split("\n")
    assert counts == "2 parameters: 1 unresolved, 1 unused."
    assert unresolved == "unresolved: an FSLR is zero or within its noise, on one side or both."
    assert unused == "unused: the outputs do not depend on it."
    assert text.split("\n")[3].split() == [
        "up.weight",
        "=",
        "-",
        "8×4",
        "-",
        "3",
        "0",
        "±",
        "0",
        "1",
        "-",
        "unused",
    ]


def test_every_format_says_when_a_parameter_was_measured(
    mixer: tuple[list[Assignment], GraphModule],
) -> None:
    assignments, graph_module = mixer
    late = [replace(a, after=4) if a.parameter == "query.bias" else a for a in assignments]
    table = dump(late, None).split("\n")
    assert [line.split()[0] for line in table if line.endswith("matched after 4")] == ["query.bias"]
    assert table[-2].endswith("'after k' measured k steps after the start.")
    for format in ("dot", "code"):
        lines = dump(late, graph_module, format).split("\n")  # type: ignore[arg-type]
        marked = [line for line in lines if "matched after 4" in line]
        assert marked
        assert all("query.bias" in line for line in marked)
    rows = json.loads(dump(late, None, "json"))["parameters"]
    assert {row["parameter"]: row["after"] for row in rows if row["after"]} == {"query.bias": 4}
    assert "after" not in dump(assignments, None)


def test_base_without_parts_is_a_dash() -> None:
    assert format_base(()) == "-"


# --- json


def test_json_holds_every_field() -> None:
    document = json.loads(dump([one()], None, "json"))
    assert document == {
        "format": "flerm_fx.dump",
        "version": 1,
        "parameters": [
            {
                "parameter": "up.weight",
                "node": "up_weight",
                "op": "aten.linear",
                "shape": [8, 4],
                "base": [{"parameter": "up.weight", "share": 1.0}],
                "base_fslr": 3.0,
                "target": {
                    "value": 1.5,
                    "stderr": 0.05,
                    "method": "sampled",
                    "samples": 8,
                    "note": "",
                },
                "multiplier": 2.0,
                "status": "matched",
                "after": 0,
                "error": 0.25,
            }
        ],
        "warnings": [],
    }


def test_json_has_null_for_what_is_not_finite() -> None:
    row = one(base_fslr=math.inf, target=Estimate(math.nan, math.nan, "exact", 0))
    text = dump([row], None, "json")
    assert "NaN" not in text
    assert "Infinity" not in text
    (parameter,) = json.loads(text)["parameters"]
    assert parameter["base_fslr"] is None
    assert parameter["target"]["value"] is None
    assert parameter["target"]["stderr"] is None


# --- code


class WithoutFrees(ast.NodeTransformer):
    """Takes out statements that only free memory: `a = b = None`."""

    def visit_Assign(self, node: ast.Assign) -> ast.Assign | None:
        frees = isinstance(node.value, ast.Constant) and node.value.value is None
        return None if frees else node


def test_code_is_valid_python_and_runs_the_same_statements(
    mixer: tuple[list[Assignment], GraphModule],
) -> None:
    assignments, graph_module = mixer
    annotated = ast.parse(dump(assignments, graph_module, "code"))
    code = WithoutFrees().visit(ast.parse(graph_module.code))
    assert ast.dump(annotated) == ast.dump(code)


def test_code_annotates_every_read_and_every_scale_node(
    mixer: tuple[list[Assignment], GraphModule],
) -> None:
    assignments, graph_module = mixer
    lines = dump(assignments, graph_module, "code").split("\n")
    for assignment in assignments:
        name = assignment.parameter.rpartition(".")[2]
        shape = "×".join(map(str, assignment.shape))
        comment = (
            rf"  {name} {shape} +{assignment.target.value:.4g} ± 0\.01 +"
            rf"{assignment.multiplier:.4g}  {assignment.parameter} +{assignment.status}$"
        )
        annotated = [line for line in lines if re.search(comment, line)]
        # A tied parameter may be read in several places; each has its scale node.
        assert len(annotated) >= 2
        assert len(annotated) % 2 == 0
        assert any(line.lstrip().startswith(f"{assignment.node} = ") for line in annotated)
        assert any("scale(" in line for line in annotated)


def test_code_names_the_module_of_each_operation_and_what_it_reads(
    mixer: tuple[list[Assignment], GraphModule],
) -> None:
    assignments, _ = mixer
    rows = {assignment.parameter: assignment for assignment in assignments}
    lines = dump(*mixer, "code").split("\n")
    (embedding,) = [line for line in lines if " embedding = " in line]
    fslr, multiplier = rows["embed.weight"].target.value, rows["embed.weight"].multiplier
    comment = rf"  # embed: Embedding +weight +{fslr:.4g} +{multiplier:.4g}$"
    assert re.search(comment, embedding)
    (query,) = [line for line in lines if " query: Linear " in line]
    weight, bias = rows["query.weight"].multiplier, rows["query.bias"].multiplier
    assert query.endswith(f"{weight:.4g}, {bias:.4g}")


def test_code_has_its_comments_in_columns(mixer: tuple[list[Assignment], GraphModule]) -> None:
    lines = dump(*mixer, "code").split("\n")
    start = lines[0].index("# module")
    commented = [line for line in lines if "  # " in line]
    assert len(commented) > len(mixer[0])
    assert all(line.index("  # ") == start - 2 for line in commented if line.index("  # ") <= 100)


def test_code_with_focus_counts_the_lines_of_others(
    mixer: tuple[list[Assignment], GraphModule],
) -> None:
    text = dump(*mixer, "code", focus="query")
    ast.parse(text)
    assert "query: Linear" in text
    assert "query_weight = self.query.weight" in text
    assert "embed" not in text
    hidden = sum(int(count) for count in re.findall(r"# … (\d+) lines?\n", text))
    whole = len(dump(*mixer, "code").split("\n"))
    assert hidden + len(text.split("\n")) - text.count("# …") == whole


def test_code_of_a_graph_without_scale_nodes() -> None:
    model = nn.Linear(3, 2)
    graph_module = capture(model, torch.zeros(4, 3)).graph_module
    text = dump(assignments_for(model, graph_module), graph_module, "code")
    ast.parse(text)
    assert re.search(r"weight = self\.weight +#  +weight 2×3 +1 ± 0\.01 +2  weight", text)


def test_code_marks_what_is_not_matched(mixer: tuple[list[Assignment], GraphModule]) -> None:
    assignments, graph_module = mixer
    text = dump(assignments, graph_module, "code")
    assert re.search(r" spare +unused\n", text)


# --- dot


def test_dot_has_a_coloured_box_for_every_parameter(
    mixer: tuple[list[Assignment], GraphModule],
) -> None:
    assignments, graph_module = mixer
    nodes, _ = parse_dot(dump(assignments, graph_module, "dot"))
    for assignment in assignments:
        box = nodes[assignment.parameter]
        assert box["fillcolor"] == multiplier_colour(assignment.multiplier)
        assert f"multiplier {assignment.multiplier:.4g}" in box["label"]
        assert ("dotted" in box["style"]) == (assignment.status == "unused")


def test_dot_edges_are_the_data_flow(mixer: tuple[list[Assignment], GraphModule]) -> None:
    nodes, edges = parse_dot(dump(*mixer, "dot"))
    assert edges == {
        ("input:tokens", "embed.weight"),
        ("embed.weight", "position"),
        ("position", "norm.weight"),
        ("norm.weight", "norm.bias"),
        ("norm.bias", "query.weight"),
        ("query.weight", "query.bias"),
        ("norm.bias", "key.weight"),
        ("query.bias", "at:matmul"),
        ("key.weight", "at:matmul"),
        ("at:matmul", "at:matmul_1"),
        ("norm.bias", "at:matmul_1"),
        ("at:matmul_1", "at:add_1"),
        ("position", "at:add_1"),
        ("at:add_1", "embed.weight"),  # tied: the head
        ("embed.weight", "output:"),
    }
    points = {name for name, node in nodes.items() if node.get("shape") == "point"}
    assert points == {"at:matmul", "at:matmul_1", "at:add_1"}


def test_dot_edges_grow_linearly_with_depth() -> None:
    class Residual(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(depth))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x).relu()
            return x

    def edges(depth: int) -> int:
        model = Residual(depth)
        graph_module = capture(model, torch.zeros(2, 3)).graph_module
        text = dump(assignments_for(model, graph_module), graph_module, "dot")
        return len(parse_dot(text)[1])

    assert edges(6) - edges(4) == edges(4) - edges(2)


def test_dot_quotes_what_needs_it() -> None:
    model = nn.Linear(3, 2)
    graph_module = capture(model, torch.zeros(4, 3)).graph_module
    rows = [one(parameter="weight", base=(('odd "name" \\', 1.0),))]
    nodes, _ = parse_dot(dump(rows, graph_module, "dot"))
    assert set(nodes) == {"weight", "input:input", "output:"}


@pytest.mark.parametrize(
    ("multiplier", "colour"),
    [
        (1.0, "#ffffff"),
        (1e9, "#f28e3c"),
        (1e-9, "#5b8fd9"),
        (0.0, "#d0d0d0"),
        (math.nan, "#d0d0d0"),
    ],
)
def test_multiplier_colour(multiplier: float, colour: str) -> None:
    assert multiplier_colour(multiplier) == colour


# --- the call


@pytest.mark.parametrize("format", ["code", "dot"])
def test_formats_that_need_a_graph_say_so(format: Any) -> None:
    with pytest.raises(
        InputError, match=f"format '{format}' draws the captured graph.*could not capture"
    ):
        dump([one()], None, format)


def test_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="one of 'table', 'json', .* and not 'pdf'"):
        dump([one()], None, "pdf")  # type: ignore[arg-type]


@pytest.mark.parametrize("as_path", [str, Path])
def test_text_is_written_to_a_path_which_is_returned(
    tmp_path: Path, as_path: Callable[[Path], str | Path]
) -> None:
    file = tmp_path / "dump.txt"
    assert dump([one()], None, path=as_path(file)) == str(file)
    assert file.read_text(encoding="utf-8") == dump([one()], None) + "\n"


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "dump.txt", tmp_path / "null\0byte"):
        with pytest.raises(InputError, match="cannot write to") as raised:
            dump([one()], None, path=path)
        assert repr(str(path)) in str(raised.value)
