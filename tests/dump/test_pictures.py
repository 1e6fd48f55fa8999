"""Pictures: what they show, what they leave out, and what is said where they cannot be drawn."""

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

import flerm_fx
from flerm_fx.assign.assignment import Assignment
from flerm_fx.capture.tracing import capture
from flerm_fx.dump import dump
from flerm_fx.dump.dot import multiplier_colour
from flerm_fx.dump.render import render
from flerm_fx.errors import FlermError, InputError
from flerm_fx.ops.scale import ScaleNodes
from tests.cases import CASES, make
from tests.dump.examples import Mixer, assignments_for, parse_dot

Dumped = tuple[list[Assignment], GraphModule]


def with_scales(model: torch.nn.Module, inputs: torch.Tensor) -> Dumped:
    graph_module = capture(model, inputs).graph_module
    assert graph_module is not None
    ScaleNodes()(graph_module)
    return assignments_for(model, graph_module), graph_module


@pytest.fixture(scope="module")
def mixer() -> Dumped:
    return with_scales(Mixer(), torch.zeros(3, 5, dtype=torch.long))


@pytest.fixture(scope="module")
def transformer() -> Dumped:
    return with_scales(*make("pre-norm"))


@pytest.fixture
def fake_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A program `dot`, the only one on the PATH, that does as it is told."""

    def put(script: str) -> None:
        program = tmp_path / "dot"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return put


def all_nodes(text: str) -> dict[str, dict[str, str]]:
    """The boxes of a picture and of the frames in it; pydot takes seconds for so many."""
    return {
        name: dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', attributes))
        for name, attributes in re.findall(r'^ *"(\w+)" \[(.*)\];$', text, re.MULTILINE)
    }


# --- what is shown


def test_op_level_shows_every_node_but_sizes(transformer: Dumped) -> None:
    assignments, graph_module = transformer
    boxes = all_nodes(dump(assignments, graph_module, "dot", level="op"))
    nodes = [n for n in graph_module.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    assert boxes.keys() >= {node.name for node in nodes}
    assert not any("sym_size" in name for name in boxes)
    colours = {a.parameter: multiplier_colour(a.multiplier) for a in assignments}
    for node in nodes:
        if "parameter" in node.meta:
            assert boxes[node.name]["fillcolor"] == colours[node.meta["parameter"]]
    scaled = [box["label"] for box in boxes.values() if box["label"].startswith("scale ×")]
    assert len(scaled) == len(assignments)
    assert all("multiplier" in label and "FSLR" in label for label in scaled)


def test_op_level_frames_are_the_modules_that_hold_parameters(transformer: Dumped) -> None:
    text = dump(*transformer, "dot", level="op")
    assert 'label="blocks.0: Block"' in text
    assert 'label="attention: Attention"' in text
    assert "Dropout" not in text


def test_op_level_puts_weights_below_the_data_of_their_first_reader(mixer: Dumped) -> None:
    text = dump(*with_scales(*make("mlp")), "dot", level="op")
    invisible = re.findall(r'"(\w+)" -> "(\w+)" \[style=invis\]', text)
    assert set(invisible) == {
        ("input_1", "_0_weight"),
        ("input_1", "_0_bias"),
        ("relu_", "_2_weight"),
        ("relu_", "_2_bias"),
    }
    text = dump(*mixer, "dot", level="op")  # a tied weight has a place once, above its last reader
    assert len(re.findall(r'-> "embed_weight" \[style=invis\]', text)) == 1


def test_what_follows_a_tied_weight_is_below_what_it_is_read_after(mixer: Dumped) -> None:
    text = dump(*mixer, "dot")
    invisible = re.findall(r'"([\w.:]+)" -> "([\w.:]+)" \[style=invis\]', text)
    assert invisible == [("at:add_1", "output:")]
    assert '"at:add_1" -> "embed.weight";' in text


def test_sizes_are_no_data_flow(transformer: Dumped) -> None:
    _, edges = parse_dot(dump(*transformer, "dot"))
    assert {head for tail, head in edges if tail.startswith("input:")} == {"tokens.weight"}


def test_focus_shows_a_module_and_its_neighbours(transformer: Dumped) -> None:
    assignments, graph_module = transformer
    text = dump(assignments, graph_module, "dot", focus="blocks.1.feed_forward")
    nodes, edges = parse_dot(text)
    own = {a.parameter for a in assignments if a.parameter.startswith("blocks.1.feed_forward.")}
    assert own <= nodes.keys()
    assert all(name in own or name.startswith("at:") for name in nodes)
    assert all(box["fillcolor"] == "#d0d0d0" for name, box in nodes.items() if name not in own)
    assert all(own.intersection(edge) for edge in edges)
    assert "grey: neighbours" in text


def test_focus_on_the_reader_of_a_tied_weight_shows_the_weight(mixer: Dumped) -> None:
    nodes, _ = parse_dot(dump(*mixer, "dot", focus="head"))
    assert "embed.weight" in nodes
    assert "query.weight" not in nodes
    assert "head" in dump(*mixer, "code", focus="head")


def test_focus_on_what_is_not_there_names_the_nearest(transformer: Dumped) -> None:
    for format in ("dot", "code"):
        with pytest.raises(InputError, match=r"focus is 'blocks\.9', .*'blocks\.[01]'"):
            dump(*transformer, format, focus="blocks.9")  # type: ignore[arg-type]


def test_a_picture_has_a_background_and_a_margin(mixer: Dumped) -> None:
    text = dump(*mixer, "dot")
    assert 'bgcolor="#ffffff"' in text
    assert 'pad="0.3"' in text


def test_boxes_say_what_is_not_matched(mixer: Dumped) -> None:
    spare = next(line for line in dump(*mixer, "dot").split("\n") if '"spare" [' in line)
    assert "\\nunused" in spare
    assert "matched" not in spare


# --- options


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("table", {"level": "op"}, "level 'op' is for the pictures .* not for format 'table'"),
        ("json", {"focus": "a"}, "focus is for 'dot', .* not for format 'json'"),
        ("dot", {"level": "module"}, "level is one of 'parameter', 'op', and not 'module'"),
        ("png", {}, "format 'png' is no text .* name one with path"),
    ],
)
def test_options_that_do_not_fit(
    mixer: Dumped, format: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        dump(*mixer, format, **options)


# --- drawing


@pytest.mark.parametrize("format", ["svg", "png"])
def test_without_graphviz_the_message_says_what_to_install(
    mixer: Dumped, format: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FlermError, match=f"'{format}' .*'dot' is not on the PATH.*apt install"):
        dump(*mixer, format, tmp_path / "picture")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_takes_too_long(fake_dot: Any) -> None:
    fake_dot("exec /bin/sleep 9")
    with pytest.raises(FlermError, match=r"not drawn the picture in 0\.1 s; draw one module"):
        render("digraph {}", "svg", seconds=0.1)


def test_graphviz_own_error_is_passed_on(fake_dot: Any) -> None:
    fake_dot("echo 'syntax error in line 3' >&2; exit 1")
    with pytest.raises(FlermError, match="failed to draw the picture: syntax error in line 3"):
        render("digraph {}", "svg")


@pytest.mark.parametrize("format", ["json", "code", "dot", "svg", "png"])
def test_a_path_that_cannot_be_written(
    mixer: Dumped, format: Any, fake_dot: Any, tmp_path: Path
) -> None:
    fake_dot("echo 'graph 1 5 5'")
    with pytest.raises(InputError, match="cannot write to .*missing.* an existing folder"):
        dump(*mixer, format, tmp_path / "missing" / "file")


def test_a_path_is_tried_before_anything_is_drawn(
    mixer: Dumped, fake_dot: Any, tmp_path: Path
) -> None:
    fake_dot("exit 1")
    with pytest.raises(InputError, match="cannot write to"):
        dump(*mixer, "svg", tmp_path)
    file, kept = tmp_path / "new.svg", tmp_path / "old.svg"
    kept.write_text("old")
    for path in (file, kept):
        with pytest.raises(FlermError, match="failed to draw"):
            dump(*mixer, "svg", path)
    assert not file.exists()
    assert kept.read_text() == "old"


def test_a_png_that_nobody_could_read(fake_dot: Any) -> None:
    fake_dot("echo 'graph 1 90.5 800'")
    with pytest.raises(FlermError, match="90 × 800 inches, too much for a png .* use 'svg'"):
        render("digraph {}", "png")


@pytest.mark.parametrize(("sides", "resolution"), [("5 5", 144), ("20 100", 96), ("5 450", 72)])
def test_a_large_png_is_drawn_coarser(fake_dot: Any, sides: str, resolution: int) -> None:
    fake_dot(f'if [ "$1" = -Tplain ]; then echo "graph 1 {sides}"; else printf "%s" "$2"; fi')
    assert render("digraph {}", "png") == f"-Gdpi={resolution}".encode()


needs_graphviz = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")


@needs_graphviz
def test_a_chain_of_modules_is_drawn_downwards(transformer: Dumped) -> None:
    text = dump(*transformer, "dot", level="op")
    width, height = map(
        float,
        subprocess.run(
            ["dot", "-Tplain"], input=text.encode(), capture_output=True, check=True
        ).stdout.split()[2:4],
    )
    assert height > 4 * width


@pytest.mark.slow
@needs_graphviz
@pytest.mark.parametrize("level", ["parameter", "op"])
@pytest.mark.parametrize("case", sorted(CASES))
def test_every_model_is_drawn(case: str, level: Any, tmp_path: Path) -> None:
    assignments, graph_module = with_scales(*make(case))
    svg = dump(assignments, graph_module, "svg", level=level)
    root = ET.fromstring(svg.encode())
    texts = "".join(root.itertext())
    for assignment in assignments:
        if level == "parameter" or assignment.node:  # what is frozen or unused has no scale node
            assert f"multiplier {assignment.multiplier:.4g}" in texts
    path = tmp_path / "picture.png"
    assert dump(assignments, graph_module, "png", path, level=level) == str(path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_compiled_model_passes_its_options_on() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    base, target = (
        torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)) for _ in range(2)
    )
    adam = torch.optim.Adam(base.parameters(), lr=1e-3)
    compiled = flerm_fx.compile(target, flerm_fx.record(base, adam, x, y).profile)
    text = compiled.dump("dot", level="op", focus="1")
    assert "scale ×" in text
    assert "subgraph" in text
    assert '"cluster_0"' not in text
