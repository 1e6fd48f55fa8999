"""Names that hold anything, through every dump and every command: text stays text."""

import ast
import json
import re
import shutil
import struct
import unicodedata
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

import flerm_fx
from flerm_fx.commands.cli import main
from flerm_fx.dump import dump
from flerm_fx.dump.plot import write_plot
from tests.dump.examples import one, parse_dot
from tests.dump.report import profiles

# Names that a graph can have, and those that its code cannot hold.
IN_GRAPHS = (
    "esc\x1b[31mred",
    "c1\x9b31m",
    "bell\x07",
    "del\x7f",
    "bidi\u202egnp",
    "isolate\u2066x",
    "zero\u200bwidth",
    "line\u2028x",
    "</script><script>alert(1)</script>",
    "entity&#27;&lt;",
    "$x$ [bold]x[/bold]",
)
NOT_IN_GRAPHS = (
    "newline\n    globals()  #",
    "return\rx",
    'quote"), print("OUCH',
    "back\\nslash",
    "back\\",
)


class Net(nn.Module):
    """A parameter of any name between two linear maps."""

    def __init__(self, width: int, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(4, width)
        self.held = nn.ParameterDict()
        self.held[name] = nn.Parameter(torch.linspace(0.5, 1.5, width))
        self.down = nn.Linear(width, 3)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down(self.up(x).tanh() * self.held[self.name])
        return output


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 4, generator=generator), torch.arange(6) % 3


def recorded(model: nn.Module) -> flerm_fx.BaseProfile:
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    return flerm_fx.record(model, adam, *batch()).profile


@pytest.fixture(scope="module")
def base() -> flerm_fx.BaseProfile:
    return recorded(Net(5, "gain"))


def printable(text: str) -> bool:
    """Whether a text has no control of Unicode in it but ends of lines."""
    controls = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return all(c == "\n" or unicodedata.category(c) not in controls for c in text)


@pytest.mark.parametrize("name", IN_GRAPHS)
def test_every_dump_of_a_model_with_such_a_name(name: str, base: flerm_fx.BaseProfile) -> None:
    compiled = flerm_fx.compile(Net(7, name), base)
    full = f"held.{name}"
    escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in full)
    assert compiled.graph_module is not None

    table = compiled.dump()
    assert printable(table)
    assert [line.split("  ")[0] for line in table.split("\n")[2:7]] == [
        row.parameter if row.parameter != full else escaped for row in compiled.assignments
    ]

    code = compiled.dump("code")
    assert printable(code)
    tree = ast.parse(code)
    assert [type(part).__name__ for part in tree.body] == ["FunctionDef"]
    read = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert name in read  # a string literal whose escapes stand for the name itself

    picture = compiled.dump("dot")
    assert printable(picture)
    labels = [box["label"] for box in parse_dot(picture)[0].values() if "label" in box]
    shown = escaped.replace("\\", "\\\\").replace("&", "&amp;")
    assert sum(label.startswith(f"{shown}\\n") for label in labels) == 1

    document = json.loads(compiled.dump("json"))
    assert [row["parameter"] for row in document["parameters"]] == [
        row.parameter for row in compiled.assignments
    ]
    assert printable(compiled.dump("json"))
    page = compiled.dump("html")
    assert printable(page)
    assert "<script>alert" not in page


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz")
@pytest.mark.parametrize("level", ["parameter", "op"])
@pytest.mark.parametrize("name", [IN_GRAPHS[0], *IN_GRAPHS[-3:]])
def test_a_picture_shows_the_name(name: str, level: Any, base: flerm_fx.BaseProfile) -> None:
    text = flerm_fx.compile(Net(7, name), base).dump("svg", level=level)
    assert printable(text)
    elements = ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")
    drawn = ["".join(element.itertext()).replace("\xa0", " ") for element in elements]
    escaped = name.replace("\x1b", "\\x1b")
    assert (f"held.{escaped}" if level == "parameter" else escaped) in drawn


@pytest.mark.parametrize("name", NOT_IN_GRAPHS)
def test_a_name_that_code_cannot_hold_is_measured_without_a_graph(
    name: str, base: flerm_fx.BaseProfile, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(flerm_fx.CaptureWarning, match="has a quote, a backslash or the end") as seen:
        compiled = flerm_fx.compile(Net(5, name), base, on_unmatched="error", mapping=same(name))
    assert printable(str(seen[0].message))
    assert "\n" not in str(seen[0].message)
    assert compiled.graph_module is None
    for row in compiled.assignments:
        assert row.multiplier == pytest.approx(1.0, rel=1e-3)  # a base against itself
    table = compiled.dump()
    assert printable(table)
    assert len(table.split("\n")) == 2 + 5 + sum(
        table.count(mark) for mark in ("parameters:", "\n'", "\nunresolved: ")
    )
    rows = json.loads(compiled.dump("json"))["parameters"]
    assert f"held.{name}" in [row["parameter"] for row in rows]
    assert printable(compiled.dump("html"))
    assert capsys.readouterr().out == ""


def same(name: str) -> Any:
    return lambda target: target.replace(name, "gain")


def test_base_names_and_operations_that_hold_anything() -> None:
    graph_module = flerm_fx.instrument(nn.Linear(4, 3), batch()[0])
    for odd in (*IN_GRAPHS, *NOT_IN_GRAPHS):
        rows = [
            one(parameter="weight", node="weight", op=odd, base=((odd, 0.5), ("b", 0.2))),
            one(parameter=odd, node=odd, base=((odd, 1.0),)),
        ]
        table = dump(rows, None)
        assert printable(table)
        assert len(table.split("\n")) == 2 + 2 + 2
        code = dump(rows, graph_module, "code")
        assert printable(code)
        assert [type(part).__name__ for part in ast.parse(code).body] == ["FunctionDef"]
        picture = dump(rows, graph_module, "dot")
        assert printable(picture)
        assert parse_dot(picture)[0]


@pytest.mark.parametrize("name", [IN_GRAPHS[0], NOT_IN_GRAPHS[0]])
def test_a_model_that_no_profile_could_name_is_refused_before_anything(name: str) -> None:
    model = Net(5, name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", flerm_fx.CaptureWarning)
        with pytest.raises(flerm_fx.ProfileError, match="characters that are not print") as raised:
            flerm_fx.record(model, adam, *batch())
    assert repr(f"held.{name}") in str(raised.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not adam.state


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    output = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, output.out, output.err


def test_commands_on_a_model_with_such_names(
    base: flerm_fx.BaseProfile,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    base.save("base.safetensors")
    (tmp_path / "odd_models.py").write_text(
        "from tests.test_escapes import IN_GRAPHS, NOT_IN_GRAPHS, Net\n"
        "def escape(): return Net(7, IN_GRAPHS[0])\n"
        "def newline(): return Net(7, NOT_IN_GRAPHS[0])\n"
        "def broken(): raise ValueError('two\\nlines\\x1b[31m')\n"
    )
    escape = ("base.safetensors", "--model", "odd_models:escape")
    code, out, err = run(capsys, "match", *escape)
    assert (code, err) == (0, "")
    assert re.search(r"^held\.esc\\x1b\[31mred +7 +held\.gain +5$", out, re.MULTILINE)
    for options in ((), ("--dump", "code"), ("--dump", "dot"), ("--dump", "json")):
        code, out, err = run(capsys, "compile", *escape, *options)
        assert (code, err) == (0, "")
        assert printable(out)
    code, out, err = run(capsys, "report", *escape, "--out", "odd\x1b[31m\n.html")
    assert (code, out, err) == (0, "wrote odd\\x1b[31m\\n.html\n", "")
    assert printable(Path("odd\x1b[31m\n.html").read_text(encoding="utf-8"))
    with pytest.warns(flerm_fx.CaptureWarning, match="newline"):
        code, out, err = run(
            capsys, "match", "base.safetensors", "--model", "odd_models:newline",
            "--on-unmatched", "unit",
        )  # fmt: skip
    assert (code, err) == (0, "")
    assert re.search(r"^held\.newline\\n    globals\(\)  # +7 ", out, re.MULTILINE)
    code, out, err = run(capsys, "match", "base.safetensors", "--model", "odd_models:broken")
    assert (code, out) == (1, "")
    assert "ValueError: two\\nlines\\x1b[31m; expected" in err
    assert err.count("\n") == 1


def test_commands_on_a_profile_with_such_a_name(
    base: flerm_fx.BaseProfile, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A stranger's file, whose header says another name than the recorded one."""
    path = tmp_path / "base.safetensors"
    base.save(path)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    odd = json.dumps(json.dumps("held.x\n    globals()  #\x1b[31m")[1:-1])[1:-1]
    header = raw[8 : 8 + length].decode().replace("held.gain", odd).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
    file, picture = str(path), str(tmp_path / "out.svg")
    for command in (
        ("inspect", file),
        ("inspect", file, "--json"),
        ("diff", file, file),
        ("match", file, "--model", "torch.nn:Identity"),
        ("compile", file, "--model", "torch.nn:Identity", "--dump", "code"),
        ("plot", file, "--out", picture),
        ("report", file, "--out", picture),
    ):
        code, out, err = run(capsys, *command)
        assert (code, out) == (1, "")
        assert err.startswith(f"flerm-fx: {file}: 'held.x\\n    globals()  #\\x1b[31m' has char")
        assert printable(err)
        assert err.count("\n") == 1
    assert not Path(picture).exists()


def test_a_plot_takes_names_for_text_and_never_for_mathematics(tmp_path: Path) -> None:
    names = ["$\\frac$.weight", "$x$ and $y.weight", "plain.weight"]
    run = profiles.profile(names, steps=(0, 1))
    write_plot({"$\\nothing$\x1b": run}, file := tmp_path / "plot.svg")
    text = file.read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert text.count("<!-- $\\frac$.weight -->") == 2  # beside its row and its line
    assert "<!-- $\\nothing$\\x1b -->" in text
